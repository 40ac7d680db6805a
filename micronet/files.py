"""Files that are complete or absent: the one place that writes a file under a temporary name and then renames it."""

from __future__ import annotations

import csv
import fcntl
import glob
import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from micronet.errors import MicronetError, shown


class FileError(MicronetError):
    """A file cannot be written or read; the message is one sentence."""

    remedy = "it must be yours and its disk have room: `make doctor` looks"


class NotRegular(OSError):
    """A folder, pipe or device where a regular file is expected."""


class TooLarge(OSError):
    """A file is larger than the limit for reading."""


# How a file written by `torch.save` begins: an archive, or a pickle of protocol 2 to 5.
PICKLED = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Writes a file under a temporary name beside its place, then renames it. Creates the folder; text is UTF-8.

    Leftovers of a killed writer of the same file are removed first.

    Raises:
        FileError: the disk is full or the place cannot be written; an existing file stays.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        with _temporary(path, folder=False) as (temporary, descriptor):
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.fchmod(descriptor, 0o644)
            os.replace(temporary, path)
    except OSError as error:
        why = in_the_way(path) or reason(error)
        raise FileError(f"{path}: cannot be written ({why}); what stood there is intact") from error


@contextmanager
def temporary_folder(place: Path) -> Iterator[Path]:
    """A new folder beside `place`, for files to be renamed to there; deleted afterwards with its remaining content.

    Leftovers of a killed process with the same name are removed first. Raises `OSError` if it cannot be created.
    """
    with _temporary(place, folder=True) as (temporary, _):
        yield temporary


@contextmanager
def _temporary(place: Path, *, folder: bool) -> Iterator[tuple[Path, int]]:
    """A file or folder beside `place`, and its descriptor; removed at the end if it is still there.

    It is locked while it is being written, which distinguishes it from one whose writer was killed. Process ids would
    not: they are reused, and on a shared disk may belong to another machine.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in place.parent.glob(f".{glob.escape(place.name)}.????????.part"):
        _remove_abandoned(abandoned)
    temporary, descriptor = _create_locked(place, folder)
    try:
        yield temporary, descriptor
    finally:
        _remove(temporary)
        os.close(descriptor)


def _create_locked(place: Path, folder: bool) -> tuple[Path, int]:
    while True:
        temporary = place.with_name(f".{place.name}.{os.urandom(4).hex()}.part")
        if folder:
            temporary.mkdir()
            descriptor = os.open(temporary, os.O_RDONLY)
        else:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        with suppress(OSError):  # a file system without locks: then nobody takes it for abandoned either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, descriptor
        os.close(descriptor)  # another writer removed it just before it was locked


def _remove_abandoned(path: Path) -> None:
    with suppress(OSError):  # locked: it is being written; or it is gone
        descriptor = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(path)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def check_place(folder: Path) -> None:
    """Raises `FileError` if no file can be written into a folder, which need not exist yet. Creates nothing."""
    why = in_the_way(folder / "file")
    if not why:
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        why = None if os.access(there, os.W_OK | os.X_OK) else f"{there} is read-only"
    if why:
        raise FileError(f"{folder}: results cannot be written there ({why})")


def in_the_way(path: Path) -> str | None:
    """What blocks the place of a folder above `path`, or of the file itself; None if nothing does."""
    for parent in reversed(path.parents):
        if os.path.lexists(parent) and not parent.is_dir():
            kind = "a link to nothing" if parent.is_symlink() and not parent.exists() else "no folder"
            return f"{parent} is {kind}; move it away"
    return f"{path} is a folder; move it away" if path.is_dir() else None


def write_json(path: Path | str, content: Mapping[str, Any]) -> None:
    """Writes a JSON object atomically, one key per line."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def write_csv(
    path: Path | str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, digits: int | None = None
) -> None:
    """Writes a table atomically, with a header line of column names.

    Args:
        rows: a value for each column; None, or a missing column, gives an empty field.
        digits: significant digits of a float; by default as many as it takes to read the same number back.

    Raises:
        ValueError: a row has a value for a column that does not exist.
    """

    def written(value: Any) -> Any:
        return f"{value:.{digits}g}" if digits is not None and isinstance(value, float) else value

    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: written(value) for key, value in row.items()} for row in rows)
    write_atomically(path, text.getvalue())


def read_bytes(path: Path | str) -> bytes:
    """The content of a file. Raises `FileError` if it is missing or cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({reason(error)})") from None


def regular_bytes(path: Path | str, most: int) -> bytes:
    """The content of a regular file that may come from anybody: a device might never end, a pipe never begin.

    Raises:
        NotRegular: it is not a regular file. TooLarge: it has more than `most` bytes.
        OSError: it is missing or cannot be read. ValueError: no file can have such a name.
    """
    # O_NONBLOCK, because opening a pipe otherwise waits for a writer.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise NotRegular(None, "is no regular file")
        content = file.read(most + 1) if state.st_size <= most else None
    if content is None or len(content) > most:
        raise TooLarge(None, f"is larger than {most:,} bytes")
    return content


def read_json(path: Path | str) -> Any:
    """The content of a JSON file. Raises `FileError` if it is missing, not text or not JSON."""
    try:
        return json.loads(read_bytes(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: cannot be read ({reason(error)})") from None


def read_csv(path: Path | str) -> list[dict[str, str]]:
    """The rows of a table with a header line, as text. Raises `FileError` if it is missing or not text."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise FileError(f"{path}: cannot be read ({reason(error)})") from None


def checksum(path: Path | str, algorithm: str = "sha256") -> str:
    """The checksum of a file's bytes in hexadecimal digits: sha256, or another algorithm from `hashlib`."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def reason(error: Exception) -> str:
    """Why something failed, in words for one line: the system's, if it has any."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return (error.strerror if isinstance(error, OSError) else None) or shown(error, 160) or type(error).__name__
