"""The error of this room."""

from __future__ import annotations

from micronet.errors import MicronetError


class ReportError(MicronetError):
    """A page cannot be made: one line."""
