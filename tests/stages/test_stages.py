"""The stage scripts as a person runs them, without DVC: what they say, what they write, what they survive."""

from __future__ import annotations

import argparse
import csv
import fcntl
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors

from micronet import model_params, params
from micronet.training.checkpoint import CheckpointError
from micronet.training.reporting import Reporter
from micronet.training.starts import started
from stages import common
from tests.support.pipeline import (
    CURVE,
    ENVIRONMENT,
    LIMIT,
    MADE,
    STAGES,
    TRAINED,
    command,
    forget,
    results,
    run,
    script,
    shrunk,
    succeed,
    write_params,
)
from tests.support.places import ROOT
from tests.support.thinning import thinned

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
OF_TRAINING = "checkpoint made_of images_per_second device precision compiled threads processes torch"
TRAINING_RUN = RUN | set(OF_TRAINING.split())


def files(folder: Path) -> set[str]:
    """What lies in a folder, without the prepared data and the locks that stay behind."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("data/cifar10-sample/") and not name.endswith("/lock")}


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


# --- before anything runs ---


@pytest.mark.parametrize("stage", thinned(["code_digests", *STAGES], 5))
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


def test_a_missing_params_file_ends_with_2_and_says_what_would_work(tmp_path):
    done = run(tmp_path, "train_student", "--params", "mine.yaml")
    assert done.returncode == 2
    assert done.stderr == "mine.yaml: there is no such file (one that is there would work)\n"


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
    for stage, name in MADE.items():
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
    assert (metrics["train_images"], metrics["validation_images"], metrics["test_images"]) == (800, 200, 500)
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
    assert left == set(MADE) | {f"{stage}/lock" for stage in MADE}


@pytest.mark.slow
def test_the_stages_share_the_teachers_answers_to_fixed_views(resumed):
    tree = shrunk()
    for stage in ("distill", "prune"):
        tree[stage] |= {"views": 3}
        tree[stage]["train"]["augment"] = {"mixup_alpha": 1.0}
    write_params(resumed, tree)
    forget(resumed, "distill")
    assert "the teacher answers view 3 of 3" in succeed(resumed, "distill")
    expected, (answers,) = results(resumed, "distill"), (resumed / "run/answers").iterdir()
    written = {path.name: path.read_bytes() for path in answers.iterdir()}
    assert sorted(written) == [f"{view}.safetensors" for view in range(3)]
    (answers / "1.safetensors").write_bytes(written["1.safetensors"][:-1000])
    forget(resumed, "distill", "prune")
    said = succeed(resumed, "distill", "prune")
    assert "answers view 1 of 3" not in said and "distill: the teacher answers view 2 of 3" in said, "made anew"
    assert results(resumed, "distill") == expected
    assert {path.name: path.read_bytes() for path in answers.iterdir()} == written
    assert "prune: the teacher answers" not in said


def test_a_teacher_of_the_same_params_and_images_is_taken_over_and_any_other_refused(prepared, pipeline):
    assert run(prepared, "take_teacher", str(pipeline)).returncode == 0
    taken = prepared / "checkpoints/teacher.safetensors"
    assert taken.read_bytes() == (pipeline / "checkpoints/teacher.safetensors").read_bytes()
    place = str(pipeline / "checkpoints/teacher.safetensors")
    tree = shrunk()
    tree["teacher"]["train"]["learning_rate"] *= 2
    write_params(prepared, tree)
    (line,) = run(prepared, "take_teacher", str(pipeline)).stderr.splitlines()
    assert line.endswith("is not the teacher of these params; `seed` and `teacher` must be its own") and place in line
    write_params(prepared, shrunk())
    (prepared / "data/manifest.json").unlink()
    (prepared / "data/manifest.json").write_text("{}")
    (line,) = run(prepared, "take_teacher", str(pipeline)).stderr.splitlines()
    assert "learned from other images than these; data/manifest.json must be the same" in line
    done = run(prepared, "take_teacher", str(prepared / "nowhere"))
    assert done.returncode == 1 and "there is no such checkpoint" in done.stderr


@pytest.mark.slow
def test_a_network_is_its_own_teacher_and_becomes_a_packed_file(resumed):
    tree = shrunk()
    for section in ("teacher", "student"):
        tree[section]["model"] = {"name": "convnet", "widths": [8, 8]}
    tree["distill"] |= {"start_from": "teacher"}
    tree["distill"]["train"] |= {"epochs": 0}
    tree["quantize"] |= {"per_channel": True, "layer_bits": {"whiten": 8}}
    write_params(resumed, tree)
    forget(resumed, *MADE)
    succeed(resumed, *MADE)
    teacher, distilled = (
        safetensors.safe_open(resumed / f"checkpoints/{name}.safetensors", framework="np")
        for name in ("teacher", "distilled")
    )
    assert all((distilled.get_tensor(key) == teacher.get_tensor(key)).all() for key in teacher.keys())
    metrics = read_json(resumed / "metrics/quantize.json")
    assert metrics["nonzero_parameters"] < read_json(resumed / "metrics/train_teacher.json")["nonzero_parameters"]

    tree["student"]["model"]["widths"] = [8, 6]
    tree["distill"] |= {"mirror_answers": True, "views": 2}
    tree["distill"]["train"] |= {"epochs": 1}
    tree["prune"]["cost_exponent"] = 0.25
    write_params(resumed, tree)
    forget(resumed, "train_student", "distill", "prune")
    succeed(resumed, "train_student", "distill", "prune")
    metrics = read_json(resumed / "metrics/prune.json")
    assert metrics["parameters"] < read_json(resumed / "metrics/train_teacher.json")["parameters"], "narrower"


@pytest.mark.slow
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

    write_params(prepared, tree | {"student": tree["student"] | {"start": tree["student"]["start"] | {"file": "gone"}}})
    done = run(prepared, "train_student")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("train_student: gone: there is no such checkpoint")


def test_a_start_of_other_bytes_or_of_another_network_is_refused(pipeline):
    path = pipeline / "checkpoints/student.safetensors"
    sha256, spec = hashlib.sha256(path.read_bytes()).hexdigest(), shrunk()["student"]["model"]
    started(model_params.Start(file=str(path), sha256=sha256), spec)
    with pytest.raises(CheckpointError, match="student.start.sha256 names another one"):
        started(model_params.Start(file=str(path), sha256="0" * 64), spec)
    with pytest.raises(CheckpointError, match="which is not student.model"):
        started(model_params.Start(file=str(path), sha256=sha256), spec | {"widths": [6, 6, 6]})


def test_saved_state_is_found_again_while_code_and_params_do_the_same(prepared, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "stages"))
    monkeypatch.chdir(prepared)
    import trainer

    def state(code: str, rate: float = 0.1) -> Path:
        tree = shrunk()
        tree["student"]["train"]["learning_rate"] = rate
        monkeypatch.setattr(trainer, "stage_digests", lambda stage, params: {f"stages/{stage}.py": code})
        job = trainer.TrainingJob(script("train_student"), params.parse(tree), argparse.Namespace(), Reporter())
        with job.resumable("student") as found:
            return found.path.relative_to("run/train_student")

    assert state("one") == state("one")
    assert len({state("one"), state("two"), state("one", rate=0.2)}) == 3


def test_results_make_no_checkout_dirty_and_code_does(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@x", *words], cwd=tmp_path, check=True)

    monkeypatch.setattr(common, "ROOT", tmp_path)
    (tmp_path / "params.yaml").write_text("seed: 0")
    (tmp_path / "dvc.lock").write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "x")
    clean = common.commit()
    (tmp_path / "dvc.lock").write_text("changed")
    (tmp_path / "code").mkdir()
    (tmp_path / "code/prune.json").write_text("{}")
    assert len(clean) == 12 and common.commit() == clean
    (tmp_path / "params.yaml").write_text("seed: 1")
    assert common.commit() == f"{clean}-dirty"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/one.yaml").write_text("seed: 1")
    assert common.commit() == f"{clean}-dirty", "a recipe that is not committed is none"
    git("add", "recipes")
    git("commit", "-qm", "y")
    clean = common.commit()
    assert not clean.endswith("-dirty"), "as after make use"
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/x.py").write_text("")
    assert common.commit() == f"{clean}-dirty"


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


@pytest.mark.slow
def test_a_stage_killed_at_three_moments_ends_with_the_bytes_of_one_that_was_not(prepared):
    tree = shrunk()
    tree["engine"]["save_every_seconds"] = 0.0
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
    tree["engine"]["save_every_seconds"] = 0.0
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
