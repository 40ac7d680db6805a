"""Runs the work of a sweep as Ray tasks: on this machine, or on the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from micronet import params as parameters
from micronet.errors import MicronetError, shown
from micronet.files import FileError, check_place, read_json, write_json
from sweeps import guard, worker
from sweeps.rows import FAILED
from sweeps.spec import Spec
from sweeps.tasks import Work, short
from sweeps.worker import Order

MOST_CRASHES = 3  # times a work may crash its worker, or its machine may fail it; lost machines do not count
MOST_ATTEMPTS = 20
KEEP = ("dvc.lock", "data/manifest.json", "code/*.json", "metrics/**/*.json", "metrics/**/*.csv")
STOP_SECONDS = 30.0  # in which stages finish their step and save their state


class EngineError(MicronetError):
    """Ray cannot do what was asked; a one-line message."""


@dataclass(frozen=True)
class Outcome:
    """The result of a work: the answer of `worker.perform`, or why there is none."""

    work: Work
    status: str
    reason: str
    again: bool = False
    files: dict[str, str] = field(default_factory=dict)
    price: dict[str, float] = field(default_factory=dict)
    machine: str = ""
    seconds: float | None = None
    log: str = ""


@dataclass(frozen=True)
class Place:
    """Paths, the same on every machine.

    Attributes:
        folder: all that tasks share and leave behind. cache: DVC's.
    """

    root: Path
    folder: Path
    cache: Path

    def result(self, key: str) -> Path:
        """What a task left, on the machine where the sweep was started."""
        return self.folder / "results" / f"{key}.json"


def order_of(work: Work, spec: Spec, commit: str, place: Place, *, price: bool) -> Order:
    """A work in the form sent to a machine."""
    data = work.task.tree["data"]
    folder = parameters.Data.model_validate(data).folder
    kept = short({key: value for key, value in data.items() if key != "folder"})
    here = place.root / folder
    return Order(
        name=work.name,
        key=short(work.key, work.stage, commit, work.leaf),
        commit=commit,
        folder=str(place.folder),
        cache=str(place.cache),
        params=yaml.safe_dump(work.task.tree, sort_keys=False, allow_unicode=True),
        steps=((f"data-{kept}", "prepare_data"), *work.steps),
        last=work.stage,
        keep=KEEP if work.leaf else (),
        data=(folder, kept),
        data_here=str(here) if here.is_dir() and not here.is_symlink() else "",
        price=work.stage if price and work.leaf else "",
        remote=_address(spec.remote, place.root),
        pull=bool(spec.remote) or (place.root / "release/cache/files").is_dir(),
        push=bool(spec.remote) and not work.leaf,
        guard=inspect.getsource(guard),
        threads=os.environ.get("OMP_NUM_THREADS"),
    )


def _address(remote: str | None, root: Path) -> str:
    """A DVC remote's address; a path counts from the repository, on every machine: DVC would take it from the clone."""
    if not remote:
        return ""
    return remote if "://" in remote else str((root / Path(remote).expanduser()).resolve())


@contextlib.contextmanager
def started(cpus: int | None) -> Iterator[Any]:
    """Ray, connected to RAY_ADDRESS or started here with some cores; yields the module. Raises `EngineError`.

    Inside, SIGTERM is a KeyboardInterrupt: a job that reaches its time limit ends as with Ctrl-C.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS") or None
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    # Without an address Ray would join any cluster already running on this machine.
    options: dict[str, Any] = {"address": address}
    if address is None:
        options = {"address": "local", "include_dashboard": False, "num_cpus": cpus}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **options)
        except Exception as error:  # Ray raises a bare one when startup takes over 30 seconds on a busy machine
            raise _refused(address, error) from None
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own handler ends with a stack of addresses
        yield ray
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one must not keep Ray from ending what it started
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)


def _refused(address: str | None, error: Exception) -> EngineError:
    """Ray's message when it cannot be started or joined."""
    said = " ".join(str(error).split())
    if "ersion mismatch" in said:
        return EngineError(f"the cluster at {shown(address, 60)} has other versions: {shown(said, 200)}")
    where = f"RAY_ADDRESS={shown(address, 60)} cannot be used" if address else "Ray does not start here"
    return EngineError(f"{where}: {shown(said, 160)}")


