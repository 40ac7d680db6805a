"""What all steps of a packed model have in common, and where a step is read from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from micronet.packed import checks
from micronet.packed.bits import Reader
from micronet.packed.errors import PackedFileError
from micronet.packed.steps.outline import Outline, Plan

PLAIN, GEOMETRY = 3, 5  # versions of the format: the first, and that with images and windows of any shape
ACTIVATIONS = 5  # and with tables, products, and code ranges with ends

Storage = tuple[tuple[str, int], ...]
"""(field, bits) in the order of the payload."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """One step, which makes a map (C, H, W) of integer codes out of values before it.

    A subclass an operation says what it stores (`row` of the table, `fields` of the payload), what it takes by the
    table alone (`outline`), and how it is read and checked (`read`, once it is outlined). What computes or counts with
    steps dispatches on the subclasses: `packed.module` in torch, `packed.reference` in numpy, `scoring.packed_counts`
    by the rule books.
    """

    op: ClassVar[str]

    name: str
    inputs: tuple[int, ...]  # values that it reads
    shape: tuple[int, int, int]
    low: np.ndarray  # lowest code of each output channel, (C,) int32; of a linear step: the logits'
    high: np.ndarray
    storage: Storage = ()

    def since(self, steps: Sequence[Step]) -> int:
        """The first version of the format that can say what this step is, one of `steps`."""
        return PLAIN

    @property
    def reads(self) -> tuple[int, ...]:
        """All values that it needs, a residual's too."""
        return self.inputs

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Stored weights, multipliers and biases."""
        return ()

    def stored(self, *fields: str) -> int:
        """Bits that these fields take in the payload."""
        return sum(bits for name, bits in self.storage if name in fields)

    def row(self, at: int) -> dict[str, Any]:
        """The step's entry of the table; what has its usual value is left out.

        Args:
            at: the first bit of its fields in the payload.
        """
        return {"op": self.op, "from": list(self.inputs)}

    def fields(self) -> list[np.ndarray]:
        """What the payload holds of it, arrays of bits in their order."""
        return []

    @classmethod
    def outline(cls, row: dict[str, Any], plan: Plan) -> Outline:
        """What the step's row of the table says about its size. Raises `PackedFileError`."""
        raise NotImplementedError

    @classmethod
    def read(cls, row: dict[str, Any], place: Place) -> Self:
        """The step out of its row of the table and the payload. Raises `PackedFileError`."""
        raise NotImplementedError


@dataclass
class Place:
    """Where a step is read: what was read before it, its outline, and the payload from where it goes on."""

    steps: list[Step]
    reader: Reader
    half: bool  # a file of 16-bit floats
    last: bool  # of the file
    outline: Outline
    name: str
    start: int = 0  # the payload's bit where the step begins
    storage: Storage = ()

    @property
    def source(self) -> Step:
        """The first step that it reads; of most the only one."""
        return self.steps[self.outline.inputs[0]]

    def begin(self, row: dict[str, Any]) -> None:
        """Checks that the step's fields begin where the table says."""
        self.start = self.reader.at
        if type(row.get("at")) is not int or row["at"] != self.start:
            said = checks.shown(row.get("at"))
            raise PackedFileError(f"its fields begin at bit {self.start}, the table says {said}")

    def mark(self, field: str) -> None:
        """Notes what was read since the mark before as this field."""
        bits = self.reader.at - self.start - sum(bits for _, bits in self.storage)
        self.storage = (*self.storage, (field, bits))


def vector(value: int, channels: int) -> np.ndarray:
    """The same number for every channel, (channels,) int32, in memory once."""
    return np.broadcast_to(np.int32(value), channels)


def reaches(low: np.ndarray, high: np.ndarray) -> int:
    """The greatest magnitude of a range, 0 of none."""
    return max(-int(np.min(low, initial=0)), int(np.max(high, initial=0)))


def joined_ranges(steps: Iterable[Step]) -> tuple[np.ndarray, np.ndarray]:
    """The ranges of the channels of several values, one after the other."""
    each = list(steps)
    return np.concatenate([step.low for step in each]), np.concatenate([step.high for step in each])
