"""Pooling by sums, and by maxima."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from micronet.packed import checks
from micronet.packed.errors import PackedFileError
from micronet.packed.limits import MOST_SIDE, MOST_SUM
from micronet.packed.steps.base import Place, Step, reaches
from micronet.packed.steps.outline import Outline, Plan, Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Window(Step):
    """A step over square windows without overlap; `kernel` is their side and stride."""

    kernel: int

    def row(self, at: int) -> dict[str, Any]:
        return super().row(at) | {"kernel": self.kernel}

    @classmethod
    def shape_over(cls, shape: Shape, kernel: int) -> Shape:
        """(C, H, W) behind windows of this side."""
        channels, height, width = shape
        return channels, height // kernel, width // kernel

    @classmethod
    def outline_over(cls, index: int, shape: Shape, kernel: int) -> Outline:
        """Of windows of this side over value `index`, of this shape."""
        return Outline(shape=cls.shape_over(shape, kernel), inputs=(index,), operations=math.prod(shape))

    @classmethod
    def over(cls, source: Step, index: int, kernel: int, name: str) -> Self:
        """The windows over value `index`, which `source` makes."""
        raise NotImplementedError

    @classmethod
    def read(cls, row: dict[str, Any], place: Place) -> Self:
        return cls.over(place.source, place.outline.inputs[0], row["kernel"], place.name)


@dataclass(frozen=True, eq=False, kw_only=True)
class Pool(Window):
    """The sum over each window, which divides the map; the division is in the multipliers of what reads it."""

    op: ClassVar[str] = "pool"

    @classmethod
    def over(cls, source: Step, index: int, kernel: int, name: str) -> Self:
        """The pool of value `index`, which `source` makes."""
        low, high = (np.asarray(side, np.int64) * kernel**2 for side in (source.low, source.high))
        if reaches(low, high) >= MOST_SUM:
            raise PackedFileError("a pool's sums need more than 32 bits")
        edges = low.astype(np.int32), high.astype(np.int32)
        shape = cls.shape_over(source.shape, kernel)
        return cls(name=name, inputs=(index,), shape=shape, low=edges[0], high=edges[1], kernel=kernel)

    @classmethod
    def outline(cls, row: dict[str, Any], plan: Plan) -> Outline:
        index, shape = plan.source(row)
        kernel = checks.whole(row.get("kernel"), 1, MOST_SIDE, "kernel")
        if shape[1] % kernel or shape[2] % kernel:
            raise PackedFileError(f"a pool of {kernel} does not divide a map of {shape[1]} x {shape[2]}")
        return cls.outline_over(index, shape, kernel)


@dataclass(frozen=True, eq=False, kw_only=True)
class Maximum(Window):
    """The greatest code of each window. Rows and columns that fill no whole window are left out."""

    op: ClassVar[str] = "maximum"

    @classmethod
    def over(cls, source: Step, index: int, kernel: int, name: str) -> Self:
        """The maxima of value `index`, which `source` makes."""
        shape = cls.shape_over(source.shape, kernel)
        return cls(name=name, inputs=(index,), shape=shape, low=source.low, high=source.high, kernel=kernel)

    @classmethod
    def outline(cls, row: dict[str, Any], plan: Plan) -> Outline:
        index, shape = plan.source(row)
        kernel = checks.whole(row.get("kernel"), 1, min(*shape[1:], MOST_SIDE), "kernel")
        return cls.outline_over(index, shape, kernel)
