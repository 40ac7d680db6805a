"""What is shown and said while data are read, and while anything else is worked on that can be counted.

What works takes a `Watch` and tells what it is given how much is done; it neither prints nor knows who looks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from micronet.console import Sparingly, console, duration, live
from micronet.errors import shown

Report = Callable[[str], None]  # takes one line at a time
Advance = Callable[[int], None]  # takes how much is done of all
Watch = Callable[[str, int, str], AbstractContextManager[Advance]]  # title, how much there is, of what

REDRAWN = 0.2  # seconds between two looks of a bar
UNSEEN = 0.5  # seconds of work that needs no bar
WIDEST_TITLE = 36  # characters, so that title, bar, counts and time are one line of 80 columns


def silent(line: str) -> None:
    """Says nothing."""


@contextmanager
def unwatched(title: str, total: int, unit: str) -> Iterator[Advance]:
    """A `Watch` of which nothing is seen."""
    yield lambda done: None


@contextmanager
def progress_bar(title: str, total: int, unit: str, report: Report) -> Iterator[Advance]:
    """Gives a function that takes how much of `total` is done: a bar on a terminal, else a line now and then."""
    meter = Meter(title, total, unit, report)
    try:
        yield meter.show
    finally:
        meter.close()


def counted(parts: Iterable[Sized], told: Advance) -> Iterator[Any]:
    """The same parts; tells how much of all they have been, when the next one is asked for."""
    done = 0
    for part in parts:
        yield part
        done += len(part)
        told(done)


class Meter:
    """How far one work is and how long the rest takes, as the part so far went."""

    def __init__(self, title: str, total: int, unit: str, report: Report):
        self.title, self.total, self.unit, self.report = shown(title, 100), total, unit, report
        self.began = self.drawn = time.monotonic()
        self.live, self.lines = live(sys.stderr), Sparingly(self.began)
        self.bar: Any = None

    def show(self, done: int) -> None:
        now = time.monotonic()
        if self.live:
            if now - self.drawn >= (REDRAWN if self.bar else UNSEEN):
                self.drawn = now
                try:
                    self._draw(done, now)
                except (OSError, ValueError):  # the terminal is gone; the work goes on
                    self.live, self.bar = False, None
        elif self.lines.due(now):
            self.report(f"{self.title}: {done:,} of {self.total:,} {self.unit}{self._left(done, now, ', ')}")

    def close(self) -> None:
        if self.bar:
            with suppress(OSError, ValueError):
                self.bar.stop()

    def _left(self, done: int, now: float, before: str = "") -> str:
        if not 0 < done <= self.total:
            return ""
        return f"{before}{duration((now - self.began) * (self.total - done) / done)} left"

    def _draw(self, done: int, now: float) -> None:
        if self.bar is None:
            from rich.progress import BarColumn, Progress, TextColumn

            columns = ("{task.description}", "{task.percentage:>3.0f} %", "{task.fields[said]}")
            title, percent, left = (TextColumn(column, markup=False) for column in columns)
            self.bar = Progress(
                title, BarColumn(20), percent, left, console=console(sys.stderr), transient=True, auto_refresh=False,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(shown(self.title, WIDEST_TITLE), total=self.total, said="")
        said = self._left(done, now) or f"of {self.total:,} {self.unit}"
        self.bar.update(self.task, completed=done, said=said, refresh=True)
