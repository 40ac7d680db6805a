"""Runs a command in its own process group, output to a log; nothing of the group outlives the caller.

`python guard.py LIFE TOLD LOCKS LOG WORD ...`: LIFE is one end of a pipe whose other end the caller holds. When that
closes, or the guard is told to end, it stops the whole group and waits for it: a killed worker leaves no training
behind. TOLD is sent the command's exit code. LOCKS, comma-separated descriptors, stay held as long as the group
exists. The guard is nobody's child, because a Ray worker whose machine dies first kills its children, in a way they
cannot notice. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

GRACE = 20.0  # in which a stage finishes its step and saves its state
STOPPED = 130  # exit code of a command that was stopped


def lives(group: int) -> bool:
    """Whether any process of a group still exists."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def end(child: subprocess.Popen[bytes]) -> None:
    """Stops a group: asks first, kills in the end."""
    limit = time.monotonic() + GRACE
    kind: signal.Signals | None = signal.SIGTERM
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
    life, told, locks = int(words[0]), int(words[1]), [int(word) for word in words[2].split(",") if word]
    log, *command = words[3:]
    if os.fork():
        return 0
    asked: list[bool] = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.append(True))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(log, "ab") as file:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=locks,
        )
    while child.poll() is None and not asked and not select.select([life], [], [], 0.1)[0]:
        pass
    stopped = child.poll() is None
    end(child)
    with contextlib.suppress(BrokenPipeError):
        os.write(told, b"%d" % (STOPPED if stopped else child.wait()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
