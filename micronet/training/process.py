"""What a stage settles of its own process before it works: streams, signals, threads. Loads no torch."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from micronet.training.openmp import settle

ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def settled(threads: int, say: Callable[[str], None]) -> Iterator[None]:
    """SIGTERM and SIGHUP raise `KeyboardInterrupt` inside, as Ctrl-C does; a SIGHUP that nohup ignores stays ignored.

    Args:
        threads: `engine.threads`. say: is told what of the environment is put right.

    Raises:
        ThreadsError: the environment allows fewer threads.
    """
    open_streams()
    for line in settle(os.environ, threads):
        say(line)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = {}
    try:
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    except ValueError:  # not in the main thread: signals are not ours to take
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_streams() -> None:
    """Opens what of stdin, stdout and stderr was closed on nothing.

    Else the next file that is opened, a checkpoint, gets the number, and what C code says to stderr goes into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))
