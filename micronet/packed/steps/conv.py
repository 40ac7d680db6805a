"""Convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from micronet.packed import checks
from micronet.packed.errors import PackedFileError
from micronet.packed.limits import MOST_SIDE
from micronet.packed.steps.base import Place, Step
from micronet.packed.steps.scaling import Scaling, code_range, read_scaling, read_widths
from micronet.packed.steps.weights import Weights


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
    def read(cls, row: dict[str, Any], place: Place) -> Self:
        index, source = place.source(row)
        place.begin(row)
        widths = read_widths(row, place)
        weights = Weights.read(row, place, source, 4, sum(widths))
        sums = None if place.half else weights.checked_sums(source)
        stride = checks.whole(row.get("stride", 1), 1, MOST_SIDE, "stride")
        padding = checks.whole(row.get("padding", 0), 0, MOST_SIDE, "padding")
        kernel = weights.codes.shape[2:]
        if kernel[0] != kernel[1] or padding >= kernel[0]:
            raise PackedFileError(f"a kernel of {kernel[0]} x {kernel[1]} with padding {padding}")
        height, width = sum_size(source, kernel[0], stride, padding)
        if min(height, width) < 1:
            raise PackedFileError("a kernel larger than its map")
        window = checks.whole(row.get("window", 1), 1, min(height, width), "window")
        if window > 1 and place.half:
            raise PackedFileError("a window of sums in a file of 16-bit floats")
        shape = (len(weights), height // window, width // window)
        scaling = read_scaling(row, place, shape, widths, None if sums is None else (sums.low, sums.high))
        return cls(
            name=place.name,
            inputs=(index,),
            shape=shape,
            **code_range(scaling, shape[0]),
            storage=place.storage,
            weights=weights,
            scaling=scaling,
            stride=stride,
            padding=padding,
            window=window,
        )


def sum_size(source: Step, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Height and width of a convolution's sums."""
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in source.shape[1:])
    return height, width
