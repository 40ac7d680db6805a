"""The steps of a packed model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

IMAGE = (3, 32, 32)


MOST_SUM = 1 << 31  # no accumulator reaches it


MOST_SIDE = 1024  # kernel, stride, padding


# Ways to group the bits of a mask: blocks of so many weights, then blocks of so many blocks.
CASCADE = "cascade"  # the name in the spec of several networks


@dataclass(frozen=True)
class Step:
    """One step. Vectors have an entry a channel of the output, which is (C, H, W)."""

    op: str  # input conv affine pool maximum concat linear
    name: str
    inputs: tuple[int, ...]
    shape: tuple[int, int, int]
    low: np.ndarray  # lowest code of each output channel, (C,) int32; of a linear step: the accumulator's
    high: np.ndarray
    stride: int = 1
    padding: int = 0
    groups: int = 1
    kernel: int = 1  # pool, maximum: window and stride
    window: int = 1  # conv: side of the windows of sums of which only the greatest goes on
    order: int = 1  # affine: output channel i reads input channel interleave(C, order)[i]
    relu: bool = False
    norm: bool = False  # a batch norm of the architecture lies in this step
    code_bits: int = 0  # input, conv, affine: width of the output's codes; half: 16
    signed: bool = False
    weight: np.ndarray | None = None  # (O, I / groups, k, k) or (O, I), int8; half: float16
    weight_bits: int = 0
    mask: tuple[int, ...] | None = None  # None: every code is stored; else the non-zero ones behind a mask of blocks
    multiplier: np.ndarray | None = None  # (C,) int64; half: float16
    multiplier_bits: int = 0
    shift: np.ndarray | None = None  # (C,) int64, each channel's own
    exponent_bits: int = 0  # width of what a shift is above the least one
    bias: np.ndarray | None = None
    bias_bits: int = 0
    bias_fraction: int = 0  # bits of a bias below one output code
    residual: int | None = None  # the value that is added
    residual_multiplier: int = 1
    residual_bits: int = 0
    residual_fraction: int = 0
    accumulator_bits: int = 0
    factored: bool = False  # sums are of `factors`, not of one product a weight
    # linear: images whose two greatest logits are closer go on, to the next network, or, behind the last one, to that
    # one again; 0: none do
    margin: int = 0
    margin_bits: int = 0
    logit_shift: int | None = None  # linear of a network that another follows: how its logits join that one's
    storage: tuple[tuple[str, int], ...] = ()  # (field, bits) in the order of the payload

    @property
    def scaled_bias(self) -> np.ndarray:
        """What a requantization adds to the product, (C,) int64."""
        return self.bias << np.maximum(self.shift - self.bias_fraction, 0)

    @property
    def residual_factor(self) -> np.ndarray:
        """What a requantization multiplies the residual's code with, (C,) int64."""
        return self.residual_multiplier << (self.shift - self.residual_fraction)


def networks(steps: Sequence[Step]) -> tuple[range, ...]:
    """The steps of each network: those behind the linear step before, up to its own."""
    behind = [index + 1 for index, step in enumerate(steps) if step.op == "linear"]
    return tuple(range(start, end) for start, end in zip([1, *behind], behind, strict=False))


def ends(steps: Sequence[Step]) -> list[Step]:
    """The linear step of each network."""
    return [step for step in steps if step.op == "linear"]


def joined(total: Any, logits: Any, shift: int) -> Any:
    """The sum of logits so far and of one more network, whose scales are 2**shift apart; arrays of integers.

    One of both sides is shifted to the left, so that nothing is rounded.
    """
    return total * (1 << max(shift, 0)) + logits * (1 << max(-shift, 0))


def sums(steps: Sequence[Step]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The range of the sum of logits behind every pass: each network's, and the last one's again for the mirror image.

    Returns:
        (low, high) a pass, (C,) of Python integers each. The last is there whether or not images are seen mirrored.
    """
    # Python's integers never overflow.
    ranges = [(end.low.astype(object), end.high.astype(object)) for end in ends(steps)]
    shifts = [*(end.logit_shift for end in ends(steps)[:-1]), again(steps)]
    found = [ranges[0]]
    for added, shift in zip([*ranges[1:], ranges[-1]], shifts, strict=True):
        low, high = (joined(side, new, shift) for side, new in zip(found[-1], added, strict=True))
        found.append((low, high))
    return found


def again(steps: Sequence[Step]) -> int:
    """The shift with which the logits of the last network's second pass join the sum: they weigh as in its first."""
    before = [end.logit_shift for end in ends(steps)[:-1]]
    return min(before[-1], 0) if before else 0


def interleave(channels: int, groups: int) -> np.ndarray:
    """The input channel of each output channel when `groups` strided groups are brought together."""
    return np.arange(channels).reshape(-1, groups).T.reshape(-1)


def sum_shape(step: Step, source: Step) -> tuple[int, int, int]:
    """(C, H, W) of a step's sums, before a window takes the greatest."""
    if step.op != "conv":
        return step.shape
    height, width = ((side + 2 * step.padding - step.kernel) // step.stride + 1 for side in source.shape[1:])
    return step.shape[0], height, width
