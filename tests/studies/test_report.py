"""What the report of the studies dares to say, and what it shows."""

from __future__ import annotations

import pytest

from studies import collect, plan
from tests.support.studies import QUESTIONS, planned
from tools import studies_table


def a_table(*variants: tuple[str, list[float]], images: int = 10_000) -> list[dict[str, str]]:
    """A made-up table: the accuracies of each variant's seeds."""
    return [
        dict(
            variant=name, seed=str(seed), validation_accuracy_percent=str(accuracy), deck_score="0.1",
            challenge_score="0.2", epochs="4", images=str(images), validation_images="5000", budget="small", failure="",
        )
        for name, accuracies in variants
        for seed, accuracy in enumerate(accuracies)
    ]  # fmt: skip


def study(reference: str = "a", deck: str | None = "It says so.") -> plan.Study:
    fields = {"question": "Which?", "size": "resnet", "reference": reference, "variants": {"a": {}}}
    return plan.Study.model_validate(fields | ({"deck": deck} if deck else {}))


def report(rows, **settings) -> str:
    return studies_table.section("choice", study(**settings), {}, rows)


def test_a_difference_below_the_spread_of_seeds_cannot_be_told():
    text = report(a_table(("a", [60.0, 64.0, 62.0]), ("b", [61.0, 66.0, 63.0])))
    assert "**Cannot tell.**" in text and "| b | 63.33 | 5.00 | 0.1000 | 0.2000 | cannot tell: +1.33," in text
    assert "10,000 training images, 4 epochs and 5,000 validation images are too few" in text


def test_a_difference_above_the_spread_of_seeds_is_told():
    text = report(a_table(("a", [60.0, 60.2, 60.1]), ("b", [70.0, 70.2, 70.1]), ("c", [50.0, 50.1, 49.9])))
    assert (
        "Better than `a`: `b`; worse: `c`." in text and "better by 10.00" in text and "cannot tell" not in text.lower()
    )


def test_a_difference_within_the_sampling_error_of_the_validation_images_cannot_be_told():
    text = report(a_table(("a", [60.0, 60.0, 60.0]), ("b", [61.0, 61.0, 61.0])))
    assert "cannot tell: +1.00, chance alone makes ±1.9" in text


def test_scores_that_an_older_format_counted_are_said_to_be_so():
    rows = a_table(("a", [60.0, 60.0]), ("b", [61.0, 61.0]))
    assert "version" not in report(rows) and "version" not in report([row | {"packed_version": "3"} for row in rows])
    text = report([rows[0], rows[1], *(row | {"packed_version": "2"} for row in rows[2:])])
    assert "Scores of packed files are as version 2 of the format counted them; version 3 counts less." in text


def test_one_seed_cannot_tell_anything():
    assert "cannot tell: +20.00, and one seed has no spread" in report(a_table(("a", [50.0]), ("b", [70.0])))


def test_networks_that_learned_nothing_cannot_tell_anything():
    text = report(a_table(("a", [10.0, 10.0]), ("b", [16.0, 16.0]), images=200))
    assert "cannot tell: no variant is far from the 10 % of guessing, the images are too few" in text


def test_more_comparisons_ask_for_more():
    def needed(count: int) -> float:
        variants = [(f"v{index}", [60.0, 61.0]) for index in range(count)]
        found = studies_table.measured(a_table(*variants))
        # as many degrees of freedom either way, so that only the number of comparisons differs
        return studies_table.needed_difference(found["v1"], found["v0"], found)

    seen = studies_table.student_t(0.9875, 10) / studies_table.student_t(0.975, 10)
    assert seen == pytest.approx(2.634 / 2.228, rel=0.01)
    assert needed(2) > 0 and needed(20) > 0


@pytest.mark.parametrize(
    ("probability", "freedom", "wanted"), [(0.975, 4, 2.776), (0.975, 24, 2.064), (0.99, 8, 2.896)]
)
def test_students_t_is_that_of_the_tables(probability, freedom, wanted):
    assert studies_table.student_t(probability, freedom) == pytest.approx(wanted, rel=0.01)


def test_the_report_says_what_the_deck_claims_and_when_it_claims_nothing():
    rows = a_table(("a", [60.0, 60.2]))
    assert "The deck: It says so." in report(rows) and "The deck: claims nothing." in report(rows, deck=None)


def test_a_failed_reference_leaves_nothing_to_compare_with():
    failed = a_table(("a", [60.0]))
    failed[0] |= {"validation_accuracy_percent": "", "failure": "the loss is nan; log: logs/a.log"}
    text = report(failed + a_table(("b", [61.0, 61.5])))
    assert "Cannot tell: the reference `a` failed." in text
    assert "- `a`, seed 0: the loss is nan; log: logs/a.log" in text


def test_the_report_names_the_budget_the_absent_cells_and_what_was_not_measured():
    found = planned()
    tables = {name: None for name in found.file.studies} | {
        "grouping": a_table(("ungrouped", [60.0, 60.2]), ("stem_3", [60.1, 60.3]))
    }
    text = studies_table.render(found, tables)
    assert "Budget `small`: 10,000 training images, 4 epochs, 2 seeds, 5,000 validation images." in text
    assert "- `stem_2`: groups.stem: 2 does not divide the channels of growth_rate 6; 1, 3 would" in text
    assert text.count("Not measured yet: `make study NAME=") == len(QUESTIONS) - 1
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        one.question for one in found.file.studies.values()
    ]


def test_the_same_rows_give_the_same_plot(tmp_path):
    rows = [{"variant": "a", "validation_accuracy_percent": 60.0}, {"variant": "b", "failure": "x"}]
    for name in ("first", "second"):
        collect.write_plot(tmp_path / name, "Which?", rows)
    for kind in ("png", "svg"):
        assert (tmp_path / f"first.{kind}").read_bytes() == (tmp_path / f"second.{kind}").read_bytes()
