"""`make compare` and `make seeds`: one table in a fixed order, and mean and spread."""

from __future__ import annotations

import json
import subprocess

import compare
import pytest
import seeds
from _tool import ToolError

from micronet import params as parameters
from micronet.front import ArgumentError
from sweeps import spec
from sweeps.rows import Row
from tests.support.places import ROOT


@pytest.fixture
def repository(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.invalid"]
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True)

    def commit(tag, seed, accuracy):
        (tmp_path / "metrics").mkdir(exist_ok=True)
        (tmp_path / "params.yaml").write_text(f"seed: {seed}\nprune: {{amount: 0.5, train: {{epochs: 3}}}}\n")
        (tmp_path / "metrics/quantize.json").write_text(f'{{"validation_accuracy_percent": {accuracy}, "epochs": 3}}')
        git("add", ".")
        git("commit", "--quiet", "-m", tag)
        git("tag", tag)

    git("init", "--quiet")
    commit("one", 1, 80.0)
    commit("two", 2, 81.5)
    return tmp_path


def test_what_differs_is_told_once_params_before_metrics(repository, capsys):
    compare.work("one", "two", repository)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["one", "two", "change"]
    assert lines[1:] == [
        ["seed", "1", "2", "+1"],
        ["metrics/quantize.validation_accuracy_percent", "80", "81.5", "+1.5"],
    ]
    compare.work("two", "two", repository)
    assert capsys.readouterr().out == "params and metrics are the same\n"


def test_metrics_that_other_code_or_data_made_are_named(repository, capsys):
    def commit(tag, **digests):
        for path, content in {"code/quantize": digests, "code/prune": digests, "data/manifest": {"of": tag[0]}}.items():
            (repository / path).parent.mkdir(exist_ok=True)
            (repository / f"{path}.json").write_text(json.dumps(content))
        for words in (["add", "."], ["commit", "--quiet", "-m", tag], ["tag", tag]):
            identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.invalid"]
            subprocess.run(["git", "-C", repository, *identity, *words], check=True)

    commit("a", loop="1", resnet="1")
    commit("another-model", loop="1", densenet="2")
    commit("b-code", loop="2", resnet="1")
    assert compare.made_by_other(repository, "a", "another-model") == []
    assert compare.made_by_other(repository, "a", "b-code") == ["quantize", "data"], "prune has no metrics"
    (repository / "params.yaml").write_text("seed: 3\n")
    commit("b-code-3", loop="2", resnet="1")
    compare.work("a", "b-code-3", repository)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "of other code or data, so that the metrics do not compare the params alone: quantize, data; "
        "`make repro` on the older one, or the same `make sweep` again, brings it up to date"
    )
    compare.work("b-code", "b-code-3", repository)
    assert "of other code" not in capsys.readouterr().out


def test_a_revision_that_there_is_not_is_a_line(repository):
    with pytest.raises(ArgumentError, match="three is no commit, tag or branch here"):
        compare.work("one", "three", repository)
    with pytest.raises(ArgumentError, match="--help is no commit"):
        compare.work("--help", "one", repository)


def test_metrics_that_are_no_json_are_a_line_however_deep_they_nest(repository):
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.invalid"]
    for tag, content in (("deep", "[" * 100_000), ("open", "{")):
        (repository / "metrics/score.json").write_text(content)
        for words in (["add", "."], ["commit", "--quiet", "-m", tag], ["tag", tag]):
            subprocess.run(["git", "-C", repository, *identity, *words], check=True)
        with pytest.raises(ToolError, match=f"metrics/score.json of {tag} is no JSON"):
            compare.work("one", tag, repository)


def test_what_one_side_lacks_is_told():
    assert compare.differences({"a": 1, "b": True}, {"b": 1, "c": None}) == [
        ("a", "1", "-", ""), ("b", "True", "1", ""), ("c", "-", "None", ""),
    ]  # fmt: skip


def test_scores_that_are_relative_to_different_networks_have_no_change(repository, capsys):
    def commit(tag, accuracy, **reference):
        price = {"ops": accuracy, "score": accuracy / 100, "score_ops": accuracy / 200}
        score = {"test_accuracy_percent": accuracy, "deck": price, "one_pass": {"plain_challenge_score": accuracy}}
        (repository / "metrics/score.json").write_text(json.dumps(score | reference))
        for words in (["add", "."], ["commit", "--quiet", "-m", tag], ["tag", tag]):
            identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.invalid"]
            subprocess.run(["git", "-C", repository, *identity, *words], check=True)

    commit("ours", 90.0)
    commit("mnist", 99.0, reference={"name": "the teacher", "deck": {"operations": 3}})
    commit("smaller", 98.0, reference={"name": "the teacher", "deck": {"operations": 2}})
    commit("same", 97.0, reference={"name": "the teacher", "deck": {"operations": 2}})
    said = "the scores are relative to different networks, so that neither can be taken from the other"
    for a, b, is_said in (("ours", "mnist", True), ("mnist", "smaller", True), ("smaller", "same", False)):
        changes = {row[0]: row[3] for row in compare.differences(*(compare.facts(repository, one) for one in (a, b)))}
        for name in ("deck.score", "deck.score_ops", "one_pass.plain_challenge_score"):
            assert (changes[f"metrics/score.{name}"] == "") == is_said, name
        assert changes["metrics/score.test_accuracy_percent"] and changes["metrics/score.deck.ops"]
        compare.work(a, b, repository)
        assert (said in capsys.readouterr().out) == is_said


def test_seeds_have_a_mean_and_a_spread_and_one_seed_has_none():
    rows = [
        Row("base", seed, "done", {"validation_accuracy_percent": value, "x": None}, commit="c")
        for seed, value in ((0, 90.0), (1, 91.0), (2, 92.0))
    ]
    assert seeds.summary([*reversed(rows), Row("base", 3, "failed", {})], "of") == {
        "params_digest": "of",
        "mean": {"validation_accuracy_percent": 91.0},
        "spread": {"validation_accuracy_percent": 1.0},
        "best_on_validation": 2,
        "rows": [{"seed": row.seed, "commit": "c", **row.metrics} for row in rows],
    }
    with pytest.raises(ToolError, match="1 seeds are done; `make seeds N=3` makes more"):
        seeds.summary(rows[:1], "of")


def test_a_recipe_is_the_same_with_another_seed_or_machine_and_no_other():
    tree = parameters.read_yaml(ROOT / "recipes/demo.yaml")
    digests = [
        seeds.recipe_digest(parameters.parse(spec.patched(tree, patch)))
        for patch in ({}, {"seed": 7, "engine.threads": 1}, {"prune.amount": 0.31}, {"data.validation_size": 100})
    ]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_an_unpacked_archive_is_told_that_a_clone_is_needed(tmp_path):
    with pytest.raises(ArgumentError, match="no git repository here.* a clone would work"):
        compare.facts(tmp_path, "HEAD")
