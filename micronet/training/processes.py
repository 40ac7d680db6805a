"""The processes of one stage, its ranks: how they start, wait for the first, and end together. Loads no torch.

Rank 0 is the process that was started. The others are forked from it before anything is computed, as neither OpenMP nor
CUDA survives a fork, and wait until it has done what is to be done once: read, prepare, refuse. Then each runs the same
work. Who dies takes the others along: a further rank ends as soon as the first is gone, whatever it waits for, and the
first ends with a line when it misses one.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from micronet.errors import MicronetError, shown
from micronet.front import front
from micronet.params import ParamsError

GRACE = 10.0  # seconds in which a rank ends by itself after another one has died; then it is ended
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAID = 4096  # bytes of a last word, fewer than a pipe holds


def check_cores(processes: int) -> None:
    """Raises `ParamsError` for more processes than cores, which none could be of use to, on a GPU neither."""
    affinity = getattr(os, "sched_getaffinity", None)  # which cores this process may use; Linux alone has it
    most = len(affinity(0)) if affinity else os.cpu_count() or 1
    if processes > most:
        raise ParamsError([f"engine.processes: must be <= {most}, the cores of this machine (got {processes})"])


class RanksError(MicronetError):
    """A rank is gone; says why, and that the run goes on from its saved state."""


class Member:
    """A process as one of its stage. This one is the only one, and none of what is called here does anything."""

    rank, size = 0, 1
    store = Path()  # where the ranks find each other

    @property
    def first(self) -> bool:
        """Whether it is the one that writes, reports and evaluates."""
        return self.rank == 0

    def begin(self) -> None:
        """All is prepared: the others may begin."""

    def leave(self) -> None:
        """The work that is shared is done. A further rank ends here."""

    def lost(self, reason: str) -> MicronetError | SystemExit:
        """What to raise when the others cannot be reached any more."""
        return RanksError(shown(reason))


class _First(Member):
    """Rank 0 of several."""

    def __init__(self, name: str, size: int, store: Path, gate: int):
        self.name, self.size, self.store, self.gate = name, size, store, gate
        self.over = threading.Event()  # the work that is shared; who ends after it is not missed
        self.missed: str | None = None
        self.noticed = threading.Event()
        self.watches: dict[int, threading.Thread] = {}  # by process

    def watch(self, rank: int, process: int, voice: int) -> None:
        """Notices how a rank ends.

        Args:
            voice: a pipe with its last words.
        """
        self.watches[process] = threading.Thread(target=self._wait, args=(rank, process, voice), daemon=True)
        self.watches[process].start()

    def _wait(self, rank: int, process: int, voice: int) -> None:
        with open(voice, "rb") as pipe:
            said = pipe.read().decode(errors="replace").strip()
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if not code or self.over.is_set():
            return
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"has ended with {said or f'code {code}'}"
        said = f"rank {rank} of {self.size} {shown(how, 180)}; the same command goes on from what was saved"
        self.missed = self.missed or said  # the others end because of the first one
        self.noticed.set()
        if not self.over.wait(GRACE):  # on a GPU a rank waits for the others for good
            with contextlib.suppress(OSError, ValueError, AttributeError):
                print(f"{self.name}: {self.missed}", file=sys.stderr, flush=True)
            os._exit(1)

    def begin(self) -> None:
        os.write(self.gate, bytes(self.size - 1))

    def leave(self) -> None:
        self.over.set()

    def lost(self, reason: str) -> MicronetError | SystemExit:
        self.noticed.wait(GRACE / 2)
        return RanksError(self.missed or f"the ranks lost each other: {shown(reason, 150)}; the same command goes on")

    def end(self) -> None:
        """Waits until the others are gone, who know already that this one is."""
        self.leave()
        for process, watch in self.watches.items():
            watch.join(GRACE / 2)
            if watch.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                watch.join(GRACE / 2)


class _Further(Member):
    """Any other rank."""

    def __init__(self, rank: int, size: int, store: Path):
        self.rank, self.size, self.store = rank, size, store

    def leave(self) -> None:
        raise SystemExit(0)

    def lost(self, reason: str) -> MicronetError | SystemExit:
        return SystemExit(0)  # the first knows more, and says it


def together(count: int, name: str, work: Callable[[Member], int | None]) -> int | None:
    """Runs `work` in so many processes, this one among them. Returns what it gave here.

    To be called before torch has computed anything, in a process without threads.

    Args:
        name: begins the line that is printed when a rank is gone.
        work: is given the process's place; calls its `begin`, shares work, and calls its `leave`.
    """
    if count == 1:
        return work(Member())
    with tempfile.TemporaryDirectory(prefix="micronet-ranks-") as folder:
        (alive, life), (gate, opener) = os.pipe(), os.pipe()
        first, forked = _First(name, count, Path(folder) / "store", opener), []
        try:
            for rank in range(1, count):
                heard, voice = os.pipe()
                process = os.fork()
                if process == 0:
                    for end in (life, opener, heard):  # whose other ends tell that the first is gone
                        os.close(end)
                    further = _Further(rank, count, first.store)
                    _run(further, f"{name}.rank{rank}", work, alive=alive, gate=gate, voice=voice)
                os.close(voice)
                forked.append((rank, process, heard))
            for each in forked:  # all are there: a thread would not survive a fork
                first.watch(*each)
            return work(first)
        finally:
            for end in (alive, life, gate, opener):
                os.close(end)
            first.end()


def _run(
    member: Member, name: str, work: Callable[[Member], int | None], *, alive: int, gate: int, voice: int
) -> NoReturn:
    """Does a further rank's work once the gate opens, and ends its process, at the latest when the first is gone.

    Signals that stop a run are the first rank's, though a terminal sends them to all.
    """
    code = 1
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        threading.Thread(target=_end_without, args=(alive,), daemon=True).start()
        if os.read(gate, 1):
            said = io.StringIO()
            with contextlib.redirect_stderr(said):
                code = front(name, lambda: _worked(work, member))
            last = (said.getvalue().splitlines() or [""])[-1].removeprefix(f"{name}: ")
            os.write(voice, last.encode(errors="replace")[:SAID])
    finally:
        os._exit(code)


def _worked(work: Callable[[Member], int | None], member: Member) -> int | None:
    """A further rank's work, which `leave` and `lost` end in the middle."""
    try:
        return work(member)
    except SystemExit as end:
        if end.code:
            raise  # of other people's code
        return 0


def _end_without(alive: int) -> None:
    """Ends this process when nobody holds the other end of a pipe any more."""
    ended = select.poll()
    ended.register(alive, 0)  # a hang-up is told in any case
    while not ended.poll():
        pass
    os._exit(1)
