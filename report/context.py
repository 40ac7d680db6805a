"""What the sections of a page know beside their run."""

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
    """What the parts of a page know beside their run."""

    runs: Sequence[Run]  # all that the page shows, so that their axes can be the same
    peers: Sequence[tuple[float, float, str]]  # deck score, accuracy, name of what others published
    root: Path
    texts: Mapping[str, str]  # what charts are called for who hears them, and their controls


Builder = Callable[[Run, Context], dict[str, Any] | None]


def is_of_cifar10(run: Run) -> bool:
    """Whether scores and accuracy can be compared with those of the slides."""
    if run.score is None:  # then the params say what will be measured; those of other data have a folder of their own
        data = (run.params or {}).get("data")
        source = data.get("source") if isinstance(data, dict) else None
        return not (isinstance(source, str) and source in FOLDERS)
    return "reference" not in run.score and (run.model is None or run.model.classes == 10)


def prices(score: Mapping[str, Any]) -> dict[str, float]:
    """The score under each rule book that is there. Raises `ReportError`: one is no number."""
    return {name: value(score, f"{name}.score") for name in NAMES if name in score}