class Engine:
    """Sends work to machines, most needed first, and retries elsewhere what a machine took down with it.

    Args:
        take: receives every outcome as it comes in. began: receives the name of a work when it is sent.
    """

    def __init__(
        self, ray: Any, spec: Spec, cpus: int, order: Callable[[Work], Order], archive: bytes,
        *, take: Callable[[Outcome], None], began: Callable[[str], None],
    ):  # fmt: skip
        self.ray, self.cpus, self.gpus, self.order = ray, cpus, spec.needs.gpus, order
        self.take, self.began = take, began
        ray.cloudpickle.register_pickle_by_value(worker)
        self.task = ray.remote(num_cpus=cpus, num_gpus=spec.needs.gpus or None, max_retries=0)(worker.perform)
        self.archive = ray.put(archive)
        self.running: dict[Any, Work] = {}
        self.settled: dict[str, str] = {}  # key of shared work: "" once made, else why not
        self.logs: dict[str, str] = {}  # of shared work
        self.checked = 0.0
        self._slots = 0

    @property
    def slots(self) -> int:
        """How many tasks run at once. Raises `EngineError` when no machine is large enough for one."""
        if time.monotonic() - self.checked > 1.0:
            nodes = [node for node in self.ray.nodes() if node["Alive"]]
            self._slots, self.checked = sum(self._fits(node) for node in nodes), time.monotonic()
            if not self._slots and not self.running:
                alive = [node["Resources"] for node in nodes]
                most = f"{max((node.get('CPU', 0) for node in alive), default=0):g} cores"
                most += f", {max((node.get('GPU', 0) for node in alive), default=0):g} GPUs" if self.gpus else ""
                asked = f"{self.cpus} cores" + (f" and {self.gpus:g} GPUs" if self.gpus else "")
                raise EngineError(f"a task needs {asked}, the largest machine has {most}; needs in the spec says it")
        return self._slots

    def run(self, works: Sequence[Work], more: Callable[[], Sequence[Work]] = tuple) -> None:
        """Runs everything to the end. A KeyboardInterrupt stops running work and is passed on to the caller.

        Args:
            more: asked for further work when a slot is free; if it gives none while nothing runs, the run ends.
        """
        waiting = list(works)
        try:
            while True:
                while len(self.running) + len(waiting) < self.slots and (asked := more()):
                    waiting += asked
                if not (waiting or self.running):
                    return
                waiting = self._failed_before(waiting)
                while len(self.running) < self.slots and (work := self._next(waiting)):
                    waiting.remove(work)
                    self._send(work)
                if self.running:
                    self._gather(waiting)
                elif waiting:
                    raise EngineError("no work can begin, though some is left")
        except BaseException:
            self._stop()
            raise

    def _next(self, waiting: Sequence[Work]) -> Work | None:
        return next((work for work in waiting if all(one.key in self.settled for one in work.before)), None)

    def _failed_before(self, waiting: list[Work]) -> list[Work]:
        """The work that can still start; tasks whose shared work failed fail with its reason."""
        left = []
        for work in waiting:
            broken = next((one for one in work.before if self.settled.get(one.key)), None)
            if broken is None:
                left.append(work)
            elif work.leaf:
                self.take(Outcome(work, FAILED, self.settled[broken.key], log=self.logs.get(broken.key, "")))
            else:
                self.settled[work.key] = self.settled[broken.key]
                self.logs[work.key] = self.logs.get(broken.key, "")
        return left

    def _send(self, work: Work) -> None:
        work.attempts += 1
        task = self.task
        if elsewhere := self._elsewhere(work):
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            task = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(elsewhere, soft=True))
        self.running[task.remote(self.order(work), self.archive)] = work
        self.began(work.name)

    def _elsewhere(self, work: Work) -> str | None:
        """A machine that has not failed this work; None when any will do, or no other is large enough."""
        if not work.failed_on:
            return None
        others = [
            node["NodeID"]
            for node in self.ray.nodes()
            if node["Alive"] and self._fits(node) and node["NodeManagerHostname"] not in work.failed_on
        ]
        return random.choice(others) if others else None

    def _fits(self, node: dict[str, Any]) -> int:
        """How many tasks fit on a machine at once."""
        has = node["Resources"]
        return int(min(has.get("CPU", 0) / self.cpus, has.get("GPU", 0) / self.gpus if self.gpus else 1e9))

    def _gather(self, waiting: list[Work]) -> None:
        """Waits a moment, then handles what has ended."""
        ended, _ = self.ray.wait(list(self.running), timeout=0.5)
        for reference in ended:
            work = self.running.pop(reference)
            outcome = self._outcome(reference, work)
            if outcome is None:
                waiting.insert(0, work)
                continue
            if not work.leaf:
                self.settled[work.key] = outcome.reason
                self.logs[work.key] = outcome.log
            self.take(outcome)

    def _outcome(self, reference: Any, work: Work) -> Outcome | None:
        """The result of a work; None if it will be retried."""
        errors = self.ray.exceptions
        try:
            found = Outcome(work, **self.ray.get(reference))
        except (errors.NodeDiedError, errors.ObjectLostError, errors.RaySystemError) as error:
            if work.attempts < MOST_ATTEMPTS:
                return None
            return self._given_up(work, error)
        except errors.RayError as error:
            # When a machine dies, its worker is reported dead before the machine is.
            work.crashes += 1
            return None if self._may_try(work) else self._given_up(work, error)
        if found.again:
            work.crashes += 1
            work.failed_on.add(found.machine)
            if self._may_try(work):
                return None
        return found

    def _may_try(self, work: Work) -> bool:
        return work.crashes < MOST_CRASHES and work.attempts < MOST_ATTEMPTS

    def _given_up(self, work: Work, error: Exception) -> Outcome:
        said = " ".join(str(error).split())
        if isinstance(error, self.ray.exceptions.RayTaskError):
            return Outcome(work, FAILED, f"failed unexpectedly: {shown(said[-400:], 200)}")
        return Outcome(work, FAILED, f"its worker died {work.attempts} times: {shown(said, 160)}")

    def _stop(self) -> None:
        """Stops running work, and waits until it has stopped."""
        for reference in self.running:
            with contextlib.suppress(Exception):
                self.ray.cancel(reference, force=False)
        with contextlib.suppress(Exception):
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=STOP_SECONDS)


def packed(place: Place, commit: str) -> bytes:
    """The repository at a commit, as sent to machines. Raises `MicronetError`, one line."""
    check_place(place.folder / "commits")
    try:
        return worker.archive_of(place.root, commit, place.folder)
    except worker.TaskError as error:
        raise EngineError(shown(error, 250)) from None


def keep_result(place: Place, outcome: Outcome) -> None:
    """Keeps what a task left, for a later `--branch`."""
    write_json(place.result(outcome.work.key), {"files": outcome.files})


def result_of(place: Place, key: str) -> dict[str, str] | None:
    """What a task left, by path; None if that is gone."""
    path = place.result(key)
    if not path.is_file():
        return None
    try:
        files = read_json(path)["files"]
    except (FileError, LookupError, TypeError):
        return None
    return files if isinstance(files, dict) and all(isinstance(text, str) for text in files.values()) else None
