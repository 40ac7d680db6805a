"""Values of result files, checked before a template gets them: a faulty one is a line, not a traceback."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from micronet.errors import shown
from report.errors import ReportError

MOST = 1e30  # no count, score or second exceeds this, and floats lose precision beyond it
_LONGEST = 40  # characters of a value in a line


def group(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The group under a key, empty if missing. Raises `ReportError`: it is not a group of values."""
    found = content.get(key, {})
    if not isinstance(found, Mapping):
        raise ReportError(f"{key} is {_said(found)}, no group of values")
    return found


def value(content: Mapping[str, Any], path: str, most: float = MOST) -> float:
    """The number under a key, or under `group.key`, as in the file.

    Raises:
        ReportError: it is missing, not a number, below 0 or above `most`.
    """
    name, _, key = path.rpartition(".")
    inside = group(content, name) if name else content
    if key not in inside:
        raise ReportError(f"{path} is missing")
    found = inside[key]
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ReportError(f"{path} is {_said(found)}, no number")
    if not 0 <= found <= most or math.isnan(found):
        raise ReportError(f"{path} is {_said(found)}, which is not in 0 to {most:g}")
    return found


def value_if_there(content: Mapping[str, Any], path: str, most: float = MOST) -> float | None:
    """As `value`; None if the key is missing or has no value."""
    name, _, key = path.rpartition(".")
    inside = group(content, name) if name else content
    return None if inside.get(key) is None else value(content, path, most)


def percent(content: Mapping[str, Any], path: str) -> float:
    """As `value`, for a percentage."""
    return value(content, path, 100.0)


def text(content: Mapping[str, Any], path: str) -> str:
    """The text under a key, empty if missing. Raises `ReportError`: it is not a text."""
    name, _, key = path.rpartition(".")
    found = (group(content, name) if name else content).get(key, "")
    if not isinstance(found, str):
        raise ReportError(f"{path} is {_said(found)}, no text")
    return found


def _said(found: Any) -> str:
    if isinstance(found, int) and not isinstance(found, bool) and abs(found) > MOST:
        return "a number of very many digits"
    try:
        return shown(repr(found), _LONGEST)
    except RecursionError:
        return "nested too deep"
