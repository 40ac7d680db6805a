"""How many bits a number, a code or a sum needs, proven from ranges. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

CHUNK = 1 << 18  # weights whose bounds are computed at once


def bit_length(values: ArrayLike) -> np.ndarray:
    """Bits of each number >= 0, below 2**53; 0 needs none."""
    return np.frexp(np.asarray(values, dtype=np.float64))[1].astype(np.int64)


def signed_width(low: ArrayLike, high: ArrayLike) -> np.ndarray:
    """Fewest two's complement bits that hold every number of [low, high]."""
    low, high = np.asarray(low, dtype=np.int64), np.asarray(high, dtype=np.int64)
    return 1 + np.maximum(bit_length(np.maximum(high, 0)), bit_length(np.maximum(-low - 1, 0)))


def code_width(low: ArrayLike, high: ArrayLike) -> np.ndarray:
    """Fewest bits for codes in [low, high]: unsigned if none is negative, else two's complement."""
    low, high = np.asarray(low, dtype=np.int64), np.asarray(high, dtype=np.int64)
    return np.where(low >= 0, np.maximum(bit_length(np.maximum(high, 0)), 1), signed_width(low, high))


def product_range(low: ArrayLike, high: ArrayLike, factor: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """The range of x * factor for x in [low, high], int64."""
    one = np.asarray(low, dtype=np.int64) * factor
    other = np.asarray(high, dtype=np.int64) * factor
    return np.minimum(one, other), np.maximum(one, other)


@dataclass(frozen=True)
class Accumulation:
    """Proven bounds of the dot products of a conv or linear step, from its codes. Vectors: one entry per channel."""

    low: np.ndarray  # no partial sum, in any order, lies below
    high: np.ndarray
    bits: np.ndarray  # two's complement width that holds every partial sum
    nonzeros: np.ndarray


def accumulation(weight: np.ndarray, groups: int, low: np.ndarray, high: np.ndarray) -> Accumulation:
    """Bounds of sum(weight code * input code) if input channel c has codes in [low[c], high[c]], low <= 0 <= high."""
    rows, columns = weight.shape[:2]
    planes = weight.reshape(groups, rows // groups, columns, -1)
    low = np.asarray(low, np.int64).reshape(groups, columns, 1)
    high = np.asarray(high, np.int64).reshape(groups, columns, 1)
    sum_low = np.empty(planes.shape[:2], np.int64)
    sum_high = np.empty_like(sum_low)
    some_rows = max(1, min(planes.shape[1], CHUNK // planes[0, 0].size))
    some_groups = max(1, CHUNK // (some_rows * planes[0, 0].size))
    for group in range(0, groups, some_groups):
        here = slice(group, group + some_groups)
        for row in range(0, planes.shape[1], some_rows):
            part = here, slice(row, row + some_rows)
            up = np.maximum(planes[part], 0).sum(3, dtype=np.int64)
            down = np.minimum(planes[part], 0).sum(3, dtype=np.int64)
            sum_low[part] = (up @ low[here] + down @ high[here])[..., 0]
            sum_high[part] = (up @ high[here] + down @ low[here])[..., 0]
    sum_low, sum_high = sum_low.reshape(-1), sum_high.reshape(-1)
    nonzeros = np.count_nonzero(weight.reshape(rows, -1), axis=1)
    return Accumulation(sum_low, sum_high, signed_width(sum_low, sum_high), nonzeros)


def addition_width(low: ArrayLike, high: ArrayLike, other_low: ArrayLike, other_high: ArrayLike) -> np.ndarray:
    """Bits of an addition's wider input, given both ranges; in two's complement if one of them is signed."""
    codes = np.maximum(code_width(low, high), code_width(other_low, other_high))
    signed = np.maximum(signed_width(low, high), signed_width(other_low, other_high))
    return np.where((np.asarray(low) < 0) | (np.asarray(other_low) < 0), signed, codes)
