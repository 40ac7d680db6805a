"""What a sweep's rows say about its variants: differences paired by seed, intervals, Holm's correction, power."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

CONFIDENCE, POWER = 0.95, 0.8
MOST_SEEDS = 1000
EQUAL_POINTS = 1.0  # a claim of no difference is confirmed when the whole interval is closer to 0 than this

Kind = Literal["better", "worse", "undecided", "one_seed"]


@dataclass(frozen=True)
class Comparison:
    """A variant against the reference.

    Attributes:
        difference: mean over the pairs, in units of the metric. low, high: its confidence interval; None for one pair.
        p: of a mean this far from 0 by chance alone, uncorrected. adjusted: after Holm's correction.
        needed: seeds to find a difference this large with probability 0.8; None when more than 1,000.
    """

    variant: str
    pairs: int
    paired: bool
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    adjusted: float | None = None
    needed: int | None = None

    @property
    def kind(self) -> Kind:
        if self.adjusted is None:
            return "one_seed"
        if self.adjusted >= 1 - CONFIDENCE:
            return "undecided"
        return "better" if self.difference > 0 else "worse"


def compare(variants: Mapping[str, Mapping[int, float]], reference: str) -> list[Comparison]:
    """Every variant against the reference, in order.

    With shared seeds, the per-seed differences are tested (paired t-test): what a seed does to both variants cancels.
    Otherwise Welch's test of two means. p-values are corrected for the number of comparisons (Holm 1979).

    Args:
        variants: by name, the value for each seed.
    """
    against = variants[reference]
    found = [_compared(name, values, against) for name, values in variants.items() if name != reference and values]
    adjusted = holm([one.p for one in found])
    tested = sum(one.p is not None for one in found)
    return [
        Comparison(**vars(one) | {"adjusted": p, "needed": _needed(one, variants, against, tested)})
        for one, p in zip(found, adjusted, strict=True)
    ]


def _compared(name: str, mine: Mapping[int, float], against: Mapping[int, float]) -> Comparison:
    from scipy import stats

    shared = sorted(set(mine) & set(against))
    if len(shared) >= 2:
        differences = [mine[seed] - against[seed] for seed in shared]
        mean, error, freedom = fmean(differences), stdev(differences) / math.sqrt(len(shared)), len(shared) - 1.0
        pairs, paired = len(shared), True
    elif len(mine) >= 2 and len(against) >= 2:
        parts = [stdev(values.values()) ** 2 / len(values) for values in (mine, against)]
        mean, error = fmean(mine.values()) - fmean(against.values()), math.sqrt(sum(parts))
        below = sum(part**2 / (len(values) - 1) for part, values in zip(parts, (mine, against), strict=True))
        freedom = sum(parts) ** 2 / below if below else 1.0
        pairs, paired = min(len(mine), len(against)), False
    else:
        common = shared or sorted(mine)
        other = fmean(against[seed] for seed in shared) if shared else fmean(against.values())
        return Comparison(name, len(common), bool(shared), fmean(mine[seed] for seed in common) - other)
    width = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    return Comparison(name, pairs, paired, mean, mean - width, mean + width, p)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values after Holm's step-down correction, in the same order; None stays None."""
    there = sorted((value, place) for place, value in enumerate(values) if value is not None)
    result: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (value, place) in enumerate(there):
        largest = max(largest, min(1.0, (len(there) - rank) * value))
        result[place] = largest
    return result


def _needed(
    one: Comparison, variants: Mapping[str, Mapping[int, float]], against: Mapping[int, float], tested: int
) -> int | None:
    """Seeds needed to decide a difference as large as observed, at the strictest of Holm's levels."""
    if one.p is None or not one.paired or one.difference == 0:
        return None
    mine = variants[one.variant]
    spread = stdev([mine[seed] - against[seed] for seed in set(mine) & set(against)])
    return seeds_needed(abs(one.difference), spread, (1 - CONFIDENCE) / max(1, tested))


def seeds_needed(difference: float, spread: float, level: float) -> int | None:
    """The smallest number of pairs for a t-test to find a difference with probability 0.8; None for over 1,000.

    Args:
        spread: standard deviation of the differences. level: of significance, two-sided.
    """
    from scipy import stats

    if spread == 0:
        return 2

    def power(pairs: int) -> float:
        limit = stats.t.ppf(1 - level / 2, pairs - 1)
        return float(stats.nct.sf(limit, pairs - 1, difference / spread * math.sqrt(pairs)))

    low, high = 1, 2
    while power(high) < POWER:
        low, high = high, 2 * high
        if low >= MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high if high <= MOST_SEEDS else None


def verdict(claim: str, one: Comparison | None) -> Literal["confirmed", "contradicted", "undecided"]:
    """What a comparison says about the claim that a variant is `better`, `worse` or the `same`."""
    if one is None or one.kind == "one_seed":
        return "undecided"
    if claim == "same":
        if one.kind != "undecided":
            return "contradicted"
        near = one.low is not None and one.high is not None and max(-one.low, one.high) < EQUAL_POINTS
        return "confirmed" if near else "undecided"
    if one.kind == "undecided":
        return "undecided"
    return "confirmed" if one.kind == claim else "contradicted"
