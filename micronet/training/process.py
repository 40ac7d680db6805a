"""What a stage sets up in its own process before it works: streams, signals, memory, threads. Does not load torch."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from micronet.training.allocation import keep_freed_memory
from micronet.training.openmp import settle

ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def settled(threads: int, say: Callable[[str], None]) -> Iterator[None]:
    """SIGTERM and SIGHUP raise `KeyboardInterrupt` inside, as Ctrl-C does; a SIGHUP that nohup ignores stays ignored.

    Args:
        threads: `engine.threads`. say: is told which settings of the environment were corrected.

    Raises:
        ThreadsError: the environment allows fewer threads.
    """
    open_streams()
    keep_freed_memory(os.environ)
    for line in settle(os.environ, threads):
        say(line)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = {}
    try:
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    except ValueError:  # not the main thread, which alone may handle signals
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_streams() -> None:
    """Opens /dev/null in place of whichever of stdin, stdout and stderr is closed.

    Otherwise the next file opened, say a checkpoint, would get that descriptor, and stderr of C code would go into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))
