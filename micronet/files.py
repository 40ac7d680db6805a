"""Files that are whole or absent: the one place where a file is written beside its place and put there at once."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from micronet.errors import MicronetError


class FileError(MicronetError):
    """A file cannot be written or read; the message is one sentence."""


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Writes a file under a temporary name beside its place, then renames it. The folder is made; text is UTF-8.

    Raises:
        FileError: the disk is full or the place cannot be written; what stood there stays.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise FileError(
                f"{path}: cannot be written ({error.strerror or error}); what stood there is intact"
            ) from error
        raise


def write_json(path: Path | str, content: Mapping[str, Any]) -> None:
    """Writes a JSON object, one key a line, atomically."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def write_csv(
    path: Path | str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, digits: int | None = None
) -> None:
    """Writes a table, a line of names before the rows, atomically.

    Args:
        rows: a value for each column; none, or a column that a row lacks, is an empty field.
        digits: significant digits of a float; all that it takes to read the same number back when left out.

    Raises:
        ValueError: a row has a value for a column that there is not.
    """

    def written(value: Any) -> Any:
        return f"{value:.{digits}g}" if digits is not None and isinstance(value, float) else value

    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: written(value) for key, value in row.items()} for row in rows)
    write_atomically(path, text.getvalue())


def read_json(path: Path | str) -> Any:
    """The content of a JSON file. Raises `FileError` when it is missing, not text or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be read ({_reason(error)})") from None


def read_csv(path: Path | str) -> list[dict[str, str]]:
    """The rows of a table with a line of names, as text. Raises `FileError` when it is missing or not text."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise FileError(f"{path}: cannot be read ({_reason(error)})") from None


def checksum(path: Path | str, algorithm: str = "sha256") -> str:
    """The checksum of a file's bytes in hexadecimal digits: sha256, or another algorithm that `hashlib` has."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
