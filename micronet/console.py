"""What a terminal is shown, and what other streams get: the one place that makes consoles and asks for widths.

Colours and redrawing are for terminals. NO_COLOR turns colours off (https://no-color.org), FORCE_COLOR turns them on
for pipes too, and TERM=dumb is a terminal with neither. Nothing here affects a result.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

DUMB = ("dumb", "unknown")


def live(stream: Any) -> bool:
    """Whether what was written to a stream can be overwritten: it is a terminal with a cursor."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM", "").lower() not in DUMB
    except ValueError:  # closed
        return False


def coloured(stream: Any) -> bool:
    """Whether a stream gets colours and other styles."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or live(stream)


def width(stream: Any = None) -> int:
    """The columns of a terminal, by default the one on stderr; 80 without one. COLUMNS takes precedence if above 0."""
    try:
        there = os.get_terminal_size((stream or sys.stderr).fileno()).columns
    except (AttributeError, OSError, ValueError):
        there = 0
    return shutil.get_terminal_size((there or 80, 24)).columns


def console(stream: Any, *, file: IO[str] | None = None, columns: int | None = None, **more: Any) -> Console:
    """A console that writes what a stream can show.

    Args:
        file: where to write instead of to the stream itself.
        columns: the width; that of the stream by default.
        more: passed to rich's Console.
    """
    from rich.console import Console

    colours: Any = ("auto" if live(stream) else "standard") if coloured(stream) else None
    return Console(
        file=file or stream,
        width=columns or width(stream),
        force_terminal=live(stream),
        force_interactive=live(stream),
        color_system=colours,
        no_color=colours is None,
        **more,
    )


def duration(seconds: float) -> str:
    """`0:07`, `12:30`, `1:02:03`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class Sparingly:
    """Says when long work is due for another line: after 15 seconds, later after a tenth of the time passed so far."""

    FIRST = 15.0

    def __init__(self, now: float):
        self.began = self.last = now

    def due(self, now: float) -> bool:
        if now - self.last < max(self.FIRST, (now - self.began) / 10):
            return False
        self.last = now
        return True
