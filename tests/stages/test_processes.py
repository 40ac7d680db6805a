"""Stages that train in several processes, `engine.processes`: what they write, and that they go on after any death."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.pipeline import ENVIRONMENT, command, forget, results, run, shrunk, succeed, write_params
from tests.support.places import entries

SECTION = {"train_student": "student"}
BOUND = 20.0  # seconds in which all are gone when one is


def in_two(stage: str, **changes: object) -> dict:
    tree = shrunk()
    tree["engine"] |= {"processes": 2, "save_every_seconds": 0.0}
    section = tree[SECTION.get(stage, stage)]
    section["train"] |= {"epochs": 3, "batch_size": 15, "ema_decay": 0.9}
    section |= changes
    return tree


def test_a_stage_in_two_processes_writes_what_it_writes_in_one_and_leaves_nothing_else(prepared):
    tree = in_two("train_student")
    tree["student"]["train"] |= {"epochs": 1}
    write_params(prepared, tree)
    said = succeed(prepared, "train_student")
    assert said.count("% on validation") == 1
    record = json.loads((prepared / "metrics/runs/train_student.json").read_text())
    assert (record["processes"], record["threads"]) == (2, 1)
    assert all(results(prepared, "train_student").values())
    curve = (prepared / "metrics/curves/train_student.csv").read_text().splitlines()
    assert len(curve) == 2 and curve[1].startswith("1,")
    assert entries(prepared / "run/train_student") == ["lock"]
    assert [path.name for path in (prepared / "run").iterdir()] == ["train_student"], "no traceback of a rank"


def test_a_missing_input_is_said_once_whatever_the_number_of_processes(prepared):
    write_params(prepared, in_two("prune"))
    done = run(prepared, "prune")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("prune: checkpoints/teacher.safetensors: there is no such checkpoint")


def test_more_processes_than_cores_are_a_line_before_anything_is_started(prepared):
    tree = in_two("train_student")
    for name in ("teacher", "student", "distill", "prune", "retrain", "quantize"):
        tree[name]["train"]["batch_size"] = 1024
    tree["engine"]["processes"] = 1024
    write_params(prepared, tree)
    done = run(prepared, "train_student")
    assert done.returncode == 2 and not (prepared / "run").exists()
    (line,) = done.stderr.splitlines()
    assert line.startswith("params.yaml: engine.processes: must be <= ") and line.endswith("(got 1024)")


def others(process: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.slow
@pytest.mark.parametrize("death", ["further killed", "first killed", "Ctrl-C"])
@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("train_student", {}),
        ("distill", {"views": 2, "mirror_answers": True}),
        ("prune", {"method": "feedback"}),
        ("retrain", {}),
        ("quantize", {"trim": 0.2}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_stage_that_loses_a_process_goes_on_to_the_same_bytes(resumed, stage, changes, death):
    write_params(resumed, in_two(stage, **changes))
    forget(resumed, stage)
    succeed(resumed, stage)
    expected = results(resumed, stage)
    forget(resumed, stage)
    process = subprocess.Popen(
        command(stage), cwd=resumed, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    limit = time.monotonic() + 120
    while not list((resumed / f"run/{stage}").glob("*/state")) and time.monotonic() < limit:
        time.sleep(0.01)
    (further,) = others(process.pid)
    if death == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(further if death == "further killed" else process.pid, signal.SIGKILL)
    _, said = process.communicate(timeout=BOUND)
    limit = time.monotonic() + BOUND
    while not gone(further):
        assert time.monotonic() < limit
        time.sleep(0.01)
    assert process.returncode == {"Ctrl-C": 130, "first killed": -signal.SIGKILL, "further killed": 1}[death]
    if death == "further killed":
        assert said.splitlines()[-1].startswith(f"{stage}: rank 1 of 2 was killed by SIGKILL; the same command goes on")
    assert "going on after epoch" in succeed(resumed, stage)
    assert results(resumed, stage) == expected
