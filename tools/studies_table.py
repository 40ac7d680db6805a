"""Writes docs/studies.md from the tables in metrics/studies/: what the deck claimed, what was measured, what it shows.

A difference counts only when it is larger than what chance alone makes: the spread between seeds, and the sampling
error of the validation images. Everything below is said to be undecided. Ends with 1 when runs failed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean, variance
from typing import Any, Literal

import documents
from _tool import METRICS, front, read_csv

from micronet.files import write_atomically
from micronet.packed.file import VERSION
from studies.plan import Plan, Study, load

TABLES, DOCUMENT = METRICS / "studies", Path("docs/studies.md")
CONFIDENCE = 0.95
CHANCE_PERCENT = 10.0  # what guessing reaches on ten classes
LEARNED_PERCENT = 20.0  # a study whose best variant stays below this compares networks that learned nothing


@dataclass(frozen=True)
class Measured:
    """A variant over its seeds."""

    name: str
    accuracies: tuple[float, ...]
    deck_score: float
    challenge_score: float
    epochs: int
    images: int
    validation_images: int
    budget: str

    @property
    def mean(self) -> float:
        return fmean(self.accuracies)

    @property
    def spread(self) -> float:
        """Highest less lowest seed."""
        return max(self.accuracies) - min(self.accuracies)


def measured(rows: list[dict[str, str]]) -> dict[str, Measured]:
    """The variants of a table that have a number, in its order."""
    found = {}
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name and row["validation_accuracy_percent"]]
        if not mine:
            continue
        first = mine[0]
        found[name] = Measured(
            name,
            tuple(float(row["validation_accuracy_percent"]) for row in mine),
            fmean(float(row["deck_score"]) for row in mine),
            fmean(float(row["challenge_score"]) for row in mine),
            int(first["epochs"]),
            int(first["images"]),
            int(first["validation_images"]),
            first["budget"],
        )
    return found


@dataclass(frozen=True)
class Verdict:
    """What the numbers say about one variant against the reference.

    Attributes:
        kind: `chance`, `one_seed`, `nothing_learned` and `no_reference` cannot tell.
        difference: of the means, in points.
        needed: the least difference that chance does not explain, in points.
    """

    kind: Literal["reference", "better", "worse", "chance", "one_seed", "nothing_learned", "no_reference"]
    difference: float = 0.0
    needed: float | None = None


def student_t(probability: float, freedom: int) -> float:
    """The quantile of Student's t."""
    from scipy import stats

    return float(stats.t.ppf(probability, freedom))


def needed_difference(mine: Measured, reference: Measured, found: Mapping[str, Measured]) -> float | None:
    """The least difference of two means that chance does not explain, in points; None without two seeds anywhere."""
    freedom = sum(len(one.accuracies) - 1 for one in found.values())
    if freedom == 0:
        return None
    within = sum(variance(one.accuracies) * (len(one.accuracies) - 1) for one in found.values() if one.accuracies[1:])
    seeds = within / freedom * (1 / len(mine.accuracies) + 1 / len(reference.accuracies))
    # Every seed is measured on the same images, so more seeds do not make this part smaller. Independent answers
    # are the worst case: two networks that agree on most images differ less by luck.
    images = sum(one.mean * (100 - one.mean) / one.validation_images for one in (mine, reference))
    comparisons = max(1, len(found) - 1)
    probability = 1 - (1 - CONFIDENCE) / (2 * comparisons)
    return math.hypot(student_t(probability, freedom) * seeds**0.5, NormalDist().inv_cdf(probability) * images**0.5)


def verdict(mine: Measured, reference: Measured, found: Mapping[str, Measured]) -> Verdict:
    """Whether one variant is better or worse than the reference, or why that cannot be told."""
    if mine.name == reference.name:
        return Verdict("reference")
    difference = mine.mean - reference.mean
    if max(one.mean for one in found.values()) < LEARNED_PERCENT:
        return Verdict("nothing_learned", difference)
    needed = needed_difference(mine, reference, found)
    if needed is None:
        return Verdict("one_seed", difference)
    if abs(difference) <= needed:
        return Verdict("chance", difference, needed)
    return Verdict("better" if difference > 0 else "worse", difference, needed)


def section(name: str, study: Study, absent: Mapping[str, str], rows: list[dict[str, str]] | None) -> str:
    """The Markdown of one study. `rows`: its table, None when it has not run."""
    found = measured(rows or [])
    reference = found.get(study.reference)
    variants = [
        (one, verdict(one, reference, found) if reference else Verdict("no_reference")) for one in found.values()
    ]
    named = {kind: [f"`{one.name}`" for one, told in variants if told.kind == kind] for kind in ("better", "worse")}
    decided = len(named["better"]) + len(named["worse"])
    spreads = [one.spread for one in found.values() if len(one.accuracies) > 1]
    versions = [int(row["packed_version"]) for row in rows or [] if row.get("packed_version")]
    facts: dict[str, Any] = {
        "name": name,
        "study": study,
        "measured": rows is not None,
        "reference": reference,
        "variants": variants,
        **named,
        "undecided": len(variants) - 1 - decided,
        "largest_spread": max(spreads, default=None),
        "chance_percent": CHANCE_PERCENT,
        "older_version": min(versions) if versions and min(versions) < VERSION else None,
        "packed_version": VERSION,
        "absent": absent,
        "failed": [row for row in rows or [] if row["failure"]],
    }
    return documents.render("study", facts)


def read(path: Path) -> list[dict[str, str]] | None:
    """The rows of a study's table, or None when there is none."""
    return read_csv(path, "make studies") if path.is_file() else None


def render(plan: Plan, tables: Mapping[str, list[dict[str, str]] | None]) -> str:
    """docs/studies.md."""
    sections = [section(name, study, plan.absent[name], tables[name]) for name, study in plan.file.studies.items()]
    return documents.render("studies", {"sections": sections})


def work() -> int:
    plan = load()
    tables = {name: read(TABLES / f"{name}.csv") for name in plan.file.studies}
    write_atomically(DOCUMENT, render(plan, tables))
    failures = [(name, row) for name, rows in tables.items() for row in rows or [] if row["failure"]]
    for name, row in failures:
        print(f"{name}: {row['variant']}, seed {row['seed']}: {row['failure']}", file=sys.stderr)
    print(f"{DOCUMENT} is written", file=sys.stderr)
    return 1 if failures else 0


def main() -> int:
    return front("studies_table", work)


if __name__ == "__main__":
    sys.exit(main())
