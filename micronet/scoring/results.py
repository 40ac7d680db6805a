"""What `score` writes to metrics/ besides the path: read again, and compared with new measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from micronet.errors import shown
from micronet.files import FileError, read_csv, read_json, write_csv, write_json
from micronet.packed.module import PackedModule
from micronet.scoring import answers, measurement
from micronet.scoring.books import BOOKS


@dataclass(frozen=True)
class Results:
    """Measurements of a packed model, or what files claim about it.

    Attributes:
        score: `score.json`. predictions: the rows of `predictions.csv`. summary: `summary.json`.
    """

    score: dict[str, Any]
    predictions: list[dict[str, Any]]
    summary: dict[str, Any]

    def write(self, folder: Path) -> None:
        write_json(folder / "score.json", self.score)
        write_json(folder / "summary.json", self.summary)
        write_csv(folder / "predictions.csv", answers.COLUMNS, self.predictions)


def read(folder: Path, made_by: str) -> Results:
    """The claims in a folder's files; a summary that is missing or damaged is empty, and so differs.

    Args:
        made_by: the command that remakes them.

    Raises:
        FileError: the score or the predictions are missing.
    """
    try:
        summary = read_json(folder / "summary.json")
    except FileError:
        summary = {}
    return Results(
        score=read_score(folder / "score.json", made_by),
        predictions=_read_predictions(folder / "predictions.csv", made_by),
        summary=summary if isinstance(summary, dict) else {},
    )


def read_score(path: Path, made_by: str) -> dict[str, Any]:
    """The object in `score.json`. Raises `FileError` if there is none."""
    if not path.exists():
        raise FileError(f"{path}: there is no such file; `{made_by}` makes it")
    score = read_json(path)
    if not isinstance(score, dict):
        raise FileError(f"{path}: holds no JSON object; `{made_by}` makes it anew")
    return score


def _read_predictions(path: Path, made_by: str) -> list[dict[str, str]]:
    if not path.exists():
        raise FileError(f"{path}: there is no such file; `{made_by}` makes it")
    try:
        return read_csv(path)
    except FileError:
        raise FileError(f"{path}: cannot be read; `{made_by}` makes it anew") from None


def summarized(model: PackedModule, score: Mapping[str, Any]) -> dict[str, float]:
    """The few numbers by which two runs are compared.

    Their names are short, because each is a column of `dvc exp show`; the alphabetically first one is at the top of
    `dvc metrics diff`.
    """
    packed = model.packed
    chosen: dict[str, float] = {"accuracy_percent": score["test_accuracy_percent"]}
    if "balanced_accuracy_percent" in score:
        chosen["balanced_accuracy_percent"] = round(score["balanced_accuracy_percent"], 4)
    chosen["bytes"] = score["packed"]["bytes"]
    chosen |= {f"{book.name}_score": round(score[book.name]["score"], 6) for book in BOOKS}
    with suppress(KeyError, ValueError):  # a cascade, or a file from elsewhere, may not state it
        chosen["validation_accuracy_percent"] = round(float(packed.metadata["validation_accuracy_percent"]), 4)
    chosen["zeros_percent"] = round(100.0 * packed.zero_weights / max(1, packed.weights), 2)
    return chosen


def differences(claimed: Results, measured: Results, folder: Path, made_by: str) -> Iterator[str]:
    """The claims in a folder's files that differ from the measurements, one line each."""
    for line in measurement.differences(claimed.score, measured.score):
        yield f"{folder / 'score.json'}: {shown(line)}"
    for line in answers.differences(claimed.predictions, measured.predictions):
        yield f"{folder / 'predictions.csv'}: {shown(line)}"
    said, found = claimed.summary, measured.summary
    if not said:
        yield f"{folder / 'summary.json'}: is not there or damaged; `{made_by}` makes it anew"
        return
    for name in sorted(said.keys() | found.keys()):
        if said.get(name) != found.get(name):
            told = f"claimed {shown(said.get(name), 60)}, measured {found.get(name)}"
            yield f"{folder / 'summary.json'}: {shown(name, 60)}: {told}"
