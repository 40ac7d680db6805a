"""Runs a command in a process group of its own, its words into a log; nothing of the group outlives the caller.

`python guard.py LOG WORD ...` ends as the command does. When it is told to end, or whoever started it is gone, it stops
the whole group and waits for its end: a worker that was killed leaves no training behind. The standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

GRACE = 20.0  # seconds in which a stage ends its step and saves its state


def lives(group: int) -> bool:
    """Whether a process of a group is there still."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def end(child: subprocess.Popen[bytes]) -> None:
    """Stops a group: asked first, killed in the end."""
    limit = time.monotonic() + GRACE
    kind = signal.SIGTERM
    while lives(child.pid):
        with contextlib.suppress(ProcessLookupError):
            if kind is not None:
                os.killpg(child.pid, kind)
        kind = None
        child.poll()
        if time.monotonic() > limit:
            limit, kind = limit + GRACE, signal.SIGKILL
        time.sleep(0.05)


def main(words: list[str]) -> int:
    log, *command = words
    parent, told = os.getppid(), []
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: told.append(True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(log, "ab") as file:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    while child.poll() is None and not told and os.getppid() == parent:
        time.sleep(0.1)
    stopped = child.poll() is None
    end(child)
    return 130 if stopped else child.wait() & 0xFF


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
