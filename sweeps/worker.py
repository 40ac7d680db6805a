"""What a machine does for a task: a clone of the repository at one commit, its params, plain `dvc repro`, the results.

Ray sends this module to machines that have nothing of the repository, so it uses only the standard library. Everything
machines keep is in one folder: commits, prepared data, results shared by several tasks, clones in use.
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
import select
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

LONGEST_LOG = 200_000  # characters of a log that are sent back to the driver
LONGEST_REASON = 240
LEAST_FREE = 1 << 20  # bytes; a disk with less counts as full
STAGES = "check|code_digests|prepare_data|train_teacher|train_student|distill|prune|retrain|quantize|score|price"
STAGE_LINE = re.compile(rf"^({STAGES}|[\w./-]+\.yaml): ")


# What a machine lacks, in the system's words: not a stage's fault, and another machine may have it.
LACKING = re.compile(
    "No space left on device|Disk quota exceeded|Input/output error|Stale file handle|Read-only file system"
    "|Cannot allocate memory|Too many open files",
    re.IGNORECASE,
)
CHATTER = re.compile(
    r"To track the changes|\s+git add |To enable auto|\s+dvc config |Use `dvc push`|Having any troubles"
)
EXITED = re.compile(r"failed to reproduce '([^'\n]{1,80})'.*exited with (-?\d+)")


class TaskError(Exception):
    """A task cannot continue; a one-line message.

    Attributes:
        again: the fault is the machine's, or of what runs beside it, not a stage's: a retry may succeed.
        killed: while it ran, so the clone may hold a training state for the retry to continue from.
    """

    def __init__(self, line: str, *, again: bool, killed: bool = False):
        super().__init__(line)
        self.again, self.killed = again, killed


@dataclass(frozen=True)
class Order:
    """A task, as sent to a machine.

    Attributes:
        name: for people and the log. key: of the clone; the same task finds what it left.
        steps: (key, stage) of what is made once per machine before the last stage runs.
        keep: patterns of files whose text is sent back.
        data: the prepared data's folder as named in the params, and the key under which a machine keeps it.
        data_here: a folder that already holds such data, if it exists.
        price: the stage whose checkpoint is priced, or "".
        remote: address of a DVC remote, or "". pull, push: whether to pull from it, and push to it.
        guard: the source of guard.py.
        threads: the driver's OMP_NUM_THREADS, None if unset: Ray's own would change results.
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
        """The clone's path."""
        return self.home / "work" / self.key

    def aside(self, kind: str) -> Path:
        """The path of an incomplete clone: one being made, or removed."""
        return self.home / "work" / f".{self.key}.{kind}"

    @property
    def log(self) -> Path:
        return self.home / "logs" / f"{self.key}.log"


def perform(order: Order, archive: bytes) -> dict[str, object]:
    """Does a task and returns `status`, `reason`, `again`, `files`, `price`, `machine`, `seconds`, `log`.

    Args:
        archive: the bare repository of the commit, a tar.
    """
    began = time.monotonic()
    found: dict[str, object] = {"status": "done", "reason": "", "again": False, "files": {}, "price": {}}
    try:
        for folder in ("commits", "work", "logs", "made", "data"):
            (order.home / folder).mkdir(parents=True, exist_ok=True)
        with locked(order.home / "work" / f"{order.key}.lock") as lock:
            order.log.unlink(missing_ok=True)
            try:
                clone(order, archive, lock)
                for key, stage in order.steps:
                    once(order.home, key, partial(_made, order, stage, lock))
                _repro(order, order.last, (lock,))
                if order.price:
                    found["price"] = _price(order, lock)
                if order.push:
                    _dvc(order, (lock,), "push", "--run-cache", "--quiet")
                found["files"] = collected(order)
            except (KeyboardInterrupt, SystemExit):
                raise  # what was stopped stays, with the state to resume from
            except BaseException as error:
                if not (isinstance(error, TaskError) and error.killed):
                    remove(order)
                raise
            remove(order)  # while the lock is held: others may want the place
    except TaskError as error:
        found |= {"status": "failed", "reason": str(error), "again": error.again}
    except OSError as error:
        found |= {"status": "failed", "reason": _said(error), "again": True}
    seconds = round(time.monotonic() - began, 1)
    return found | {"machine": socket.gethostname(), "seconds": seconds, "log": _tail(order.log)}


