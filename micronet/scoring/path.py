"""The path from the teacher to the packed model: one row per checkpoint, and whether all belong to one run."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from micronet.files import FileError, checksum, read_csv
from micronet.packed.module import PackedModule
from micronet.pipeline import MADE_BY, MADE_OF
from micronet.scoring.books import BOOKS
from micronet.scoring.counting import operations
from micronet.scoring.records import macs
from micronet.scoring.references import References
from micronet.training.checkpoint import CheckpointError, load
from micronet.training.weights import count_nonzero

FLOATS = tuple(name for name in MADE_OF if name != "quantized")
SCORES = tuple(f"{book.name}_score" for book in BOOKS)
FORMS: dict[str, Callable[[str], Any]] = {
    "stage": str, "test_accuracy_percent": float, "parameters": int, "nonzero_parameters": int,
    **dict.fromkeys(SCORES, float), "macs": int,
}  # fmt: skip


def float_row(
    name: str, model: nn.Module, shape: tuple[int, int, int], references: References, accuracy: float | None
) -> dict[str, Any]:
    """A float checkpoint, priced with 16-bit weights.

    Args:
        shape: of an image, (C, H, W).
        accuracy: on the test set, in percent; None if not measured.
    """
    ops = operations(model, shape, weight_bits=16)
    return {
        "stage": name,
        "test_accuracy_percent": accuracy,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "nonzero_parameters": count_nonzero(model),
        **{f"{book.name}_score": book.score(ops, reference=references.of[book.name]).score for book in BOOKS},
        "macs": macs(ops),
    }


def packed_row(model: PackedModule, score: dict[str, Any]) -> dict[str, Any]:
    """The packed model, with every stored value counted once. `score`: its measurements."""
    return {
        "stage": "quantized",
        "test_accuracy_percent": score["test_accuracy_percent"],
        "parameters": model.packed.parameters,
        "nonzero_parameters": model.packed.nonzero_parameters,
        **{f"{book.name}_score": score[book.name]["score"] for book in BOOKS},
        "macs": score["macs"],
    }


def read(path: Path, made_by: str) -> list[dict[str, Any]]:
    """The rows of `metrics/path.csv`; none without the file. A row older than a rule book lacks its column.

    Args:
        made_by: the command that remakes the file.

    Raises:
        FileError: it is damaged.
    """
    if not path.exists():
        return []
    try:
        return [
            {
                name: None if row[name] == "" else form(row[name])
                for name, form in FORMS.items()
                if name in row or name not in SCORES
            }
            for row in read_csv(path)
        ]
    except (KeyError, ValueError, TypeError):
        raise FileError(f"{path}: is damaged; `{made_by}` makes it anew") from None


def of_other_params(folder: Path, packed: PackedModule, digest: Callable[[str], str]) -> list[str]:
    """The checkpoints not made with the active params, in order; missing ones are skipped.

    If stages are run by hand, the params may have changed since some of them ran.

    Args:
        folder: of the checkpoints. packed: the packed model in it.
        digest: of the active params, as stored in the checkpoint of the given name.
    """
    made = {"quantized": packed.packed.metadata.get("params_digest")}
    for name in FLOATS:
        with suppress(CheckpointError):
            made[name] = load(folder / f"{name}.safetensors").params_digest
    return [name for name in MADE_OF if made.get(name) not in (None, digest(name))]


def of_other_files(folder: Path, records: Path) -> dict[str, str]:
    """The checkpoints made from other files than are there now, with the first such file of each.

    If stages are run by hand, a checkpoint may be remade without those that depend on it. Skips a checkpoint that its
    stage's record does not know (it came from a cache, or the record predates this check).

    Args:
        folder: of the checkpoints. records: the folder of `STAGE.json`, with `checkpoint` and `made_of` as SHA-256.
    """
    found = {}
    for name in MADE_OF:
        place, record = folder / f"{name}.safetensors", _record(records / f"{MADE_BY[name]}.json")
        if place.is_file() and record.get("checkpoint") == checksum(place):
            made_of = record.get("made_of", {})
            others = (path for path, known in made_of.items() if Path(path).is_file() and checksum(path) != known)
            found[name] = next(others, None)
    return {name: path for name, path in found.items() if path is not None}


def _record(path: Path) -> dict[str, Any]:
    """The record of a stage's run; empty if it cannot be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("made_of", {}), dict) else {}
