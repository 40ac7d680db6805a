"""The search: what is too dear is not trained, rungs, going on, the front."""

from __future__ import annotations

from dataclasses import replace

import pytest

from micronet.params import ParamsError
from sweeps import search, spec, tasks
from sweeps.board import Board
from sweeps.pareto import draw, pareto_front
from sweeps.rows import TOO_DEAR, Row

CODE = tasks.Code()  # read once for all tests
SPEC = {
    "base": "demo",
    "patch": {"engine": {"threads": 1}},
    "search": {
        "space": {"prune.amount": [0.5, 0.6, 0.7], "quantize.weight_bits": [2, 4]},
        "trials": 6,
        "most": 0.5,
        "rungs": [{"epochs": 1}, {"epochs": 2}],
    },
}


def opened(folder, known=None, price=lambda tree, rules: tree["quantize"]["weight_bits"] / 10, keep=lambda: None):
    made = spec.Spec.model_validate(SPEC)
    study = search.opened(made, "some", folder)
    trials = search.Trials(made, made.search, study, {} if known is None else known, price, keep)
    trials.code = CODE
    return trials


def climbed(trials: search.Trials, most: int = 100) -> list[str]:
    """Runs trials whose accuracy is their zeros; the names of what ran."""
    names = []
    while len(names) < most and (works := trials.more()):
        for work in works:
            task = work.task
            digests = {key: getattr(task, key) for key in ("params_digest", "code_digest", "data_digest")}
            metrics = {search.ACCURACY: 100 * task.tree["prune"]["amount"], "challenge_score": 0.1}
            row = Row(task.variant, task.seed, "done", metrics, **digests)
            names.append(task.variant)
            trials.ended(work.key, row)
    return names


def test_what_is_over_the_price_is_a_row_and_is_not_trained(tmp_path):
    trials = opened(tmp_path, price=lambda tree, rules: 0.9)
    assert trials.more() == [] and len(trials.new) == 6
    assert {row.status for row in trials.new} == {TOO_DEAR}
    assert trials.new[0].reason == "priced at 0.90000, more than 0.5"


def killed(*_):
    raise KeyboardInterrupt


def test_a_search_that_is_stopped_has_the_row_of_every_trial_that_was_too_dear(tmp_path):
    rows, written = {}, []
    prices = iter([0.9, 0.9])
    trials = opened(tmp_path, rows, lambda *_: next(prices, None) or killed(), lambda: written.append(dict(rows)))
    with pytest.raises(KeyboardInterrupt):
        trials.more()
    assert [row.status for row in written[-1].values()] == [TOO_DEAR] * 2
    again = opened(tmp_path, written[-1], lambda *_: 0.9)
    assert again.more() == [] and len(again.told()) == SPEC["search"]["trials"]
    assert [row.variant for row in again.told()][:3] == ["trial-0", "trial-1", "trial-2"]


@pytest.mark.parametrize("price", [0.1, 0.9])
def test_a_trial_whose_row_could_not_be_written_any_more_is_asked_for_again(tmp_path, price):
    trials = opened(tmp_path, price=lambda *_: price, keep=killed)
    with pytest.raises(KeyboardInterrupt):
        climbed(trials)
    again = opened(tmp_path, price=lambda *_: price)
    climbed(again)
    assert [row.variant for row in again.told()][0] == "trial-0" and len(again.told()) == SPEC["search"]["trials"]


def test_the_best_of_a_rung_go_on_and_a_search_that_was_stopped_goes_on(tmp_path):
    first = opened(tmp_path)
    names = climbed(first, most=3)
    assert names[:2] == ["trial-0-rung-0", "trial-0"], "the first of a rung has nobody before it"
    again = opened(tmp_path, first.rows)
    rest = climbed(again)
    assert not set(names) & set(rest), "what is in the table is not run again"
    assert len({search.number_of(trial) for trial in again.study.get_trials()}) == 6
    told = {row.metrics[search.ACCURACY] for row in again.rows.values() if "rung" not in row.variant}
    assert max(told) == max(row.metrics[search.ACCURACY] for row in again.rows.values())


