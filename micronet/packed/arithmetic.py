"""How dot products are summed and what that costs: multiplications and additions by width, from the codes alone."""

from __future__ import annotations

from collections import Counter

import numpy as np

from micronet.packed.steps.affine import Affine
from micronet.packed.steps.conv import Conv
from micronet.packed.steps.scaling import in_integers
from micronet.packed.widths import accumulation, addition_width, code_width, product_range


def factors(row: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """A dot product grouped by weight: (magnitude, taps of +magnitude, taps of -magnitude), magnitudes ascending.

    The inputs of equal weights are summed first and multiplied once (UCNN, Hegde et al. 2018, arXiv:1804.06508).
    """
    found = np.unique(np.abs(row[row != 0].astype(np.int64))).tolist()
    return [(magnitude, np.flatnonzero(row == magnitude), np.flatnonzero(row == -magnitude)) for magnitude in found]


def earlier_rows(weight: np.ndarray, groups: int) -> np.ndarray:
    """The first output channel of the same group with the same codes, or with all of them negated, (O,) int64.

    Both read the same inputs, so one sum serves both: the sign goes into the multiplier. A whitening's filters, for
    example, come in such pairs.
    """
    rows = len(weight)
    codes = weight.reshape(rows, -1).astype(np.int32)
    first = np.take_along_axis(codes, np.argmax(codes != 0, axis=1)[:, None], axis=1)
    keys = np.column_stack([np.arange(rows, dtype=np.int32) // (rows // groups), np.where(first < 0, -codes, codes)])
    _, index, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return index[inverse.reshape(-1)]


def earlier_products(step: Conv | Affine) -> tuple[np.ndarray, np.ndarray]:
    """The first output channel of the same group with the same product of sum and multiplier, up to the sign.

    An affine step's channels read different inputs, so it has none to share.

    Returns:
        its index, (C,) int64, or the channel's own if there is none before; the sign, (C,) of 1 and -1.
    """
    channels = np.arange(step.shape[0])
    # The greatest sum of a window is not the negative of the greatest among the negated sums.
    if not isinstance(step, Conv) or not step.weights.factored or step.window > 1:
        return channels, np.ones_like(channels)
    rows = earlier_rows(step.weights.codes, step.weights.groups)
    multiplier = in_integers(step).multiplier.astype(np.int64)
    _, index, inverse = np.unique(
        np.column_stack([rows, np.abs(multiplier)]), axis=0, return_index=True, return_inverse=True
    )
    first = index[inverse.reshape(-1)]
    codes = step.weights.rows
    same = (codes == codes[first]).all(axis=1) == (multiplier == multiplier[first])
    return first, np.where(same, 1, -1)


def _count(widths: np.ndarray, counts: Counter[int]) -> None:
    counts.update({width: count for width, count in enumerate(np.bincount(widths).tolist()) if count})


def _tree(
    low: np.ndarray, high: np.ndarray, segment: np.ndarray, counts: Counter[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums the numbers of each contiguous segment as a tree; returns the ranges and segments of the sums.

    A level adds neighbours (0 + 1, 2 + 3, ...); an odd one at the end is passed up unchanged.
    """
    while True:
        first = np.flatnonzero(np.concatenate([[True], segment[1:] != segment[:-1]]))
        place = np.arange(len(segment)) - np.repeat(first, np.diff(np.append(first, len(segment))))
        left = np.flatnonzero((place[:-1] % 2 == 0) & (segment[1:] == segment[:-1]))
        if not len(left):
            return low, high, segment
        _count(addition_width(low[left], high[left], low[left + 1], high[left + 1]), counts)
        low, high = low.copy(), high.copy()
        low[left] += low[left + 1]
        high[left] += high[left + 1]
        stays = place % 2 == 0
        low, high, segment = low[stays], high[stays], segment[stays]


def factored_work(
    weight: np.ndarray, groups: int, low: np.ndarray, high: np.ndarray, weight_bits: int, summed: np.ndarray
) -> tuple[Counter[int], Counter[int]]:
    """Like `work`, for factored sums.

    Args:
        summed: which output channels are summed, (O,) bool; the others cost nothing.
    """
    multiplications: Counter[int] = Counter()
    additions: Counter[int] = Counter()
    rows, columns = weight.shape[:2]
    codes = weight.reshape(rows, -1).astype(np.int64)
    row, tap = np.nonzero(codes * summed[:, None])
    if not len(row):
        return multiplications, additions
    code = codes[row, tap]
    channel = row // (rows // groups) * columns + tap // (codes.shape[1] // columns)
    # One number per (row, magnitude, sign), in the order of summation.
    side = (row * 256 + np.abs(code)) * 2 + (code < 0)
    order = np.argsort(side, kind="stable")
    channel = channel[order]
    low, high, side = _tree(
        np.asarray(low, np.int64)[channel], np.asarray(high, np.int64)[channel], side[order], additions
    )
    factor, negative = side // 2, side % 2 == 1
    plus = np.flatnonzero(factor[1:] == factor[:-1])  # a side of +magnitude followed by one of -magnitude
    _count(addition_width(low[plus], high[plus], low[plus + 1], high[plus + 1]), additions)
    alone = negative.copy()
    alone[plus + 1] = False
    low, high = low.copy(), high.copy()
    low[plus], high[plus] = low[plus] - high[plus + 1], high[plus] - low[plus + 1]
    stays = ~negative | alone
    low, high, factor, alone = low[stays], high[stays], factor[stays], alone[stays]
    magnitude = factor % 256
    multiplied = (magnitude > 1) | alone
    _count(np.maximum(code_width(low, high)[multiplied], weight_bits), multiplications)
    low, high = product_range(low, high, np.where(alone, -magnitude, magnitude))
    _tree(low, high, factor // 256, additions)
    return multiplications, additions


def work(
    weight: np.ndarray, groups: int, low: np.ndarray, high: np.ndarray, weight_bits: int, factored: bool
) -> tuple[Counter[int], Counter[int]]:
    """{width: count} of the multiplications and additions for the dot products of one position.

    Args:
        weight: codes, (O, I / groups, ...).
        low, high: range of each input channel's codes, (I,).
        factored: as in `factors`; otherwise each product is added to the accumulator, one after the other.
    """
    if factored:
        own = earlier_rows(weight, groups) == np.arange(len(weight))
        return factored_work(weight, groups, low, high, weight_bits, own)
    sums = accumulation(weight, groups, low, high)
    multiplications: Counter[int] = Counter()
    additions: Counter[int] = Counter()
    if sums.nonzeros.any():
        multiplications[max(weight_bits, int(code_width(low, high).max()))] = int(sums.nonzeros.sum())
    for bits, nonzeros in zip(sums.bits.tolist(), sums.nonzeros.tolist(), strict=True):
        if nonzeros > 1:
            additions[bits] += nonzeros - 1
    return multiplications, additions
