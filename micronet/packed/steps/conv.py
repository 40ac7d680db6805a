"""Convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from micronet.packed import checks
from micronet.packed.errors import PackedFileError
from micronet.packed.limits import MOST_SIDE
from micronet.packed.steps.base import Place, Step
from micronet.packed.steps.outline import Outline, Plan, Shape
from micronet.packed.steps.scaling import Scaling, code_range, outline_residual, read_scaling, read_widths
from micronet.packed.steps.weights import Weights, outline_weight


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv(Step):
    """Dot products at every position (cross-correlation), of each window of them only the greatest; then scaled."""

    op: ClassVar[str] = "conv"

    weights: Weights
    scaling: Scaling
    stride: int = 1
    padding: int = 0  # code 0
    window: int = 1  # side of the windows of sums of which only the greatest goes on

    @property
    def kernel(self) -> int:
        """The kernel's side."""
        return self.weights.codes.shape[2]

    @property
    def version(self) -> int:
        return self.scaling.version

    @property
    def reads(self) -> tuple[int, ...]:
        return (*self.inputs, *self.scaling.reads)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return (self.weights.codes, *self.scaling.arrays)

    def sum_shape(self, source: Step) -> tuple[int, int, int]:
        """(C, H, W) of the sums, before a window takes the greatest."""
        return len(self.weights), *sum_size(source, self.kernel, self.stride, self.padding)

    def row(self, at: int) -> dict[str, Any]:
        geometry = {"stride": self.stride, "padding": self.padding, "groups": self.weights.groups}
        usual = {"stride": 1, "padding": 0, "groups": 1, "window": 1}
        geometry = {key: value for key, value in {**geometry, "window": self.window}.items() if value != usual[key]}
        head = {"op": self.op, "name": self.name, "from": list(self.inputs)}
        return head | self.weights.row() | geometry | self.scaling.code_row() | {"at": at} | self.scaling.width_row()

    def fields(self) -> list[np.ndarray]:
        return self.weights.fields() + self.scaling.fields()

    @classmethod
    def outline(cls, row: dict[str, Any], plan: Plan) -> Outline:
        index, source = plan.source(row)
        shape = outline_weight(row, plan, source[0], 4)
        stride = checks.whole(row.get("stride", 1), 1, MOST_SIDE, "stride")
        padding = checks.whole(row.get("padding", 0), 0, MOST_SIDE, "padding")
        kernel = shape[2]
        if shape[3] != kernel or not padding < kernel <= MOST_SIDE:
            raise PackedFileError(f"a kernel of {kernel} x {shape[3]} with padding {padding}")
        height, width = _size(source, kernel, stride, padding)
        if min(height, width) < 1:
            raise PackedFileError("a kernel larger than its map")
        window = checks.whole(row.get("window", 1), 1, min(height, width), "window")
        if window > 1 and plan.half:
            raise PackedFileError("a window of sums in a file of 16-bit floats")
        made = (shape[0], height // window, width // window)
        padded = source[0] * (source[1] + 2 * padding) * (source[2] + 2 * padding)
        return Outline(
            shape=made,
            inputs=(index,),
            added=outline_residual(row, plan, made),
            weights=math.prod(shape),
            operations=math.prod(shape) * height * width,
            columns=source[0] * kernel**2 * height * width,
            largest=max(padded, shape[0] * height * width),
        )

    @classmethod
    def read(cls, row: dict[str, Any], place: Place) -> Self:
        source = place.source
        place.begin(row)
        widths = read_widths(row, place)
        weights = Weights.read(row, place, sum(widths))
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
            stride=row.get("stride", 1),
            padding=row.get("padding", 0),
            window=row.get("window", 1),
        )


def sum_size(source: Step, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Height and width of a convolution's sums."""
    return _size(source.shape, kernel, stride, padding)


def _size(shape: Shape, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in shape[1:])
    return height, width
