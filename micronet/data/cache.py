"""What was downloaded, kept once a user: a second clone, or a task of a sweep, fetches nothing.

It lies in `$XDG_CACHE_HOME/micronet`, in `~/.cache/micronet` where that is not set. A file is compared with its
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
    """Where downloads are kept; None for somebody who has no home. It need not be there yet."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"  # a relative one is to be ignored
    except RuntimeError:
        return None
    return base / "micronet"


@contextmanager
def kept(
    files: Mapping[str, str], download: Callable[[Path], None], timeout: float, report: Report
) -> Iterator[dict[str, Path]]:
    """The paths of some files: those in the cache, or else of a download, which goes there when it is official.

    Args:
        files: the md5 sum of each by its name. download: puts them into a folder or those below it. timeout: in
            seconds, how long to wait for another process that downloads the same.

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
        if folder and (found := _whole(folder, files, report)):  # another process was faster
            yield found
            return
        download(temporary)
        found = {name: _find(temporary, name) for name in files}
        if folder and all(checksum(path, "md5") == files[name] for name, path in found.items()):
            with suppress(OSError):  # it is used where it is, then
                for name, path in found.items():
                    os.replace(path, folder / name)
                    found[name] = folder / name
        yield found


def cache_size() -> int:
    """The bytes of all files that are kept."""
    folder, total = cache_folder(), 0
    for place, _, names in os.walk(folder) if folder else ():
        for name in names:
            with suppress(OSError):  # gone between listing and looking
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def is_kept(files: Iterable[str]) -> bool:
    """Whether files of these names are in the cache; nothing is compared."""
    folder = cache_folder()
    return folder is not None and all((folder / name).is_file() for name in files)


def _whole(folder: Path, files: Mapping[str, str], report: Report) -> dict[str, Path] | None:
    """The files in a folder when all are there; one that is damaged is thrown away."""
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
    """Waits until no other process downloads the same; who waited too long goes on, and fetches it a second time.

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
