"""Specs: what a variant's params become, and the line that a fault is."""

from __future__ import annotations

import re

import pytest
import yaml

from micronet.params import ParamsError
from sweeps import run, spec, tasks
from sweeps.board import Board
from sweeps.rows import Row
from tests.support.places import ROOT
from tests.support.thinning import thinned

CODE = tasks.Code()  # read once for all tests
BASE = {"base": "demo", "variants": {"a": {"prune": {"amount": 0.5}}, "b": {"prune.amount": 0.6}}, "seeds": [0, 1]}


@pytest.fixture
def told(tmp_path, capsys):
    """Runs a spec that is to be refused; what is said."""

    def refused(changes: dict) -> str:
        path = tmp_path / "some.yaml"
        path.write_text(yaml.safe_dump(BASE | changes))
        assert run.main([str(path), "--check"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"{path}: ") and all(len(line) <= 300 for line in said.splitlines())
        return said.replace(f"{path}: ", "")

    return refused


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"varients": {}}, "varients: no such key"),
        ({"seeds": [1, 0, 1]}, "seeds: 1 is given twice"),
        ({"seeds": []}, "seeds: must have 1 items or more"),
        ({"budgets": {"s": {"seeds": [2, 2]}}}, "budgets.s.seeds: 2 is given twice"),
        ({"budgets": {"s": {}, "t": {}}}, "budget: must be one of s, t"),
        ({"budgets": {"s": {}}, "budget": "u"}, "budget: there is no 'u' (there are s)"),
        ({"budgets": {"s": {"epochs": {"score": 1}}}}, "no section 'score' trains"),
        ({"base": "nothing"}, "base: there is no recipe 'nothing' (there are deck, demo"),
        ({"last": "score"}, "last: score reads the test set, by which nothing is chosen: it stands without variants"),
        ({"last": "code"}, "last: code measures nothing; one of train_teacher"),
        ({"variants": {"a": {"last": "score"}}}, "variant a: last: must be one of train_teacher"),
        ({"reference": "c"}, "reference: there is no variant 'c'"),
        ({"variants": {"a": {"prune": {"amount": 0.5}, "prune.amount": 0.6}}}, "a: prune.amount is patched twice"),
        ({"variants": {"a": {"student.model": {}, "student.model.name": "y"}}}, "a: student.model is patched twice"),
        ({"grid": {"prune.amount": [0.5]}}, "variant a,amount=0.5: prune.amount is patched twice"),
        ({"grid": {"quantize.weight_bits": [2, 2]}}, "variant a,weight_bits=2: is there twice"),
        ({"variants": {"a": {}, "b": {}}}, "variant b: is the same as variant a"),
        ({"variants": {"a": {"prune": {"amout": 0.5}}}}, "variant a: prune.amout: no such key"),
        ({"variants": {"a": {"prune.amount": 2.0}}}, "variant a: prune.amount: must be < 1 (got 2.0)"),
        ({"variants": {"a": {"quantize": {"method": "fx_int8"}}}}, "variant a: quantize.weight_bits: fx_int8 takes 8"),
        ({"variants": {"a": {"student.model": {"name": "none"}}}}, "variant a: student.model."),
        ({"variants": {"a": {"seed": 3}}}, "variant a: seed: `seeds` says it, for all variants"),
        ({"variants": {"../a": {}}}, "variants: must be a name of letters, digits and _+=,.- (got '../a')"),
        ({"variants": {"a": {"last": "nothing"}}}, "variant a: last: must be one of train_teacher"),
        ({"metrics": ["x y"]}, "metrics.0: "),
        ({"variants": {"a": 3}}, "variants.a: must be a patch of params, as in {prune: {amount: 0.8}}"),
        ({"variants": []}, "variants: must be sections of patches by their names, or a list of patches"),
        ({"variants": {"a.lock": {}}}, "variants: must be a name"),
        ({"needs": {"cpus": 0}}, "needs.cpus: must be >= 1 (got 0)"),
        ({"grid": {"a.b": list(range(300)), "c.d": list(range(300))}}, "grid: makes 360,000 runs; at most 100,000"),
        ({"remote": ""}, "remote: must be an address, as in s3://bucket/folder, or a path (got '')"),
        ({"remote": 's3://x"\n[core]'}, "remote: must be an address"),
        ({"claimed": "c"}, "claimed: there is no variant 'c'"),
        (
            {"search": {"rules": "strikt", "most": 1, "trials": 1, "space": {"seed": [0]}, "rungs": [{}]}},
            "search.rules: must be one of deck, challenge, strict, course (got 'strikt')",
        ),
    ],
)
def test_a_fault_of_a_spec_is_a_line_and_nothing_runs(told, changes, line):
    assert line in told(changes)


