"""Progress shown while data are read, or during any other work that can be counted.

The working code takes a `Watch` and tells the function it yields how much is done; it neither prints nor knows who
is watching.
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
Advance = Callable[[int], None]  # takes how much of the total is done
Watch = Callable[[str, int, str], AbstractContextManager[Advance]]  # title, total, unit

REDRAWN = 0.2  # seconds between two redraws of a bar
UNSEEN = 0.5  # seconds: shorter work gets no bar
WIDEST_TITLE = 36  # characters, so that title, bar, counts and time fit in 80 columns


def silent(line: str) -> None:
    """Says nothing."""


@contextmanager
def unwatched(title: str, total: int, unit: str) -> Iterator[Advance]:
    """A `Watch` that shows nothing."""
    yield lambda done: None


@contextmanager
def progress_bar(title: str, total: int, unit: str, report: Report) -> Iterator[Advance]:
    """Yields a function to be told how much of `total` is done; shows a bar on a terminal, else an occasional line."""
    meter = Meter(title, total, unit, report)
    try:
        yield meter.show
    finally:
        meter.close()


def counted(parts: Iterable[Sized], told: Advance) -> Iterator[Any]:
    """Yields the same parts; when the next one is asked for, tells how much has been handled so far."""
    done = 0
    for part in parts:
        yield part
        done += len(part)
        told(done)


class Meter:
    """How far a piece of work is, and how long the rest will take at the pace so far."""

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
