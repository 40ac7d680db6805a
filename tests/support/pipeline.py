"""The stages of the pipeline: params that run them in seconds, how to run them, what they leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from micronet import params
from tests.support import warm
from tests.support.places import ROOT

STAGES = ["prepare_data", "train_teacher", "train_student", "distill", "prune", "retrain", "quantize", "score"]
TRAINED = {  # the stages that end in a float checkpoint, and its name
    "train_teacher": "teacher",
    "train_student": "student",
    "distill": "distilled",
    "prune": "pruned",
    "retrain": "retrained",
}
MADE = TRAINED | {"quantize": "quantized"}
CURVE = "epoch learning_rate train_loss train_accuracy_percent validation_loss validation_accuracy_percent".split()

ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("DVC_STAGE", "PYTHONPATH")}
ENVIRONMENT["OMP_NUM_THREADS"] = "1"
LIMIT = 600  # seconds: only a guard against hangs, a stage here takes two


def shrunk() -> dict[str, Any]:
    """The demo recipe with one epoch per stage, 200 training and 200 validation images, a small teacher, one thread."""
    tree = params.read_yaml(ROOT / "recipes/demo.yaml")
    tree["data"] |= {"validation_size": 200, "training_images": 200}
    tree["engine"] = {"device": "cpu", "precision": "fp32", "threads": 1}
    tree["teacher"]["model"] = dict(tree["student"]["model"])
    for stage in ("teacher", "student", "distill", "prune", "retrain", "quantize"):
        tree[stage]["train"] |= {"epochs": 1, "batch_size": 20}
    return tree


def write_params(folder: Path, tree: dict[str, Any]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))


def script(stage: str) -> Path:
    return ROOT / f"stages/{stage}.py"


def command(stage: str, *arguments: str) -> list[str]:
    return [sys.executable, str(script(stage)), *arguments]


def run(folder: Path, stage: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a stage in its own process, with torch already loaded."""
    return _run(folder, [str(warm.folder() / "python"), *command(stage, *arguments)[1:]])


def succeed(folder: Path, *stages: str) -> str:
    """The output of stages that run one after the other and succeed."""
    said = ""
    for stage in stages:
        done = run(folder, stage)
        assert done.returncode == 0, done.stderr
        said += done.stderr
    return said


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs DVC, which finds the `python` of its stages on the PATH."""
    return _run(folder, [str(warm.folder("dvc") / "python"), "-m", "dvc", *arguments], DVC_NO_ANALYTICS="1")


def _run(folder: Path, words: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    environment = ENVIRONMENT | {"PATH": f"{warm.folder()}{os.pathsep}{ENVIRONMENT['PATH']}"} | more
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT)


def executed(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The stages `dvc repro` ran."""
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]


def results(folder: Path, stage: str) -> dict[str, bytes]:
    """The bytes of everything that makes up a training stage's result."""
    names = [f"checkpoints/{MADE[stage]}.safetensors", f"metrics/{stage}.json", f"metrics/curves/{stage}.csv"]
    return {name: (folder / name).read_bytes() for name in names}


def forget(folder: Path, *stages: str) -> None:
    """Removes the outputs of stages."""
    for stage in stages:
        for name in (f"checkpoints/{MADE[stage]}.safetensors", f"metrics/{stage}.json", f"metrics/curves/{stage}.csv"):
            (folder / name).unlink(missing_ok=True)
