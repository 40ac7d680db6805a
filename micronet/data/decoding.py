"""Decodes many pictures on all cores into a file of pixels, which are never all in memory at once."""

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

TOGETHER = 16  # pictures per task
FEW, FEW_BYTES = 1000, 1 << 24  # up to here, decoding is done before other processes would have started
DIGEST_BYTES = 16


class _Task(NamedTuple):
    folder: str
    names: Sequence[str]  # paths in the folder
    file: str  # receives the pixels
    row: int  # of the first picture
    form: PlainFormat


def decode(
    folder: Path, names: Sequence[str], file: Path, image: Format, *, size: int, update: Callable[[int], None]
) -> list[bytes | str]:
    """Writes the pixels of pictures into a file, C * H * W bytes each; zeros for those that cannot be read.

    Args:
        names: paths in the folder.
        size: total bytes of the pictures. update: is told how many are done.

    Returns:
        For each picture a digest of its pixels or, as text, the reason why it cannot be read.

    Raises:
        OSError: the file cannot be written.
        BrokenProcessPool: a process was killed, as happens when memory is short.
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
    """The results of tasks, in order, computed by several processes."""
    # A forked process would inherit locks held by threads that it does not have.
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
    """Adds tasks. Processes started here never see a Ctrl-C, which is for this process: it ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        waiting.extend(pool.submit(_decode, task) for task in tasks)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """The first thing a process does: makes sure that it ends with its parent, even if that is killed."""
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
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
