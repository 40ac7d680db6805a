"""Many pictures at once, over all cores, into a file of pixels: what is decoded never lies in memory as a whole."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

import numpy as np

from micronet.data.pictures import Format, PlainFormat, Unreadable, read

TOGETHER = 16  # pictures of a task
FEW, FEW_BYTES = 1000, 1 << 24  # are decoded before other processes have started
DIGEST_BYTES = 16


class _Task(NamedTuple):
    folder: str
    names: Sequence[str]  # in the folder
    file: str  # that takes the pixels
    row: int  # of the first one's
    form: PlainFormat


def decode(
    folder: Path, names: Sequence[str], file: Path, image: Format, *, size: int, update: Callable[[int], None]
) -> list[bytes | str]:
    """Writes the pixels of pictures into a file, a row of C * H * W bytes each; zeros for what cannot be read.

    Args:
        names: paths in the folder.
        size: bytes of all of them together. update: is told how many are done.

    Returns:
        Of each picture a digest of its pixels, or, as text, why it cannot be read.

    Raises:
        OSError: the file cannot be written.
        BrokenProcessPool: a process was killed, which happens where memory is short.
    """
    form = PlainFormat(image.height, image.width, image.channels, image.fit)
    file.touch()
    tasks = (
        _Task(str(folder), names[row : row + TOGETHER], str(file), row, form) for row in range(0, len(names), TOGETHER)
    )
    done: list[bytes | str] = []
    few = len(names) <= FEW and size <= FEW_BYTES
    for found in map(_decode, tasks) if few else _spread(tasks, min(_cores(), -(-len(names) // TOGETHER))):
        done += found
        update(len(done))
    return done


def _spread(tasks: Iterator[_Task], processes: int) -> Iterator[list[bytes | str]]:
    """The results of tasks in their order, worked on by several processes."""
    # A forked process would hold locks of threads that it does not have.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _begin) as pool:
        try:
            yield from _in_order(tasks, pool, 4 * processes)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _in_order(tasks: Iterator[_Task], pool: Executor, ahead: int) -> Iterator[list[bytes | str]]:
    waiting: deque[Future[list[bytes | str]]] = deque()
    _submit(pool, islice(tasks, ahead), waiting)
    while waiting:
        yield waiting.popleft().result()
        _submit(pool, islice(tasks, 1), waiting)


def _submit(pool: Executor, tasks: Iterable[_Task], waiting: deque[Future[list[bytes | str]]]) -> None:
    """Adds tasks. Processes that start meanwhile never hear of a Ctrl-C, which is for this one: it ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        waiting.extend(pool.submit(_decode, task) for task in tasks)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """What a process does first: it sees to it that it ends with the one that started it, even if that is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _decode(task: _Task) -> list[bytes | str]:
    form = task.form
    pixels = np.zeros((len(task.names), form.channels * form.height * form.width), np.uint8)
    found: list[bytes | str] = []
    for row, name in zip(pixels, task.names, strict=True):
        try:
            row[:] = read(os.path.join(task.folder, name), form).reshape(-1)
            found.append(hashlib.blake2b(row.data, digest_size=DIGEST_BYTES).digest())
        except Unreadable as error:
            found.append(str(error))
    with open(task.file, "r+b") as file:
        file.seek(task.row * pixels.shape[1])
        file.write(pixels.data)
    return found


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
