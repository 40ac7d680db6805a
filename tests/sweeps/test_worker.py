"""What a machine does for a task: the clone that is whole or not there, the guard, and whose fault a failure is."""

from __future__ import annotations

import dataclasses
import fcntl
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeps import engine, guard, repository, spec, tasks, worker
from tests.support.places import entries


@pytest.fixture(scope="module")
def order(toy) -> worker.Order:
    """A task of the toy repository; where it is done is each test's own."""
    (task,) = tasks.plan(spec.Spec.model_validate({"base": "demo", "last": "train_student"}), toy)
    (one,) = tasks.works([task])
    place = engine.Place(toy, toy / "run/sweeps", toy / ".dvc/cache")
    return engine.order_of(one, spec.Spec(), repository.head(toy), place, price=False)


STARTER = """
import os, subprocess, sys, time
watched, life = os.pipe()
answer, told = os.pipe()
lock = os.open({lock!r}, os.O_RDWR | os.O_CREAT)
import fcntl
fcntl.flock(lock, fcntl.LOCK_EX)
words = [sys.executable, {guard!r}, str(watched), str(told), str(lock), {log!r}, "sh", "-c", {command!r}]
guard = subprocess.Popen(words, pass_fds=(watched, told, lock))
while True:
    time.sleep(0.05)
    if os.path.exists({pid!r}):  # what it guards has begun
        guard.kill()  # as Ray does with the children of a worker whose machine's daemon was killed
"""


def test_what_a_guard_runs_ends_with_whoever_started_it_though_that_kills_its_children_first(tmp_path):
    sleeper = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    places = {name: str(tmp_path / name) for name in ("lock", "log", "pid")} | {"guard": guard.__file__}
    script = STARTER.format(command=f'"{sys.executable}" -c "{sleeper}" & wait', **places)
    with subprocess.Popen([sys.executable, "-c", script]) as starter, open(tmp_path / "lock", "w") as lock:
        try:
            limit = time.monotonic() + 60
            while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < limit:
                time.sleep(0.05)
            number = int((tmp_path / "pid").read_text())
            time.sleep(0.5)
            assert Path(f"/proc/{number}").exists(), "the guard is no child that a signal to children would reach"
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            starter.kill()
        starter.wait()
        while Path(f"/proc/{number}").exists() and time.monotonic() < limit:
            time.sleep(0.05)
        assert not Path(f"/proc/{number}").exists()
        time.sleep(0.3)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_clone_that_a_dying_machine_left_half_is_made_anew_or_put_right(toy, order, tmp_path):
    order = dataclasses.replace(order, folder=str(tmp_path))
    archive = worker.archive_of(toy, order.commit, tmp_path)
    for name in ("work", "made"):
        (tmp_path / name).mkdir()
    with worker.locked(tmp_path / "lock") as lock:
        worker.clone(order, archive, lock)
        whole = entries(order.place)

        # killed while DVC and git wrote: the state of a training stays, what may be half goes
        (order.place / "run").mkdir()
        (order.place / "run/state").write_text("epoch 3")
        for name in ("dvc.lock", ".dvc/tmp/rwlock", ".git/index.lock", "params.yaml", "recipes/demo.yaml"):
            (order.place / name).parent.mkdir(exist_ok=True)
            (order.place / name).write_text("{")
        worker.clone(order, archive, lock)
        assert not [
            name for name in ("dvc.lock", ".dvc/tmp/rwlock", ".git/index.lock") if (order.place / name).exists()
        ]
        assert (order.place / "params.yaml").read_text() == order.params
        assert (order.place / "recipes/demo.yaml").read_text() == (toy / "recipes/demo.yaml").read_text()
        assert (order.place / "run/state").read_text() == "epoch 3"

        # killed while it was removed: git's part is gone already
        shutil.rmtree(order.place / ".git")
        worker.clone(order, archive, lock)
        assert (order.place / ".git").is_dir() and entries(order.place) == whole

        # killed while it was made, or removed
        order.place.rename(order.aside("gone"))
        order.aside("new").mkdir()
        worker.clone(order, archive, lock)
        assert entries(order.place) == whole
        assert [path.name for path in (tmp_path / "work").iterdir()] == [order.key]


@pytest.mark.parametrize(
    ("remote", "pull", "default"), [("", True, "release"), ("s3://some/where", True, "sweep"), ("", False, None)]
)
def test_a_clone_pulls_what_is_published_unless_the_sweep_names_a_remote(toy, order, tmp_path, remote, pull, default):
    order = dataclasses.replace(order, folder=str(tmp_path), remote=remote, pull=pull)
    for name in ("work", "made"):
        (tmp_path / name).mkdir()
    with worker.locked(tmp_path / "lock") as lock:
        worker.clone(order, worker.archive_of(toy, order.commit, tmp_path), lock)
    found = re.findall(r"^    remote = (\w+)$", (order.place / ".dvc/config.local").read_text(), re.MULTILINE)
    assert found == ([default] if default else [])


