"""Widths and counts of what surrounds the sums of a packed model."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from micronet.packed import steps as networks
from micronet.packed.arithmetic import earlier_products, work
from micronet.packed.steps import Step, ends, interleave
from micronet.packed.widths import Accumulation, accumulation, code_width, product_range, signed_width

RELU_BITS = 32  # the challenge charges 1 for a ReLU, whatever its width


@dataclass
class Counts:
    """Multiplications and additions of one step for one image: {bits: count}."""

    name: str
    multiplications: Counter[int] = field(default_factory=Counter)
    additions: Counter[int] = field(default_factory=Counter)


def width_of(low: np.ndarray, high: np.ndarray) -> int:
    """Bits that hold the codes of all channels."""
    return int(code_width(low, high).max())


def count_dot_products(step: Step, source: Step, positions: int, counts: Counts) -> None:
    """What the sums of one image take, from the codes."""
    multiplications, additions = work(
        step.weight, step.groups, source.low, source.high, step.weight_bits, step.factored
    )
    counts.multiplications.update({bits: count * positions for bits, count in multiplications.items()})
    counts.additions.update({bits: count * positions for bits, count in additions.items()})


@dataclass(frozen=True)
class RequantizationWidths:
    """Widths of one step's requantization, an entry an output channel; `alive`: the channel's sum is no constant."""

    alive: np.ndarray
    multiplied: np.ndarray  # alive, and no earlier channel has the product already
    product_bits: np.ndarray  # of sum * multiplier as an input of the multiplication
    bias_bits: np.ndarray  # of the bias's addition
    residual_product_bits: int
    residual_bits: np.ndarray  # of the residual's addition


def requantization(step: Step, source: Step, residual: Step | None) -> RequantizationWidths:
    if step.op == "conv":
        sums = accumulation(step.weight, step.groups, source.low, source.high)
        low, high, sum_bits, alive = sums.low, sums.high, sums.bits, sums.nonzeros > 0
    else:
        chosen = interleave(step.shape[0], step.order)
        low, high = source.low.astype(np.int64)[chosen], source.high.astype(np.int64)[chosen]
        sum_bits, alive = code_width(low, high), np.ones(step.shape[0], bool)
    low, high = product_range(low, high, step.multiplier)
    bias = step.scaled_bias
    bias_width = signed_width(bias, bias)
    bias_bits = np.maximum(signed_width(low, high), bias_width)
    biased = signed_width(low + bias, high + bias)
    product_bits, residual_bits = np.maximum(sum_bits, step.multiplier_bits), np.zeros_like(biased)
    first = earlier_products(step)[0]
    multiplied = alive & (first == np.arange(step.shape[0]))
    # The product that there is may have the other sign, and one bit more at a bound that is a power of two.
    bias_bits = np.maximum(bias_bits, signed_width(low[first], high[first]))
    if residual is None:
        return RequantizationWidths(alive, multiplied, product_bits, bias_bits, 0, residual_bits)
    added = product_range(residual.low, residual.high, step.residual_factor)
    residual_bits = np.maximum(biased, signed_width(*added))
    width = max(step.residual_bits, width_of(residual.low, residual.high))
    return RequantizationWidths(alive, multiplied, product_bits, bias_bits, width, residual_bits)


def count_requantization(step: Step, widths: RequantizationWidths, counts: Counts) -> None:
    """What a requantization of one image takes. A channel without weights is a constant, its bias is no addition."""
    positions = math.prod(step.shape[1:])
    for product in widths.product_bits[widths.multiplied]:
        counts.multiplications[int(product)] += positions
    for bias in widths.bias_bits[widths.alive]:
        counts.additions[int(bias)] += positions
    if step.residual is not None:
        for bits in widths.residual_bits:
            counts.multiplications[widths.residual_product_bits] += positions
            counts.additions[int(bits)] += positions
    if step.relu:
        counts.additions[RELU_BITS] += math.prod(step.shape)


def count_comparisons(step: Step, source: Step, counts: Counts) -> None:
    """What the maxima of one image take: k^2 - 1 additions each, for a comparison is a subtraction's sign."""
    for bits in code_width(source.low, source.high):
        counts.additions[int(bits)] += (step.kernel**2 - 1) * math.prod(step.shape[1:])


def count_window(step: Step, source: Step, counts: Counts) -> None:
    """What it takes to find the greatest sum of each window; a channel without weights has nothing to compare."""
    sums = accumulation(step.weight, step.groups, source.low, source.high)
    for bits in sums.bits[sums.nonzeros > 0]:
        counts.additions[int(bits)] += (step.window**2 - 1) * math.prod(step.shape[1:])


def pool_width(step: Step, source: Step) -> np.ndarray:
    """Width of the running sum of each channel's window."""
    return code_width(step.low, step.high)


def choice_bits(steps: tuple[Step, ...], step: Step) -> int:
    """Width of the choice that a linear step with a margin makes: that of the sum of logits behind the next pass."""
    behind = next(number for number, end in enumerate(ends(steps)) if end is step)
    low, high = networks.sums(steps)[behind + 1]
    return max(step.margin_bits, int(signed_width(low, high).max()))


def count_choice(step: Step, bits: int, counts: Counts) -> None:
    """What the choice to look at an image again takes at most, and the sum with the logits of that pass, in every pass.

    2 C - 3 comparisons find the two greatest of C logits, their difference is compared with the margin, and C logits
    are added to the others.
    """
    counts.additions[bits] += 3 * step.shape[0] - 1


def linear_bias_bits(step: Step, sums: Accumulation) -> np.ndarray:
    """Widths of the biases' additions of the outputs that have weights."""
    alive = sums.nonzeros > 0
    return np.maximum(sums.bits, signed_width(step.bias, step.bias))[alive]
