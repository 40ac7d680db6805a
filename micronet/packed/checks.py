"""Checks of values in an untrusted file. All raise `PackedFileError`, one line that shows the value."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from micronet import errors
from micronet.packed.errors import PackedFileError
from micronet.packed.limits import MOST_DEPTH

SHOWN = 40  # characters of a value


def shown(value: Any) -> str:
    """A value of an untrusted file, short and on one line."""
    if isinstance(value, str):
        return repr(errors.shown(value, SHOWN))
    if isinstance(value, list):  # one that is shown has few entries, or is cut anyway
        inner = ", ".join(shown(item) if not isinstance(item, list | dict) else "..." for item in value[:SHOWN])
        return errors.shown(f"[{inner}]", SHOWN)
    return "an object" if isinstance(value, dict) else errors.shown(repr(value), SHOWN)


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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


_NESTED = (list, dict)


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not JSON, not UTF-8, a duplicate key in an object, or nesting deeper than `MOST_DEPTH`.
    """
    try:
        found = json.loads(text.decode() if isinstance(text, bytes) else text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("too deep") from None
    level = [found]
    for _ in range(MOST_DEPTH):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, _NESTED)]
        if not level:
            return found
    raise ValueError("too deep")
