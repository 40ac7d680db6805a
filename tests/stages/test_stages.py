"""The stage scripts as a person runs them, without DVC: what they say, what they write, what they survive."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors
import yaml

from micronet import params

ROOT = Path(__file__).resolve().parents[2]
ALL = ["prepare_data", "train_teacher", "train_student", "distill", "prune", "retrain", "quantize", "score"]
TRAINED = {  # the stages that end in a float checkpoint, and its name
    "train_teacher": "teacher",
    "train_student": "student",
    "distill": "distilled",
    "prune": "pruned",
    "retrain": "retrained",
}
MADE = TRAINED | {"quantize": "quantized"}
CURVE = "epoch learning_rate train_loss train_accuracy_percent validation_loss validation_accuracy_percent".split()
METRICS = {
    "validation_accuracy_percent",
    "parameters",
    "nonzero_parameters",
    "prunable_weights",
    "zero_weights",
    "epochs",
    "batch_size",
    "learning_rate",
}
RUN = {"commit", "params_digest", "data_source", "seconds", "peak_memory_bytes"}
TRAINING_RUN = RUN | {"images_per_second", "device", "precision", "threads", "torch"}

ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("DVC_STAGE", "PYTHONPATH")}
ENVIRONMENT["OMP_NUM_THREADS"] = "1"
LIMIT = 600  # seconds: only against a hang, a stage here takes four of them


def shrunk() -> dict[str, Any]:
    """The demo recipe with narrow networks, one epoch a stage and 200 training images."""
    tree = params.read_yaml(ROOT / "recipes/demo.yaml")
    tree["data"]["validation_size"] = 800
    tree["engine"] = {"device": "cpu", "precision": "fp32", "threads": 1, "save_every_seconds": 0.0}
    tree["teacher"]["model"] = {"name": "resnet", "blocks": [1, 1], "widths": [8, 16]}
    tree["student"]["model"] = {"name": "resnet", "blocks": [1], "widths": [8]}
    for stage in ("teacher", "student", "distill", "prune", "retrain", "quantize"):
        tree[stage]["train"] |= {"epochs": 1, "batch_size": 20}
    return tree


def write_params(folder: Path, tree: dict[str, Any]) -> None:
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))


def command(stage: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / f"stages/{stage}.py"), *arguments]


def run(folder: Path, stage: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(stage, *arguments), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT
    )


def succeed(folder: Path, stage: str) -> str:
    done = run(folder, stage)
    assert done.returncode == 0, done.stderr
    return done.stderr


def files(folder: Path) -> set[str]:
    """What lies in a folder, without the prepared data and the locks that stay behind."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("data/cifar10-sample/") and not name.endswith("/lock")}


def results(folder: Path, stage: str) -> dict[str, bytes]:
    """The bytes of everything that a stage's result consists of."""
    names = [f"checkpoints/{MADE[stage]}.safetensors", f"metrics/{stage}.json", f"metrics/curves/{stage}.csv"]
    return {name: (folder / name).read_bytes() for name in names}


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every stage up to `retrain` ran once, without DVC."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_params(folder, shrunk())
    for stage in ("prepare_data", *TRAINED):
        succeed(folder, stage)
    return folder


@pytest.fixture
def prepared(pipeline: Path, tmp_path: Path) -> Path:
    """A folder with params and prepared data, and no checkpoint."""
    write_params(tmp_path, shrunk())
    (tmp_path / "data").mkdir()
    for name in ("manifest.json", "cifar10-sample"):
        (tmp_path / "data" / name).symlink_to(pipeline / "data" / name)
    return tmp_path


# --- before anything runs ---


@pytest.mark.parametrize("stage", ALL)
def test_help_answers_fast_and_without_torch(stage):
    code = (
        "import runpy, sys, time\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('torch' in sys.modules, time.process_time())"
    )
    path = str(ROOT / f"stages/{stage}.py")
    wrapper = [sys.executable, "-c", f"import sys; sys.argv = [{path!r}, '--help']\n{code}"]
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "stages")}  # runpy does not put the script's folder there
    done = subprocess.run(wrapper, env=environment, capture_output=True, text=True, timeout=60)
    *text, last = done.stdout.splitlines()
    torch_loaded, seconds = last.split()
    assert done.returncode == 0 and text[0].startswith(f"usage: {stage}.py [-h] [--params PATH]"), done.stderr
    assert torch_loaded == "False"
    assert float(seconds) < 2


