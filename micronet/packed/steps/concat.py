"""Concatenation of channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from micronet.packed.errors import PackedFileError
from micronet.packed.steps.base import Place, Step, joined_ranges
from micronet.packed.steps.outline import Outline, Plan


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(Step):
    """The channels of its inputs, one input after the other."""

    op: ClassVar[str] = "concat"

    @classmethod
    def outline(cls, row: dict[str, Any], plan: Plan) -> Outline:
        inputs = plan.inputs(row)
        shapes = [plan.outlines[index].shape for index in inputs]
        size = shapes[0][1:]
        if any(shape[1:] != size for shape in shapes):
            raise PackedFileError("a concatenation of maps of different sizes")
        return Outline(shape=(sum(shape[0] for shape in shapes), *size), inputs=inputs)

    @classmethod
    def read(cls, row: dict[str, Any], place: Place) -> Self:
        inputs = place.outline.inputs
        low, high = joined_ranges(place.steps[index] for index in inputs)
        return cls(name=place.name, inputs=inputs, shape=place.outline.shape, low=low, high=high)
