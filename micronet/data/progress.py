"""What is shown and said while data are read or downloaded."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[str], None]  # takes one line at a time


def silent(line: str) -> None:
    """Says nothing."""


@contextmanager
def progress_bar(title: str, total: int, unit: str, report: Report) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes how much of `total` is done: a bar on a terminal, else a line every 15 seconds."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    spoken = time.monotonic()

    def line(done: int) -> None:
        nonlocal spoken
        if time.monotonic() - spoken > 15:
            spoken = time.monotonic()
            report(f"{title}: {done} of {total} {unit}")

    yield line
