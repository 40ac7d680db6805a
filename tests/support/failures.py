"""Failures for tests: processes that die at a given step, disks that are full."""

from __future__ import annotations

import errno
import os
import signal

from micronet.training.reporting import Reporter


class StopAt(Reporter):
    """Dies at one step, like a killed process."""

    def __init__(self, epoch: int, images: int):
        self.where = epoch, images

    def step(self, *, epoch: int, images: int, loss: float) -> None:
        if (epoch, images) == self.where:
            self.stop_here()

    def stop_here(self) -> None:
        """What happens at that step."""
        raise ProcessLookupError


class InterruptAt(StopAt):
    """Sends Ctrl-C at one step."""

    def stop_here(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def full_disk(*_: object) -> None:
    """Stands in for `os.fsync` or `os.replace` when nothing more can be written."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
