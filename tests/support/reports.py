"""What a report is made of in tests."""

from __future__ import annotations

import random

from micronet.data.datasets import CLASSES
from report.page import Settings, render, texts
from report.parts import BUILDERS, Context, part
from report.sources import Source

PEERS = ((0.0357, 90.9, "the slides"), (0.0137, 90.0, "90 % and more"))


def predictions(images: int, names: tuple[str, ...] = CLASSES, *, confident: bool = True) -> str:
    """The text of a `metrics/predictions.csv`: nine answers in ten are right."""
    chance, rows = random.Random(0), ["image,actual,predicted,confidence_percent"]
    for image in range(images):
        actual = names[image % len(names)]
        predicted = actual if chance.random() < 0.9 else chance.choice(names)
        sure = f"{chance.uniform(30, 100):.2f}" if confident else ""
        rows.append(f"{image},{actual},{predicted},{sure}")
    return "\n".join(rows) + "\n"


def parts_of(source: Source, context: Context) -> dict[str, dict | None]:
    """All sections of what a source holds."""
    from report.gathered import gather

    run = gather(source, "tried")
    return {name: part(name, run, context) for name in BUILDERS}


def page_of_run(run, context, rows=(), there="HEAD") -> str:
    return render("Tried", [run], Settings(rows, run.name, there), context or Context([run], PEERS, ".", texts()))
