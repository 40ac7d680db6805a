"""The whole pipeline under DVC, from nothing, on the sample: as `make demo` runs it, only shorter."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from micronet import params
from micronet.training.reporting import Reporter
from tests.support.pipeline import CURVE, MADE, STAGES, dvc, executed, results, run, script
from tests.support.places import ROOT

pytestmark = pytest.mark.slow  # half a minute for the run that they share, and DVC starts slowly


def test_every_stage_leaves_its_checkpoint_metrics_curve_and_run(finished):
    for name in MADE.values():
        assert (finished / f"checkpoints/{name}.safetensors").is_file()
    for stage in STAGES:
        assert json.loads((finished / f"metrics/{stage}.json").read_text())
        assert json.loads((finished / f"metrics/runs/{stage}.json").read_text())["seconds"] > 0
    for stage in STAGES[1:-1]:
        rows = list(csv.DictReader((finished / f"metrics/curves/{stage}.csv").open()))
        assert list(rows[0]) == CURVE
        assert [row["epoch"] for row in rows] == ["1"]


def test_the_path_has_a_row_a_checkpoint_and_ends_with_what_score_json_says(finished):
    rows = list(csv.DictReader((finished / "metrics/path.csv").open()))
    assert [row["stage"] for row in rows] == list(MADE.values())
    score = json.loads((finished / "metrics/score.json").read_text())
    assert float(rows[-1]["test_accuracy_percent"]) == score["test_accuracy_percent"]
    assert float(rows[-1]["challenge_score"]) == score["challenge"]["score"]
    assert int(rows[-1]["macs"]) == score["macs"] == score["ptflops_macs"]
    assert score["flipped_images_percent"] > 0
    assert int(rows[3]["nonzero_parameters"]) < int(rows[2]["nonzero_parameters"])


def test_the_score_is_that_of_the_file(finished):
    packed = json.loads((finished / "metrics/score.json").read_text())["packed"]
    file = finished / "checkpoints/quantized.safetensors"
    assert packed["bytes"] == file.stat().st_size
    assert packed["payload_bits"] / 8 > 0.8 * packed["bytes"]


def test_a_second_run_runs_nothing(finished):
    assert executed(dvc(finished, "repro")) == []


def test_the_bytes_are_those_of_a_run_without_dvc(finished, pipeline):
    for stage in MADE:
        assert results(finished, stage) == results(pipeline, stage), stage


def test_score_check_passes_and_fails_when_the_claim_is_another(finished, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "stages"))
    monkeypatch.chdir(finished)
    import score
    from job import Job

    loaded = params.load(finished / "params.yaml")
    assert score.work(Job(script("score"), loaded, argparse.Namespace(check=True, packed=False), Reporter())) == 0
    claim = finished / "metrics/score.json"
    before = claim.read_text()
    claim.write_text(json.dumps(json.loads(before) | {"test_accuracy_percent": 99.0}))
    try:
        answer = run(finished, "score", "--check")
    finally:
        claim.write_text(before)
    assert answer.returncode == 1
    assert "test_accuracy_percent: claimed 99.0, measured" in answer.stderr


def test_a_changed_hyperparameter_reruns_what_is_downstream_and_nothing_else(finished):
    path = finished / "params.yaml"
    before = path.read_text()
    before_score = (finished / "metrics/score.json").read_text()
    tree = yaml.safe_load(before)
    tree["retrain"]["alpha"] = 0.5
    path.write_text(yaml.safe_dump(tree))
    try:
        assert executed(dvc(finished, "repro")) == ["code", "retrain", "quantize", "score"]
    finally:
        path.write_text(before)
    assert executed(dvc(finished, "repro")) == ["code"]  # which checks the params; the run cache has the others
    assert (finished / "metrics/score.json").read_text() == before_score


@pytest.mark.parametrize("said", ["prune:\n  roundz: 3\n", "prune: {amount: [\n", ""], ids=["key", "text", "section"])
def test_dvc_removes_no_result_when_the_params_are_faulty(finished, said):
    path = finished / "params.yaml"
    before, all_results = path.read_text(), {stage: results(finished, stage) for stage in MADE}
    tree = yaml.safe_load(before)
    del tree["prune"]
    path.write_text(yaml.safe_dump(tree) + said)
    try:
        answer = dvc(finished, "repro", "prune")
    finally:
        path.write_text(before)
    assert answer.returncode != 0 and "params.yaml" in answer.stderr and "Traceback" not in answer.stderr
    assert {stage: results(finished, stage) for stage in MADE} == all_results
    assert len(list((finished / "code").glob("*.json"))) == len(STAGES)


# --- changed code ---


@pytest.fixture
def pruning(finished) -> Iterator[Path]:
    """A file of the library that `prune` and two later stages import, put back in the end."""
    path = finished / "micronet/compress/pruning.py"
    before = path.read_text(encoding="utf-8")
    yield path
    path.write_text(before, encoding="utf-8")
    assert executed(dvc(finished, "repro")) == ["code"]


def outdated(folder: Path) -> list[str]:
    """The stages whose own code, inputs or params are others than when they ran."""
    answer = dvc(folder, "status", "--json")
    assert answer.returncode == 0, answer.stderr
    return list(json.loads(answer.stdout))


def below(stages: list[str]) -> list[str]:
    """The stages that read what some stages make, directly or not, and these themselves, in order."""
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    found, made = [], set()
    for name, stage in graph.items():
        if name in stages or made & set(stage["deps"]):
            found.append(name)
            made.update(stage.get("outs", []) if name != "code" else [])
    return found


def test_a_changed_comment_or_docstring_reruns_nothing_but_the_stage_that_reads_the_code(finished, pruning):
    code = pruning.read_text(encoding="utf-8")
    assert code.count('"""Global ') == 1 and "# " in code
    code = code.replace('"""Global ', '"""In other words, global ').replace("# ", "# To say it again: ")
    pruning.write_text(code, encoding="utf-8")
    assert outdated(finished) == ["code"]
    assert executed(dvc(finished, "repro")) == ["code"]
    assert outdated(finished) == []


def test_a_changed_line_reruns_the_stages_that_import_it_and_what_is_below(finished, pruning):
    code = pruning.read_text(encoding="utf-8")
    pruning.write_text(code + "\n\nMOST_ZEROS = 1.0\n", encoding="utf-8")
    assert executed(dvc(finished, "repro", "code")) == ["code"]
    assert outdated(finished) == ["prune", "retrain", "quantize"]
    assert below(["prune", "retrain", "quantize"]) == ["prune", "retrain", "quantize", "score"]


def test_a_new_architecture_reruns_nothing_until_params_name_it(finished):
    path = finished / "models/another.py"
    path.write_text((finished / "models/resnet.py").read_text(encoding="utf-8").replace("resnet18", "another18"))
    try:
        assert executed(dvc(finished, "repro")) == ["code"]
    finally:
        path.unlink()
