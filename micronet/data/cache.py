"""A per-user cache of downloads, so that a second clone or a task of a sweep fetches nothing.

It is in `$XDG_CACHE_HOME/micronet`, or in `~/.cache/micronet` if that is not set. A file is compared with its
official md5 sum before it is kept and whenever it is used.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from micronet.data.arrays import DataError
from micronet.data.progress import Report
from micronet.files import checksum, reason, temporary_folder


def cache_folder() -> Path | None:
    """Where downloads are kept; None for a user without a home folder. It need not exist yet."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"  # relative paths are to be ignored
    except RuntimeError:
        return None
    return base / "micronet"


@contextmanager
def kept(
    files: Mapping[str, str], download: Callable[[Path], None], timeout: float, report: Report
) -> Iterator[dict[str, Path]]:
    """Yields the paths of files from the cache, or else from a download, which is cached if it is the official one.

    Args:
        files: `{name: md5 sum}`. download: puts them into a folder or its subfolders. timeout: how many seconds to
            wait for another process that is downloading the same files.

    Raises:
        DataError: the download failed or left a file out.
    """
    folder = cache_folder()
    if folder and (found := _whole(folder, files, report)):
        yield found
        return
    with ExitStack() as stack:
        try:
            if folder is None:
                raise OSError("there is no home folder")
            stack.enter_context(_turn(folder / f".{next(iter(files))}.lock", timeout, report))
            temporary = stack.enter_context(temporary_folder(folder / "download"))
        except OSError as error:
            report(f"{folder or 'the cache'}: cannot be written ({reason(error)}); what is downloaded is not kept")
            folder = None
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="micronet-")))
        if folder and (found := _whole(folder, files, report)):  # another process has just fetched them
            yield found
            return
        download(temporary)
        found = {name: _find(temporary, name) for name in files}
        if folder and all(checksum(path, "md5") == files[name] for name, path in found.items()):
            with suppress(OSError):  # then they are used where they are
                for name, path in found.items():
                    os.replace(path, folder / name)
                    found[name] = folder / name
        yield found


def cache_size() -> int:
    """The total size of the cached files, in bytes."""
    folder, total = cache_folder(), 0
    for place, _, names in os.walk(folder) if folder else ():
        for name in names:
            with suppress(OSError):  # removed since it was listed
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def is_kept(files: Iterable[str]) -> bool:
    """Whether files of these names are in the cache; their checksums are not compared."""
    folder = cache_folder()
    return folder is not None and all((folder / name).is_file() for name in files)


def _whole(folder: Path, files: Mapping[str, str], report: Report) -> dict[str, Path] | None:
    """The files in a folder if all are there and intact, else None; damaged ones are deleted."""
    found = {name: folder / name for name in files}
    try:
        if not all(path.is_file() for path in found.values()):
            return None
        damaged = [path for name, path in found.items() if checksum(path, "md5") != files[name]]
    except OSError as error:
        report(f"{error.filename}: cannot be read ({reason(error)})")
        return None
    for path in damaged:
        report(f"{path}: is damaged: fetched again")
        with suppress(OSError):
            path.unlink()
    return None if damaged else found


def _find(folder: Path, name: str) -> Path:
    path = next((path for path in sorted(folder.rglob(name)) if path.is_file()), None)
    if path is None:
        raise DataError(f"the download left no {name}")
    return path


@contextmanager
def _turn(lock: Path, timeout: float, report: Report) -> Iterator[None]:
    """Waits until no other process is downloading the same; after too long a wait, goes on and fetches it again.

    Raises:
        OSError: the lock cannot be written.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        limit, said = time.monotonic() + timeout, False
        while time.monotonic() < limit:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said:
                    report("another process downloads the same: waiting for it")
                said = True
                time.sleep(0.1)
            except OSError:  # a file system without locks
                break
        yield
