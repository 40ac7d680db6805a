"""Sweeps run: on two nodes of Ray on loopback, with stages that take no time, in a repository of their own."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from sweeps import branches, engine, guard, rows, run, spec, tasks, worker
from sweeps.board import Board
from tests.sweeps.conftest import git

SPEC = {
    "base": "demo",
    "patch": {"engine": {"threads": 1}},
    "variants": {"three": {"distill.temperature": 3.0}, "seven": {"distill.temperature": 7.0}},
    "seeds": [0, 1],
    "last": "distill",
    "metrics": ["validation_accuracy_percent", "train_student.file_bytes"],
}
OTHERS = {"variants": {"two": {"distill.temperature": 2.0}, "four": {"distill.temperature": 4.0}}, "seeds": [5]}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each; the second can be killed."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000})
    made.second = made.add_node(num_cpus=1, object_store_memory=100_000_000)
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = made.address
    yield made
    os.environ.pop("RAY_ADDRESS")
    if before is not None:
        os.environ["RAY_ADDRESS"] = before
    made.shutdown()


@pytest.fixture
def place(toy, monkeypatch) -> engine.Place:
    monkeypatch.chdir(toy)
    (toy.parent / "ran.txt").write_text("")
    (toy / "metrics/sweeps/some.csv").unlink(missing_ok=True)
    return engine.Place(toy, toy / "run/sweeps", toy / ".dvc/cache")


def sweep(toy: Path, **changes) -> run.Sweep:
    chosen = spec.Spec.model_validate(SPEC | changes)
    return run.Sweep.of("some", chosen, tasks.plan(chosen, toy), branches.head(toy))


def board(made: run.Sweep) -> Board:
    console = Console(file=open(os.devnull, "w"), width=200)
    return Board("some", made.spec.metrics[0], len(made.tasks), list(made.rows.values()), console)


def why(found: list[rows.Row]) -> str:
    """Rows that failed, with their reasons and the ends of their logs."""
    failed = [row for row in found if row.status == "failed"]
    return "\n".join(
        f"{row.variant}, seed {row.seed}: {row.reason}\n{Path(row.log).read_text()[-2000:] if row.log else '(no log)'}"
        for row in failed
    )


def at_work(folder: Path) -> list[str]:
    """The processes that run in a folder or below it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")).is_relative_to(folder):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def ran(toy: Path) -> Counter[str]:
    return Counter((toy.parent / "ran.txt").read_text().splitlines())


def test_a_node_that_is_killed_in_the_middle_costs_no_row_and_what_is_shared_runs_once(cluster, toy, place):
    made, killed = sweep(toy), []
    table = board(made)
    ended = table.ended

    def kill(name, found, seconds):
        ended(name, found, seconds)
        if not killed:
            killed.append(name)
            cluster.remove_node(cluster.second, allow_graceful=False)

    table.ended = kill
    run.run(made, place, None, table)
    found = rows.read(Path("metrics/sweeps/some.csv"))
    assert killed and [(row.variant, row.seed, row.status) for row in found] == [
        ("three", 0, "done"), ("three", 1, "done"), ("seven", 0, "failed"), ("seven", 1, "failed"),
    ], why(found)  # fmt: skip
    assert [row.metrics for row in found[:2]] == [
        {"validation_accuracy_percent": 30.0 + seed, "train_student.file_bytes": 1.0} for seed in (0, 1)
    ]
    assert {row.reason for row in found[2:]} == {"distill: seven is not lucky"}
    assert all("seven is not lucky" in Path(row.log).read_text() for row in found[2:])
    assert {row.commit for row in found} == {branches.head(toy)[:12]} and all(row.machine for row in found)
    assert not list((place.folder / "work").glob("*/")), "clones are gone"

    # again: what is done stays, what failed is tried again, and nothing that it shares with others runs
    (toy.parent / "ran.txt").write_text("")
    again = sweep(toy)
    assert [task.name for task in again.missing] == ["seven-0", "seven-1"]
    names = run.make_branches(again, place)
    assert names == ["sweep/some/three-0", "sweep/some/three-1"]
    assert git(toy, "show", f"{names[1]}:metrics/distill.json") == (
        '{"validation_accuracy_percent": 31.0, "file_bytes": 3}'
    )
    assert "metrics/score.json" not in git(toy, "ls-tree", "-r", "--name-only", names[0]), "it was of the base"
    assert git(toy, "status", "--porcelain", "--", "params.yaml", "dvc.yaml", "dvc.lock") == ""
    commits = [git(toy, "rev-parse", name) for name in names]
    run.make_branches(again, place)
    assert [git(toy, "rev-parse", name) for name in names] == commits, "the same content is the same branch"


