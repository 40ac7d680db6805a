"""What all steps of a packed model have in common, and the context in which a step is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from micronet.packed import checks
from micronet.packed.bits import Reader
from micronet.packed.errors import PackedFileError
from micronet.packed.steps.outline import Outline, Plan

PLAIN, GEOMETRY = 3, 5  # versions of the format: the first, and the one with images and windows of any shape
ACTIVATIONS = 5  # also with tables, products, and code ranges with limits

Storage = tuple[tuple[str, int], ...]
"""(field, bits) in the order of the payload."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """One step, which computes a map (C, H, W) of integer codes from earlier values.

    Each operation is a subclass that says what it stores (`row` of the table, `fields` of the payload), what it costs
    according to the table alone (`outline`), and how it is read and checked after that (`read`). Code that computes or
    counts with steps dispatches on the subclasses: `packed.module` in torch, `packed.reference` in numpy,
    `scoring.packed_counts` for the rule books.
    """

    op: ClassVar[str]

    name: str
    inputs: tuple[int, ...]  # values that it reads
    shape: tuple[int, int, int]
    low: np.ndarray  # lowest code of each output channel, (C,) int32; for a linear step: lowest logits
    high: np.ndarray
    storage: Storage = ()

    def since(self, steps: Sequence[Step]) -> int:
        """The first format version that can represent this step, one of `steps`."""
        return PLAIN

    @property
    def reads(self) -> tuple[int, ...]:
        """All values that it needs, including a residual's."""
        return self.inputs

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Stored weights, multipliers and biases."""
        return ()

    def stored(self, *fields: str) -> int:
        """Bits that these fields take in the payload."""
        return sum(bits for name, bits in self.storage if name in fields)

    def row(self, at: int) -> dict[str, Any]:
        """The step's entry in the table; defaults are left out.

        Args:
            at: the first bit of its fields in the payload.
        """
        return {"op": self.op, "from": list(self.inputs)}

    def fields(self) -> list[np.ndarray]:
        """Its part of the payload, arrays of bits in order."""
        return []

    @classmethod
    def outline(cls, row: dict[str, Any], plan: Plan) -> Outline:
        """The step's size according to its row of the table. Raises `PackedFileError`."""
        raise NotImplementedError

    @classmethod
    def read(cls, row: dict[str, Any], place: Place) -> Self:
        """The step from its row of the table and the payload. Raises `PackedFileError`."""
        raise NotImplementedError


@dataclass
class Place:
    """The context in which a step is read: the steps before it, its outline, and the payload from its position on."""

    steps: list[Step]
    reader: Reader
    half: bool  # a file of 16-bit floats
    last: bool  # of the file
    outline: Outline
    name: str
    start: int = 0  # the payload bit where the step begins
    storage: Storage = ()

    @property
    def source(self) -> Step:
        """The first step that it reads; for most steps the only one."""
        return self.steps[self.outline.inputs[0]]

    def begin(self, row: dict[str, Any]) -> None:
        """Checks that the step's fields begin where the table says."""
        self.start = self.reader.at
        if type(row.get("at")) is not int or row["at"] != self.start:
            said = checks.shown(row.get("at"))
            raise PackedFileError(f"its fields begin at bit {self.start}, the table says {said}")

    def mark(self, field: str) -> None:
        """Records the bits read since the previous mark as this field."""
        bits = self.reader.at - self.start - sum(bits for _, bits in self.storage)
        self.storage = (*self.storage, (field, bits))


def vector(value: int, channels: int) -> np.ndarray:
    """The same number for every channel, (channels,) int32, stored once."""
    return np.broadcast_to(np.int32(value), channels)


def reaches(low: np.ndarray, high: np.ndarray) -> int:
    """The greatest magnitude in a range; 0 for an empty one."""
    return max(-int(np.min(low, initial=0)), int(np.max(high, initial=0)))


def joined_ranges(steps: Iterable[Step]) -> tuple[np.ndarray, np.ndarray]:
    """The ranges of the channels of several values, one after the other."""
    each = list(steps)
    return np.concatenate([step.low for step in each]), np.concatenate([step.high for step in each])
