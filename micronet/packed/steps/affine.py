"""A scaling as a step of its own: a batch norm, addition or change of codes that is not part of a convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from micronet.packed import checks
from micronet.packed.errors import PackedFileError
from micronet.packed.steps.base import Place, Step
from micronet.packed.steps.outline import Outline, Plan
from micronet.packed.steps.scaling import Scaling, code_range, outline_residual, read_scaling, read_widths


@dataclass(frozen=True, eq=False, kw_only=True)
class Affine(Step):
    """The input's codes, scaled."""

    op: ClassVar[str] = "affine"

    scaling: Scaling
    order: int = 1  # output channel i reads input channel interleave(C, order)[i]

    @property
    def chosen(self) -> np.ndarray:
        """The input channel of each output channel."""
        return interleave(self.shape[0], self.order)

    def since(self, steps: Sequence[Step]) -> int:
        return self.scaling.since

    @property
    def reads(self) -> tuple[int, ...]:
        return (*self.inputs, *self.scaling.reads)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.scaling.arrays

    def row(self, at: int) -> dict[str, Any]:
        head = {"op": self.op, "name": self.name, "from": list(self.inputs)}
        order = {} if self.order == 1 else {"order": self.order}
        shape = {"shape": [self.shape[0]]}
        return head | self.scaling.code_row() | shape | order | {"at": at} | self.scaling.width_row()

    def fields(self) -> list[np.ndarray]:
        return self.scaling.fields()

    @classmethod
    def outline(cls, row: dict[str, Any], plan: Plan) -> Outline:
        index, shape = plan.source(row)
        if row.get("shape") != [shape[0]]:
            raise PackedFileError(f"vectors of shape {checks.shown(row.get('shape'))} on {shape[0]} channels")
        order = checks.whole(row.get("order", 1), 1, shape[0], "order")
        if shape[0] % order:
            raise PackedFileError(f"an order of {order} groups of {shape[0]} channels")
        added = outline_residual(row, plan, shape)
        return Outline(shape=shape, inputs=(index,), added=added, operations=math.prod(shape))

    @classmethod
    def read(cls, row: dict[str, Any], place: Place) -> Self:
        source, order = place.source, row.get("order", 1)
        place.begin(row)
        widths = read_widths(row, place)
        channels = source.shape[0]
        chosen = interleave(channels, order)
        low, high = (side.astype(np.int64)[chosen] for side in (source.low, source.high))
        scaling = read_scaling(row, place, widths, None if place.half else (low, high))
        return cls(
            name=place.name,
            inputs=place.outline.inputs,
            shape=source.shape,
            **code_range(scaling, channels),
            storage=place.storage,
            scaling=scaling,
            order=order,
        )


def interleave(channels: int, groups: int) -> np.ndarray:
    """The input channel of each output channel when `groups` strided groups are made contiguous."""
    return np.arange(channels).reshape(-1, groups).T.reshape(-1)
