"""What the table alone says about the steps: enough to refuse excessive ones before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from micronet.packed import checks
from micronet.packed.errors import PackedFileError
from micronet.packed.limits import (
    MOST_COLUMNS,
    MOST_LIVE,
    MOST_MAP,
    MOST_NETWORKS,
    MOST_OF_ALL_MAPS,
    MOST_OPERATIONS,
    MOST_STEPS,
    MOST_WEIGHTS,
    most_channels,
)

Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a step reads and makes, and what that takes for one image; counts are of numbers."""

    shape: Shape
    inputs: tuple[int, ...] = ()  # values that it reads
    added: int | None = None  # value added to its sums
    weights: int = 0
    operations: int = 0
    columns: int = 0  # inputs of all dot products, each counted as often as it is read
    largest: int = 0  # largest intermediate map
    ends: bool = False  # whether it ends a network

    @property
    def reads(self) -> tuple[int, ...]:
        return self.inputs if self.added is None else (*self.inputs, self.added)

    @property
    def numbers(self) -> int:
        """Of its map."""
        return math.prod(self.shape)


@dataclass
class Plan:
    """The steps of a table that have been outlined: what the next one may read, and what all of them take."""

    half: bool  # a file of 16-bit floats
    payload_bytes: int
    outlines: list[Outline] = field(default_factory=list)
    first: int = 0  # first value of the current network; a step reads values from there on, and the input

    def value(self, index: Any, what: str) -> int:
        """A value that the next step may read."""
        if self.first and index == 0 and type(index) is int:
            return 0
        return checks.whole(index, self.first, len(self.outlines) - 1, what)

    def inputs(self, row: dict[str, Any]) -> tuple[int, ...]:
        """The values that a step reads, at least one."""
        return tuple(self.value(index, "from") for index in checks.wholes(row.get("from"), MOST_STEPS, "from"))

    def source(self, row: dict[str, Any]) -> tuple[int, Shape]:
        """The one value that a step reads, and its shape."""
        indices = self.inputs(row)
        if len(indices) != 1:
            raise PackedFileError(f"{row['op']} takes one value")
        return indices[0], self.outlines[indices[0]].shape

    def add(self, outline: Outline) -> None:
        """Adds the next step. Raises `PackedFileError` if it takes more than a file may."""
        _at_most(MOST_MAP, max(outline.numbers, outline.largest), "numbers in a map")
        _at_most(MOST_COLUMNS, outline.columns, "inputs of the dot products of an image")
        self.outlines.append(outline)
        if outline.ends:
            self.first = len(self.outlines)

    def check(self) -> None:
        """Checks all steps together. Raises `PackedFileError`."""
        each = self.outlines
        _at_most(MOST_NETWORKS, sum(one.ends for one in each), "networks")
        channels = sum(one.shape[0] for one in each)
        if channels > most_channels(self.payload_bytes):  # concatenations could double them in every step
            raise PackedFileError(f"has more channels, {channels:,}, than {self.payload_bytes:,} bytes can fill")
        _at_most(MOST_WEIGHTS, sum(one.weights for one in each), "weights")
        _at_most(MOST_OF_ALL_MAPS, sum(one.numbers + one.largest for one in each), "numbers in all maps of an image")
        _at_most(MOST_OPERATIONS, sum(one.operations for one in each), "operations an image")
        _at_most(MOST_LIVE, max(live_numbers(each)), "numbers in the maps of an image at one time")

    @property
    def peak(self) -> int:
        """The most numbers held at one time for one image, including a step's intermediate ones."""
        steps = zip(live_numbers(self.outlines), self.outlines, strict=True)
        return max(live + one.columns + one.largest for live, one in steps)


def _at_most(most: int, found: int, what: str) -> None:
    if found > most:
        raise PackedFileError(f"asks for {checks.shown(found)} {what}, {most} are the most; a smaller network works")


def last_uses(reads: Sequence[Sequence[int]]) -> dict[int, int]:
    """The last step that reads each value, given what each step reads; for a value never read, its own step."""
    return {index: index for index in range(len(reads))} | {
        value: index for index, values in enumerate(reads) for value in values
    }


def live_numbers(outlines: Sequence[Outline]) -> list[int]:
    """Numbers in the maps held while each step makes its own: that map, and those that it or a later step reads."""
    last = last_uses([one.reads for one in outlines])
    live, found = 0, []
    for index, one in enumerate(outlines):
        live += one.numbers
        found.append(live)
        live -= sum(outlines[value].numbers for value in {*one.reads, index} if last[value] == index)
    return found
