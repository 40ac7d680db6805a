"""git commands. The module is not named `git`: where sweeps/run.py runs, that name is GitPython's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from micronet.errors import MicronetError, shown


class GitError(MicronetError):
    """git refused; a one-line message."""

    remedy = "a clone with its commits works; `make doctor` looks at git"


def git(root: Path, *words: str, given: str | None = None, more: Mapping[str, str] | None = None) -> str:
    """The output of a git command. Raises `GitError` with its last line."""
    environment = os.environ | dict(more or {})
    done = subprocess.run(
        ["git", "-C", str(root), *words], input=given, capture_output=True, text=True, env=environment
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it says nothing"]
        raise GitError(f"git {words[0]}: {shown(said[-1], 200)}")
    return done.stdout.strip()


def head(root: Path) -> str:
    """The commit that is checked out."""
    return git(root, "rev-parse", "--verify", "HEAD^{commit}")
