"""Runs of several processes that a test starts, inspects and kills. They are forked, as torch is already loaded."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from micronet.front import front
from micronet.training.processes import Member, together
from micronet.training.reporting import Reporter
from micronet.training.state import ResumeState
from tests.support.models import new_model, weights
from tests.support.training import train

NAME = "train_teacher"


@dataclass
class Started:
    """A run in its own processes; rank 0 leads their process group, like a command in a terminal."""

    folder: Path
    process: int

    def others(self) -> list[int]:
        """The processes of the other ranks."""
        return [int(each) for each in Path(f"/proc/{self.process}/task/{self.process}/children").read_text().split()]

    def until(self, name: str) -> None:
        """Waits for a file."""
        limit = time.monotonic() + 60
        while not (self.folder / name).exists():
            assert time.monotonic() < limit and self.alive(self.process), self.said
            time.sleep(0.01)

    def alive(self, process: int) -> bool:
        try:
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def ended(self, others: list[int], seconds: float) -> int:
        """Waits until all processes are gone. Returns rank 0's exit code."""
        limit = time.monotonic() + seconds
        while any(map(self.alive, [self.process, *others])):
            assert time.monotonic() < limit, f"not gone after {seconds} s"
            time.sleep(0.01)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()


def start(folder: Path, work: Callable[[Member], int | None], count: int = 2) -> Started:
    """Starts `work` in so many processes, as a stage does; their output goes to `folder/said`."""
    process = os.fork()
    if process == 0:
        code = 70
        try:
            os.setsid()
            os.chdir(folder)
            with (folder / "said").open("w") as said:
                sys.stderr = said
                signal.signal(signal.SIGINT, signal.default_int_handler)
                code = front(NAME, lambda: together(count, NAME, work))
        finally:
            os._exit(code)
    return Started(folder, process)


def finished(folder: Path, work: Callable[[Member], int | None], count: int = 2) -> str:
    """Runs `work` to its end. Returns the output."""
    started = start(folder, work, count)
    code = os.waitstatus_to_exitcode(os.waitpid(started.process, 0)[1])
    assert code == 0, started.said
    return started.said


def keep(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a rank's tensors. All ranks must call it: the first to end ends the others."""
    torch.save(tensors, path)
    torch.distributed.barrier()


class Slow(Reporter):
    """Runs slowly and leaves a file after a step, so that a test can catch the run midway."""

    def __init__(self, folder: Path, seconds: float):
        self.folder, self.seconds = folder, seconds

    def step(self, *, epoch: int, images: int, loss: float) -> None:
        (self.folder / f"step {epoch} {images}").touch()
        time.sleep(self.seconds)


def training(folder: Path, settings: Any, *, slow: float = 0.0, **more: Any) -> Callable[[Member], None]:
    """Work that trains a small network and writes its weights to `folder/weights RANK`, saving state every step."""

    def work(member: Member) -> None:
        from micronet.params import Engine
        from micronet.training.hardware import machine
        from micronet.training.ranks import joined

        model = new_model(seed=member.rank)  # rank 0's counts
        state = ResumeState(folder / "run", "x") if member.first else contextlib.nullcontext()
        with state as saved, joined(member, machine(Engine(device="cpu", threads=1))) as ranks:
            reporter = Slow(folder, slow) if slow and member.first else None
            train(model, settings, state=saved, ranks=ranks, reporter=reporter, save_every_seconds=0.0, **more)
            keep(weights(model), folder / f"weights {member.rank}")
        member.leave()

    return work
