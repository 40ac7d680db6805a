"""A document that a reader follows: its commands and its edits, in their order, and how they are made."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.support.pipeline import ENVIRONMENT

LIMIT = 1800  # seconds: only against a hang, a command may be a whole pipeline on a machine that is busy otherwise
# What the make or the git hook that runs the tests has set.
FOREIGN = ("MAKE", "MFLAGS", "GIT_", "RECIPE", "FILE", "VENV", "PYTHON", "NAME", "ARGS")


def steps(page: str) -> list[tuple[str, str]]:
    """`("sh", command)` for each command of the page's shell blocks, `("diff", text)` for each of its edits."""
    found: list[tuple[str, str]] = []
    for kind, block in re.findall(r"^```(sh|diff)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        found += [(kind, block)] if kind == "diff" else [(kind, line) for line in block.splitlines() if line]
    return found


def edited(path: Path, diff: str) -> None:
    """Makes an edit: its lines with - stand in the file once, those with + take their place."""
    old, new = ("".join(f"{line[1:]}\n" for line in diff.splitlines() if line.startswith(sign)) for sign in ("-", "+"))
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.name}: {old!r}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def shell(folder: Path, command: str) -> str:
    """What a command says that somebody types in a folder, and that succeeds."""
    path = f"{folder}/.venv/bin{os.pathsep}{ENVIRONMENT['PATH']}"
    ours = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(FOREIGN)}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=ours | {"PATH": path, "DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr
