"""Streams that say whether they are a terminal."""

from __future__ import annotations

import io


class Screen(io.StringIO):
    """A stream that is a terminal, or not."""

    encoding = "utf-8"

    def __init__(self, terminal: bool):
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal
