"""A Python with torch or DVC already loaded: starting these takes longer than all that a short stage does.

A server imports one of the two and nothing of the project; `python SCRIPT ARGUMENTS` asks it for a fresh child. The
child gets the caller's folder, environment, stdout and stderr, and its exit code is passed back. Whatever is to be
killed, or starts without torch, is run by a real Python instead. `torch._dynamo` takes seconds to load too, and the
first step of every training does it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LONGEST = 1 << 20  # bytes of a request, including an environment
LOADED = {
    "torch": ("torch._dynamo", "pydantic", "safetensors.torch", "ruamel.yaml", "PIL.Image"),
    "dvc": ("dvc.cli.parser", "dvc.repo.reproduce", "dvc.repo.status", "dvc.stage.run", "dvc_data.index"),
}


@functools.cache
def folder(loaded: str = "torch") -> Path:
    """A folder for the PATH: its `python` runs scripts that use one thread. Workers of one test run share a server; it
    ends with the run.

    Args:
        loaded: what that Python has loaded, one of `LOADED`.
    """
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    owner = os.getppid() if run else os.getpid()  # a worker's parent is the run
    place = Path(tempfile.gettempdir()) / f"micronet-warm-{run or owner}-{loaded}"
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "socket").exists():
            _start(place, loaded, owner)
    return place


def _start(place: Path, loaded: str, owner: int) -> None:
    """Starts a server and the script that calls it; returns once it answers."""
    address, shim = place / "socket", place / "python"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, "serve", str(address), loaded, str(owner)]
    with (place / "log").open("w") as log:  # it briefly outlives the tests: their pipes must not wait for it
        server = subprocess.Popen(words, env=environment, stdout=log, stderr=log)
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I "{__file__}" ask "{address}" "$@"\n')
    shim.chmod(0o755)
    limit = time.monotonic() + 120
    while not address.exists() and server.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    assert address.exists(), (place / "log").read_text()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def serve(address: str, loaded: str, owner: int) -> None:
    """Answers until its owner is gone."""
    for name in LOADED[loaded]:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    sys.path.remove(str(Path(__file__).parent))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen()
    listener.settimeout(2)
    os.rename(f"{address}.new", address)
    while _lives(owner):
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                connection.setblocking(True)
                answer(connection)
            connection.close()
    shutil.rmtree(Path(address).parent)


def answer(connection: socket.socket) -> None:
    """Runs the request in this process and ends it."""
    import runpy
    import traceback

    text, (out, err), *_ = socket.recv_fds(connection, LONGEST, 2)
    request = json.loads(text)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    module = request["arguments"][0] == "-m"
    sys.argv = request["arguments"][module:]
    sys.path.insert(0, os.getcwd() if module else str(Path(sys.argv[0]).resolve().parent))
    code = 0
    try:
        (runpy.run_module if module else runpy.run_path)(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(str(code).encode())
    os._exit(code)


def ask(address: str, arguments: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        request = {"folder": os.getcwd(), "environment": dict(os.environ), "arguments": arguments}
        socket.send_fds(connection, [json.dumps(request).encode()], [1, 2])
        return int(connection.recv(16) or b"1")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    sys.exit(ask(sys.argv[2], sys.argv[3:]))
