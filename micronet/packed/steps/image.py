"""The input: an image's pixels as codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from micronet.packed import checks
from micronet.packed.errors import PackedFileError
from micronet.packed.limits import IMAGE, MOST_SIDE
from micronet.packed.steps.base import GEOMETRY, Place, Step
from micronet.packed.steps.outline import Outline, Plan, Shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Step):
    """code = (pixel - 128) >> (8 - code_bits); 16 bits mean the normalised pixel as a float."""

    op: ClassVar[str] = "input"

    code_bits: int

    @classmethod
    def of(cls, code_bits: int, image: Shape = IMAGE, name: str = "image") -> Self:
        """An input (C, H, W) of this many bits, with their full range."""
        low, high = (0, 0) if code_bits == 16 else (-(1 << (code_bits - 1)), (1 << (code_bits - 1)) - 1)
        edges = np.full(image[0], low, np.int32), np.full(image[0], high, np.int32)
        return cls(name=name, inputs=(), shape=image, low=edges[0], high=edges[1], code_bits=code_bits)

    def since(self, steps: Sequence[Step]) -> int:
        return super().since(steps) if self.shape == IMAGE else GEOMETRY

    def row(self, at: int) -> dict[str, Any]:
        shape = {} if self.shape == IMAGE else {"shape": list(self.shape)}
        return {"op": self.op, "bits": self.code_bits} | shape

    @classmethod
    def outline(cls, row: dict[str, Any], plan: Plan) -> Outline:
        shape = checks.wholes(row.get("shape", list(IMAGE)), 3, "shape")
        if len(shape) != 3 or not all(1 <= size <= MOST_SIDE for size in shape):
            raise PackedFileError(
                f"an image of {checks.shown(shape)}, three numbers from 1 to {MOST_SIDE} are possible"
            )
        return Outline(shape=(shape[0], shape[1], shape[2]))

    @classmethod
    def read(cls, row: dict[str, Any], place: Place) -> Self:
        bits = checks.whole(row.get("bits"), 1, 16, "bits")
        if (bits == 16) != place.half or (not place.half and bits > 8):
            raise PackedFileError("the input has 1 to 8 bits, 16 in a file of 16-bit floats")
        return cls.of(bits, place.outline.shape, place.name)
