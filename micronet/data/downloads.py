"""Downloads by other programs, in separate processes so that a time limit can be enforced."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from micronet.data.arrays import DataError
from micronet.data.progress import Report, progress_bar


def download(
    command: list[str], folder: Path, title: str, megabytes: int, timeout: float, report: Report, **environment: str
) -> None:
    """Runs a program that downloads into `folder`; after the time limit it is ended, with its children.

    Args:
        megabytes: the size of the download, for the progress bar. timeout: in seconds. environment: variables added
            to ours.

    Raises:
        DataError: it failed or took too long; the message has its last line of output.
    """
    log = folder / "log.txt"
    report(f"{title} ({megabytes} MB, at most {timeout:g} s)")
    with log.open("wb") as output, progress_bar(title, megabytes, "MB", report) as update:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
            start_new_session=True,  # so that its children can be ended with it
        )
        try:
            deadline = time.monotonic() + timeout
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise DataError(f"not done within {timeout:g} s (data.timeout_seconds)")
                update(min(megabytes, _size_on_disk(folder) // 10**6))
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if "rror" in line and "complete log" not in line] or lines
        raise DataError(telling[-1][:200] if telling else f"the download ended with {process.returncode}")


def _size_on_disk(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except OSError:  # renamed since it was listed
                pass
    return total
