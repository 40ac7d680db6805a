"""Files that are whole or absent."""

from __future__ import annotations

import csv
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
    """Writes a file under a temporary name beside its place, then renames it. The folder is made."""
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


def write_json(path: Path | str, content: dict[str, Any]) -> None:
    """Writes a JSON object, one key a line, atomically."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def write_csv(path: Path | str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a table, a line of names before the rows, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