def test_what_a_time_limit_stops_keeps_its_rows_leaves_nothing_running_and_goes_on(cluster, toy, place):
    made = sweep(toy, **OTHERS)
    table = board(made)

    def stop(name, found, seconds):
        if found:
            os.kill(os.getpid(), signal.SIGTERM)

    table.ended = stop
    with pytest.raises(KeyboardInterrupt):
        run.run(made, place, None, table)
    first = rows.read(made.table)
    assert [row.status for row in first] == ["done"]
    assert not at_work(place.folder)
    rest = sweep(toy, **OTHERS)
    assert len(rest.missing) == 1
    run.run(rest, place, None, board(rest))
    assert [(row.variant, row.status) for row in rows.read(made.table)] == [("two", "done"), ("four", "done")]
    counted = ran(toy)
    assert counted["train_teacher 5"] == counted["train_student 5"] == 1 and counted["distill 5"] == 2


def test_a_task_that_no_machine_can_hold_and_a_cluster_that_is_not_there_are_a_line(cluster, toy, place, monkeypatch):
    made = sweep(toy, needs={"cpus": 64})
    with pytest.raises(engine.EngineError, match="a task needs 64 cores, the largest machine has 1 cores"):
        run.run(made, place, None, board(made))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("ray.init", lambda **_: (_ for _ in ()).throw(ConnectionError("nobody\nanswers")))
    with pytest.raises(engine.EngineError, match="RAY_ADDRESS=127.0.0.1:1 cannot be used: nobody answers"):
        run.run(made, place, None, board(made))
    said = "Version mismatch: The cluster was started with: Ray: 2.0 Python: 3.11"
    monkeypatch.setattr("ray.init", lambda **_: (_ for _ in ()).throw(RuntimeError(said)))
    with pytest.raises(engine.EngineError, match="the cluster at 127.0.0.1:1 has other versions: .*Ray: 2.0"):
        run.run(made, place, None, board(made))


# --- parts that need no Ray ---


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
    try:
        guard.kill()  # as Ray does with the children of a worker whose machine's daemon was killed
    except ProcessLookupError:
        pass
