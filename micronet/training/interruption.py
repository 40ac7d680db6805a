"""What stops a run: Ctrl-C, SIGTERM, SIGHUP, or the death of the DVC process that started it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from micronet.errors import MicronetError


class Interrupted(MicronetError):
    """Ctrl-C, SIGTERM, SIGHUP or the death of the DVC process that started this one; the message says how to resume."""

    exit_code = 130


def orphan_watch() -> Callable[[], bool]:
    """Returns a function that says whether the DVC process that started this one has died; False outside DVC."""
    parent, watched = os.getppid(), "DVC_STAGE" in os.environ
    return lambda: watched and os.getppid() != parent


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM and SIGHUP instead of dying in the middle of a step; a second signal kills at once.

    A SIGHUP ignored by nohup stays ignored: the run is meant to outlive its terminal.
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
    except ValueError:  # not the main thread, which alone may handle signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
