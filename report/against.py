"""The chart of accuracy over score: a model among its path, releases, sweeps, other models and others' results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from micronet.errors import MicronetError
from report import charts
from report.checked import percent
from report.context import CHALLENGE, DECK, NAMES, THIS, Context, is_of_cifar10, prices
from report.gathered import Row, Run
from report.tables import Column, Figure, Table, number

PATH, RELEASES, MODELS = "its path", "releases", "other models"
SWEEPS, PEERS = "sweeps (validation)", "others' results"
COURSE_LINE = 90.0  # percent: what the slides' course requires
LOOKS = {
    THIS: charts.Look(charts.MAIN, 190, "diamond", named=True),
    PATH: charts.Look(charts.SECOND, 70, "circle", named=True),
    MODELS: charts.Look(charts.FOURTH, 70, "square", named=True),
    PEERS: charts.Look(charts.INK, 70, "triangle-up", named=True),
    RELEASES: charts.Look(charts.THIRD, 60, "cross"),
    SWEEPS: charts.Look(charts.QUIET, 20, "circle", 0.35),
}


def accuracy_against_score(run: Run, context: Context) -> dict[str, Any] | None:
    """Accuracy over score of this model, its path, releases, sweeps, other models and others' published results."""
    points: list[dict[str, Any]] = []
    left_out: list[str] = []

    def add(series: str, label: str, accuracy: float | None, scores: Mapping[str, float | None]) -> None:
        if accuracy is None or not any(scores.values()):
            return
        last = points[-1] if points else {}
        if last.get("series") == series == PATH and (last["accuracy"], last[DECK]) == (accuracy, scores[DECK]):
            last["label"] += f", {label}"
        else:
            points.append({"series": series, "label": label, "accuracy": accuracy, **scores})

    def add_rows(series: str, rows: Sequence[Row], label: Callable[[Row], str], column: str) -> None:
        for row in rows:
            add(series, label(row), number(row, column), {name: number(row, f"{name}_score") for name in NAMES})

    if run.score is not None:
        add(THIS, THIS, percent(run.score, "test_accuracy_percent"), prices(run.score))
    add_rows(PATH, run.path[:-1], lambda row: row["stage"], "test_accuracy_percent")
    if of_cifar10 := is_of_cifar10(run):
        add_rows(
            RELEASES, run.releases, lambda row: f"{row['date']}, {row['packed_sha256'][:8]}", "test_accuracy_percent"
        )
        for name, rows in run.sweeps.items():
            done = [{**row, "variant": f"{name}: {row['variant']}"} for row in rows if row.get("status") == "done"]
            add_rows(SWEEPS, done, lambda row: row["variant"], "validation_accuracy_percent")
    comparable = of_cifar10 and bool(points)
    if comparable:
        for name, score in run.others.items():
            if "test_accuracy_percent" not in score or "reference" in score or run.score == score:
                continue
            try:
                add(MODELS, name, percent(score, "test_accuracy_percent"), prices(score))
            except MicronetError as error:
                left_out.append(f"{name} ({error})")
        for price, accuracy, name in context.peers:
            add(PEERS, name, accuracy, {DECK: price})
    if not points:
        return None
    least = min((point["accuracy"] for point in points if point["series"] != SWEEPS), default=0.0)
    drawn = [point for point in points if point["accuracy"] >= least]
    there = {point["series"] for point in drawn}
    looks = {name: look for name, look in LOOKS.items() if name in there}
    columns = [
        Column("series", "what"),
        Column("label", "which"),
        Column("accuracy", "accuracy %", ".2f"),
        *(Column(name, name, ".6f") for name in NAMES),
    ]
    line = COURSE_LINE if comparable else None
    books = [CHALLENGE, *(name for name in NAMES if name != CHALLENGE)]
    spec = charts.accuracy_against_score(context.texts["against"], books, looks, drawn, line, context.texts["rules"])
    return {
        "figure": Figure("against", spec, Table.of(columns, points)),
        "line": line,
        "sweeps": any(point["series"] == SWEEPS for point in points),
        # No row says which data it is for, so the user's own cannot be told from the CIFAR-10 studies.
        "of_other_data": [
            what for what, rows in (("releases", run.releases), ("sweeps", run.sweeps)) if rows and not of_cifar10
        ],
        "left_out": left_out,
        "least": least,
        "lower": len(points) - len(drawn),
    }
