"""The numbers that two runs are compared by."""

from __future__ import annotations

from report import page
from report.gathered import Run
from report.glance import glance


def test_two_runs_are_compared_by_accuracy_scores_bytes_and_sparsity_with_their_change(run):
    better = {**run.score, "test_accuracy_percent": run.score["test_accuracy_percent"] + 1.5}
    better["packed"] = {**run.score["packed"], "bytes": run.score["packed"]["bytes"] - 2000}
    rows = glance([run, Run(**{**vars(run), "score": better})])
    assert [row.name.split()[0] for row in rows] == [
        "Test", "Deck", "Challenge", "Strict", "Course", "Bytes", "Weights",
    ]  # fmt: skip
    assert rows[0].here == f"{run.score['test_accuracy_percent']:.2f}" and rows[0].change == "+1.50"
    assert rows[5].change == "-2,000" and {row.change for row in (*rows[1:5], rows[6])} == {"0"}


def test_what_a_run_lacks_or_has_damaged_is_an_empty_cell_and_what_none_has_is_no_row(run):
    odd = Run("odd", None, run.places, score={**run.score, "test_accuracy_percent": "x", "packed": 3})
    rows = {row.name: row for row in glance([run, odd])}
    for name in ("Test accuracy, %", "Bytes of the file", "Weights that are zero, %"):
        assert rows[name].here and (rows[name].there, rows[name].change) == ("", "")
    empty = Run("empty", None, run.places)
    assert glance([empty, empty]) == []


def test_scores_that_are_relative_to_different_networks_have_no_change_and_a_sentence_says_so(
    run, context, monkeypatch
):
    monkeypatch.setattr(page, "vega", lambda: "")
    other = Run(**{**vars(run), "score": {**run.score, "reference": {"name": "the teacher in 16 bits"}}})
    changes = {row.name: row.change for row in glance([run, other])}
    assert {change for name, change in changes.items() if name.endswith("score")} == {""}
    assert changes["Test accuracy, %"] == changes["Bytes of the file"] == "0"
    assert all(row.change for row in glance([other, other])), "the same network"
    said = "relative to different networks"
    for pair, is_said in (([run, other], True), ([other, other], False), ([Run("x", None, run.places), other], False)):
        written = page.render("Tried", pair, page.Settings((), "one", "two"), context)
        assert (said in written) == is_said
