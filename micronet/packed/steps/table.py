"""A function of one value, such as an activation: a table of codes, or by name in a file of 16-bit floats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np

from micronet.compress.functions import FUNCTIONS, Function
from micronet.packed import checks
from micronet.packed.bits import half_bits, to_bits
from micronet.packed.errors import PackedFileError
from micronet.packed.limits import MOST_ENTRIES
from micronet.packed.steps.base import ACTIVATIONS, Place, Step, vector
from micronet.packed.steps.outline import Outline, Plan
from micronet.packed.widths import code_width


@dataclass(frozen=True, eq=False, kw_only=True)
class Table(Step):
    """entries[code - first] for each code of its input."""

    op: ClassVar[str] = "table"

    entries: np.ndarray  # (n,) int64: the outputs for the codes from `first` on
    first: int
    bits: int  # width of an entry
    signed: bool

    @classmethod
    def over(cls, source: Step, index: int, entries: np.ndarray, name: str) -> Self:
        """The table of value `index`, which `source` computes: one entry per code, from the lowest on."""
        first, last = reach(source)
        assert len(entries) == last - first + 1
        low, high = int(min(entries.min(), 0)), int(max(entries.max(), 0))
        return cls(
            name=name,
            inputs=(index,),
            shape=source.shape,
            low=vector(low, source.shape[0]),
            high=vector(high, source.shape[0]),
            entries=entries.astype(np.int64),
            first=first,
            bits=int(code_width(low, high)),
            signed=low < 0,
        )

    def since(self, steps: Sequence[Step]) -> int:
        return ACTIVATIONS

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return (self.entries,)

    def row(self, at: int) -> dict[str, Any]:
        head = {"op": self.op, "name": self.name, "from": list(self.inputs)}
        return head | {"entries": [self.first, len(self.entries)], "out": [self.bits, int(self.signed)], "at": at}

    def fields(self) -> list[np.ndarray]:
        return [to_bits(self.entries, self.bits)]

    @classmethod
    def outline(cls, row: dict[str, Any], plan: Plan) -> Outline:
        index, shape = plan.source(row)
        if plan.half:
            raise PackedFileError("a table of codes in a file of 16-bit floats")
        return Outline(shape=shape, inputs=(index,), operations=math.prod(shape))

    @classmethod
    def read(cls, row: dict[str, Any], place: Place) -> Self:
        place.begin(row)
        first, last = reach(place.source)
        if last - first >= MOST_ENTRIES:
            raise PackedFileError(f"a table on codes from {first} to {last}, {MOST_ENTRIES} entries are the most")
        stated = checks.pair(row.get("entries"), "entries")
        if stated != [first, last - first + 1] or any(type(number) is not int for number in stated):
            raise PackedFileError(
                f"a table of {checks.shown(stated)}, its input's codes ask for {[first, last - first + 1]}"
            )
        bits, signed = checks.pair(row.get("out"), "out")
        bits, signed = checks.whole(bits, 1, 8, "out"), checks.flag(signed, "out")
        entries = place.reader.numbers(last - first + 1, bits, signed=signed).astype(np.int64)
        place.mark("entries")
        made = cls.over(place.source, place.outline.inputs[0], entries, place.name)
        return replace(made, bits=bits, signed=signed, storage=place.storage)


@dataclass(frozen=True, eq=False, kw_only=True)
class Applied(Step):
    """A function computed in floats, by name; its constants are stored in 16 bits."""

    op: ClassVar[str] = "function"

    function: Function

    def since(self, steps: Sequence[Step]) -> int:
        return ACTIVATIONS

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return (np.array(self.function.constants, np.float16),)

    def row(self, at: int) -> dict[str, Any]:
        head = {"op": self.op, "name": self.name, "from": list(self.inputs)}
        constants = {"constants": len(self.function.constants)} if self.function.constants else {}
        return head | {"function": self.function.name} | constants | {"at": at}

    def fields(self) -> list[np.ndarray]:
        return [half_bits(array) for array in self.arrays]

    @classmethod
    def of(cls, source: Step, index: int, function: Function, name: str) -> Self:
        """The function of value `index`, which `source` computes."""
        zero = vector(0, source.shape[0])
        return cls(name=name, inputs=(index,), shape=source.shape, low=zero, high=zero, function=function)

    @classmethod
    def outline(cls, row: dict[str, Any], plan: Plan) -> Outline:
        index, shape = plan.source(row)
        if not plan.half:
            raise PackedFileError("a function by its name in a file of integers")
        return Outline(shape=shape, inputs=(index,), operations=math.prod(shape))

    @classmethod
    def read(cls, row: dict[str, Any], place: Place) -> Self:
        place.begin(row)
        name = row.get("function")
        known = FUNCTIONS.get(name) if isinstance(name, str) else None
        if known is None:
            raise PackedFileError(f"there is no function {checks.shown(name)}")
        checks.whole(row.get("constants", 0), known.constants, known.constants, "constants")
        numbers = place.reader.numbers(known.constants, 16, signed=False).astype(np.uint16).view(np.float16)
        function = Function(str(name), tuple(float(number) for number in numbers))
        if not function.defined:
            raise PackedFileError(f"{name} is not defined with its constants")
        place.mark("constants")
        return replace(cls.of(place.source, place.outline.inputs[0], function, place.name), storage=place.storage)


def reach(source: Step) -> tuple[int, int]:
    """The lowest and highest code over all channels."""
    return int(source.low.min()), int(source.high.max())
