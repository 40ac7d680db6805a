"""The path from the teacher to the packed model: a row a checkpoint, and whether all of them are of one run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from micronet.files import FileError, read_csv
from micronet.packed.module import PackedModule
from micronet.pipeline import MADE_OF
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
    """One checkpoint in float; its price is that of 16-bit weights.

    Args:
        shape: of an image, (C, H, W).
        accuracy: on the test set, in percent; None where it was not measured.
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
    """The packed model: what is stored, each value once. `score`: what was measured of it."""
    return {
        "stage": "quantized",
        "test_accuracy_percent": score["test_accuracy_percent"],
        "parameters": model.packed.parameters,
        "nonzero_parameters": model.packed.nonzero_parameters,
        **{f"{book.name}_score": score[book.name]["score"] for book in BOOKS},
        "macs": score["macs"],
    }


def read(path: Path, made_by: str) -> list[dict[str, Any]]:
    """The rows of `metrics/path.csv`; none without the file. One of before a rule book was there lacks its column.

    Args:
        made_by: the command that makes the file anew.

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
    """The checkpoints that the active params did not make, in their order; what is not there is left out.

    Whoever runs stages by hand may have changed params since some of them ran.

    Args:
        folder: of the checkpoints. packed: the one that lies there.
        digest: of the active params, as a checkpoint of a name has it.
    """
    made = {"quantized": packed.packed.metadata.get("params_digest")}
    for name in FLOATS:
        with suppress(CheckpointError):
            made[name] = load(folder / f"{name}.safetensors").params_digest
    return [name for name in MADE_OF if made.get(name) not in (None, digest(name))]
