"""What tasks have in common is made once, and a row counts as long as it is of the same work."""

from __future__ import annotations

import pytest

from micronet.errors import MicronetError
from sweeps import rows, spec, tasks
from tests.support.places import ROOT

CODE = tasks.Code()  # read once for all tests


def planned(code: tasks.Code = CODE, **changes) -> list[tasks.Task]:
    made = spec.Spec.model_validate({"base": "demo", "patch": {"engine": {"threads": 1}}} | changes)
    return tasks.plan(made, code=code)


def told(works: list[tasks.Work]) -> list[tuple[str, str, list[str]]]:
    return [(work.name, work.stage, [one.name for one in work.before]) for work in works]


def test_what_variants_share_is_one_work_before_them():
    found = told(tasks.works(planned(grid={"prune.amount": [0.5, 0.6], "quantize.weight_bits": [2, 3]})))
    first, *pruned = [one for one in found if one[1] in ("distill", "retrain")]
    assert first == ("distill of amount=0.5,weight_bits=2-0", "distill", [])
    assert [one[1:] for one in pruned] == [("retrain", [first[0]])] * 2
    assert [one[2] for one in found if one[1] == "quantize"] == [
        [first[0], pruned[place][0]] for place in (0, 0, 1, 1)
    ]  # fmt: skip


def test_nothing_is_shared_by_seeds_or_by_a_variant_alone():
    assert [work.leaf for work in tasks.works(planned(seeds=[0, 1, 2]))] == [True] * 3


def test_a_student_that_all_teachers_share_is_made_before_them():
    found = tasks.works(planned(variants={"x": {"teacher.train.epochs": 1}, "y": {"teacher.train.epochs": 2}}))
    assert [work.stage for work in found] == ["train_student", "quantize", "quantize"]


def test_a_variant_that_ends_where_others_go_on_waits_for_what_they_share():
    found = tasks.works(planned(variants={"short": {"last": "retrain"}, "long": {"quantize.weight_bits": 3}}))
    assert [(work.stage, work.leaf) for work in found] == [("retrain", False), ("retrain", True), ("quantize", True)]
    assert all(work.before == (found[0],) for work in found[1:])


def test_a_stage_that_does_not_run_decides_nothing():
    one, other = planned(last="prune", variants={"x": {"retrain.train.epochs": 1, "prune.amount": 0.3}, "y": {}})
    (same,) = planned(last="prune", variants={"x": {"retrain.train.epochs": 9, "prune.amount": 0.3}})
    assert one.params_digest == same.params_digest != other.params_digest and one.key == same.key != other.key


def test_a_row_counts_while_params_code_data_and_seed_are_the_same(monkeypatch):
    (task,) = planned()
    names = ("params_digest", "code_digest", "data_digest")
    row = rows.Row("base", 0, "done", {"a": 1.0}, **{name: getattr(task, name) for name in names})
    assert rows.kept([row], [task], ["a"]) == {("base", 0): row}
    assert rows.kept([row], [task], ["a", "b"]) == {}, "a metric that it lacks"
    assert rows.kept([rows.Row(**vars(row) | {"status": "failed"})], [task], ["a"]) == {}
    for changes in ({"seeds": [1]}, {"patch": {"prune.amount": 0.3}}, {"patch": {"data.validation_size": 100}}):
        assert rows.kept([row], planned(**changes), ["a"]) == {}
    real = tasks.dependencies.stage_digests
    monkeypatch.setattr(tasks.dependencies, "stage_digests", lambda *words: real(*words) | {"new.py": "0"})
    assert rows.kept([row], planned(tasks.Code()), ["a"]) == {}, "other code"


def test_rows_of_other_code_data_or_budget_are_not_compared():
    def made(variant, seed, code, data="d", budget="small"):
        return rows.Row(variant, seed, "done", {}, budget=budget, code_digest=code, data_digest=data)

    old = [made(variant, seed, "old") for variant in ("a", "b") for seed in (0, 1)]
    new = [made("a", seed, "new") for seed in (2, 3)]
    assert rows.comparable([*new, *old], "a") == (old, new)
    others = [made("b", 0, "old", data="e"), made("b", 1, "old", budget="full")]
    assert rows.comparable([*others, *new], "a") == (new, others)
    assert rows.comparable([*[made("b", seed, "new") for seed in range(5)], *old], "a")[0] == old, "with the reference"
    assert rows.comparable([], "a") == ([], [])


def test_a_table_reads_back_as_it_was_written_and_a_damaged_one_is_a_line(tmp_path):
    path = tmp_path / "table.csv"
    found = [
        rows.Row("a,b", 0, "done", {"x": 0.1, "y": None}, commit="1", seconds=2.5),
        rows.Row("c", 1, "failed", {"x": None, "y": None}, reason='it said "no", twice', log="l"),
    ]
    rows.write(path, found, ["x", "y"])
    assert rows.read(path) == found and rows.read(tmp_path / "none.csv") == []
    for damaged in ("variant,seed\na,1\n", path.read_text()[:-9]):
        path.write_text(damaged)
        with pytest.raises(MicronetError, match=r"table.csv: (is no table|cannot be read)"):
            rows.read(path)


def test_a_metric_that_a_stage_does_not_measure_is_refused_with_those_that_it_does():
    files = {"metrics/quantize.json": '{"file_bytes": 3, "name": "x"}'}
    assert rows.measured(files, {"deck_score": 0.5}, ["file_bytes", "deck_score"], "quantize") == {
        "file_bytes": 3,
        "deck_score": 0.5,
    }
    with pytest.raises(MicronetError, match="quantize measures no 'accuracy' .it measures file_bytes."):
        rows.measured(files, {}, ["accuracy"], "quantize")
    files |= {"metrics/summary.json": '{"test_accuracy_percent": 90.1, "deck_score": 0.25}'}
    assert rows.measured(files, {}, ["test_accuracy_percent", "deck_score"], "score") == {
        "test_accuracy_percent": 90.1,
        "deck_score": 0.25,
    }


def test_code_that_is_not_committed_is_no_code_of_a_sweep():
    tasks.check_clean("")
    with pytest.raises(MicronetError, match="models/x.py is not committed, and a sweep runs a commit; `git commit`"):
        tasks.check_clean(" M models/x.py\n")


def test_the_graph_says_what_a_stage_needs():
    graph = tasks.Graph.read(ROOT / "dvc.yaml")
    assert graph.before("train_student") == ["prepare_data", "train_student"]
    assert graph.inputs("prune") == ["prepare_data", "train_teacher", "distill"]
