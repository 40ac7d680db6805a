"""Writes docs/studies.md from metrics/sweeps/: what the slides claim, what was measured, what it shows; and the plots.

The studies are the specs of sweeps/ that ask a question. A study that has not run is listed as not measured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import documents
import plots
from _tool import METRICS, ROOT, ToolError, arguments_of, front

from micronet.data.wording import counted
from micronet.files import write_atomically
from micronet.params import read_yaml
from sweeps import comparisons, rows, spec
from sweeps.rows import Row
from sweeps.spec import Spec

DOCUMENT, PICTURES = Path("docs/studies.md"), Path("docs/plots/studies")
METRIC = "validation_accuracy_percent"
# In the order of the slides.
STUDIES = (
    "growth_rate", "grouping", "augmentation", "distillation", "teacher_size", "pruning", "bits", "optimizer",
    "schedule", "learning_rate", "weight_decay", "batch_size",
)  # fmt: skip


def section(name: str, study: Spec, found: Sequence[Row], order: Sequence[str]) -> str:
    """The Markdown of one study.

    Args:
        found: the rows of its table. order: its variants' names.
    """
    done, left_out = rows.comparable(measured(found, order), study.reference)
    values: dict[str, dict[int, float]] = {one: {} for one in order}
    for row in done:
        values[row.variant][row.seed] = row.metrics[METRIC] or 0.0
    values = {one: seeds for one, seeds in values.items() if seeds}
    reference = study.reference if study.reference in values else None
    compared = {one.variant: one for one in comparisons.compare(values, reference)} if reference else {}
    table = [
        {
            "name": one,
            "mean": fmean(seeds.values()),
            "seeds": len(seeds),
            "deck": _mean(done, one, "deck_score"),
            "challenge": _mean(done, one, "challenge_score"),
            "against": compared.get(one),
        }
        for one, seeds in values.items()
    ]
    kinds = {kind: [one for one in compared.values() if one.kind == kind] for kind in ("better", "worse", "undecided")}
    facts: dict[str, Any] = {
        "name": name,
        "study": study,
        "reference": reference,
        "table": table,
        **kinds,
        "claim": _claim(study, compared),
        "budgets": sorted({row.budget for row in done if row.budget}),
        "commits": sorted({row.commit for row in done if row.commit}),
        "rows": len(done) + len(left_out),
        "left_out": len(left_out),
        "failed": failures(found, order),
    }
    return documents.render("study", facts)


def failures(found: Sequence[Row], order: Sequence[str]) -> list[Row]:
    """Rows of variants whose run failed."""
    return [row for row in found if row.status == rows.FAILED and row.variant in order]


def measured(found: Sequence[Row], order: Sequence[str]) -> list[Row]:
    """Rows of variants with an accuracy."""
    return [
        row for row in found if row.status == rows.DONE and row.variant in order and row.metrics.get(METRIC) is not None
    ]


def _claim(study: Spec, compared: dict[str, comparisons.Comparison]) -> dict[str, Any] | None:
    """What the slides claim about a variant, and what the rows say about it."""
    if study.claim is None or study.claimed is None:
        return None
    one = compared.get(study.claimed)
    said = comparisons.verdict(study.claim, one)
    return {"says": study.claim, "variant": study.claimed, "verdict": said, "needed": one.needed if one else None}


def _mean(done: Sequence[Row], variant: str, metric: str) -> float | None:
    there = [row.metrics[metric] for row in done if row.variant == variant and row.metrics.get(metric) is not None]
    return fmean(value for value in there if value is not None) if there else None


def order_of(study: Spec) -> list[str]:
    """A study's variant names."""
    return [one.name for one in spec.variants(study, read_yaml(spec.base_path(study)))]


def render(tables: Path) -> str:
    """docs/studies.md, from the tables in a folder."""
    sections = []
    for name in STUDIES:
        study = spec.read(ROOT / f"sweeps/{name}.yaml")
        sections.append(section(name, study, rows.read(tables / f"{name}.csv"), order_of(study)))
    return documents.render("studies", {"sections": sections, "points": comparisons.EQUAL_POINTS})


def plot(stem: Path, title: str, found: Sequence[Row], order: Sequence[str], reference: str | None) -> None:
    """STEM.svg: one dot per seed, a bar at each variant's mean, a line at the reference's. Same rows, same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    values = {one: [row.metrics[METRIC] or 0.0 for row in found if row.variant == one] for one in order}
    values = {one: seeds for one, seeds in values.items() if seeds}
    with matplotlib.rc_context(plots.STYLE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(7.2, 1.2 + 0.3 * len(values)), layout="constrained")
        axes = figure.subplots()
        for place, (one, seeds) in enumerate(values.items()):
            color = plots.RATE if one == reference else plots.PATH
            axes.plot(seeds, [place] * len(seeds), "o", color=color, alpha=0.55, markersize=5)
            axes.plot([fmean(seeds)], [place], "|", color=color, markersize=15, markeredgewidth=2)
        if reference in values:
            axes.axvline(fmean(values[reference]), color=plots.RATE, linewidth=1, linestyle="--", zorder=0)
        axes.set_yticks(range(len(values)), [f"{one} (reference)" if one == reference else one for one in values])
        axes.invert_yaxis()
        axes.margins(x=0.06, y=0.08)
        axes.set_xlabel("validation accuracy in %; a dot a seed, a bar at the mean")
        axes.set_title(title, loc="left", fontweight="bold", wrap=True)
        plots.say_start(axes, "x")
        plots.write(figure, stem, ("svg",))


def work(*, fail_with_rows: bool) -> None:
    """Raises `ToolError` for failed runs, if asked to; the document is written by then."""
    tables = METRICS / "sweeps"
    write_atomically(DOCUMENT, render(tables))
    failed = 0
    for name in STUDIES:
        study, found = spec.read(ROOT / f"sweeps/{name}.yaml"), rows.read(tables / f"{name}.csv")
        order = order_of(study)
        failed += len(failures(found, order))
        if shown := rows.comparable(measured(found, order), study.reference)[0]:
            plot(PICTURES / name, study.question or name, shown, order, study.reference)
    if failed and fail_with_rows:
        runs = counted(failed, "run")
        raise ToolError(f"{runs} failed; {DOCUMENT} says why, and `make studies` tries again")


def main(argv: list[str] | None = None) -> int:
    parser = arguments_of("studies", __doc__)
    parser.add_argument("--fail-with-rows", action="store_true", help="end with 1 where the tables have failed runs")
    arguments = parser.parse_args(argv)
    return front("studies", lambda: work(fail_with_rows=arguments.fail_with_rows))


if __name__ == "__main__":
    sys.exit(main())
