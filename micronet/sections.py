"""What every section of `params.yaml` is made of: the strict base class, numbers with their bounds, paths."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# Every number has an upper bound, above all that has a use: a slip of the keyboard is a line, not a full memory.
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, le=1e9)]  # products of two such numbers are finite in float32
NonNegative = Annotated[float, Field(ge=0.0, le=1e9)]
Seconds = Annotated[float, Field(ge=0.0, le=1e7)]  # four months; what waits counts no further than 292 years
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
PositiveCount = Annotated[int, Field(ge=1, le=1_000_000)]
Epochs = Annotated[int, Field(ge=0, le=100_000)]  # a row each of a curve that people read
BatchSize = PositiveCount  # no split has more images; a batch larger than its split is all of it
Threads = Annotated[int, Field(ge=0, le=1024)]  # torch starts them all, and no machine has more cores
Processes = Annotated[int, Field(ge=1, le=1024)]  # each needs a core or a GPU
Views = Annotated[int, Field(ge=0, le=1000)]  # each takes a pass of the teacher, and 2 MB


def _place(said: str) -> str:
    """A path that a system can be asked for. Raises ValueError."""
    if not said or not said.isprintable():
        raise ValueError("must be a path of printable characters")
    if max(len(part.encode()) for part in said.split("/")) > 200 or len(said.encode()) > 2000:
        raise ValueError("must be a path of at most 2000 bytes, 200 a name")
    return said


def _plain_place(said: str) -> str:
    """A path that means what it says. Raises ValueError."""
    if _place(said).startswith("~"):
        raise ValueError("must not begin with ~, which nothing replaces here; the whole path would work")
    return said


def _home_place(said: str) -> str:
    """A path that may begin with somebody's home. Raises ValueError."""
    try:
        Path(_place(said)).expanduser()
    except RuntimeError:
        raise ValueError("begins with the home of somebody who has none here; the whole path would work") from None
    return said


Place = Annotated[str, AfterValidator(_plain_place)]
HomePlace = Annotated[str, AfterValidator(_home_place)]


class Section(BaseModel):
    """A frozen, strict section: unknown keys and loose types are faults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
