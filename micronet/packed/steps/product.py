"""The product of two maps: a gate, or the factors of a squeeze-and-excite block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from micronet.packed import checks
from micronet.packed.errors import PackedFileError
from micronet.packed.limits import MOST_SUM
from micronet.packed.steps.base import ACTIVATIONS, Place, Step, reaches
from micronet.packed.steps.outline import Outline, Plan
from micronet.packed.steps.scaling import Scaling, code_range, outline_residual, read_scaling, read_widths


@dataclass(frozen=True, eq=False, kw_only=True)
class Product(Step):
    """The codes of one map (C, H, W) times those of another, of the same shape or (C, 1, 1); then scaled."""

    op: ClassVar[str] = "product"

    scaling: Scaling

    def since(self, steps: Sequence[Step]) -> int:
        return ACTIVATIONS

    @property
    def reads(self) -> tuple[int, ...]:
        return (*self.inputs, *self.scaling.reads)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.scaling.arrays

    def row(self, at: int) -> dict[str, Any]:
        head = {"op": self.op, "name": self.name, "from": list(self.inputs)}
        shape = {"shape": [self.shape[0]]}
        return head | self.scaling.code_row() | shape | {"at": at} | self.scaling.width_row()

    def fields(self) -> list[np.ndarray]:
        return self.scaling.fields()

    @classmethod
    def outline(cls, row: dict[str, Any], plan: Plan) -> Outline:
        inputs = plan.inputs(row)
        shapes = [plan.outlines[index].shape for index in inputs]
        if len(inputs) != 2 or shapes[1] not in (shapes[0], (shapes[0][0], 1, 1)):
            said = checks.shown([size for shape in shapes[:2] for size in shape])
            raise PackedFileError(f"a product of {len(inputs)} maps of {said}; two alike, or one of 1 x 1 second, work")
        shape = shapes[0]
        if row.get("shape") != [shape[0]] or type(row["shape"][0]) is not int:
            raise PackedFileError(f"vectors of shape {checks.shown(row.get('shape'))} on {shape[0]} channels")
        added = outline_residual(row, plan, shape)
        return Outline(shape=shape, inputs=inputs, added=added, operations=math.prod(shape))

    @classmethod
    def read(cls, row: dict[str, Any], place: Place) -> Self:
        first, second = (place.steps[index] for index in place.outline.inputs)
        place.begin(row)
        widths = read_widths(row, place)
        sums = None if place.half else products(first, second)
        if sums is not None and reaches(*sums) >= MOST_SUM:
            raise PackedFileError("a product needs more than 32 bits")
        scaling = read_scaling(row, place, widths, sums)
        return cls(
            name=place.name,
            inputs=place.outline.inputs,
            shape=first.shape,
            **code_range(scaling, first.shape[0]),
            storage=place.storage,
            scaling=scaling,
        )


def products(first: Step, second: Step) -> tuple[np.ndarray, np.ndarray]:
    """The range of the products in each channel, (C,) int64 each."""
    edges = [
        one.astype(np.int64) * other.astype(np.int64)
        for one in (first.low, first.high)
        for other in (second.low, second.high)
    ]
    return np.minimum.reduce(edges), np.maximum.reduce(edges)
