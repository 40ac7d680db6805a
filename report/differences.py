"""The settings of two params files, where they differ, and whether they are the same recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from micronet import params as parameters
from micronet.errors import shown

NOTHING = "-"
LONGEST = 60  # characters of a value


@dataclass(frozen=True)
class Setting:
    """A key with its value here and in the params compared with."""

    name: str
    here: str
    there: str
    differs: bool


def leaves(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(key.path, value) of everything in a tree, in its order."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{place}.{key}" if place else str(key))
    else:
        yield place, tree


def differ(one: Any, other: Any) -> bool:
    """Whether two values differ; 1 and true, or 1 and 1.0, count as different."""
    return bool(one != other) or type(one) is not type(other)


def said(value: Any) -> str:
    """A value as shown in a row: floats with at most six digits, all cut to `LONGEST` printable characters."""
    return shown(f"{value:g}" if isinstance(value, float) else str(value), LONGEST)


def settings(here: dict[str, Any] | None, there: dict[str, Any] | None) -> list[Setting]:
    """All settings of both trees: those of the first in its order, then those only in the other.

    Args:
        there: None if there is nothing to compare with; then nothing differs.
    """
    mine, other = dict(leaves(here or {})), dict(leaves(there or {}))
    mine.pop("", None)
    other.pop("", None)
    rows = []
    for name in dict.fromkeys([*mine, *other]):
        one, two = mine.get(name, NOTHING), other.get(name, NOTHING)
        rows.append(Setting(shown(name, LONGEST), said(one), said(two), there is not None and differ(one, two)))
    return rows


def recipe_digest(params: parameters.Params) -> str:
    """An id of a recipe regardless of seed and machine: of everything else that decides its packed model."""
    sections = [name for name in type(params).model_fields if name not in ("seed", "engine", "score")]
    return parameters.digest(*(getattr(params, name) for name in sections))
