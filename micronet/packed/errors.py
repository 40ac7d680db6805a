"""What goes wrong with packed models."""

from __future__ import annotations

from micronet.errors import MicronetError


class PackedFileError(MicronetError, ValueError):
    """A file that is no packed model, or a damaged one: one line that says what is wrong with it."""
