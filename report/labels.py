"""Where points' names go, beside their point, so that none covers another name or point."""

from __future__ import annotations

import math
from collections.abc import Iterable

WIDTH, HEIGHT = 800.0, 380.0  # approximate size of a chart in pixels
LETTER, LINE = 6.5, 13.0  # of a name
DOT = 5.0  # half a point's width
GAP = 9  # pixels from a point to its name
BESIDE, NEAR, FAR = 4, 10, 16  # of its baseline below the point, or above
LEFT, RIGHT = "right", "left"  # a name to the left of its point ends there
PLACES = tuple(
    (GAP if side == RIGHT else -GAP, down, side)
    for downs in ((BESIDE,), (BESIDE - NEAR, BESIDE + NEAR), (BESIDE - FAR, BESIDE + FAR))
    for side in (RIGHT, LEFT)
    for down in downs
)
Place = tuple[int, int, str]  # pixels to the right, downwards, and which end is anchored


def places(points: Iterable[tuple[float, float, str]], line: float | None = None) -> dict[str, Place]:
    """Where each name goes: the first of `PLACES` that is free, or the one that covers least.

    Args:
        points: (x, y, name), both above 0 and on logarithmic axes; y grows downwards, as errors do. Those without a
            name are only kept clear.
        line: the y of a drawn line.
    """
    known = [(math.log(x), math.log(y), name) for x, y, name in points]
    if not known:
        return {}
    (left, right), (top, bottom) = ((min(axis), max(axis)) for axis in list(zip(*known, strict=True))[:2])
    dots = [
        (WIDTH * (x - left) / (right - left or 1), HEIGHT * (y - top) / (bottom - top or 1), name)
        for x, y, name in known
    ]
    taken = [(x - DOT, x + DOT, y) for x, y, _ in dots]
    if line is not None:
        taken.append((-math.inf, math.inf, HEIGHT * (math.log(line) - top) / (bottom - top or 1)))
    found: dict[str, Place] = {}
    for x, y, name in sorted(dots):
        if not name or name in found:
            continue

        def box(place: Place, x: float = x, y: float = y, name: str = name) -> tuple[float, float, float]:
            right_, down, side = place
            start = x + right_ - (LETTER * len(name) if side == LEFT else 0)
            return start, start + LETTER * len(name), y + down - BESIDE

        def covered(place: Place) -> int:
            start, end, middle = box(place)
            outside = start < -GAP or end > WIDTH + 4 * GAP
            return outside + sum(
                end >= one[0] and start <= one[1] and abs(middle - one[2]) < LINE * 0.7 for one in taken
            )

        found[name] = min(PLACES, key=covered)
        taken.append(box(found[name]))
    return found
