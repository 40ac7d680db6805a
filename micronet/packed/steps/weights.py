"""The weight codes of a dot product, in a convolution or linear layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from micronet.packed import checks
from micronet.packed.bits import MASKS, MOST_BLOCK, weight_fields
from micronet.packed.errors import PackedFileError
from micronet.packed.limits import MOST_SUM
from micronet.packed.steps.base import Place, Step, reaches
from micronet.packed.steps.outline import Plan
from micronet.packed.widths import Accumulation, accumulation


@dataclass(frozen=True, eq=False, kw_only=True)
class Weights:
    """Codes, how they are stored, and how their products are summed."""

    codes: np.ndarray  # (O, I / groups, k, k) or (O, I), int8; half: float16
    bits: int
    mask: tuple[int, ...] | None = None  # None: every code is stored; otherwise the nonzero ones behind a block mask
    groups: int = 1
    accumulator_bits: int = 0
    factored: bool = False  # summed as in `arithmetic.factors`, not weight by weight

    def __len__(self) -> int:
        """Output channels."""
        return len(self.codes)

    @property
    def rows(self) -> np.ndarray:
        """(O, taps): the codes of each output channel."""
        return self.codes.reshape(len(self.codes), -1)

    @property
    def nonzeros(self) -> int:
        return int(np.count_nonzero(self.codes))

    @property
    def live(self) -> np.ndarray:
        """Which output channels have a nonzero weight, (O,) bool."""
        return np.any(self.rows != 0, axis=1)

    def sums(self, source: Step) -> Accumulation:
        """Bounds of its dot products with the output of `source`."""
        return accumulation(self.codes, self.groups, source.low, source.high)

    def row(self) -> dict[str, Any]:
        """Its part of the table row."""
        mask = {} if self.mask is None else {"mask": list(self.mask)}
        sums = {"sum": [self.accumulator_bits, int(self.factored)]}
        return {"shape": list(self.codes.shape), "weight": self.bits} | mask | sums

    def fields(self) -> list[np.ndarray]:
        """Its bits in the payload."""
        return [values for _, values in weight_fields(self.codes, self.bits, self.mask)]

    @classmethod
    def read(cls, row: dict[str, Any], place: Place, constant_bits: int) -> Self:
        """The weights of a step whose shape `outline_weight` has checked.

        Args:
            constant_bits: of multiplier, exponent and bias together: the payload holds them for every channel.
        """
        reader, half = place.reader, place.half
        shape, groups = tuple(row["shape"]), row.get("groups", 1)
        bits = checks.whole(row.get("weight"), 1, 16, "weight bits")
        mask = _mask(row)
        if shape[0] * max(1, constant_bits) > reader.end - reader.at:
            raise PackedFileError(f"has more channels, {shape[0]}, than the payload has constants for")
        if (bits == 16) != half or (not half and bits > 8):
            raise PackedFileError(f"a weight of {bits} bits")
        codes = reader.weights(shape, bits, mask)
        place.mark("weight")
        stated, factored = checks.pair(row.get("sum"), "sum")
        stated = checks.whole(stated, 0, 32, "accumulator bits")
        factored = bool(checks.whole(factored, 0, 0 if half else 1, "factored"))
        weights = cls(codes=codes, bits=bits, mask=mask, groups=groups, accumulator_bits=stated, factored=factored)
        return weights

    def checked_sums(self, source: Step) -> Accumulation:
        """The bounds of the sums, checked against overflow and the stated width."""
        sums = self.sums(source)
        if reaches(sums.low, sums.high) >= MOST_SUM:
            raise PackedFileError("an accumulator needs more than 32 bits")
        needed = int(sums.bits.max())
        if self.accumulator_bits != needed:
            raise PackedFileError(f"its accumulators need {needed} bits, the table says {self.accumulator_bits}")
        return sums


def outline_weight(row: dict[str, Any], plan: Plan, channels: int, dimensions: int) -> tuple[int, ...]:
    """The shape of a step's weight of `dimensions` dimensions, on an input of `channels` channels."""
    shape = tuple(checks.wholes(row.get("shape"), 4, "shape"))
    said = checks.shown(row["shape"])
    if len(shape) != dimensions or min(shape) < 1:
        raise PackedFileError(f"a weight of shape {said}")
    groups = checks.whole(row.get("groups", 1), 1, channels, "groups")
    most = MOST_BLOCK * 8 * plan.payload_bytes
    if math.prod(shape) > most or shape[1] * groups != channels or shape[0] % groups:
        raise PackedFileError(f"a weight of shape {said} in {groups} groups, on {channels} channels")
    return shape


def _mask(row: dict[str, Any]) -> tuple[int, ...] | None:
    if "mask" not in row:
        return None
    mask = row["mask"]
    if mask not in map(list, MASKS) or any(type(block) is not int for block in mask):
        raise PackedFileError(f"there is no mask of blocks {checks.shown(mask)}")
    return tuple(mask)
