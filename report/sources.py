"""Where the files of a run are read from: a folder, or a revision of its git repository."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from micronet.errors import shown
from micronet.files import reason
from report.errors import ReportError

MOST_BYTES = 1 << 26  # per file that a page is made from


class Source(Protocol):
    """Files by their path from the repository's root."""

    def content(self, path: str) -> bytes | None:
        """The bytes of a regular file; None where there is none. Raises `ReportError`: it cannot be read."""
        ...

    def names(self, folder: str) -> list[str]:
        """The names in a folder; empty if there is no such folder."""
        ...


@dataclass(frozen=True)
class Folder:
    """The files as they are now."""

    root: Path

    def content(self, path: str) -> bytes | None:
        place = self.root / path
        if not place.is_file():
            return None
        try:
            with place.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise ReportError(f"{shown(path, 100)}: cannot be read ({reason(error)})") from None
        if len(data) > MOST_BYTES:
            raise ReportError(f"{shown(path, 100)}: is larger than any result")
        return data

    def names(self, folder: str) -> list[str]:
        place = self.root / folder
        try:
            return sorted(entry.name for entry in place.iterdir()) if place.is_dir() else []
        except OSError:
            return []


@dataclass(frozen=True)
class Revision:
    """The files of a commit."""

    root: Path
    commit: str
    sizes: Mapping[str, int]  # in bytes, of each file

    def content(self, path: str) -> bytes | None:
        if path not in self.sizes:
            return None
        if self.sizes[path] > MOST_BYTES:
            raise ReportError(f"{shown(path, 100)}: is larger than any result")
        return _git(self.root, "cat-file", "blob", f"{self.commit}:{path}")

    def names(self, folder: str) -> list[str]:
        inside = (path.removeprefix(f"{folder}/") for path in self.sizes if path.startswith(f"{folder}/"))
        return sorted({path.partition("/")[0] for path in inside})


def revision(root: Path, name: str) -> Revision | None:
    """A commit, tag or branch of the repository whose root a folder is; None: no such revision, or no git."""
    found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if found is None or not _is_root(root):
        return None
    commit = found.decode().strip()
    sizes = {}
    for line in (_git(root, "ls-tree", "-r", "-l", "-z", commit) or b"").decode(errors="replace").split("\0"):
        facts, _, path = line.partition("\t")
        if facts and facts.split()[-1].isdigit():
            sizes[path] = int(facts.split()[-1])
    return Revision(root, commit, sizes)


def state(root: Path) -> str | None:
    """The commit that is checked out, `-dirty` if tracked files differ from it; None without git."""
    found = _git(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    if found is None or not _is_root(root):
        return None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return found.decode().strip()[:12] + ("-dirty" if changed else "")


def _is_root(root: Path) -> bool:
    """Whether a folder is a repository's root: inside someone else's, the commits say nothing about its files."""
    return (_git(root, "rev-parse", "--show-prefix") or b"").strip() == b""


def _git(root: Path, *words: str) -> bytes | None:
    """The output of a git command; None if it fails, or git is missing."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True)
    except (OSError, ValueError):
        return None
    return None if done.returncode else done.stdout
