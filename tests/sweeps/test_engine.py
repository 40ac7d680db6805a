"""Sweeps run: on two nodes of Ray on loopback, with stages that take no time, in a repository of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from sweeps import branches, engine, guard, rows, run, spec, tasks, worker
from sweeps.board import Board
from tests.sweeps.conftest import git

SPEC = {
    "base": "demo",
    "patch": {"engine": {"threads": 1}},
    "variants": {"three": {"quantize.weight_bits": 3}, "seven": {"quantize.weight_bits": 7}},
    "seeds": [0, 1],
    "metrics": ["validation_accuracy_percent", "prune.file_bytes"],
}


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
    ]  # fmt: skip
    assert [row.metrics for row in found[:2]] == [
        {"validation_accuracy_percent": 30.0 + seed, "prune.file_bytes": 1.0} for seed in (0, 1)
    ]
    assert {row.reason for row in found[2:]} == {"quantize: seven is not lucky"}
    assert all("seven is not lucky" in Path(row.log).read_text() for row in found[2:])
    assert {row.commit for row in found} == {branches.head(toy)[:12]} and all(row.machine for row in found)
    assert not list((place.folder / "work").glob("*/")), "clones are gone"

    # again: what is done stays, what failed is tried again, and nothing that it shares with others runs
    (toy.parent / "ran.txt").write_text("")
    again = sweep(toy)
    assert [task.name for task in again.missing] == ["seven-0", "seven-1"]
    names = run.make_branches(again, place)
    assert names == ["sweep/some/three-0", "sweep/some/three-1"]
    assert git(toy, "show", f"{names[1]}:metrics/quantize.json") == (
        '{"validation_accuracy_percent": 31.0, "file_bytes": 3}'
    )
    assert "metrics/score.json" not in git(toy, "ls-tree", "-r", "--name-only", names[0]), "it was of the base"
    assert git(toy, "status", "--porcelain", "--", "params.yaml", "dvc.yaml", "dvc.lock") == ""
    commits = [git(toy, "rev-parse", name) for name in names]
    run.make_branches(again, place)
    assert [git(toy, "rev-parse", name) for name in names] == commits, "the same content is the same branch"


def test_what_is_stopped_keeps_its_rows_and_goes_on(cluster, toy, place):
    made = sweep(toy, variants={"two": {"quantize.weight_bits": 2}, "four": {"quantize.weight_bits": 4}}, seeds=[5])
    table = board(made)

    def stop(name, found, seconds):
        if found:
            raise KeyboardInterrupt

    table.ended = stop
    with pytest.raises(KeyboardInterrupt):
        run.run(made, place, None, table)
    first = rows.read(made.table)
    assert [row.status for row in first] == ["done"]
    rest = sweep(toy, variants={"two": {"quantize.weight_bits": 2}, "four": {"quantize.weight_bits": 4}}, seeds=[5])
    assert len(rest.missing) == 1
    run.run(rest, place, None, board(rest))
    assert [(row.variant, row.status) for row in rows.read(made.table)] == [("two", "done"), ("four", "done")]
    counted = ran(toy)
    assert counted["train_teacher 5"] == counted["retrain 5"] == 1 and counted["quantize 5"] == 2


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


def test_what_a_guard_runs_ends_with_whoever_started_it(tmp_path):
    log = tmp_path / "log"
    sleeper = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    words = [sys.executable, guard.__file__, str(log), "sh", "-c", f'"{sys.executable}" -c "{sleeper}" & wait']
    starter = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, time; subprocess.Popen({words!r}); time.sleep(60)"]
    )
    limit = time.monotonic() + 20
    while not (tmp_path / "pid").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    starter.kill()
    starter.wait()
    number = int((tmp_path / "pid").read_text())
    while Path(f"/proc/{number}").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    assert not Path(f"/proc/{number}").exists()


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
    (task,) = tasks.plan(spec.Spec.model_validate({"base": "demo"}), toy)
    (one,) = tasks.works([task])
    order = engine.order_of(one, spec.Spec(), branches.head(toy), place, price=False)

    def full(*_):
        raise OSError(28, "No space left on device", "/somewhere")

    monkeypatch.setattr(worker, "_clone", full)
    found = worker.perform(order, b"")
    assert found["status"] == "failed"
    assert found["reason"].startswith("/somewhere: No space left on device on ")
    assert found["reason"].endswith("; freeing some would work")


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
