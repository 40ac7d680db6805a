"""What a page's sections know besides their run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from micronet.data_params import FOLDERS
from micronet.scoring.books import BOOKS
from report.checked import value
from report.gathered import Run

NAMES = [book.name for book in BOOKS]
DECK, CHALLENGE = "deck", "challenge"
THIS = "this model"


@dataclass(frozen=True)
class Context:
    """What the parts of a page know besides their run."""

    runs: Sequence[Run]  # all runs on the page, so that their axes can match
    peers: Sequence[tuple[float, float, str]]  # deck score, accuracy, name of others' published results
    root: Path
    texts: Mapping[str, str]  # chart descriptions for screen readers, and labels of controls


Builder = Callable[[Run, Context], dict[str, Any] | None]


def is_of_cifar10(run: Run) -> bool:
    """Whether scores and accuracy can be compared with those of the slides."""
    if run.score is None:  # then the params say what will be measured; models of other data have their own folder
        data = (run.params or {}).get("data")
        source = data.get("source") if isinstance(data, dict) else None
        return not (isinstance(source, str) and source in FOLDERS)
    return "reference" not in run.score and (run.model is None or run.model.classes == 10)


def prices(score: Mapping[str, Any]) -> dict[str, float]:
    """The score under each rule book present. Raises `ReportError`: one is not a number."""
    return {name: value(score, f"{name}.score") for name in NAMES if name in score}
