"""The content of a packed file: steps of one network, or of several in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from micronet.packed.steps import Conv, Input, Linear, Step

FIT = "image_fit"  # among the texts about a model: how its training images were resized
CASCADE = "cascade"  # the name in the spec of several networks
MOST_AT_ONCE = 1 << 28  # numbers for images that are computed together: a gigabyte of float32


@dataclass(frozen=True)
class PackedModel:
    """The content of a packed file. The integers of a linear step are its network's logits; `steps[-1]` is one."""

    steps: tuple[Step, ...]
    spec: dict[str, Any] | None
    arithmetic: str  # integer, half
    metadata: dict[str, str]
    digest: str  # sha256 of metadata and payload, hex
    payload_bits: int
    file_bytes: int
    peak: int  # the most numbers held at one time while computing one image
    class_names: tuple[str, ...] = ()  # in the order of the logits; untrusted text: use `errors.shown` to display it
    logit_scale: float | None = None  # the real value of one logit unit; None: the file does not say

    @property
    def image(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that it takes."""
        return self.steps[0].shape

    @property
    def classes(self) -> int:
        return self.steps[-1].shape[0]

    @property
    def input_bits(self) -> int:
        """Bits kept of a pixel."""
        image = self.steps[0]
        assert isinstance(image, Input)
        return image.code_bits

    @property
    def networks(self) -> tuple[range, ...]:
        """The steps of each network, without the input, which they all share."""
        return networks(self.steps)

    @property
    def ends(self) -> list[Linear]:
        """The linear step of each network."""
        return ends(self.steps)

    @property
    def flip_margin(self) -> int:
        """Images below it are seen again by the last network, mirrored; 0: none are."""
        return self.ends[-1].margin

    @property
    def specs(self) -> tuple[dict[str, Any], ...] | None:
        """The architecture of each network; None if the file names none."""
        if self.spec is None:
            return None
        return (self.spec,) if self.spec.get("name") != CASCADE else tuple(self.spec["networks"])

    @property
    def weights(self) -> int:
        """Weights of convolutions and linear layers, including zeros."""
        return sum(codes.size for codes in self._codes())

    @property
    def zero_weights(self) -> int:
        return sum(int((codes == 0).sum()) for codes in self._codes())

    @property
    def parameters(self) -> int:
        """Weights, multipliers and biases."""
        return sum(array.size for step in self.steps for array in step.arrays)

    @property
    def nonzero_parameters(self) -> int:
        return sum(int(np.count_nonzero(array)) for step in self.steps for array in step.arrays)

    def at_once(self, images: int) -> int:
        """How many of `images` images are computed together: fewer if their maps would take gigabytes."""
        return max(1, min(images, MOST_AT_ONCE // self.peak))

    def _codes(self) -> list[np.ndarray]:
        return [step.weights.codes for step in self.steps if isinstance(step, Conv | Linear)]


def networks(steps: Sequence[Step]) -> tuple[range, ...]:
    """The steps of each network: those after the previous linear step, up to its own."""
    behind = [index + 1 for index, step in enumerate(steps) if isinstance(step, Linear)]
    return tuple(range(start, end) for start, end in zip([1, *behind], behind, strict=False))


def ends(steps: Sequence[Step]) -> list[Linear]:
    """The linear step of each network."""
    return [step for step in steps if isinstance(step, Linear)]


def joined(total: Any, logits: Any, shift: int) -> Any:
    """The sum of the logits so far and those of one more network, of scales 2**shift apart; integer arrays.

    One of the two is shifted left, so that nothing is rounded.
    """
    return total * (1 << max(shift, 0)) + logits * (1 << max(-shift, 0))


def shifts(steps: Sequence[Step]) -> list[int]:
    """The shifts with which logits join the sum: one for each next network's pass, then one for the mirrored pass.

    The last network's second pass has the same weight as its first.
    """
    before = [end.logit_shift or 0 for end in ends(steps)[:-1]]
    return [*before, min(before[-1], 0) if before else 0]


def logit_ranges(steps: Sequence[Step]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The range of the sum of logits after every pass: each network's, and the last one's again for the mirror image.

    Returns:
        (low, high) per pass, (C,) of Python integers each. The last pair is always given, mirrored images or not.
    """
    # Python's integers never overflow.
    ranges = [(end.low.astype(object), end.high.astype(object)) for end in ends(steps)]
    found = [ranges[0]]
    for added, shift in zip([*ranges[1:], ranges[-1]], shifts(steps), strict=True):
        low, high = (joined(side, new, shift) for side, new in zip(found[-1], added, strict=True))
        found.append((low, high))
    return found