"""


def test_what_a_guard_runs_ends_with_whoever_started_it_though_that_kills_its_children_first(tmp_path):
    sleeper = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    places = {"lock": str(tmp_path / "lock"), "guard": guard.__file__, "log": str(tmp_path / "log")}
    script = STARTER.format(command=f'"{sys.executable}" -c "{sleeper}" & wait', **places)
    starter = subprocess.Popen([sys.executable, "-c", script.replace("time.sleep(0.05)", "time.sleep(0.3)")])
    limit = time.monotonic() + 20
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < limit:
        time.sleep(0.05)
    number = int((tmp_path / "pid").read_text())
    time.sleep(0.5)
    assert Path(f"/proc/{number}").exists(), "the guard is no child that a signal to children would reach"
    with open(tmp_path / "lock", "w") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        starter.kill()
        starter.wait()
        while Path(f"/proc/{number}").exists() and time.monotonic() < limit:
            time.sleep(0.05)
        assert not Path(f"/proc/{number}").exists()
        time.sleep(0.3)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def ordered(toy: Path, place: engine.Place) -> worker.Order:
    (task,) = tasks.plan(spec.Spec.model_validate({"base": "demo"}), toy)
    (one,) = tasks.works([task])
    return engine.order_of(one, spec.Spec(), branches.head(toy), place, price=False)


def test_a_clone_that_a_dying_machine_left_half_is_made_anew_or_put_right(toy, place, tmp_path):
    order = dataclasses.replace(ordered(toy, place), folder=str(tmp_path))
    archive = worker.archive_of(toy, order.commit, tmp_path)
    for name in ("work", "made"):
        (tmp_path / name).mkdir()
    with worker.locked(tmp_path / "lock") as lock:
        worker._clone(order, archive, lock)
        whole = sorted(path.name for path in order.place.iterdir())

        # killed while DVC and git wrote: the state of a training stays, what may be half goes
        (order.place / "run").mkdir()
        (order.place / "run/state").write_text("epoch 3")
        for name in ("dvc.lock", ".dvc/tmp/rwlock", ".git/index.lock", "params.yaml", "recipes/demo.yaml"):
            (order.place / name).parent.mkdir(exist_ok=True)
            (order.place / name).write_text("{")
        worker._clone(order, archive, lock)
        assert not [
            name for name in ("dvc.lock", ".dvc/tmp/rwlock", ".git/index.lock") if (order.place / name).exists()
        ]
        assert (order.place / "params.yaml").read_text() == order.params
        assert (order.place / "recipes/demo.yaml").read_text() == (toy / "recipes/demo.yaml").read_text()
        assert (order.place / "run/state").read_text() == "epoch 3"

        # killed while it was removed: git's part is gone already
        shutil.rmtree(order.place / ".git")
        worker._clone(order, archive, lock)
        assert (order.place / ".git").is_dir() and sorted(path.name for path in order.place.iterdir()) == whole

        # killed while it was made, or removed
        order.place.rename(order.aside("gone"))
        order.aside("new").mkdir()
        worker._clone(order, archive, lock)
        assert sorted(path.name for path in order.place.iterdir()) == whole
        assert [path.name for path in (tmp_path / "work").iterdir()] == [order.key]


def test_a_clone_is_taken_away_under_its_name_at_once(toy, place, tmp_path, monkeypatch):
    order = dataclasses.replace(ordered(toy, place), folder=str(tmp_path))
    order.place.mkdir(parents=True)
    monkeypatch.setattr(worker.shutil, "rmtree", lambda *_, **__: None)  # it is killed before anything is removed
    worker._remove(order)
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


def test_a_full_disk_is_a_row_with_its_reason(monkeypatch, toy, place):
    order = ordered(toy, place)

    def full(*_):
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr(worker, "_clone", full)
    found = worker.perform(order, b"")
    assert found["status"] == "failed" and found["again"]
    assert found["reason"].startswith("/somewhere: No space left on device on ")
    assert found["reason"].endswith("; freeing some would work")


def test_what_a_machine_fails_is_tried_on_another_one_and_is_a_row_in_the_end():
    class Ray:
        exceptions = SimpleNamespace(NodeDiedError=KeyError, ObjectLostError=KeyError, RaySystemError=KeyError)
        exceptions.RayError = KeyError

        def get(self, answer):
            return answer

        def nodes(self):
            return [
                {"NodeID": name, "NodeManagerHostname": name, "Alive": name != "dead", "Resources": {"CPU": cores}}
                for name, cores in (("full", 1), ("dead", 1), ("small", 0.5), ("good", 1))
            ]

    runner = engine.Engine.__new__(engine.Engine)
    runner.ray, runner.cpus, runner.gpus = Ray(), 1, 0.0
    one = tasks.Work("some", "quantize", "k", None, leaf=True)
    answer = {"status": "failed", "reason": "No space left on device on full", "machine": "full"}
    own = runner._outcome(answer | {"again": False}, one)
    assert own.status == "failed" and not one.crashes and runner._elsewhere(one) is None
    for _ in range(engine.MOST_CRASHES - 1):
        one.attempts += 1
        assert runner._outcome(answer | {"again": True}, one) is None
        assert runner._elsewhere(one) == "good"
    last = runner._outcome(answer | {"again": True}, one)
    assert (last.status, last.reason) == ("failed", "No space left on device on full")


def test_a_worker_that_keeps_dying_is_given_up_and_a_lost_machine_is_not_counted():
    class Died(Exception):
        pass

    class Lost(Died):
        pass

    class Errors:
        RayTaskError = ObjectLostError = RaySystemError = KeyError
        NodeDiedError, RayError = Lost, Died

    class Ray:
        exceptions = Errors

        def get(self, error):
            raise error

    runner = engine.Engine.__new__(engine.Engine)
    runner.ray = Ray()
    one = tasks.Work("some", "quantize", "k", None, leaf=True)
    for _ in range(5):
        one.attempts += 1
        assert runner._outcome(Lost("node"), one) is None
    answers = []
    for _ in range(engine.MOST_CRASHES):
        one.attempts += 1
        answers.append(runner._outcome(Died("out of memory"), one))
    assert answers[:-1] == [None, None]
    assert answers[-1].status == "failed" and "out of memory" in answers[-1].reason
