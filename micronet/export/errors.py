"""Why a packed model cannot be exported."""

from __future__ import annotations

from micronet.errors import MicronetError


class ExportError(MicronetError):
    """The target cannot represent what the packed model computes, or a tool is missing; says what would work."""