def remove(order: Order) -> None:
    """Removes the clone, renaming it first, so that a clone under its name is complete whenever a machine dies."""
    with contextlib.suppress(FileNotFoundError):
        order.place.rename(order.aside("gone"))
    shutil.rmtree(order.aside("gone"), ignore_errors=True)


def collected(order: Order) -> dict[str, str]:
    """The text of the files a task leaves, by their paths in the clone."""
    paths = sorted({path for pattern in order.keep for path in order.place.glob(pattern) if path.is_file()})
    return {path.relative_to(order.place).as_posix(): path.read_text(encoding="utf-8") for path in paths}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Holds a lock of this machine, waiting for any other holder. The system releases it when its holder dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.2)  # in Python, so that a waiting task can be stopped
        yield descriptor
    finally:
        os.close(descriptor)


def once(home: Path, key: str, make: Callable[[int], None]) -> None:
    """Calls `make` unless this machine has its result; others that need it wait meanwhile.

    Args:
        make: receives the lock, to be held also by the processes it starts.
    """
    mark = home / "made" / key
    if mark.exists():
        return
    with locked(mark.with_suffix(".lock")) as lock:
        if not mark.exists():
            make(lock)
            mark.touch()


def clone(order: Order, archive: bytes, lock: int) -> None:
    """Makes the task's checkout, or finds the one left when the task was stopped or its machine died.

    Args:
        archive: the bare repository of the commit, a tar. lock: the task's, which git holds while it runs.

    Raises:
        TaskError: git failed.
    """
    repository = order.home / "commits" / f"{order.commit}.git"

    def unpack(_: int) -> None:
        shutil.rmtree(repository, ignore_errors=True)
        repository.mkdir(parents=True)
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(repository, filter="data")

    if not repository.exists():
        with contextlib.suppress(FileNotFoundError):
            (order.home / "made" / f"commit-{order.commit}").unlink()
    once(order.home, f"commit-{order.commit}", unpack)
    _checkout(order, repository, lock)
    (order.place / "params.yaml").write_text(order.params, encoding="utf-8")
    folder, key = order.data
    link, target = order.place / folder, order.home / "data" / key
    target.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink() and not link.exists() and not Path(folder).is_absolute():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    source = Path(order.data_here)
    if order.data_here and source.is_dir():
        once(order.home, f"linked-{key}", lambda _: _linked(source, target))
    lines = ["[core]\n", f"    site_cache_dir = {order.place / '.dvc/site'}\n"]
    lines += [f"    remote = {'sweep' if order.remote else 'release'}\n"] if order.remote or order.pull else []
    lines += ["[cache]\n", f"    dir = {order.cache}\n"]
    lines += [f'[\'remote "sweep"\']\n    url = "{order.remote}"\n'] if order.remote else []
    (order.place / ".dvc/config.local").write_text("".join(lines), encoding="utf-8")


def _checkout(order: Order, repository: Path, lock: int) -> None:
    """The files of the commit. In an existing clone, files that git ignores stay: the state to resume training from.

    What a killed DVC or git may have half written is removed: their locks and tables, dvc.lock, params.yaml.
    """
    for kind in ("new", "gone"):
        shutil.rmtree(order.aside(kind), ignore_errors=True)
    if order.place.is_dir():
        for folder in (".dvc/tmp", ".dvc/site"):
            shutil.rmtree(order.place / folder, ignore_errors=True)
        (order.place / ".git/index.lock").unlink(missing_ok=True)
        try:
            _git("-C", str(order.place), "reset", "--quiet", "--hard", order.commit, held=(lock,))
            _git("-C", str(order.place), "clean", "--quiet", "--force", "-d", held=(lock,))
            return
        except TaskError:
            remove(order)
    made = order.aside("new")
    _git("clone", "--quiet", "--shared", "--no-checkout", str(repository), str(made), held=(lock,))
    _git("-C", str(made), "checkout", "--quiet", order.commit, held=(lock,))
    made.rename(order.place)


