"""The error of this room."""

from __future__ import annotations

from micronet.errors import MicronetError


class ReportError(MicronetError):
    """A page cannot be made: one line."""


class UnknownName(ReportError):
    """There are no results of that name: one line."""

    exit_code, of_arguments = 2, True
