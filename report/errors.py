"""The errors of this package."""

from __future__ import annotations

from micronet.errors import MicronetError
from micronet.front import ArgumentError


class ReportError(MicronetError):
    """A page cannot be made."""


class UnknownName(ArgumentError, ReportError):
    """There are no results of that name."""
