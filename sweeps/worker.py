"""What a machine does for a task: a clone of the repository at one commit, its params, plain `dvc repro`, the results.

Ray carries this module to machines that have nothing of the repository, so it is of the standard library alone. What
machines keep lies in one folder: commits, prepared data, what was made once for several tasks, clones at work.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

LONGEST_LOG = 200_000  # characters of a log that go back to the driver
LONGEST_REASON = 240
STAGES = "check|code_digests|prepare_data|train_teacher|train_student|distill|prune|retrain|quantize|price"
STAGE_LINE = re.compile(rf"^({STAGES}|[\w./-]+\.yaml): ")


class TaskError(Exception):
    """A task cannot go on; the message is a line."""


@dataclass(frozen=True)
class Order:
    """A task, as it travels.

    Attributes:
        name: for people and the log. key: of the clone; the same task finds what it left.
        steps: (key, stage) of what is made once a machine before the last stage runs.
        keep: patterns of files whose text comes back.
        data: the prepared data's folder as the params name it, and the key under which a machine keeps it.
        data_here: a folder that holds such data already, where it exists.
        price: the stage whose checkpoint is priced, or "".
        remote: address of a DVC remote, or "". pull, push: whether to take from the remote, and to give to it.
        guard: the source of guard.py.
        threads: OMP_NUM_THREADS of the driver, None where it is not set: Ray's own would change results.
    """

    name: str
    key: str
    commit: str
    folder: str
    cache: str
    params: str
    steps: tuple[tuple[str, str], ...]
    last: str
    keep: tuple[str, ...]
    data: tuple[str, str]
    data_here: str
    price: str
    remote: str
    pull: bool
    push: bool
    guard: str
    threads: str | None

    @property
    def home(self) -> Path:
        return Path(self.folder)

    @property
    def place(self) -> Path:
        """Of the clone."""
        return self.home / "work" / self.key

    @property
    def log(self) -> Path:
        return self.home / "logs" / f"{self.key}.log"


def perform(order: Order, archive: bytes) -> dict[str, object]:
    """Does a task; what became of it: `status`, `reason`, `files`, `price`, `machine`, `seconds`, `log`.

    Args:
        archive: the bare repository of the commit, a tar.
    """
    began = time.monotonic()
    found: dict[str, object] = {"status": "done", "reason": "", "files": {}, "price": {}}
    try:
        for folder in ("commits", "work", "logs", "made", "data"):
            (order.home / folder).mkdir(parents=True, exist_ok=True)
        order.log.unlink(missing_ok=True)
        with locked(order.home / "work" / f"{order.key}.lock") as lock:
            try:
                _clone(order, archive)
                for key, stage in order.steps:
                    once(order.home, key, lambda stage=stage: _repro(order, stage, lock))
                _repro(order, order.last, lock)
                if order.price:
                    found["price"] = _price(order, lock)
                if order.push:
                    _dvc(order, lock, "push", "--run-cache", "--quiet")
                found["files"] = collected(order)
            except (KeyboardInterrupt, SystemExit):
                raise  # what was stopped stays, with the state that it goes on from
            except BaseException:
                shutil.rmtree(order.place, ignore_errors=True)
                raise
            shutil.rmtree(order.place, ignore_errors=True)  # as long as the lock is held: others may want the place
    except TaskError as error:
        found |= {"status": "failed", "reason": str(error)}
    except OSError as error:
        found |= {"status": "failed", "reason": _said(error)}
    seconds = round(time.monotonic() - began, 1)
    return found | {"machine": socket.gethostname(), "seconds": seconds, "log": _tail(order.log)}


def collected(order: Order) -> dict[str, str]:
    """The text of the files that a task leaves, by their paths in the clone."""
    paths = sorted({path for pattern in order.keep for path in order.place.glob(pattern) if path.is_file()})
    return {path.relative_to(order.place).as_posix(): path.read_text(encoding="utf-8") for path in paths}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Holds a lock of this machine; waits for whoever holds it. The system opens it when its holder dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.2)  # in Python, so that a task that waits can be stopped
        yield descriptor
    finally:
        os.close(descriptor)


def once(home: Path, key: str, make: Callable[[], None]) -> None:
    """Calls `make` unless this machine has what it makes; whoever else needs it waits meanwhile."""
    mark = home / "made" / key
    if mark.exists():
        return
    with locked(mark.with_suffix(".lock")):
        if not mark.exists():
            make()
            mark.touch()


def _clone(order: Order, archive: bytes) -> None:
    """Makes the task's checkout, or finds the one that it left when it was stopped."""
    repository = order.home / "commits" / f"{order.commit}.git"

    def unpack() -> None:
        shutil.rmtree(repository, ignore_errors=True)
        repository.mkdir(parents=True)
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(repository, filter="data")

    if not repository.exists():
        with contextlib.suppress(FileNotFoundError):
            (order.home / "made" / f"commit-{order.commit}").unlink()
    once(order.home, f"commit-{order.commit}", unpack)
    if not (order.place / ".dvc/config.local").is_file():
        shutil.rmtree(order.place, ignore_errors=True)
        _git("clone", "--quiet", "--shared", "--no-checkout", str(repository), str(order.place))
        _git("-C", str(order.place), "checkout", "--quiet", order.commit)
    (order.place / "params.yaml").write_text(order.params, encoding="utf-8")
    folder, key = order.data
    link, target = order.place / folder, order.home / "data" / key
    target.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink() and not link.exists() and not Path(folder).is_absolute():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    source = Path(order.data_here)
    if order.data_here and source.is_dir():
        once(order.home, f"linked-{key}", lambda: _linked(source, target))
    lines = ["[core]\n", f"    site_cache_dir = {order.place / '.dvc/site'}\n"]
    lines += ["    remote = sweep\n"] if order.remote else []
    lines += ["[cache]\n", f"    dir = {order.cache}\n"]
    lines += [f"['remote \"sweep\"']\n    url = {order.remote}\n"] if order.remote else []
    temporary = order.place / ".dvc/config.local.new"
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.rename(order.place / ".dvc/config.local")


