"""What is said while data are read or downloaded."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import; a stage's --help needs none of it
    pass


Report = Callable[[str], None]


def silent(line: str) -> None:
    pass


@contextmanager
def progress(title: str, total: int, unit: str, report: Report) -> Iterator[Callable[[int], None]]:
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