@pytest.mark.parametrize("stage", ["prepare_data", "train_student", "prune"])
def test_faulty_params_end_with_2_and_a_line_a_fault_before_any_output_is_touched(tmp_path, stage):
    tree = shrunk()
    tree["teacher"]["train"]["learning_rate"] = -1
    tree["student"]["model"]["name"] = "alexnet"
    tree["prune"]["amount"] = 1.0
    del tree["retrain"]
    write_params(tmp_path, tree)
    output = tmp_path / "checkpoints/student.safetensors"
    output.parent.mkdir()
    output.write_text("an earlier result")
    done = run(tmp_path, stage)
    assert done.returncode == 2 and done.stdout == ""
    lines = done.stderr.splitlines()
    assert "params.yaml: teacher.train.learning_rate: must be > 0 (got -1)" in lines
    assert "params.yaml: prune.amount: must be < 1 (got 1.0)" in lines
    assert "params.yaml: retrain: is missing" in lines
    assert (
        sum("params.yaml: student.model.name: there is no model 'alexnet' (there are " in line for line in lines) == 1
    )
    assert len(lines) == 4
    assert files(tmp_path) == {"params.yaml", "checkpoints/student.safetensors"}
    assert output.read_text() == "an earlier result"


def test_a_missing_params_file_ends_with_2_and_says_how_to_make_one(tmp_path):
    done = run(tmp_path, "train_student", "--params", "mine.yaml")
    assert done.returncode == 2
    assert done.stderr == "mine.yaml: there is no such file (`make use RECIPE=laptop` makes it)\n"


def test_a_missing_checkpoint_names_the_stage_that_makes_it(prepared):
    done = run(prepared, "distill")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("distill: checkpoints/teacher.safetensors: there is no such checkpoint")
    assert "`python stages/train_teacher.py` makes it" in done.stderr
    assert not (prepared / "run").exists() and not (prepared / "metrics").exists()