def test_trials_that_a_killed_search_left_in_the_middle_are_all_run_under_their_own_names(tmp_path):
    first = opened(tmp_path)
    names = climbed(first, most=2)
    left = [first.more()[0].task.variant for _ in range(3)]
    again = opened(tmp_path, first.rows)
    assert set(again.reached) == {0, 1} and all(len(values) == 1 for values in again.reached.values())
    assert [row.variant for row in again.told()] == ["trial-0"]
    rest = climbed(again)
    assert names == ["trial-0-rung-0", "trial-0"] and set(left) <= set(rest)
    assert len({search.number_of(trial) for trial in again.study.get_trials()}) == SPEC["search"]["trials"]
    assert len(again.told()) == SPEC["search"]["trials"] and again.more() == []
    once_more = opened(tmp_path, again.rows)
    assert once_more.more() == [] and once_more.told() == again.told()
    for rung, values in again.reached.items():
        assert sorted(once_more.reached[rung]) == sorted(values)


def test_rows_of_other_code_are_no_part_of_the_front(tmp_path):
    trials = opened(tmp_path)
    climbed(trials)
    kept = [row.key for row in trials.of_today()]
    assert len(kept) > 6 and set(kept) == set(trials.rows)
    stranger = replace(trials.rows[kept[0]], code_digest="another")
    trials.rows |= {kept[0]: stranger, ("old", 0): replace(stranger, variant="old")}
    assert [row.key for row in trials.of_today()] == kept[1:]


def test_the_board_of_a_search_counts_trials_and_not_rungs():
    board = Board("some", search.ACCURACY, 6, [Row("trial-0", 0, "done", {search.ACCURACY: 50.0})])
    board.began("trial-1-rung-0")
    board.passed("trial-1-rung-0", "goes on")
    board.ended("trial-2", Row("trial-2", 0, TOO_DEAR, {}, reason="priced"), None)
    board.ended("trial-1", Row("trial-1", 0, "done", {search.ACCURACY: 60.0}), 10.0)
    assert board.summary().startswith("2 of 6 rows done, 0 failed, 1 too dear; best: trial-1, seed 0")
    assert board.running == {} and board.left == pytest.approx(30.0)


def test_a_share_of_a_rung_goes_on():
    assert search.goes_on(1.0, [], 0.5)
    assert search.goes_on(2.0, [1.0, 3.0, 0.5], 0.5) and not search.goes_on(1.0, [2.0, 3.0, 4.0], 0.5)


def test_a_journal_of_another_space_is_a_line(tmp_path):
    opened(tmp_path)
    changed = spec.Spec.model_validate(SPEC | {"search": SPEC["search"] | {"space": {"prune.amount": [0.1]}}})
    with pytest.raises(ParamsError, match="search.space: .*some.journal is of another space; removing it would work"):
        search.opened(changed, "some", tmp_path)


@pytest.mark.slow
def test_more_zeros_and_fewer_bits_cost_less_before_any_training():
    made = spec.Spec.model_validate({"base": "demo"})
    (task,) = tasks.plan(made, code=CODE)
    costs = [
        search.price(spec.patched(task.tree, {"prune.amount": amount, "quantize.weight_bits": bits}), "challenge")
        for amount, bits in ((0.5, 4), (0.8, 4), (0.8, 3))
    ]
    assert costs[0] > costs[1] > costs[2] > 0


@pytest.mark.slow
def test_wider_activations_cost_more_where_a_rule_book_counts_them():
    made = spec.Spec.model_validate({"base": "demo"})
    (task,) = tasks.plan(made, code=CODE)
    changes: dict[str, object] = {"quantize.method": "lsq", "quantize.weight_bits": 4, "quantize.input_bits": 4}
    narrow, wide = (spec.patched(task.tree, {**changes, "quantize.activation_bits": bits}) for bits in (4, 8))
    for rules in ("challenge", "strict", "course"):
        assert search.price(wide, rules) > search.price(narrow, rules), rules
    assert search.price(wide, "deck") == search.price(narrow, "deck"), "its operations have the weights' bits"


def test_the_front_has_what_nothing_beats_in_both_and_its_picture_is_always_the_same(tmp_path):
    found = [
        Row(name, 0, "done", {search.ACCURACY: accuracy, "challenge_score": score}, budget="rung 0")
        for name, accuracy, score in (("a", 80.0, 0.1), ("b", 90.0, 0.2), ("c", 85.0, 0.3), ("d", 80.0, 0.05))
    ]
    best = pareto_front([*found, Row("e", 0, "failed", {})], "challenge_score")
    assert [row.variant for row in best] == ["d", "b"]
    for name in ("one", "two"):
        draw(tmp_path / name, found, best, "challenge_score")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.png").stat().st_size > 1000


def test_a_search_beside_variants_is_refused():
    with pytest.raises(ValueError, match="search: stands alone"):
        spec.Spec.model_validate(SPEC | {"variants": {"a": {}}})
