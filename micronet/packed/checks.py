"""Checks of what stands in a foreign file. All raise `PackedFileError`, one line that shows the value."""

from __future__ import annotations

from typing import Any

from micronet.packed.errors import PackedFileError


def shown(value: Any) -> str:
    """A value of a foreign file, short and in one line."""
    return repr(value)[:40]


def whole(value: Any, low: int, high: int, what: str) -> int:
    """A whole number from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise PackedFileError(f"{what}: must be a whole number from {low} to {high} (got {shown(value)})")
    return value


def flag(value: Any, what: str) -> bool:
    """0 or 1."""
    return bool(whole(value, 0, 1, what))


def pair(value: Any, what: str) -> list[Any]:
    """A list of two."""
    if not isinstance(value, list) or len(value) != 2:
        raise PackedFileError(f"{what}: must be two numbers (got {shown(value)})")
    return value


def wholes(value: Any, most: int, what: str) -> list[int]:
    """A list of one to `most` whole numbers of any size."""
    if not isinstance(value, list) or not 1 <= len(value) <= most or any(type(item) is not int for item in value):
        raise PackedFileError(f"{what}: must be a list of up to {most} whole numbers (got {shown(value)})")
    return value
