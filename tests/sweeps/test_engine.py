"""Sweeps run: on two nodes of Ray on loopback, with stages that take no time, in a repository of their own."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from micronet.errors import MicronetError
from sweeps import engine, repository, rows, run, spec, tasks
from sweeps.board import Board
from sweeps.sweep import Sweep
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

    size = {"num_cpus": 1, "object_store_memory": 100_000_000}
    for left in (2, 1, 0):  # Ray gives each node 30 seconds to begin, and a machine may be busier than that
        try:
            made = Cluster(initialize_head=True, head_node_args=size)
            made.second = made.add_node(**size)
            break
        except Exception:
            if not left:
                raise
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = made.address
    yield made
    os.environ.pop("RAY_ADDRESS")
    if before is not None:
        os.environ["RAY_ADDRESS"] = before
    made.shutdown()


def sweep(toy: Path, **changes) -> Sweep:
    chosen = spec.Spec.model_validate(SPEC | changes)
    return Sweep.of("some", chosen, tasks.plan(chosen, toy), repository.head(toy))


def board(made: Sweep) -> Board:
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


@pytest.mark.slow
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
    assert {row.commit for row in found} == {repository.head(toy)[:12]} and all(row.machine for row in found)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_cluster_of_another_version_is_refused_in_a_line(cluster, monkeypatch):
    monkeypatch.setattr("ray.__version__", "2.0.0")
    with pytest.raises(engine.EngineError) as raised, engine.started(None):
        pass
    said = str(raised.value)
    assert said.startswith(f"the cluster at {cluster.address} has other versions: ") and "2.0.0" in said
    assert len(said) <= 300 and "\n" not in said


# --- what needs no Ray: one that is told what becomes of tasks ---


class Died(Exception):
    pass


class NodeDied(Died):
    pass


class Told:
    """Stands in for Ray: nodes by name and cores, and what becomes of each work that is sent, in its turns.

    A turn is an exception to raise, or what the answer says beside being done; after the last the work is done.
    """

    exceptions = SimpleNamespace(
        RayError=Died, NodeDiedError=NodeDied, ObjectLostError=NodeDied, RaySystemError=NodeDied, RayTaskError=NodeDied
    )

    def __init__(self, turns: dict[str, list] | None = None, **cores: float):
        self.turns, self.cores = turns or {}, cores or {"one": 1, "two": 1}
        self.sent: list[str] = []
        self.places: list[str] = []
        self.cloudpickle = SimpleNamespace(register_pickle_by_value=lambda module: None)

    def remote(self, **_):
        return lambda function: self._task("")

    def _task(self, place):
        def send(name, archive):
            self.sent.append(name)
            self.places.append(place)
            return name, len(self.sent)

        def options(scheduling_strategy):
            return self._task(bytes.fromhex(scheduling_strategy.node_id).decode().strip())

        return SimpleNamespace(remote=send, options=options)

    def put(self, content):
        return content

    def wait(self, references, **_):
        return references[:1], references[1:]

    def get(self, reference):
        turns = self.turns.get(reference[0], [])
        turn = turns.pop(0) if turns else {}
        if isinstance(turn, BaseException):
            raise turn
        return {"status": "done", "reason": "", "machine": "one"} | turn

    def cancel(self, reference, force):
        pass

    def nodes(self):
        return [
            {
                "NodeID": name.ljust(28).encode().hex(),
                "NodeManagerHostname": name,
                "Alive": name != "dead",
                "Resources": {"CPU": cores},
            }
            for name, cores in self.cores.items()
        ]


def begun(ray: Told, cpus: int = 1) -> tuple[engine.Engine, list[engine.Outcome]]:
    """An engine, and where its outcomes go."""
    taken: list[engine.Outcome] = []
    chosen = spec.Spec.model_validate(SPEC)
    made = engine.Engine(ray, chosen, cpus, lambda work: work.name, b"", take=taken.append, began=lambda name: None)
    return made, taken


def family() -> list[tasks.Work]:
    """Two tasks that wait for a work of both, and one that does not."""
    shared = tasks.Work("shared", "prune", "s", None, leaf=False)
    after = [tasks.Work(name, "quantize", name, None, leaf=True, before=(shared,)) for name in "ab"]
    return [shared, *after, tasks.Work("c", "quantize", "c", None, leaf=True)]


def told(taken: list[engine.Outcome]) -> list[tuple[str, str, str]]:
    return sorted((one.work.name, one.status, one.reason) for one in taken)


def test_what_is_shared_is_made_once_and_before_what_needs_it():
    ray = Told()
    runner, taken = begun(ray)
    runner.run(family())
    assert sorted(ray.sent) == ["a", "b", "c", "shared"] and ray.sent.index("shared") < ray.sent.index("a")
    assert [one.status for one in taken] == ["done"] * 4


def test_machines_that_disappear_cost_no_row_however_often():
    ray = Told({name: [NodeDied()] * (engine.MOST_ATTEMPTS - 1) for name in ("shared", "b")})
    runner, taken = begun(ray)
    runner.run(family())
    assert [one.status for one in taken] == ["done"] * 4
    assert ray.sent.count("shared") == ray.sent.count("b") == engine.MOST_ATTEMPTS
    assert ray.sent.count("a") == ray.sent.count("c") == 1


def test_a_worker_that_keeps_dying_is_given_up_and_what_waits_for_it_fails_with_its_reason():
    ray = Told({"shared": [Died("out of memory")] * engine.MOST_CRASHES})
    runner, taken = begun(ray)
    runner.run(family())
    why = "its worker died 3 times: out of memory"
    assert told(taken) == [("a", "failed", why), ("b", "failed", why), ("c", "done", ""), ("shared", "failed", why)]


def test_what_a_machine_fails_is_tried_on_another_one_and_is_a_row_in_the_end():
    lacks = {"status": "failed", "reason": "No space left on device on full", "machine": "full", "again": True}
    ray = Told({"a": [lacks], "c": [lacks] * engine.MOST_CRASHES}, full=1, dead=1, small=0.5, good=1)
    runner, taken = begun(ray)
    runner.run(family())
    assert [place for name, place in zip(ray.sent, ray.places, strict=True) if name == "a"] == ["", "good"]
    assert [place for name, place in zip(ray.sent, ray.places, strict=True) if name == "c"] == ["", "good", "good"]
    assert told(taken)[2] == ("c", "failed", lacks["reason"])
    own = {"status": "failed", "reason": "prune: the loss is nan", "again": False}
    ray = Told({"c": [own]})
    runner, taken = begun(ray)
    runner.run(family())
    assert ray.sent.count("c") == 1 and told(taken)[2] == ("c", "failed", own["reason"])


def test_a_repository_that_cannot_be_packed_is_a_line(tmp_path):
    with pytest.raises(engine.EngineError, match="git fetch: fatal: .* not appear to be a git repository") as raised:
        engine.packed(engine.Place(tmp_path, tmp_path / "run", tmp_path / "cache"), "0" * 40)
    assert "\n" not in str(raised.value)
    (tmp_path / "file").touch()
    with pytest.raises(MicronetError, match="file"):
        engine.packed(engine.Place(tmp_path, tmp_path / "file/run", tmp_path / "cache"), "0" * 40)


def test_a_task_that_no_machine_can_hold_is_a_line():
    runner, _ = begun(Told(), cpus=64)
    with pytest.raises(engine.EngineError, match="a task needs 64 cores, the largest machine has 1 cores"):
        runner.run(family())


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), "RAY_ADDRESS=127.0.0.1:1 cannot be used: .*No space left on device"),
        (Exception("The current node timed out during startup."), "cannot be used: The current node timed out"),
        (ConnectionError("nobody\nanswers"), "RAY_ADDRESS=127.0.0.1:1 cannot be used: nobody answers"),
        (RuntimeError("Version mismatch: The cluster was started with: Ray: 2.0 Python: 3.11"),
         "the cluster at 127.0.0.1:1 has other versions: .*Ray: 2.0"),
    ],
)  # fmt: skip
def test_a_cluster_that_cannot_be_used_is_a_line(monkeypatch, error, line):
    def refuse(**_):
        raise error

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(engine.EngineError, match=line), engine.started(None):
        pass
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("said", "address"), [("", "local"), ("127.0.0.1:1", "127.0.0.1:1")])
def test_a_sweep_joins_the_cluster_that_it_is_told_of_and_no_other_on_this_machine(monkeypatch, said, address):
    asked = []
    monkeypatch.setenv("RAY_ADDRESS", said)
    monkeypatch.setattr("ray.init", lambda **options: asked.append(options["address"]))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with engine.started(None):
        pass
    assert asked == [address]