def test_a_second_trainer_of_the_same_stage_is_refused_in_one_line(prepared):
    (prepared / "run/train_student").mkdir(parents=True)
    with (prepared / "run/train_student/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(prepared, "train_student")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("train_student: run/train_student: another process is training this stage")
    assert not (prepared / "checkpoints").exists()


# --- the pipeline without DVC ---


def test_the_stages_write_exactly_the_files_of_the_contract(pipeline):
    expected = {"params.yaml", "data/manifest.json", "metrics/prepare_data.json", "metrics/runs/prepare_data.json"}
    for stage, name in TRAINED.items():
        expected |= {f"checkpoints/{name}.safetensors", f"metrics/curves/{stage}.csv"}
        expected |= {f"metrics/{stage}.json", f"metrics/runs/{stage}.json"}
    assert files(pipeline) == expected


@pytest.mark.parametrize("stage", TRAINED)
def test_metrics_and_curves_have_the_documented_keys(pipeline, stage):
    metrics = read_json(pipeline / f"metrics/{stage}.json")
    assert set(metrics) == METRICS and metrics["epochs"] == 1
    assert all(isinstance(value, int | float) for value in metrics.values()), "flat"
    assert set(read_json(pipeline / f"metrics/runs/{stage}.json")) == TRAINING_RUN
    with (pipeline / f"metrics/curves/{stage}.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert list(row) == CURVE and row["epoch"] == "1"
    assert float(row["validation_accuracy_percent"]) == pytest.approx(metrics["validation_accuracy_percent"], rel=1e-4)


def test_prepare_data_writes_flat_metrics_and_where_the_data_came_from(pipeline):
    metrics = read_json(pipeline / "metrics/prepare_data.json")
    assert (metrics["train_images"], metrics["validation_images"], metrics["test_images"]) == (200, 800, 500)
    assert all(isinstance(value, int | float) for value in metrics.values())
    record = read_json(pipeline / "metrics/runs/prepare_data.json")
    assert set(record) == RUN and record["data_source"] == "sample"


@pytest.mark.parametrize("stage", TRAINED)
def test_a_checkpoint_says_what_it_is_and_nothing_of_time_commit_or_machine(pipeline, stage):
    with safetensors.safe_open(pipeline / f"checkpoints/{TRAINED[stage]}.safetensors", framework="numpy") as file:
        header = json.loads(file.metadata()["micronet"])
    assert set(header) == {"format", "stage", "model", "epochs", "validation_accuracy_percent", "params_digest"}
    assert header["stage"] == stage and header["model"]["name"] == "resnet"
    record = read_json(pipeline / f"metrics/runs/{stage}.json")
    assert header["params_digest"] == record["params_digest"]


def test_the_pruned_share_is_reached_to_one_weight_and_kept_by_retraining(pipeline):
    for stage, share in (("distill", 0), ("prune", 0.5), ("retrain", 0.5)):
        metrics = read_json(pipeline / f"metrics/{stage}.json")
        assert metrics["zero_weights"] == round(share * metrics["prunable_weights"])
        assert metrics["parameters"] - metrics["nonzero_parameters"] >= metrics["zero_weights"]


def test_nothing_is_left_of_the_resume_state_after_success(pipeline):
    left = {path.relative_to(pipeline / "run").as_posix() for path in (pipeline / "run").rglob("*")}
    assert left == set(TRAINED) | {f"{stage}/lock" for stage in TRAINED}


@pytest.fixture
def resumed(pipeline: Path, prepared: Path) -> Path:
    """A folder in which every checkpoint of the pipeline lies, for a stage to be run again."""
    (prepared / "checkpoints").mkdir()
    for name in TRAINED.values():
        (prepared / f"checkpoints/{name}.safetensors").symlink_to(pipeline / f"checkpoints/{name}.safetensors")
    return prepared


def forget(folder: Path, stage: str) -> None:
    """Removes what a stage made."""
    for name in (f"checkpoints/{MADE[stage]}.safetensors", f"metrics/{stage}.json", f"metrics/curves/{stage}.csv"):
        (folder / name).unlink(missing_ok=True)


@pytest.mark.parametrize("stage", MADE)
def test_the_same_params_give_the_same_bytes_of_checkpoint_metrics_and_curve(pipeline, resumed, stage):
    if stage not in TRAINED:
        succeed(resumed, stage)
    expected = results(pipeline if stage in TRAINED else resumed, stage)
    forget(resumed, stage)
    succeed(resumed, stage)
    assert results(resumed, stage) == expected


def test_the_stages_share_the_teachers_answers_to_fixed_views(resumed):
    tree = shrunk()
    for stage in ("distill", "prune"):
        tree[stage] |= {"views": 3}
    write_params(resumed, tree)
    forget(resumed, "distill")
    assert "the teacher answers view 3 of 3" in succeed(resumed, "distill")
    expected, answers = results(resumed, "distill"), (resumed / "run/answers.safetensors").read_bytes()
    (resumed / "run/answers.safetensors").write_bytes(answers[:-1000])
    forget(resumed, "distill")
    assert "the teacher answers view 1 of 3" in succeed(resumed, "distill"), "a damaged file is made anew"
    assert results(resumed, "distill") == expected
    assert (resumed / "run/answers.safetensors").read_bytes() == answers
    forget(resumed, "prune")
    assert "the teacher answers" not in succeed(resumed, "prune")


def test_a_network_is_its_own_teacher_and_becomes_a_packed_file(resumed):
    tree = shrunk()
    for section in ("teacher", "student"):
        tree[section]["model"] = {"name": "convnet", "widths": [8, 8]}
    tree["distill"] |= {"start_from": "teacher"}
    tree["distill"]["train"] |= {"epochs": 0}
    tree["quantize"] |= {"per_channel": True, "layer_bits": {"whiten": 8}}
    write_params(resumed, tree)
    for stage in ("train_teacher", "train_student", "distill"):
        forget(resumed, stage)
        succeed(resumed, stage)
    teacher, distilled = (
        safetensors.safe_open(resumed / f"checkpoints/{name}.safetensors", framework="np")
        for name in ("teacher", "distilled")
    )
    assert all((distilled.get_tensor(key) == teacher.get_tensor(key)).all() for key in teacher.keys())
    for stage in ("prune", "retrain"):
        forget(resumed, stage)
        succeed(resumed, stage)
    succeed(resumed, "quantize")
    metrics = read_json(resumed / "metrics/quantize.json")
    assert metrics["nonzero_parameters"] < read_json(resumed / "metrics/train_teacher.json")["nonzero_parameters"]

    tree["student"]["model"]["widths"] = [8, 6]
    tree["distill"] |= {"mirror_answers": True, "views": 2}
    tree["distill"]["train"] |= {"epochs": 1}
    tree["prune"]["cost_exponent"] = 0.25
    write_params(resumed, tree)
    for stage in ("train_student", "distill", "prune"):
        forget(resumed, stage)
        succeed(resumed, stage)
    metrics = read_json(resumed / "metrics/prune.json")
    assert metrics["parameters"] < read_json(resumed / "metrics/train_teacher.json")["parameters"], "narrower"


def test_a_student_goes_on_from_a_checkpoint_that_the_params_name(prepared, pipeline):
    content = (pipeline / "checkpoints/student.safetensors").read_bytes()
    (prepared / "earlier.safetensors").write_bytes(content)
    tree = shrunk()
    tree["student"]["start"] = {"file": "earlier.safetensors", "sha256": hashlib.sha256(content).hexdigest()}
    tree["student"]["train"]["epochs"] = 0
    write_params(prepared, tree)
    succeed(prepared, "train_student")
    with (
        safetensors.safe_open(prepared / "earlier.safetensors", framework="np") as before,
        safetensors.safe_open(prepared / "checkpoints/student.safetensors", framework="np") as after,
    ):
        assert all((before.get_tensor(key) == after.get_tensor(key)).all() for key in before.keys())

    for change, message in (
        ({"model": {"name": "resnet", "blocks": [1], "widths": [6]}}, "which is not student.model"),
        ({"start": tree["student"]["start"] | {"sha256": "0" * 64}}, "student.start.sha256 names another one"),
        ({"start": tree["student"]["start"] | {"file": "missing"}}, "there is no such checkpoint"),
    ):
        write_params(prepared, tree | {"student": tree["student"] | change})
        done = run(prepared, "train_student")
        assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1


def test_results_make_no_checkout_dirty_and_code_does(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "stages"))
    import common

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *words], cwd=tmp_path, check=True)

    monkeypatch.setattr(common, "ROOT", tmp_path)
    (tmp_path / "params.yaml").write_text("seed: 0")
    (tmp_path / "dvc.lock").write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "x")
    clean = common._commit()
    (tmp_path / "dvc.lock").write_text("changed")
    assert len(clean) == 12 and common._commit() == clean
    (tmp_path / "params.yaml").write_text("seed: 1")
    assert common._commit() == f"{clean}-dirty"