def test_a_clone_is_taken_away_under_its_name_at_once(order, tmp_path, monkeypatch):
    order = dataclasses.replace(order, folder=str(tmp_path))
    order.place.mkdir(parents=True)
    monkeypatch.setattr(worker.shutil, "rmtree", lambda *_, **__: None)  # it is killed before anything is removed
    worker.remove(order)
    assert not order.place.exists()


STAGE_FAILED = "ERROR: failed to reproduce 'prune': failed to run: python stages/prune.py, exited with {}\n"


@pytest.mark.parametrize(
    ("code", "log", "again"),
    [
        (255, "prune: the loss is nan\n" + STAGE_FAILED.format(1), False),
        (255, "Traceback\nKeyError: 'x'\n" + STAGE_FAILED.format(1), False),
        (255, "Running stage 'prune':\n" + STAGE_FAILED.format(-9), True),
        (255, "prune: stopped\n" + STAGE_FAILED.format(130), True),
        (255, "prune: out of memory\n" + STAGE_FAILED.format(137), True),
        (255, "prune: run/x: No space left on device\n" + STAGE_FAILED.format(1), True),
        (255, "ERROR: bad DVC file name 'dvc.yaml' is git-ignored.\n", True),
        (255, "ERROR: Unable to read RWLock-file '.dvc/tmp/rwlock'. JSON structure is corrupted\n", True),
        (1, "No module named dvc\n", True),
        (guard.STOPPED, "Running stage 'prune':\n", True),
        (-15, "prune: epoch 1 of 3\n", True),
        (2, "params.yaml: prune.amount: must be < 1 (got 2.0)\n", False),
        (1, "price: there is no such file\n", False),
    ],
)  # fmt: skip
def test_a_failure_that_is_no_stages_own_is_tried_again(code, log, again):
    assert worker.failure(code, log).again is again


def test_a_full_disk_is_said_though_the_log_has_lost_its_last_words(order, tmp_path, monkeypatch):
    order = dataclasses.replace(order, folder=str(tmp_path), cache=str(tmp_path / "none"))
    order.log.parent.mkdir()
    order.log.write_text("Updating lock file 'dvc.lock'\nUse `dvc push` to send your updates to remote storage.\n")
    assert str(worker.failure_of(order, 255)) == "Updating lock file 'dvc.lock'", "DVC's advice is no reason"
    monkeypatch.setattr(worker.shutil, "disk_usage", lambda folder: SimpleNamespace(free=4096))
    error = worker.failure_of(order, 255)
    assert str(error).startswith(f"{tmp_path}: No space left on device on ") and error.again and not error.killed
    order.log.write_text("prune: the loss is nan\n" + STAGE_FAILED.format(1))
    assert str(worker.failure_of(order, 255)) == "prune: the loss is nan"


def test_what_was_killed_says_so_and_not_what_it_was_about():
    told = [
        (worker.failure(255, "prune: epoch 1 of 3\n" + STAGE_FAILED.format(number)), signal)
        for number, signal in ((-9, 9), (137, 9), (130, 2))
    ]
    told.append((worker.failure(-15, "prune: epoch 1 of 3\n"), 15))
    assert [str(error) for error, _ in told] == [
        f"{name}: was ended from outside, by signal {signal}"
        for name, (_, signal) in zip(("prune", "prune", "prune", "dvc"), told, strict=True)
    ]
    assert all(error.killed for error, _ in told), "its clone holds the state that another try goes on from"


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("Running stage 'prune':\nprune: the loss is nan\nERROR: failed to reproduce 'prune': exited with 1\n",
         "prune: the loss is nan"),
        ("x\nERROR: unexpected error - [Errno 28] No space left on device\n\nHaving any troubles?\n",
         "ERROR: unexpected error - [Errno 28] No space left on device"),
        ("params.yaml: quantize.method: does not work\nERROR: failed\n", "params.yaml: quantize.method: does not work"),
        ("No module named dvc\n", "No module named dvc"),
        ("", "it says nothing"),
    ],
)  # fmt: skip
def test_a_reason_is_the_line_of_the_stage_that_failed(log, line):
    assert worker.reason(log) == line


def test_a_full_disk_is_a_row_with_its_reason(monkeypatch, order, tmp_path):
    order = dataclasses.replace(order, folder=str(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr(worker, "clone", full)
    found = worker.perform(order, b"")
    assert found["status"] == "failed" and found["again"]
    assert found["reason"].startswith("/somewhere: No space left on device on ")
    assert found["reason"].endswith("; freeing some would work")