def test_the_example_of_the_documents_is_a_sweep(tmp_path, capsys):
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/scale.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    path = tmp_path / "mine.yaml"
    path.write_text(example)
    assert run.main([str(path), "--check"]) == 0
    assert capsys.readouterr().out == f"{path}: 18 runs of 6 variants\n"


def test_a_spec_that_is_not_there_names_one_that_is(tmp_path):
    with pytest.raises(ParamsError, match=r"nope\.yaml: there is no such file; .* sweeps/demo\.yaml$"):
        spec.read(tmp_path / "nope.yaml")


def test_several_specs_are_all_checked_before_the_first_one_runs(tmp_path, capsys):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(yaml.safe_dump(BASE))
    bad.write_text(yaml.safe_dump(BASE | {"reference": "c"}))
    assert run.main([str(good), str(bad), "--check"]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"{bad}: reference: there is no variant 'c'\n")
    assert run.main(["", str(good), str(good), "--check"]) == 0
    assert capsys.readouterr().out == f"{good}: 4 runs of 2 variants\n" * 2
    assert run.main([str(good), "--seeds", "0", "--check"]) == 2
    assert capsys.readouterr().err == "seeds: must be >= 1 (got 0)\n"
    assert run.main([str(ROOT / "sweeps/search.yaml"), "--seeds", "3", "--check"]) == 2
    assert capsys.readouterr().err.endswith("search.yaml: search: has one seed, so --seeds cannot be\n")


def test_other_seeds_are_those_of_every_budget():
    budgets = {"short": {"epochs": 1, "seeds": [7]}, "long": {"epochs": 2}}
    made = spec.Spec.model_validate(BASE | {"budgets": budgets, "budget": "short"}).with_seeds([0, 1, 2, 3, 4])
    assert made.chosen_seeds == [0, 1, 2, 3, 4] and made.length.epochs == 1
    assert len(tasks.plan(made, code=CODE)) == 5 * len(BASE["variants"])


def test_a_metric_of_a_stage_that_does_not_run_is_refused():
    made = spec.Spec.model_validate(BASE | {"last": "prune", "metrics": ["retrain.validation_accuracy_percent"]})
    with pytest.raises(ParamsError) as error:
        tasks.plan(made, code=CODE)
    assert len(error.value.faults) == len(BASE["variants"])
    assert error.value.faults[0] == (
        "variant a: metrics: retrain.validation_accuracy_percent is of a stage that does not run; "
        "prepare_data, train_teacher, train_student, distill, prune do"
    )
    fine = spec.Spec.model_validate(BASE | {"last": "prune", "metrics": ["distill.validation_accuracy_percent"]})
    assert tasks.plan(fine, code=CODE)


def test_networks_of_ones_own_are_told_apart_by_their_files_which_belong_to_the_commit():
    models = {"own": {"file": "template.py", "class": "Template"}, "ours": {"name": "convnet", "widths": [8]}}
    made = spec.Spec.model_validate(BASE | {"variants": {name: {"student.model": one} for name, one in models.items()}})
    own, ours = tasks.plan(made, code=CODE)[::2]
    assert own.code_digest != ours.code_digest and own.keys["train_teacher"] == ours.keys["train_teacher"]
    assert "networks" in tasks.CODE


