"""The few numbers by which two runs are compared, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from micronet.errors import MicronetError
from report.checked import percent, value
from report.context import NAMES
from report.gathered import Run


@dataclass(frozen=True)
class Compared:
    """A number of two runs as texts, empty for a run without it, and its change."""

    name: str
    here: str
    there: str
    change: str


def relative_to_another(runs: Sequence[Run]) -> bool:
    """Whether both runs have scores and these are relative to different networks."""
    scores = [run.score for run in runs if run.score is not None]
    return len(scores) == 2 and scores[0].get("reference") != scores[1].get("reference")


def glance(runs: Sequence[Run]) -> list[Compared]:
    """Accuracy, scores, bytes and sparsity of two runs; what neither has is left out.

    Scores relative to different networks cannot be subtracted, so those have no change.
    """
    here, there = runs
    measures: list[tuple[str, str, Callable[[Run], float]]] = [
        ("Test accuracy, %", ",.2f", lambda run: percent(run.score or {}, "test_accuracy_percent")),
        *((_named(name), ",.4f", _score_of(name)) for name in NAMES),
        ("Bytes of the file", ",.0f", lambda run: value(run.score or {}, "packed.bytes")),
        ("Weights that are zero, %", ",.1f", _sparsity),
    ]
    apart = {_named(name) for name in NAMES} if relative_to_another(runs) else set()
    rows = []
    for name, form, measure in measures:
        one, other = _known(measure, here), _known(measure, there)
        if one is None and other is None:
            continue
        change = "" if one is None or other is None else "0" if one == other else format(other - one, f"+{form}")
        said = ["" if found is None else format(found, form) for found in (one, other)]
        rows.append(Compared(name, said[0], said[1], "" if name in apart else change))
    return rows


def _named(book: str) -> str:
    return f"{book.capitalize()} score"


def _score_of(name: str) -> Callable[[Run], float]:
    return lambda run: value(run.score or {}, f"{name}.score")


def _sparsity(run: Run) -> float:
    """Percent, from the packed file or its stage's count. Raises `LookupError`, `ReportError`: neither is known."""
    if run.model is None or not run.model.weights:
        counted = run.stages["quantize"]
        return 100 * value(counted, "zero_weights") / max(1, value(counted, "prunable_weights"))
    return 100 * run.model.zero_weights / run.model.weights


def _known(measure: Callable[[Run], float], run: Run) -> float | None:
    try:
        return measure(run)
    except (MicronetError, LookupError):  # the run's own section reports the error
        return None