# --- killed ---


def kill_when(folder: Path, moment: Any) -> None:
    """Starts `train_student` and kills it, as the kernel would, at the moment."""
    process = subprocess.Popen(command("train_student"), cwd=folder, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + LIMIT
        while not moment() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert not (folder / "checkpoints").exists()


def test_a_stage_killed_at_three_moments_ends_with_the_bytes_of_one_that_was_not(prepared):
    tree = shrunk()
    tree["student"]["train"] |= {"epochs": 2, "batch_size": 10, "ema_decay": 0.9, "augment": {"cutmix_alpha": 1.0}}
    write_params(prepared, tree)
    run_folder, curve = prepared / "run/train_student", prepared / "metrics/curves/train_student.csv"

    def saves(count: int):
        """After so many saves: each puts a new file in the place of the old one."""
        seen: set[int] = set()

        def moment() -> bool:
            seen.update(path.stat().st_ino for path in run_folder.glob("*/state"))
            return len(seen) >= count

        return moment

    def second_epoch() -> bool:
        return curve.is_file() and saved_after_curve()

    kill_when(prepared, lambda: (run_folder / "lock").exists())
    kill_when(prepared, saves(3))
    saved_after_curve = saves(2)
    kill_when(prepared, second_epoch)
    remark = succeed(prepared, "train_student")
    assert "going on after epoch 1, step " in remark
    interrupted = results(prepared, "train_student")
    for name in interrupted:
        (prepared / name).unlink()
    assert "going on" not in succeed(prepared, "train_student")
    assert results(prepared, "train_student") == interrupted
    assert list(run_folder.iterdir()) == [run_folder / "lock"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["train_student", "distill", "prune", "retrain", "quantize"])
def test_a_stage_killed_at_five_random_moments_ends_with_the_same_bytes_each_time(resumed, stage):
    tree = shrunk()
    section = "student" if stage == "train_student" else stage
    tree[section]["train"] |= {"epochs": 3, "batch_size": 10}
    write_params(resumed, tree)
    began = time.monotonic()
    forget(resumed, stage)
    succeed(resumed, stage)
    whole, expected = time.monotonic() - began, results(resumed, stage)
    chance = random.Random(f"{stage} {time.time_ns()}")
    died = 0
    for _ in range(5):
        forget(resumed, stage)
        moment = chance.uniform(0.0, 0.95 * whole)
        with subprocess.Popen(command(stage), cwd=resumed, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
            time.sleep(moment)
            process.kill()
        died += process.returncode == -signal.SIGKILL
        succeed(resumed, stage)
        assert results(resumed, stage) == expected, f"killed after {moment:.3f} of {whole:.3f} s"
    assert died >= 3, "it was mostly over before it was killed"
