"""The targets of an export by name, and what each of them gives back. Who calls writes the files, all or none."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from pathlib import PurePosixPath
from typing import Literal

from micronet.export.errors import ExportError
from micronet.packed.model import PackedModel

TARGETS = {"c": "micronet.export.c", "onnx": "micronet.export.onnx", "web": "micronet.export.web"}
"""name -> module, which has a function `export` of the signature below."""


@dataclass(frozen=True)
class Options:
    """What a user may choose; a target ignores what does not concern it."""

    optimize: Literal["size", "speed"] = "size"
    name: str = "micronet"  # prefix of files, and of names in C


@dataclass(frozen=True)
class Export:
    """What a target made: nothing is written yet."""

    files: dict[PurePosixPath, bytes]  # below the target's folder
    table: list[tuple[str, str]] = field(default_factory=list)  # what it costs: (what, how much with its unit)
    notes: list[str] = field(default_factory=list)  # a sentence each: what differs from the packed file, and why


def export(target: str, model: PackedModel, data: bytes, options: Options) -> Export:
    """The packed model in the form of a target.

    Args:
        model: what the packed file holds.
        data: the packed file's bytes.

    Raises:
        ExportError: there is no such target, or it cannot say what the model computes.
    """
    if target not in TARGETS:
        raise ExportError(f"there is no target '{target}'; known are {', '.join(TARGETS)}")
    return import_module(TARGETS[target]).export(model, data, options)
