"""What a killed run needs to resume."""

from __future__ import annotations

import fcntl
import hashlib
import io
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

from micronet.errors import MicronetError, shown
from micronet.files import in_the_way, reason, write_atomically

KEPT = 3  # how many states of other params or code are kept when a run begins


class StateError(MicronetError):
    """The state of a run belongs to another process; the message is one sentence."""


class ResumeState:
    """The state of a run, in `FOLDER/DIGEST/state`; a lock on FOLDER keeps a second trainer out.

    The file is a sha256 of what follows, then the length, then `torch.save` bytes that are read back with
    `weights_only=True`. Anything else is set aside as `state.refused` and reported, never loaded.
    """

    MAGIC = b"micronet-state-1"

    def __init__(self, folder: Path | str, digest: str):
        self.folder = Path(folder)
        self.digest = digest
        self.path = self.folder / digest / "state"
        self._lock: TextIO | None = None

    def __enter__(self) -> ResumeState:
        way = in_the_way(self.path)
        if way:
            raise StateError(f"{way}: the state of this stage is kept there")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock = (self.folder / "lock").open("a")
        except OSError as error:
            raise StateError(f"{error.filename or self.folder}: cannot be written ({reason(error)})") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise StateError(f"{self.folder}: another process is training this stage; wait for it or stop it") from None
        except OSError as error:
            lock.close()
            raise StateError(
                f"{self.folder}/lock: cannot be locked ({reason(error)}); `run` needs a disk with locks"
            ) from None
        others = [other for other in self.folder.iterdir() if other.is_dir() and other.name != self.digest]
        # States of other params or code: the newest ones are kept, for users who go back to them.
        for other in sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
            shutil.rmtree(other, ignore_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def save(self, content: dict[str, Any]) -> None:
        """Replaces the saved state. Raises `FileError` if it cannot be written; the old one stays."""
        buffer = io.BytesIO()
        torch.save(content | {"digest": self.digest}, buffer)
        data = buffer.getvalue()
        head = self.MAGIC + hashlib.sha256(data).digest() + struct.pack("<Q", len(data))
        write_atomically(self.path, head + data)

    def load(self, take: Callable[[dict[str, Any]], None] | None = None) -> tuple[dict[str, Any] | None, str | None]:
        """The saved state, or None; and a sentence if a file was set aside.

        Args:
            take: is given the content; if it raises, which must leave everything unchanged, the file is set aside too.

        Raises:
            StateError: a damaged state cannot be set aside.
        """
        if not self.path.exists():
            return None, None
        try:
            content = self._read()
            if take:
                take(content)
            return content, None
        except Exception as error:  # a damaged file can make torch raise anything
            aside = self.path.with_name("state.refused")
            try:
                self.path.rename(aside)
            except OSError as fault:
                raise StateError(f"{self.path}: is damaged and cannot be put aside ({reason(fault)})") from None
            return None, f"{aside}: resume state put aside, {shown(reason(error), 120)}; starting anew"

    def _read(self) -> dict[str, Any]:
        """The content of the file. Raises `ValueError`, or what `torch.load` raises, if it is damaged or foreign."""
        data = self.path.read_bytes()
        head = len(self.MAGIC) + 40
        if data[: len(self.MAGIC)] != self.MAGIC:
            raise ValueError("it is of another version")
        (length,) = struct.unpack("<Q", data[head - 8 : head])
        if len(data) != head + length:
            raise ValueError("it is truncated")
        if hashlib.sha256(data[head:]).digest() != data[len(self.MAGIC) : head - 8]:
            raise ValueError("its checksum does not fit")
        content = torch.load(io.BytesIO(data[head:]), weights_only=True)
        if not isinstance(content, dict) or content.pop("digest", None) != self.digest:
            raise ValueError("it belongs to other params")
        return content

    def clear(self) -> None:
        """Removes the state after success."""
        shutil.rmtree(self.path.parent, ignore_errors=True)
