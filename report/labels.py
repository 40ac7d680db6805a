"""Where the names of points stand, so that none covers another."""

from __future__ import annotations

import math
from collections.abc import Iterable

WIDTH, HEIGHT = 800.0, 380.0  # pixels that a chart has, about
LETTER, LINE = 6.5, 13.0  # of a name
OFFSETS = (-7, 14, -20, 27, -33, 40)  # of its baseline from the point, the nearest first


def offsets(points: Iterable[tuple[float, float, str]]) -> dict[str, int]:
    """How far below its point each name stands, in pixels: the nearest place where it covers no name before it.

    Args:
        points: (x, y, name), both above 0 and on logarithmic axes; y grows downwards, as errors do. Those without a
            name count for the axes alone.
    """
    known = [(math.log(x), math.log(y), name) for x, y, name in points]
    if not known:
        return {}
    (left, right), (top, bottom) = ((min(axis), max(axis)) for axis in list(zip(*known, strict=True))[:2])
    taken: list[tuple[float, float, float]] = []
    found: dict[str, int] = {}
    for x, y, name in sorted(known):
        if not name:
            continue
        start = WIDTH * (x - left) / (right - left or 1)
        middle = HEIGHT * (y - top) / (bottom - top or 1)
        end = start + LETTER * len(name)

        def free(offset: int, start: float = start, end: float = end, middle: float = middle) -> bool:
            return all(end < other[0] or start > other[1] or abs(middle + offset - other[2]) >= LINE for other in taken)

        found[name] = next((offset for offset in OFFSETS if free(offset)), OFFSETS[0])
        taken.append((start, end, middle + found[name]))
    return found
