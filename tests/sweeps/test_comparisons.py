"""What rows say of variants: paired by seed, corrected, and how many seeds it would take."""

from __future__ import annotations

import pytest

from sweeps import comparisons


def test_differences_are_paired_by_seed_and_their_interval_is_students():
    from scipy import stats  # which takes a second to load

    variants = {"a": {0: 50.0, 1: 60.0, 2: 70.0}, "b": {0: 51.0, 1: 61.5, 2: 71.1}}
    (one,) = comparisons.compare(variants, "a")
    expected = stats.ttest_rel(list(variants["b"].values()), list(variants["a"].values()))
    low, high = expected.confidence_interval(0.95)
    assert one.paired and one.pairs == 3 and one.kind == "better"
    assert (one.p, one.low, one.high) == pytest.approx((expected.pvalue, low, high))
    apart = {"a": variants["a"], "b": {seed + 10: value for seed, value in variants["b"].items()}}
    (other,) = comparisons.compare(apart, "a")
    welch = stats.ttest_ind(list(variants["b"].values()), list(variants["a"].values()), equal_var=False)
    assert not other.paired and other.p == pytest.approx(welch.pvalue) and other.kind == "undecided"


def test_only_seeds_that_both_have_are_pairs():
    (one,) = comparisons.compare({"a": {0: 1.0, 1: 2.0, 2: 90.0}, "b": {0: 2.0, 1: 3.5, 7: 0.0}}, "a")
    assert one.pairs == 2 and one.difference == 1.25


def test_holms_correction_is_that_of_the_textbook():
    assert comparisons.holm([0.01, 0.04, 0.03, 0.005, None]) == pytest.approx([0.03, 0.06, 0.06, 0.02, None])
    assert comparisons.holm([0.9, 0.8]) == [1.0, 1.0] and comparisons.holm([]) == []


def test_a_variant_with_one_seed_is_not_decided():
    (one,) = comparisons.compare({"a": {0: 1.0}, "b": {0: 2.0}}, "a")
    assert (one.kind, one.difference, one.needed) == ("one_seed", 1.0, None)
    assert comparisons.compare({"a": {0: 1.0}, "b": {}}, "a") == []


def test_the_number_of_seeds_that_is_said_has_the_power_that_is_said():
    # the t-test's textbook value for an effect of one standard deviation at 5 % and power 0.8
    assert comparisons.seeds_needed(1.0, 1.0, 0.05) == 10
    assert comparisons.seeds_needed(0.5, 1.0, 0.05) == 34
    assert comparisons.seeds_needed(0.01, 1.0, 0.05) is None
    assert comparisons.seeds_needed(1.0, 0.0, 0.05) == 2
    assert comparisons.seeds_needed(1.0, 1.0, 0.005) > 10


@pytest.mark.parametrize(
    ("claim", "difference", "width", "said"),
    [
        ("better", 2.0, 1.0, "confirmed"), ("better", -2.0, 1.0, "contradicted"), ("better", 0.5, 1.0, "undecided"),
        ("worse", -2.0, 1.0, "confirmed"), ("same", 2.0, 1.0, "contradicted"), ("same", 0.1, 0.5, "confirmed"),
        ("same", 0.1, 5.0, "undecided"),
    ],
)  # fmt: skip
def test_a_claim_is_confirmed_contradicted_or_not_decided(claim, difference, width, said):
    low, high = difference - width, difference + width
    adjusted = 0.5 if low < 0 < high else 0.01
    one = comparisons.Comparison("x", 3, True, difference, low, high, adjusted, adjusted)
    assert comparisons.verdict(claim, one) == said
    assert comparisons.verdict(claim, None) == "undecided"
