"""The processes of one stage, its ranks: how they start, wait for the first, and end together. Does not load torch.

Rank 0 is the process that was started. The others are forked from it before anything is computed, as neither OpenMP nor
CUDA survives a fork, and wait until it has done what is done only once: reading, preparing, refusing. Then each runs
the same work. If one dies, all end: a further rank ends as soon as the first is gone, whatever it is waiting for, and
the first ends with a message when another one is gone.
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

GRACE = 10.0  # seconds that a rank has to end by itself after another has died, before it is killed
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAID = 4096  # bytes of a rank's last words, fewer than a pipe holds


def check_cores(processes: int) -> None:
    """Raises `ParamsError` for more processes than cores, which is of no use, even on a GPU."""
    affinity = getattr(os, "sched_getaffinity", None)  # the cores this process may use; Linux only
    most = len(affinity(0)) if affinity else os.cpu_count() or 1
    if processes > most:
        raise ParamsError([f"engine.processes: must be <= {most}, the cores of this machine (got {processes})"])


class RanksError(MicronetError):
    """A rank is gone; the message says why, and that the run can resume from its saved state."""


class Member:
    """One process of a stage. In this class it is the only one, so these methods do nothing."""

    rank, size = 0, 1
    store = Path()  # file through which the ranks find each other

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, reports and evaluates."""
        return self.rank == 0

    def begin(self) -> None:
        """Everything is prepared: the others may begin."""

    def leave(self) -> None:
        """The shared work is done. A further rank ends here."""

    def lost(self, reason: str) -> MicronetError | SystemExit:
        """What to raise when the others can no longer be reached."""
        return RanksError(shown(reason))


class _First(Member):
    """Rank 0 of several."""

    def __init__(self, name: str, size: int, store: Path, gate: int):
        self.name, self.size, self.store, self.gate = name, size, store, gate
        self.over = threading.Event()  # whether the shared work is done; a rank that ends later is not missed
        self.missed: str | None = None
        self.noticed = threading.Event()
        self.watches: dict[int, threading.Thread] = {}  # by process id

    def watch(self, rank: int, process: int, voice: int) -> None:
        """Starts a thread that notices how a rank ends.

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
        self.missed = self.missed or said  # later ones ended because of this one
        self.noticed.set()
        if not self.over.wait(GRACE):  # on a GPU a rank would wait for the others forever
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
        """Waits until the others, which know that this one is done, have ended."""
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
        return SystemExit(0)  # the first rank knows more, and reports it


def together(count: int, name: str, work: Callable[[Member], int | None]) -> int | None:
    """Runs `work` in `count` processes, this one among them. Returns its result in this one.

    Call it before torch has computed anything, in a process without threads.

    Args:
        name: begins the line that is printed when a rank is gone.
        work: is given the process as a `Member`; calls its `begin`, shares the work, and calls its `leave`.
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
                    for end in (life, opener, heard):  # held by the first alone: their closing tells that it is gone
                        os.close(end)
                    further = _Further(rank, count, first.store)
                    _run(further, f"{name}.rank{rank}", work, alive=alive, gate=gate, voice=voice)
                os.close(voice)
                forked.append((rank, process, heard))
            for each in forked:  # only after all forks: a thread would not survive one
                first.watch(*each)
            return work(first)
        finally:
            for end in (alive, life, gate, opener):
                os.close(end)
            first.end()


def _run(
    member: Member, name: str, work: Callable[[Member], int | None], *, alive: int, gate: int, voice: int
) -> NoReturn:
    """Does a further rank's work once the gate opens, then ends its process, at the latest when the first is gone.

    Only the first rank handles signals that stop a run, though a terminal sends them to all.
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
    """A further rank's work, which `leave` and `lost` end part-way."""
    try:
        return work(member)
    except SystemExit as end:
        if end.code:
            raise  # raised by other people's code
        return 0


def _end_without(alive: int) -> None:
    """Ends this process when no process holds the other end of a pipe any more."""
    ended = select.poll()
    ended.register(alive, 0)  # a hang-up is reported even for an event mask of 0
    while not ended.poll():
        pass
    os._exit(1)
