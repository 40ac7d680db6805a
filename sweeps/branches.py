"""A git branch for a row: the commit it ran at, with its params, lock and metrics. The checkout is not touched."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from micronet.errors import shown
from sweeps.repository import GitError, git


def branch(root: Path, name: str, commit: str, files: Mapping[str, str], without: Collection[str], message: str) -> str:
    """Creates or moves a branch to a commit on top of `commit`, with these files added and those of `without` removed.

    Returns:
        The commit. If it already has this content, it stays.

    Raises:
        GitError: the branch is checked out somewhere, or git cannot create it.
    """
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git(root, "read-tree", commit, more=index)
        lines = [f"0 {'0' * 40}\t{path}\n" for path in without]
        for path, text in files.items():
            blob = git(root, "hash-object", "-w", "--stdin", given=text)
            lines.append(f"100644 {blob}\t{path}\n")
        git(root, "update-index", "--index-info", given="".join(lines), more=index)
        tree = git(root, "write-tree", more=index)
    there = git(root, "for-each-ref", "--format=%(objectname) %(tree) %(parent) %(worktreepath)", f"refs/heads/{name}")
    old, old_tree, parent, checked_out = [*there.split(" ", 3), "", "", "", ""][:4] if there else ("", "", "", "")
    if (old_tree, parent) == (tree, commit):
        return old
    if checked_out:
        raise GitError(f"branch {name} is checked out in {shown(checked_out, 80)}; switch to another there")
    nobody = {"GIT_AUTHOR_NAME": "sweep", "GIT_AUTHOR_EMAIL": "sweep@localhost"}
    nobody |= {"GIT_COMMITTER_NAME": "sweep", "GIT_COMMITTER_EMAIL": "sweep@localhost"}
    named = subprocess.run(["git", "-C", str(root), "config", "user.email"], capture_output=True).returncode == 0
    made = git(root, "commit-tree", tree, "-p", commit, "-m", message, more={} if named else nobody)
    git(root, "update-ref", f"refs/heads/{name}", made, *([old] if old else []))
    return made
