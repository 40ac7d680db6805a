"""Writes docs/studies.md from the tables in metrics/studies/: what the deck claimed, what was measured, what it shows.

A difference counts only when it is larger than what chance alone makes: the spread between seeds, and the sampling
error of the validation images. Everything below is said to be undecided. Ends with 1 when runs failed.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean, variance

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from micronet.packed.file import VERSION  # noqa: E402 - the lines above make it importable
from studies.plan import Plan, Study, load  # noqa: E402

CONFIDENCE = 0.95
CHANCE_PERCENT = 10.0  # what guessing reaches on ten classes
LEARNED_PERCENT = 20.0  # a study whose best variant stays below this compares networks that learned nothing

INTRODUCTION = """# What the studies say

Written by `make studies` from `metrics/studies/`; `studies/studies.yaml` holds the variants and `studies/params.yaml`
chooses the budget. All accuracies are in percent, of the validation images: no study reads the test set.

Each study compares its variants with one of them, the reference. A difference counts when chance makes one as large in
fewer than 5 % of all such studies: chance is the spread between seeds (pooled over the variants, Student's t) and the
sampling error of the validation images, and the more variants are compared, the more is asked (Bonferroni). What is
smaller is *cannot tell*. The runs of the budget `small` are short: they tell which choice is better after few epochs on
few images, and a choice that pays only in a long training (augmentation, weight decay, a small rate) looks worse here
than it is.
"""


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


def student_t(probability: float, freedom: int) -> float:
    """The quantile of Student's t, by the expansion of Cornish and Fisher: 1 % off at 4 degrees of freedom."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


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


def verdict(mine: Measured, reference: Measured, found: Mapping[str, Measured]) -> str:
    """What the numbers say about one variant against the reference, in words."""
    if mine.name == reference.name:
        return "the reference"
    difference = mine.mean - reference.mean
    if max(one.mean for one in found.values()) < LEARNED_PERCENT:
        return f"cannot tell: no variant is far from the {CHANCE_PERCENT:.0f} % of guessing, the images are too few"
    needed = needed_difference(mine, reference, found)
    if needed is None:
        return f"cannot tell: {difference:+.2f}, and one seed has no spread"
    if abs(difference) <= needed:
        return f"cannot tell: {difference:+.2f}, chance alone makes ±{needed:.2f}"
    return f"{'better' if difference > 0 else 'worse'} by {abs(difference):.2f} (chance makes ±{needed:.2f})"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def summary(reference: Measured, found: Mapping[str, Measured]) -> str:
    """One sentence on the study."""
    others = [one for one in found.values() if one.name != reference.name]
    decided = [one for one in others if not verdict(one, reference, found).startswith("cannot tell")]
    spread = "One seed has no spread."
    if any(len(one.accuracies) > 1 for one in found.values()):
        spread = f"The largest spread between seeds is {max(one.spread for one in found.values()):.2f} points."
    if not others:
        return f"Only the reference ran. {spread}"
    if not decided:
        return (
            f"**Cannot tell.** {spread} {_count(reference.images, 'training image')}, "
            f"{_count(reference.epochs, 'epoch')} and {reference.validation_images:,} validation images are too few "
            f"for a difference from `{reference.name}`."
        )
    better = [f"`{one.name}`" for one in decided if one.mean > reference.mean]
    worse = [f"`{one.name}`" for one in decided if one.mean < reference.mean]
    parts = [f"better than `{reference.name}`: {', '.join(better)}"] if better else []
    parts += [f"worse: {', '.join(worse)}"] if worse else []
    parts += [f"undecided: {len(others) - len(decided)}"] if len(decided) < len(others) else []
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}. {spread}"


def section(name: str, study: Study, absent: Mapping[str, str], rows: list[dict[str, str]] | None) -> list[str]:
    """The Markdown lines of one study. `rows`: its table, None when it has not run."""
    lines = [f"## {study.question}", "", f"Study `{name}`. The deck: {study.deck or 'claims nothing.'}", ""]
    if rows is None:
        return [*lines, f"Not measured yet: `make study NAME={name}` does.", ""]
    found = measured(rows)
    reference = found.get(study.reference)
    if reference is None:
        lines += [f"Cannot tell: the reference `{study.reference}` failed.", ""]
    else:
        lines += [summary(reference, found), ""]
        lines += [
            f"Budget `{reference.budget}`: {_count(reference.images, 'training image')}, "
            f"{_count(reference.epochs, 'epoch')}, {_count(len(reference.accuracies), 'seed')}, "
            f"{_count(reference.validation_images, 'validation image')}.",
            "",
        ]
    if found:
        lines += [
            "| variant | validation accuracy | seeds' spread | deck score | challenge score | against the reference |",
            "|---|---:|---:|---:|---:|---|",
        ]
    for one in found.values():
        says = verdict(one, reference, found) if reference else "cannot tell: no reference"
        spread = f"{one.spread:.2f}" if len(one.accuracies) > 1 else "-"
        lines.append(
            f"| {one.name} | {one.mean:.2f} | {spread} | {one.deck_score:.4f} | {one.challenge_score:.4f} | {says} |"
        )
    versions = {int(row["packed_version"]) for row in rows if row.get("packed_version")}
    if versions and min(versions) < VERSION:
        lines += [
            "",
            f"Scores of packed files are as version {min(versions)} of the format counted them; "
            f"version {VERSION} counts less.",
        ]
    if found:
        lines += ["", f"![{study.question}](plots/studies/{name}.svg)", ""]
    if absent:
        lines += ["Cells that cannot exist:", ""] + [f"- `{cell}`: {reason}" for cell, reason in absent.items()] + [""]
    failed = [row for row in rows if row["failure"]]
    if failed:
        lines += ["Runs that failed:", ""]
        lines += [f"- `{row['variant']}`, seed {row['seed']}: {row['failure']}" for row in failed] + [""]
    return lines


def read(path: Path) -> list[dict[str, str]] | None:
    """The rows of a study's table, or None when there is none."""
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def render(plan: Plan, tables: Mapping[str, list[dict[str, str]] | None]) -> str:
    """docs/studies.md."""
    lines = [INTRODUCTION]
    for name, study in plan.file.studies.items():
        lines += section(name, study, plan.absent[name], tables[name])
    return "\n".join(lines).rstrip("\n") + "\n"


def main() -> int:
    plan = load()
    tables = {name: read(Path("metrics/studies") / f"{name}.csv") for name in plan.file.studies}
    target = Path("docs/studies.md")
    target.parent.mkdir(exist_ok=True)
    target.write_text(render(plan, tables), encoding="utf-8")
    failures = [(name, row) for name, rows in tables.items() for row in rows or [] if row["failure"]]
    for name, row in failures:
        print(f"{name}: {row['variant']}, seed {row['seed']}: {row['failure']}", file=sys.stderr)
    print(f"{target} is written", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
