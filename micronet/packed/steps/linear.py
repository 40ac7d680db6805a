"""The linear layer that ends a network, and the choice to look at an image again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from micronet.packed import checks
from micronet.packed.bits import half_bits, to_bits
from micronet.packed.errors import PackedFileError
from micronet.packed.limits import MOST_CLASSES, MOST_SUM, SHIFT_BITS
from micronet.packed.steps.base import GEOMETRY, Place, Step, reaches, vector
from micronet.packed.steps.outline import Outline, Plan
from micronet.packed.steps.scaling import read_floats, read_integers, read_widths
from micronet.packed.steps.weights import Weights, outline_weight


@dataclass(frozen=True, eq=False, kw_only=True)
class Choice:
    """Images whose two greatest logits are closer than a margin go on.

    They go to the next network, whose logits are added after a shift; behind the last network, to it again, mirrored.
    """

    margin: int
    bits: int  # width of the margin
    logit_shift: int | None = None  # between the logits of this network and the next; None behind the last


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Step):
    """Logits: dot products of a whole map, plus biases. `low` and `high` are their range."""

    op: ClassVar[str] = "linear"

    weights: Weights  # (classes, C, H, W); for a map of 1 x 1 (classes, C)
    bias: np.ndarray  # (C,) int64; half: float16
    bias_bits: int
    choice: Choice | None = None

    def since(self, steps: Sequence[Step]) -> int:
        return super().since(steps) if self.weights.codes.ndim == 2 else GEOMETRY

    @property
    def margin(self) -> int:
        """0: no image goes on."""
        return 0 if self.choice is None else self.choice.margin

    @property
    def logit_shift(self) -> int | None:
        return None if self.choice is None else self.choice.logit_shift

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.weights.codes, self.bias

    def row(self, at: int) -> dict[str, Any]:
        head = {"op": self.op, "name": self.name, "from": list(self.inputs)}
        row = head | self.weights.row() | {"at": at, "bits": [0, 0, self.bias_bits]}
        if self.choice is not None:
            row["flip" if self.choice.logit_shift is None else "next"] = self.choice.bits
        return row

    def fields(self) -> list[np.ndarray]:
        half = self.bias.dtype == np.float16
        found = [*self.weights.fields(), half_bits(self.bias) if half else to_bits(self.bias, self.bias_bits)]
        if self.choice is not None:
            found.append(to_bits(np.array([self.choice.margin]), self.choice.bits))
            if self.choice.logit_shift is not None:
                found.append(to_bits(np.array([self.choice.logit_shift]), SHIFT_BITS))
        return found

    @classmethod
    def outline(cls, row: dict[str, Any], plan: Plan) -> Outline:
        index, source = plan.source(row)
        whole = () if source[1:] == (1, 1) else source[1:]
        shape = outline_weight(row, plan, source[0], 2 + len(whole))
        if shape[1:] != (source[0], *whole):
            raise PackedFileError(f"a linear step of {checks.shown(list(shape[1:]))} on a map of {source}")
        if shape[0] > MOST_CLASSES:
            raise PackedFileError(f"has {checks.shown(shape[0])} classes, {MOST_CLASSES} are the most")
        weights = math.prod(shape)
        return Outline(shape=(shape[0], 1, 1), inputs=(index,), weights=weights, operations=weights, ends=True)

    @classmethod
    def read(cls, row: dict[str, Any], place: Place) -> Self:
        if ("next" in row) == place.last:
            raise PackedFileError("a linear step must be the last, or have a margin for the next network")
        source = place.source
        place.begin(row)
        widths = read_widths(row, place)
        weights = Weights.read(row, place, sum(widths))
        sums = None if place.half else weights.checked_sums(source)
        if widths[0] or widths[1]:
            raise PackedFileError("a linear step has no multipliers")
        if "add" in row:
            raise PackedFileError("a linear step adds no value")
        classes = len(weights)
        if place.half:
            bias = read_floats("bias", classes, widths[2], place)
            low = high = vector(0, classes)
        else:
            bias = read_integers("bias", classes, widths[2], place) if widths[2] else None
        if bias is None:
            raise PackedFileError("a linear step without biases")
        if sums is not None:
            low, high = sums.low + bias, sums.high + bias
            if reaches(low, high) >= MOST_SUM:
                raise PackedFileError("a logit needs more than 32 bits")
        choice = _read_choice(row, place, classes)
        return cls(
            name=place.name,
            inputs=place.outline.inputs,
            shape=(classes, 1, 1),
            low=low.astype(np.int32),
            high=high.astype(np.int32),
            storage=place.storage,
            weights=weights,
            bias=bias,
            bias_bits=widths[2],
            choice=choice,
        )


def chosen(step: Step, choice: Choice | None) -> Linear:
    """The step with another choice."""
    assert isinstance(step, Linear)
    return replace(step, choice=choice)


def _read_choice(row: dict[str, Any], place: Place, classes: int) -> Choice | None:
    key = "flip" if "flip" in row else "next"
    if key not in row:
        return None
    if place.half or classes < 2:
        raise PackedFileError("a margin where there are no two integer logits")
    if key == "flip" and not place.last:
        raise PackedFileError("a margin for mirrored images before the last network")
    bits = checks.whole(row[key], 1, 32, key)
    margin = int(place.reader.numbers(1, bits, signed=False)[0])
    place.mark("margin")
    if margin == 0:
        raise PackedFileError("a margin of 0")
    if key == "flip":
        return Choice(margin=margin, bits=bits)
    shift = int(place.reader.numbers(1, SHIFT_BITS)[0])
    place.mark("logit_shift")
    return Choice(margin=margin, bits=bits, logit_shift=shift)