def _linked(source: Path, target: Path) -> None:
    """Hard links to existing data save copying it: its files are only ever replaced, so that is safe."""
    for path in source.iterdir():
        with contextlib.suppress(OSError):
            os.link(path, target / path.name)


def _git(*words: str, held: tuple[int, ...] = ()) -> None:
    done = subprocess.run(["git", *words], capture_output=True, text=True, pass_fds=held)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it says nothing"]
        said = next((line for line in lines if line.startswith(("fatal: ", "error: "))), lines[-1])
        command = words[2] if words[0] == "-C" else words[0]
        raise TaskError(f"git {command}: {said}"[:LONGEST_REASON], again=True)


def _repro(order: Order, stage: str, held: tuple[int, ...]) -> None:
    _dvc(order, held, "repro", *(["--pull"] if order.pull else []), stage)


def _made(order: Order, stage: str, lock: int, mark: int) -> None:
    """Makes what is made once; `mark` is its lock."""
    _repro(order, stage, (lock, mark))


def _dvc(order: Order, held: tuple[int, ...], *words: str) -> None:
    """Runs DVC in the clone. Raises `TaskError` with the failed stage's message."""
    code = _run(order, held, "-m", "dvc", *words)
    if code:
        raise failure_of(order, code)


def _price(order: Order, lock: int) -> dict[str, float]:
    code = _run(order, (lock,), "sweeps/price.py", order.price, "--json", "price.json")
    if code:
        raise failure_of(order, code)
    return json.loads((order.place / "price.json").read_text(encoding="utf-8"))


def _run(order: Order, held: tuple[int, ...], *words: str) -> int:
    """Runs this machine's Python under the guard, in the clone; its exit code.

    Args:
        held: locks that stay held until everything it starts has ended, even if this process dies.

    Raises:
        TaskError: the guard was killed.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}
    environment |= {"DVC_NO_ANALYTICS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {} if order.threads is None else {"OMP_NUM_THREADS": order.threads}
    watched, life = os.pipe()
    answer, told = os.pipe()
    try:
        try:
            numbers = [str(watched), str(told), ",".join(map(str, held))]
            subprocess.run(
                [sys.executable, "-c", order.guard, *numbers, str(order.log), sys.executable, *words],
                cwd=order.place,
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=(*held, watched, told),
                start_new_session=True,
            )
        finally:
            os.close(watched)
            os.close(told)
        while not select.select([answer], [], [], 0.1)[0]:
            pass  # a short wait, in Python, so that a task can be stopped
    finally:
        os.close(life)
        code = os.read(answer, 16)  # which ends with the guard
        os.close(answer)
    if not code:
        raise TaskError("what watches over DVC was killed", again=True, killed=True)
    return int(code)


def failure_of(order: Order, code: int) -> TaskError:
    """Why a run failed. On a full disk the log has lost its last lines, so the disk is checked."""
    error = failure(code, _tail(order.log))
    for folder in (order.home, Path(order.cache)):
        if error.again and folder.is_dir() and shutil.disk_usage(folder).free < LEAST_FREE:
            return TaskError(_said(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))), again=True)
    return error


def failure(code: int, log: str) -> TaskError:
    """The failure a run reports, and whether a stage or the machine is at fault.

    Args:
        code: of DVC, negative for a signal. log: output of DVC and the stages.
    """
    exits = [("dvc", code), *((stage, int(number)) for stage, number in EXITED.findall(log))]
    killed = [(name, number) for name, number in exits if number < 0 or 128 < number < 255]  # 255 is DVC's own
    if killed:
        name, number = killed[-1]
        signal = number - 128 if number > 0 else -number
        return TaskError(f"{name}: was ended from outside, by signal {signal}", again=True, killed=True)
    line = reason(log)
    stages = len(exits) > 1 or any(STAGE_LINE.match(one.strip()) for one in log.splitlines())
    return TaskError(line, again=not stages or bool(LACKING.search(line)))


def reason(log: str) -> str:
    """Why a task failed, from its output: a stage's last line before DVC's own."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and not CHATTER.match(line)]
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
    """A bare repository of one commit, without history, as a tar. Raises `TaskError`."""
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
