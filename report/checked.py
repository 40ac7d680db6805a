"""Values of result files, checked before a template is given them: a faulty one is a line, no traceback."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from micronet.errors import shown
from report.errors import ReportError

MOST = 1e30  # beyond that no count, score or second is one, and floats lose it
_LONGEST = 40  # characters of a value in a line


def group(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What stands under a key, nothing where it is not there. Raises `ReportError`: it is no group of values."""
    found = content.get(key, {})
    if not isinstance(found, Mapping):
        raise ReportError(f"{key} is {_said(found)}, no group of values")
    return found


def value(content: Mapping[str, Any], path: str, most: float = MOST) -> float:
    """The number under a key, or under `group.key`, as it stands in the file.

    Raises:
        ReportError: it is not there, is no number, is below 0 or above `most`.
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
    """As `value`; None where the key is not there, and where it has no value."""
    name, _, key = path.rpartition(".")
    inside = group(content, name) if name else content
    return None if inside.get(key) is None else value(content, path, most)


def percent(content: Mapping[str, Any], path: str) -> float:
    """As `value`, of a part of a hundred."""
    return value(content, path, 100.0)


def text(content: Mapping[str, Any], path: str) -> str:
    """The text under a key, empty where it is not there. Raises `ReportError`: it is none."""
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
