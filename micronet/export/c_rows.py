"""A convolution for speed: its input spread out with zeros beyond the edges, its weights as lists without zeros.

On a padded map in which, under a stride, every second, third ... row and column lies in a plane of its own (a polyphase
decomposition), each weight reads one contiguous run of numbers. So a row of nonzero weights is a sum of a few shifted
runs, which compilers turn into vector instructions whatever the stride and dilation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from micronet.packed.steps import Conv, Linear
from micronet.packed.steps.geometry import Pair


@dataclass(frozen=True)
class Spread:
    """How a convolution's input lies in memory."""

    # The kernels rely on both.
    BLOCK: ClassVar[int] = 16  # lanes computed together, those of a vector register
    TOGETHER: ClassVar[int] = 4  # weights added in one pass over the sums

    height: int  # of the map of sums
    width: int
    channels: int
    phases: Pair
    phase_height: int
    stride: int  # from one row of a phase to the next
    copies: bool  # otherwise the map is read in place

    @classmethod
    def of(cls, step: Conv, shape: tuple[int, int, int]) -> Self:
        """The layout for a convolution on a map (C, H, W)."""
        geometry = step.geometry
        height, width = geometry.size(shape)
        if geometry.padding == (0, 0) and geometry.stride == (1, 1):
            return cls(height, width, shape[0], (1, 1), shape[1], shape[2], False)
        needed = [(size - 1) * s + e for size, s, e in zip((height, width), step.stride, geometry.extent, strict=True)]
        phases = tuple(min(s, e) for s, e in zip(step.stride, geometry.extent, strict=True))
        sides = [-(-size // s) for size, s in zip(needed, step.stride, strict=True)]
        return cls(height, width, shape[0], (phases[0], phases[1]), sides[0], sides[1], True)

    @property
    def positions(self) -> int:
        """Sums of one channel."""
        return self.height * self.width

    @property
    def plane(self) -> int:
        """Numbers of one channel."""
        return math.prod(self.phases) * self.phase_height * self.stride

    @property
    def lanes(self) -> int:
        """Sums of one channel, including unused ones between rows, in whole blocks."""
        return -(-((self.height - 1) * self.stride + self.width) // self.BLOCK) * self.BLOCK

    @property
    def numbers(self) -> int:
        """Of all channels, plus what the last block reads beyond them."""
        beyond = self.lanes - ((self.height - 1) * self.stride + self.width)
        return self.plane * self.channels + beyond


@dataclass(frozen=True)
class Rows:
    """The nonzero weights: (places, codes) of one row of the weight after another."""

    ends: np.ndarray  # (O,) where each row ends
    places: np.ndarray  # where each weight reads, in its group
    codes: np.ndarray  # int8


def rows_of(step: Conv | Linear, spread: Spread | None) -> Rows:
    """The weights of a step; a convolution's rows are padded with zeros to a multiple of `TOGETHER`."""
    rows = step.weights.rows
    row, tap = np.nonzero(rows)
    codes, counts = rows[row, tap].astype(np.int64), np.count_nonzero(rows, axis=1)
    if spread is None or not isinstance(step, Conv):
        return Rows(np.cumsum(counts), tap, codes)
    height, width = step.geometry.kernel
    channel, down, right = tap // (height * width), tap // width % height, tap % width
    down, right = down * step.dilation[0], right * step.dilation[1]
    places = channel * spread.plane
    if spread.copies:
        phase = down % step.stride[0] * spread.phases[1] + right % step.stride[1]
        places = places + phase * spread.phase_height * spread.stride
        down, right = down // step.stride[0], right // step.stride[1]
    places = places + down * spread.stride + right
    filled = -(-counts // spread.TOGETHER) * spread.TOGETHER
    starts = np.cumsum(filled) - filled
    slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts) + starts[row]
    all_places, all_codes = np.zeros(int(filled.sum()), np.int64), np.zeros(int(filled.sum()), np.int64)
    all_places[slot], all_codes[slot] = places, codes
    return Rows(np.cumsum(filled), all_places, all_codes)
