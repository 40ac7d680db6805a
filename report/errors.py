"""The error of this room."""

from __future__ import annotations

from micronet.errors import MicronetError
from micronet.front import ArgumentError


class ReportError(MicronetError):
    """A page cannot be made: one line."""


class UnknownName(ArgumentError, ReportError):
    """There are no results of that name: one line."""
