"""Concatenation of channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from micronet.packed.errors import PackedFileError
from micronet.packed.limits import most_channels
from micronet.packed.steps.base import Place, Step, joined_ranges


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(Step):
    """The channels of its inputs one after the other."""

    op: ClassVar[str] = "concat"

    @classmethod
    def read(cls, row: dict[str, Any], place: Place) -> Self:
        inputs = place.inputs(row)
        sources = [place.steps[index] for index in inputs]
        size = sources[0].shape[1:]
        if any(source.shape[1:] != size for source in sources):
            raise PackedFileError("a concatenation of maps of different sizes")
        if sum(source.shape[0] for source in sources) > most_channels(len(place.reader.payload)):
            raise PackedFileError("has more channels than the payload can fill")
        low, high = joined_ranges(sources)
        return cls(name=place.name, inputs=inputs, shape=(len(low), *size), low=low, high=high)