def _linked(source: Path, target: Path) -> None:
    """Data that is here already need not come again: its files are only ever replaced, so a second name is safe."""
    for path in source.iterdir():
        with contextlib.suppress(OSError):
            os.link(path, target / path.name)


def _git(*words: str) -> None:
    done = subprocess.run(["git", *words], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it says nothing"]
        raise TaskError(f"git {words[0]}: {said[-1]}"[:LONGEST_REASON])


def _repro(order: Order, stage: str, lock: int) -> None:
    _dvc(order, lock, "repro", *(["--pull"] if order.pull else []), stage)


def _dvc(order: Order, lock: int, *words: str) -> None:
    """Runs DVC in the clone. Raises `TaskError` with what the stage said that failed."""
    if _run(order, lock, "-m", "dvc", *words):
        raise TaskError(reason(_tail(order.log)))


def _price(order: Order, lock: int) -> dict[str, float]:
    if _run(order, lock, "sweeps/price.py", order.price, "--json", "price.json"):
        raise TaskError(reason(_tail(order.log)))
    return json.loads((order.place / "price.json").read_text(encoding="utf-8"))


def _run(order: Order, lock: int, *words: str) -> int:
    """Runs a Python of this machine under the guard, in the clone; its exit code."""
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    environment |= {"DVC_NO_ANALYTICS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {} if order.threads is None else {"OMP_NUM_THREADS": order.threads}
    guard = subprocess.Popen(
        [sys.executable, "-c", order.guard, str(order.log), sys.executable, *words],
        cwd=order.place,
        env=environment,
        stdin=subprocess.DEVNULL,
        pass_fds=(lock,),  # a guard that outlives this process keeps the clone
        start_new_session=True,
    )
    try:
        while guard.poll() is None:
            time.sleep(0.1)
    finally:
        if guard.poll() is None:
            guard.terminate()
            guard.wait()
    return guard.returncode


def reason(log: str) -> str:
    """Why a task failed, of what it said: the last line of a stage before DVC's own."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = [line for line in lines if STAGE_LINE.match(line)]
    failed = next((place for place, line in enumerate(lines) if line.startswith("ERROR: ")), len(lines))
    before = [line for line in lines[:failed] if STAGE_LINE.match(line)]
    said = (before or told or lines or ["it says nothing"])[-1]
    if failed < len(lines) and not before:
        said = lines[failed]
    return said if len(said) <= LONGEST_REASON else f"{said[: LONGEST_REASON - 1]}…"


def _said(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    way = "; freeing some would work" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{where}{error.strerror or error} on {socket.gethostname()}{way}"[:LONGEST_REASON]


def _tail(log: Path) -> str:
    try:
        return log.read_text(encoding="utf-8", errors="replace")[-LONGEST_LOG:]
    except OSError:
        return ""


def archive_of(root: Path, commit: str, folder: Path) -> bytes:
    """A bare repository of one commit, without its history, as a tar. Raises `TaskError`."""
    place = folder / "commits" / f".{hashlib.sha256(os.urandom(8)).hexdigest()[:8]}.git"
    try:
        place.mkdir(parents=True)
        _git("init", "--quiet", "--bare", str(place))
        _git("-C", str(place), "fetch", "--quiet", "--depth", "1", f"file://{root}", commit)
        _git("-C", str(place), "update-ref", "refs/heads/sweep", commit)
        _git("-C", str(place), "symbolic-ref", "HEAD", "refs/heads/sweep")
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(place, ".")
        return packed.getvalue()
    finally:
        shutil.rmtree(place, ignore_errors=True)
