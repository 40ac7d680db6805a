"""From real gains and offsets to integers: multipliers, shifts and biases of a requantization, and packed weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from micronet.packed.arithmetic import work
from micronet.packed.bits import weight_storage
from micronet.packed.limits import MOST_SUM
from micronet.packed.steps.base import Step, reaches
from micronet.packed.steps.scaling import Requantization, Residual
from micronet.packed.steps.weights import Weights
from micronet.packed.widths import bit_length, product_range, signed_width

LARGEST_SHIFT = 36
MOST_EXPONENT = 15  # shifts of one step differ by at most this
BIAS_FRACTION_BITS = 8  # a bias is stored to 1 / 256 of an output code


@dataclass(frozen=True)
class Added:
    """A residual: the value, the step that makes it, and the value of its codes in codes of the output."""

    value: int
    step: Step
    ratio: float


def stored_weights(codes: np.ndarray, groups: int, source: Step, factored_sums: bool) -> Weights | None:
    """Weights in the fewest bits, summed the cheaper way; None if their sums need more than 32 bits.

    Args:
        codes: (O, I / groups, k, k) or (O, I), integers of at most 8 bits.
        source: the step whose codes they are multiplied by.
        factored_sums: whether the inputs of equal weights may be summed first.
    """
    codes = codes.astype(np.int8)
    bits, mask = weight_storage(codes)
    plain = Weights(codes=codes, bits=bits, mask=mask, groups=groups)
    sums = plain.sums(source)
    if reaches(sums.low, sums.high) >= MOST_SUM:
        return None
    factored = False
    if factored_sums:
        ways = [work(codes, groups, source.low, source.high, bits, way) for way in (False, True)]
        one_by_one, together = (sum(width * n for each in way for width, n in each.items()) for way in ways)
        factored = together < one_by_one
    width = int(sums.bits.max())
    return Weights(codes=codes, bits=bits, mask=mask, groups=groups, accumulator_bits=width, factored=factored)


def float_weights(weight: np.ndarray, groups: int) -> Weights:
    """Weights as 16-bit floats, summed in 32 bits."""
    with np.errstate(over="ignore"):
        codes = weight.astype(np.float16)
    bits, mask = weight_storage(codes)
    return Weights(codes=codes, bits=bits, mask=mask, groups=groups, accumulator_bits=32)


def flattened(gain: np.ndarray, offset: np.ndarray, limit: int, middle: float) -> tuple[np.ndarray, np.ndarray]:
    """Lines gain * x + offset, none steeper than the limit.

    A norm over a channel that was constant in training has a huge gain. Beyond the limit, one unit of a sum spans most
    of the code range anyway, so the line is flattened around the middle of the range.
    """
    steep = np.abs(gain) > limit
    flat = np.where(steep, np.sign(gain) * limit, gain)
    turned = middle - (middle - offset) * np.abs(flat) / np.where(steep, np.abs(gain), 1)
    return flat, np.where(steep, turned, offset)


def shifts_for(gain: np.ndarray, limit: int) -> np.ndarray:
    """The shift of each channel with which its multiplier uses the full width, (C,) int64."""
    with np.errstate(divide="ignore"):
        shift = np.floor(np.log2(limit / np.abs(gain)))
    shift += np.abs(np.rint(gain * 2.0 ** np.minimum(shift + 1, LARGEST_SHIFT))) <= limit
    shift = np.clip(shift, 0, LARGEST_SHIFT).astype(np.int64)
    least = int(shift[gain != 0].min()) if gain.any() else BIAS_FRACTION_BITS
    return np.where(gain != 0, np.minimum(shift, least + MOST_EXPONENT), least)


def requantization(
    gain: np.ndarray,
    offset: np.ndarray,
    sums: tuple[np.ndarray, np.ndarray],
    edges: tuple[int, int],
    limit: int,
    added: Added | None,
    **described: Any,
) -> Requantization:
    """gain * sum + offset + residual in fixed point.

    Args:
        gain, offset: in codes of the output, (C,) float64, finite.
        sums: their range, (C,) int64 each.
        edges: lowest and highest code.
        limit: the greatest multiplier.
        described: the other fields of the requantization.
    """
    low, high = edges
    gain, offset = flattened(gain, offset, limit, (low + high) / 2)
    shift = shifts_for(gain, limit)
    multiplier = np.rint(gain * 2.0**shift).astype(np.int64)
    reach_low, reach_high = product_range(*sums, multiplier)
    residual = None
    if added is not None:
        residual = _residual(added, shift, limit)
        other = product_range(added.step.low, added.step.high, residual.multiplier << (shift - residual.fraction))
        reach_low, reach_high = reach_low + other[0], reach_high + other[1]
    # The bias includes the half that turns the floor into rounding. A bias beyond these bounds gives the lowest or
    # highest code whatever the sum, and so does the bound itself, in fewer bits.
    unit = 2.0 ** np.maximum(shift - BIAS_FRACTION_BITS, 0)
    bias = np.rint((offset + 0.5) * 2.0**shift / unit)
    lowest = np.floor((low * 2.0**shift - reach_high) / unit)
    highest = np.ceil((high * 2.0**shift - reach_low) / unit)
    bias = np.clip(bias, lowest, highest).astype(np.int64)
    return Requantization(
        multiplier=multiplier,
        multiplier_bits=width_of(multiplier),
        shift=shift,
        exponent_bits=int(bit_length(shift.max() - shift.min())),
        bias=bias,
        bias_bits=width_of(bias),
        bias_fraction=BIAS_FRACTION_BITS,
        residual=residual,
        **described,
    )


def width_of(vector: np.ndarray) -> int:
    """Two's complement bits that hold every number of a vector."""
    return int(signed_width(vector.min(), vector.max()))


def _residual(added: Added, shift: np.ndarray, limit: int) -> Residual:
    fractions = range(int(shift.min()), -1, -1)
    fraction = next((bits for bits in fractions if round(added.ratio * 2.0**bits) <= limit), 0)
    factor = min(round(added.ratio * 2.0**fraction), limit)
    return Residual(value=added.value, multiplier=factor, bits=int(signed_width(0, factor)), fraction=fraction)
