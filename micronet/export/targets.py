"""What an export target receives and returns. The caller writes the files, all or none.

A target is a module with a function `export(model: PackedModel, data: bytes, options: Options) -> Export`: `c`, `onnx`
and `web` in this folder; `tools/export.py` names them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal


@dataclass(frozen=True)
class Options:
    """The user's choices; a target ignores those that do not concern it."""

    optimize: Literal["size", "speed"] = "size"
    name: str = "micronet"  # prefix of files, and of names in C


@dataclass(frozen=True)
class Export:
    """The result of a target; nothing is written yet."""

    files: dict[PurePosixPath, bytes]  # relative to the target's folder
    table: list[tuple[str, str]] = field(default_factory=list)  # what it costs: (what, how much with its unit)
    notes: list[str] = field(default_factory=list)  # one sentence each: what differs from the packed file, and why
