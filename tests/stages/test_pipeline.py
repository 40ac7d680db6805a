"""The whole pipeline under DVC, from nothing, on the sample: as `make demo` runs it, only shorter."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
STAGES = "prepare_data train_teacher train_student distill prune retrain quantize score".split()


def shrunk(recipe: Path) -> dict:
    """The demo recipe with one epoch a stage."""
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    for section in tree.values():
        if isinstance(section, dict) and "train" in section:
            section["train"]["epochs"] = 1
    return tree


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which the pipeline has run once."""
    folder = tmp_path_factory.mktemp("pipeline")
    for name in ("stages", "models", "micronet", "data/sample"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(shrunk(ROOT / "recipes/demo.yaml")), encoding="utf-8")
    assert run(folder, sys.executable, "-m", "dvc", "init", "--no-scm", "-q").returncode == 0
    done = run(folder, sys.executable, "-m", "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def executed(result: subprocess.CompletedProcess) -> list[str]:
    """The stages that DVC ran."""
    assert result.returncode == 0, result.stdout + result.stderr
    return [line.split("'")[1] for line in result.stdout.splitlines() if line.startswith("Running stage")]


def test_every_stage_leaves_its_checkpoint_metrics_curve_and_run(finished):
    for name in "teacher student distilled pruned retrained quantized".split():
        assert (finished / f"checkpoints/{name}.safetensors").is_file()
    for stage in STAGES:
        assert json.loads((finished / f"metrics/{stage}.json").read_text())
        assert json.loads((finished / f"metrics/runs/{stage}.json").read_text())["seconds"] > 0
    for stage in STAGES[1:-1]:
        rows = list(csv.DictReader((finished / f"metrics/curves/{stage}.csv").open()))
        assert list(rows[0]) == [
            "epoch", "learning_rate", "train_loss", "train_accuracy_percent", "validation_loss",
            "validation_accuracy_percent",
        ]  # fmt: skip
        assert [row["epoch"] for row in rows] == ["1"]


def test_the_path_has_a_row_a_checkpoint_and_ends_with_what_score_json_says(finished):
    rows = list(csv.DictReader((finished / "metrics/path.csv").open()))
    assert [row["stage"] for row in rows] == "teacher student distilled pruned retrained quantized".split()
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
    assert executed(run(finished, sys.executable, "-m", "dvc", "repro")) == []


def test_score_check_passes_and_fails_when_the_claim_is_another(finished):
    check = (sys.executable, "stages/score.py", "--check")
    assert run(finished, *check).returncode == 0
    claim = finished / "metrics/score.json"
    before = claim.read_text()
    claim.write_text(json.dumps(json.loads(before) | {"test_accuracy_percent": 99.0}))
    try:
        answer = run(finished, *check)
    finally:
        claim.write_text(before)
    assert answer.returncode == 1
    assert "test_accuracy_percent: claimed 99.0, measured" in answer.stderr


def test_a_changed_hyperparameter_reruns_what_is_downstream_and_nothing_else(finished):
    path = finished / "params.yaml"
    before = path.read_text()
    before_score = (finished / "metrics/score.json").read_text()
    tree = yaml.safe_load(before)
    tree["prune"]["amount"] = 0.6
    path.write_text(yaml.safe_dump(tree))
    try:
        assert executed(run(finished, sys.executable, "-m", "dvc", "repro")) == [
            "prune",
            "retrain",
            "quantize",
            "score",
        ]
    finally:
        path.write_text(before)
    again = run(finished, sys.executable, "-m", "dvc", "repro")
    assert again.returncode == 0 and executed(again) == []  # the run cache has them all
    assert (finished / "metrics/score.json").read_text() == before_score
