"""How the windows of a convolution or pool lie on a map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from micronet.packed import checks
from micronet.packed.limits import MOST_SIDE

Pair = tuple[int, int]
"""(height, width)."""


@dataclass(frozen=True)
class Geometry:
    """Windows on a map; pairs are (height, width). Rows and columns that do not fill a whole window are dropped."""

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)  # rows and columns on either side of the map
    dilation: Pair = (1, 1)  # from one place in a window to the next

    @classmethod
    def tiles(cls, kernel: Pair) -> Geometry:
        """Adjacent windows without padding."""
        return cls(kernel, kernel)

    @property
    def area(self) -> int:
        """Places in a window."""
        return math.prod(self.kernel)

    @property
    def extent(self) -> Pair:
        """From a window's first place to its last."""
        height, width = (step * (size - 1) + 1 for size, step in zip(self.kernel, self.dilation, strict=True))
        return height, width

    @property
    def apart(self) -> bool:
        """Whether no two windows share a value, and none extends beyond the map."""
        return self == self.tiles(self.kernel)

    @property
    def square(self) -> bool:
        """Whether height and width are equal and a window has no gaps: all that format version 3 can represent."""
        pairs = (self.kernel, self.stride, self.padding, self.dilation)
        return all(height == width for height, width in pairs) and self.dilation == (1, 1)

    def size(self, shape: tuple[int, ...]) -> Pair:
        """Height and width of the grid of windows over a map (C, H, W); below 1 if none fits."""
        sides = zip(shape[1:], self.extent, self.stride, self.padding, strict=True)
        height, width = ((side + 2 * padding - extent) // stride + 1 for side, extent, stride, padding in sides)
        return height, width

    def fills(self, shape: tuple[int, ...]) -> bool:
        """Whether separate windows cover a map (C, H, W) completely."""
        return all(side % kernel == 0 for side, kernel in zip(shape[1:], self.kernel, strict=True))

    def padded(self, shape: tuple[int, ...]) -> int:
        """Numbers of a map (C, H, W) and its padding."""
        height, width = (side + 2 * padding for side, padding in zip(shape[1:], self.padding, strict=True))
        return shape[0] * height * width

    def held(self, shape: tuple[int, ...]) -> int:
        """Values of one channel of a map (C, H, W) in all windows together, counted once per window."""
        return math.prod(self._held_along(axis, shape[1:][axis]) for axis in range(2))

    def _held_along(self, axis: int, side: int) -> int:
        kernel, stride, padding = self.kernel[axis], self.stride[axis], self.padding[axis]
        windows = (side + 2 * padding - self.extent[axis]) // stride + 1
        total = 0
        for place in range(kernel):  # it reads row window * stride + offset, which must be on the map
            offset = place * self.dilation[axis] - padding
            first, last = max(0, -(offset // stride)), min(windows - 1, (side - 1 - offset) // stride)
            total += max(0, last - first + 1)
        return total


def said(pair: Pair) -> int | list[int]:
    """A pair as a file states it: one number if both are equal."""
    return pair[0] if pair[0] == pair[1] else list(pair)


def read_pair(row: dict[str, Any], key: str, low: int, usual: Pair | None = None) -> Pair:
    """A pair from a row, in either form. Raises `PackedFileError`."""
    value = row.get(key, None if usual is None else said(usual))
    if not isinstance(value, list):
        value = [value, value]
    height, width = (checks.whole(side, low, MOST_SIDE, key) for side in checks.pair(value, key))
    return height, width
