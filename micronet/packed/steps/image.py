"""The input: an image's pixels as codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from micronet.packed import checks
from micronet.packed.errors import PackedFileError
from micronet.packed.limits import IMAGE
from micronet.packed.steps.base import Place, Step
from micronet.packed.steps.outline import Outline, Plan


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Step):
    """code = (pixel - 128) >> (8 - code_bits); 16 bits stand for the normalised pixel as a float."""

    op: ClassVar[str] = "input"

    code_bits: int

    @classmethod
    def of(cls, code_bits: int, name: str = "image") -> Self:
        """An input of so many bits; its range is theirs."""
        low, high = (0, 0) if code_bits == 16 else (-(1 << (code_bits - 1)), (1 << (code_bits - 1)) - 1)
        edges = np.full(IMAGE[0], low, np.int32), np.full(IMAGE[0], high, np.int32)
        return cls(name=name, inputs=(), shape=IMAGE, low=edges[0], high=edges[1], code_bits=code_bits)

    def row(self, at: int) -> dict[str, Any]:
        return {"op": self.op, "bits": self.code_bits}

    @classmethod
    def outline(cls, row: dict[str, Any], plan: Plan) -> Outline:
        return Outline(shape=IMAGE)

    @classmethod
    def read(cls, row: dict[str, Any], place: Place) -> Self:
        bits = checks.whole(row.get("bits"), 1, 16, "bits")
        if (bits == 16) != place.half or (not place.half and bits > 8):
            raise PackedFileError("the input has 1 to 8 bits, 16 in a file of 16-bit floats")
        return cls.of(bits, place.name)
