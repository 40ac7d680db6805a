"""Accuracy as a function of the score: the trials of a search, their Pareto front, the line that has to be reached."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from micronet.files import write_atomically
from sweeps.rows import Row

ACCURACY = "validation_accuracy_percent"
GOAL = 90.0  # percent


def front(stem: Path, found: Sequence[Row], best: Sequence[Row], metric: str) -> None:
    """STEM.svg and STEM.png. The same rows give the same bytes.

    Args:
        best: the rows of the front, the cheapest first. metric: the column of the score.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "micronet", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
        there = [row for row in found if row.metrics.get(metric) and row.metrics.get(ACCURACY)]
        for rung in dict.fromkeys(row.budget for row in there):
            mine = [row for row in there if row.budget == rung]
            axes.plot(_column(mine, metric), _column(mine, ACCURACY), "o", alpha=0.5, label=rung or "trials")
        axes.step(_column(best, metric), _column(best, ACCURACY), where="post", color="black", label="front")
        axes.axhline(GOAL, color="tab:red", linestyle="--", label=f"{GOAL:.0f} %")
        axes.set_xlabel(metric.replace("_", " "))
        axes.set_ylabel("validation accuracy in percent")
        axes.grid(alpha=0.3)
        axes.legend()
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=120, metadata=metadata)
            write_atomically(stem.with_suffix(f".{kind}"), buffer.getvalue())
        pyplot.close(figure)


def _column(found: Sequence[Row], metric: str) -> list[float]:
    """The values of a metric that all rows have."""
    return [value for row in found if (value := row.metrics[metric]) is not None]
