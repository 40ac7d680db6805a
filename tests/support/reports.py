"""Parts of reports for tests."""

from __future__ import annotations

import random
from collections.abc import Sequence

from micronet.data.datasets import CLASSES
from report.context import Context
from report.differences import Setting
from report.gathered import Run
from report.page import Settings, render

PEERS = ((0.0357, 90.9, "the slides"), (0.0137, 90.0, "90 % and more"))


def predictions(images: int, names: tuple[str, ...] = CLASSES) -> str:
    """The text of a `metrics/predictions.csv`: nine answers in ten are right."""
    chance, rows = random.Random(0), ["image,actual,predicted,confidence_percent"]
    for image in range(images):
        actual = names[image % len(names)]
        predicted = actual if chance.random() < 0.9 else chance.choice(names)
        rows.append(f"{image},{actual},{predicted},{chance.uniform(30, 100):.2f}")
    return "\n".join(rows) + "\n"


def page_of_run(run: Run, context: Context, rows: Sequence[Setting] = (), there: str | None = "HEAD") -> str:
    """The page of one run, its params compared with `there`."""
    return render("Tried", [run], Settings(rows, run.name, there), context)
