"""Convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from micronet.packed import checks
from micronet.packed.errors import PackedFileError
from micronet.packed.limits import MOST_SIDE
from micronet.packed.steps.base import GEOMETRY, Place, Step
from micronet.packed.steps.geometry import Geometry, Pair, read_pair, said
from micronet.packed.steps.outline import Outline, Plan
from micronet.packed.steps.scaling import Scaling, code_range, outline_residual, read_scaling, read_widths
from micronet.packed.steps.weights import Weights, outline_weight

USUAL = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "window": 1}
"""What a row may leave out."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv(Step):
    """Dot products at every position (cross-correlation), of which each window keeps the greatest; then scaled."""

    op: ClassVar[str] = "conv"

    weights: Weights
    scaling: Scaling
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)  # code 0
    dilation: Pair = (1, 1)
    window: int = 1  # side of the windows of sums, each of which keeps only the greatest

    @property
    def geometry(self) -> Geometry:
        """How its kernel lies on the map."""
        height, width = self.weights.codes.shape[2:]
        return Geometry((height, width), self.stride, self.padding, self.dilation)

    def since(self, steps: Sequence[Step]) -> int:
        within = self.padding[0] < self.weights.codes.shape[2]
        return self.scaling.since if self.geometry.square and within else GEOMETRY

    @property
    def reads(self) -> tuple[int, ...]:
        return (*self.inputs, *self.scaling.reads)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return (self.weights.codes, *self.scaling.arrays)

    def sum_shape(self, source: Step) -> tuple[int, int, int]:
        """(C, H, W) of the sums, before the windows."""
        return len(self.weights), *self.geometry.size(source.shape)

    def row(self, at: int) -> dict[str, Any]:
        geometry = {key: said(getattr(self, key)) for key in ("stride", "padding", "dilation")}
        geometry |= {"groups": self.weights.groups, "window": self.window}
        geometry = {key: value for key, value in geometry.items() if value != USUAL[key]}
        head = {"op": self.op, "name": self.name, "from": list(self.inputs)}
        return head | self.weights.row() | geometry | self.scaling.code_row() | {"at": at} | self.scaling.width_row()

    def fields(self) -> list[np.ndarray]:
        return self.weights.fields() + self.scaling.fields()

    @classmethod
    def outline(cls, row: dict[str, Any], plan: Plan) -> Outline:
        index, source = plan.source(row)
        shape = outline_weight(row, plan, source[0], 4)
        if max(shape[2:]) > MOST_SIDE:
            raise PackedFileError(f"a kernel of {checks.shown(list(shape[2:]))}, {MOST_SIDE} are the most")
        geometry = Geometry((shape[2], shape[3]), **_placed(row))
        height, width = geometry.size(source)
        if min(height, width) < 1:
            raise PackedFileError("a kernel larger than its map")
        window = checks.whole(row.get("window", 1), 1, min(height, width), "window")
        if window > 1 and plan.half:
            raise PackedFileError("a window of sums in a file of 16-bit floats")
        made = (shape[0], height // window, width // window)
        return Outline(
            shape=made,
            inputs=(index,),
            added=outline_residual(row, plan, made),
            weights=math.prod(shape),
            operations=math.prod(shape) * height * width,
            columns=source[0] * geometry.area * height * width,
            largest=max(geometry.padded(source), shape[0] * height * width),
        )

    @classmethod
    def read(cls, row: dict[str, Any], place: Place) -> Self:
        source = place.source
        place.begin(row)
        widths = read_widths(row, place)
        weights, geometry = Weights.read(row, place, sum(widths)), _placed(row)
        sums = None if place.half else weights.checked_sums(source)
        scaling = read_scaling(row, place, widths, None if sums is None else (sums.low, sums.high))
        return cls(
            name=place.name,
            inputs=place.outline.inputs,
            shape=place.outline.shape,
            **code_range(scaling, len(weights)),
            storage=place.storage,
            weights=weights,
            scaling=scaling,
            stride=geometry["stride"],
            padding=geometry["padding"],
            dilation=geometry["dilation"],
            window=row.get("window", 1),
        )


def _placed(row: dict[str, Any]) -> dict[str, Pair]:
    """How a kernel lies on the map, according to its row."""
    return {
        "stride": read_pair(row, "stride", 1, (1, 1)),
        "padding": read_pair(row, "padding", 0, (0, 0)),
        "dilation": read_pair(row, "dilation", 1, (1, 1)),
    }
