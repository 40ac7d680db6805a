"""The building blocks of every section of `params.yaml`: the strict base class, bounded numbers, paths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# Every number has an upper bound above any useful value: a typo gives an error line, not a full memory.
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=1e9)]  # products of two such numbers are finite in float32
NonNegative = Annotated[float, Field(ge=0.0, le=1e9)]
Seconds = Annotated[float, Field(ge=0.0, le=1e7)]  # four months; waiting functions count no further than 292 years
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
PositiveCount = Annotated[int, Field(ge=1, le=1_000_000)]
Epochs = Annotated[int, Field(ge=0, le=100_000)]  # one row each in a curve that people read
BatchSize = PositiveCount  # no split has more images; a batch larger than the split is the whole split
Threads = Annotated[int, Field(ge=0, le=1024)]  # torch starts them all, and no machine has more cores
Processes = Annotated[int, Field(ge=1, le=1024)]  # each needs a core or a GPU
Views = Annotated[int, Field(ge=0, le=1000)]  # each takes one pass of the teacher, and 2 MB


def _place(said: str) -> str:
    """Checks that a system could have such a path. Raises ValueError."""
    if not said or not said.isprintable():
        raise ValueError("must be a path of printable characters")
    if max(len(part.encode()) for part in said.split("/")) > 200 or len(said.encode()) > 2000:
        raise ValueError("must be a path of at most 2000 bytes, 200 a name")
    return said


def _plain_place(said: str) -> str:
    """Checks a path that is used as written, without expanding ~. Raises ValueError."""
    if _place(said).startswith("~"):
        raise ValueError("must not begin with ~, which nothing replaces here; the whole path would work")
    return said


def _home_place(said: str) -> str:
    """Checks a path that may begin with a home folder. Raises ValueError."""
    try:
        Path(_place(said)).expanduser()
    except RuntimeError:
        raise ValueError("begins with the home of somebody who has none here; the whole path would work") from None
    return said


Place = Annotated[str, AfterValidator(_plain_place)]
HomePlace = Annotated[str, AfterValidator(_home_place)]


class Section(BaseModel):
    """A frozen, strict section: unknown keys and wrong types are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
