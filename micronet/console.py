"""What a terminal is shown, and what anything else: the one place that makes consoles and asks for widths.

Colours and redrawing are a terminal's. NO_COLOR takes the colours away (https://no-color.org), FORCE_COLOR gives them
to a pipe too, TERM=dumb is a terminal that can neither. Nothing here decides a result.
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
    """Whether what was written to a stream can be drawn over: it is a terminal with a cursor."""
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
    """The columns of a terminal, by default that on stderr; 80 without one. COLUMNS goes first where it is above 0."""
    try:
        there = os.get_terminal_size((stream or sys.stderr).fileno()).columns
    except (AttributeError, OSError, ValueError):
        there = 0
    return shutil.get_terminal_size((there or 80, 24)).columns


def console(stream: Any, *, file: IO[str] | None = None, columns: int | None = None, **more: Any) -> Console:
    """A console that writes as a stream can show it.

    Args:
        file: what is written to where it is not the stream itself.
        columns: as wide as this; as the stream where it is left out.
        more: for rich's Console.
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
    """Says when it is time for another line of a long work: after 15 seconds, later a tenth of what has passed."""

    FIRST = 15.0

    def __init__(self, now: float):
        self.began = self.last = now

    def due(self, now: float) -> bool:
        if now - self.last < max(self.FIRST, (now - self.began) / 10):
            return False
        self.last = now
        return True
