"""Accuracy as a function of the score: a search's trials, their Pareto front, the accuracy to reach."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

from micronet.files import write_atomically
from sweeps.rows import DONE, Row

ACCURACY = "validation_accuracy_percent"
GOAL = 90.0  # percent


def pareto_front(found: Sequence[Row], metric: str) -> list[Row]:
    """The rows that no other matches or beats in both, accuracy up and score down; cheapest first."""
    there = [row for row in found if row.status == DONE and row.metrics.get(ACCURACY) and row.metrics.get(metric)]
    ordered = sorted(there, key=lambda row: (row.metrics[metric], -(row.metrics[ACCURACY] or 0.0)))
    best, kept = -math.inf, []
    for row in ordered:
        accuracy = row.metrics[ACCURACY] or 0.0
        if accuracy > best:
            best = accuracy
            kept.append(row)
    return kept


def draw(stem: Path, found: Sequence[Row], best: Sequence[Row], metric: str) -> None:
    """STEM.svg and STEM.png. The same rows give the same bytes.

    Args:
        best: from `pareto_front`. metric: the column of the score.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    with matplotlib.rc_context(
        {"svg.hashsalt": "micronet", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        axes = figure.subplots()
        there = [row for row in found if row.metrics.get(metric) and row.metrics.get(ACCURACY)]
        rungs = list(dict.fromkeys(row.budget for row in there))
        for place, rung in enumerate(rungs):
            mine = [row for row in there if row.budget == rung]
            # Longer trainings are darker.
            color = matplotlib.colormaps["Blues"](0.35 + 0.55 * (place + 1) / len(rungs))
            axes.plot(_column(mine, metric), _column(mine, ACCURACY), "o", color=color, label=rung or "trials")
        axes.step(
            _column(best, metric), _column(best, ACCURACY), where="post", color="black", label="the best for its price"
        )
        axes.axhline(GOAL, color="#b3541e", linestyle="--", label=f"{GOAL:.0f} %, the goal")
        axes.set_xscale("log")
        axes.set_xlabel(f"{metric.replace('_', ' ')} (logarithmic; lower is better)")
        for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        low, high = axes.get_ylim()
        if low < high / 3:
            axes.set_ylim(low := 0, high)
        axes.set_ylabel("validation accuracy in %" + (f"\n(begins at {low:.3g}, not at 0)" if low > 0 else ""))
        axes.grid(color="#e6e6e6")
        axes.set_axisbelow(True)
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=120, metadata=metadata)
            write_atomically(stem.with_suffix(f".{kind}"), buffer.getvalue())


def _column(found: Sequence[Row], metric: str) -> list[float]:
    """The values of a metric that all rows have."""
    return [value for row in found if (value := row.metrics[metric]) is not None]