def test_a_key_with_dots_replaces_and_a_section_is_laid_over():
    tree = {"student": {"model": {"name": "a", "widths": [1]}, "train": {"epochs": 4, "learning_rate": 1.0}}}
    found = spec.patched(tree, {"student.model": {"name": "b"}}, {"student": {"train": {"epochs": 1}}})
    assert found == {"student": {"model": {"name": "b"}, "train": {"epochs": 1, "learning_rate": 1.0}}}
    assert tree["student"]["model"]["widths"] == [1], "the base stays what it is"


def test_a_key_with_dots_below_a_section_is_a_name_and_not_a_path():
    found = spec.patched({}, {"quantize": {"layer_bits": {"stem.conv": 8}}})
    assert found == {"quantize": {"layer_bits": {"stem.conv": 8}}}


def variants(**changes) -> list[spec.Variant]:
    base = {"prune": {"amount": 0.1, "train": {"epochs": 9}}, "distill": {"train": {"epochs": 9}}}
    return spec.variants(spec.Spec.model_validate(changes), base)


def test_grids_lists_and_names_make_the_variants_that_they_say():
    grid = {"prune.amount": [0.5, 0.8], "quantize.weight_bits": [2, 4]}
    assert [one.name for one in variants(grid=grid)] == [
        "amount=0.5,weight_bits=2", "amount=0.5,weight_bits=4", "amount=0.8,weight_bits=2", "amount=0.8,weight_bits=4",
    ]  # fmt: skip
    listed = variants(variants=[{"prune": {"amount": 0.5}}, {"distill.train.epochs": 3, "prune.train.epochs": 2}])
    assert [one.name for one in listed] == ["amount=0.5", "distill_train_epochs=3,prune_train_epochs=2"]
    both = variants(variants={"x": {"distill.alpha": 0.5}}, grid={"prune.amount": [0.5]})
    assert [(one.name, one.tree["prune"]["amount"], one.tree["distill"]["alpha"]) for one in both] == [
        ("x,amount=0.5", 0.5, 0.5)
    ]
    assert [one.name for one in variants()] == ["base"]


def test_a_budget_sets_epochs_and_images_and_a_variant_has_the_last_word():
    budgets = {"s": {"images": 100, "epochs": {"prune": 2}}}
    short, own = variants(budgets=budgets, variants={"x": {}, "y": {"prune.train.epochs": 5}})
    assert short.tree["prune"]["train"]["epochs"] == 2 and short.tree["distill"]["train"]["epochs"] == 9
    assert short.tree["data"] == {"training_images": 100} and own.tree["prune"]["train"]["epochs"] == 5


@pytest.mark.parametrize("path", thinned(sorted((ROOT / "sweeps").glob("*.yaml")), 4, name=lambda path: path.stem))
def test_every_spec_of_the_repository_can_run_at_every_budget(path):
    for budget in spec.read(path, None if "budget" in path.read_text() else None).budgets or {None: None}:
        assert tasks.plan(spec.read(path, budget), code=CODE)


def test_none_is_called_the_best_by_the_test_set():
    seeds = spec.Spec.model_validate({"last": "score", "metrics": ["accuracy_percent", "bytes"]})
    board = Board("seeds", run.told(seeds), 2, [])
    board.ended("a-0", Row("a", 0, "done", {"accuracy_percent": 90.0, "bytes": 3.0}), 1.0)
    assert board.best is None and "best" not in board.summary()
    assert run.told(spec.Spec.model_validate({"metrics": ["deck_score"]})) == "deck_score"


def test_every_key_of_a_spec_is_described():
    sections = (spec.Spec, spec.Budget, spec.Needs, spec.Search)
    assert [
        f"{one.__name__}.{key}" for one in sections for key, field in one.model_fields.items() if not field.description
    ] == []
