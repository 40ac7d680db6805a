"""How a run is stopped: Ctrl-C, SIGTERM, SIGHUP, or the death of the DVC process that started it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from micronet.errors import MicronetError


class Interrupted(MicronetError):
    """Ctrl-C, SIGTERM, SIGHUP or the death of the DVC process that started this one; says how to go on."""

    exit_code = 130


def orphan_watch() -> Callable[[], bool]:
    """Tells whether the DVC process that started this one has gone since; outside of DVC it never has."""
    parent, watched = os.getppid(), "DVC_STAGE" in os.environ
    return lambda: watched and os.getppid() != parent


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP instead of dying in the middle of a step; a second one kills at once.

    A SIGHUP that is ignored, as nohup does, stays so: the run shall outlive its terminal.
    """
    received: list[int] = []

    def note(number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, note) for number in numbers}
    except ValueError:  # not in the main thread: signals are not ours to take
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
