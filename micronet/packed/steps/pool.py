"""Pooling, by sum and by maximum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from micronet.packed.errors import PackedFileError
from micronet.packed.limits import MOST_SUM
from micronet.packed.steps.base import GEOMETRY, Place, Step, reaches
from micronet.packed.steps.geometry import Geometry, read_pair, said
from micronet.packed.steps.outline import Outline, Plan, Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Window(Step):
    """A step over undilated windows of a map."""

    geometry: Geometry

    def since(self, steps: Sequence[Step]) -> int:
        return super().since(steps) if self.geometry.apart and self.geometry.square else GEOMETRY

    def row(self, at: int) -> dict[str, Any]:
        geometry = self.geometry
        stride = {} if geometry.stride == geometry.kernel else {"stride": said(geometry.stride)}
        padding = {} if geometry.padding == (0, 0) else {"padding": said(geometry.padding)}
        return super().row(at) | {"kernel": said(geometry.kernel)} | stride | padding

    @classmethod
    def shape_over(cls, shape: Shape, geometry: Geometry) -> Shape:
        """(C, H, W) of the windows over a map of this shape."""
        return shape[0], *geometry.size(shape)

    @classmethod
    def over(cls, source: Step, index: int, geometry: Geometry, name: str) -> Self:
        """The windows over value `index`, which `source` computes."""
        raise NotImplementedError

    @classmethod
    def outline(cls, row: dict[str, Any], plan: Plan) -> Outline:
        index, shape = plan.source(row)
        geometry = _geometry(row)
        if any(2 * padding > kernel for padding, kernel in zip(geometry.padding, geometry.kernel, strict=True)):
            raise PackedFileError(f"a padding of {geometry.padding}, half of the kernel {geometry.kernel} is the most")
        made = cls.shape_over(shape, geometry)
        if min(made) < 1:
            raise PackedFileError(f"a kernel of {geometry.kernel} is larger than its map of {shape[1:]}")
        return Outline(
            shape=made,
            inputs=(index,),
            operations=max(math.prod(shape), math.prod(made) * geometry.area),
            largest=0 if geometry.padding == (0, 0) else geometry.padded(shape),
        )

    @classmethod
    def read(cls, row: dict[str, Any], place: Place) -> Self:
        return cls.over(place.source, place.outline.inputs[0], _geometry(row), place.name)


def _geometry(row: dict[str, Any]) -> Geometry:
    """The windows according to a row."""
    kernel = read_pair(row, "kernel", 1)
    return Geometry(kernel, read_pair(row, "stride", 1, kernel), read_pair(row, "padding", 0, (0, 0)))


@dataclass(frozen=True, eq=False, kw_only=True)
class Pool(Window):
    """The sum over each window, with padding as code 0; the division is in the multipliers of the steps behind it."""

    op: ClassVar[str] = "pool"

    def since(self, steps: Sequence[Step]) -> int:
        return super().since(steps) if self.geometry.fills(steps[self.inputs[0]].shape) else GEOMETRY

    @classmethod
    def over(cls, source: Step, index: int, geometry: Geometry, name: str) -> Self:
        """The pool of value `index`, which `source` computes."""
        low, high = (np.asarray(side, np.int64) * geometry.area for side in (source.low, source.high))
        if reaches(low, high) >= MOST_SUM:
            raise PackedFileError("a pool's sums need more than 32 bits")
        edges = low.astype(np.int32), high.astype(np.int32)
        shape = cls.shape_over(source.shape, geometry)
        return cls(name=name, inputs=(index,), shape=shape, low=edges[0], high=edges[1], geometry=geometry)


@dataclass(frozen=True, eq=False, kw_only=True)
class Maximum(Window):
    """The greatest code of each window, ignoring padding."""

    op: ClassVar[str] = "maximum"

    @classmethod
    def over(cls, source: Step, index: int, geometry: Geometry, name: str) -> Self:
        """The maxima of value `index`, which `source` computes."""
        shape = cls.shape_over(source.shape, geometry)
        return cls(name=name, inputs=(index,), shape=shape, low=source.low, high=source.high, geometry=geometry)
