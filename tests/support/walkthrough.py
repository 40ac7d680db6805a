"""A document that a reader follows: its commands and edits, in order, and the copy they run in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support import warm
from tests.support.pipeline import ENVIRONMENT
from tests.support.places import ROOT

LIMIT = 1800  # seconds: only a guard against hangs, a command may be a whole pipeline on a busy machine
# Set by the make or git hook that runs the tests.
FOREIGN = ("MAKE", "MFLAGS", "GIT_", "RECIPE", "FILE", "VENV", "PYTHON", "NAME", "ARGS")
IDENTITY = {
    f"GIT_{role}_{what}": said
    for role in ("AUTHOR", "COMMITTER")
    for what, said in (("NAME", "nobody"), ("EMAIL", "nobody@example.invalid"))
}


def page(name: str) -> str:
    """The text of a page. `name`: such as experiments, for docs/experiments.md."""
    return (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")


def steps(text: str) -> list[tuple[str, str]]:
    """`("sh", command)` for each command of a page's shell blocks, `("diff", text)` for each of its edits."""
    found: list[tuple[str, str]] = []
    for kind, block in re.findall(r"^```(sh|diff)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        found += [(kind, block)] if kind == "diff" else [(kind, line) for line in block.splitlines() if line]
    return found


def commands(text: str) -> list[str]:
    """Only the commands."""
    return [command for kind, command in steps(text) if kind == "sh"]


def edited(path: Path, diff: str) -> None:
    """Makes an edit: its lines with - must be in the file once, and those with + replace them."""
    old, new = ("".join(f"{line[1:]}\n" for line in diff.splitlines() if line.startswith(sign)) for sign in ("-", "+"))
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.name}: {old!r}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def copy(folder: Path) -> Path:
    """A copy of the pipeline without its results, with the demo params."""
    for name in ("stages", "models", "micronet", "tools", "recipes", "networks", "data/sample"):
        if (ROOT / name).exists():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "Makefile", "requirements.lock"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(ROOT / "recipes/demo.yaml", folder / "params.yaml")
    environment(folder)
    return folder


def environment(folder: Path) -> None:
    """A `.venv` whose `python` and `dvc` start at once."""
    programs = folder / ".venv/bin"
    programs.mkdir(parents=True)
    with_torch, with_dvc = warm.folder() / "python", warm.folder("dvc") / "python"
    _program(programs / "python", f'[ "$1 $2" = "-m dvc" ] && exec "{with_dvc}" "$@"\nexec "{with_torch}" "$@"')
    # a queue worker outlives the command, so it gets a real Python
    real = f'[ "$1" = queue ] && exec "{sys.executable}" -m dvc "$@"'
    _program(programs / "dvc", f'{real}\nexec "{with_dvc}" -m dvc "$@"')
    shutil.copy(ROOT / "requirements.lock", folder / ".venv/installed.lock")


def _program(path: Path, lines: str) -> None:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)


def shell(folder: Path, command: str) -> str:
    """The output of a command typed in a folder, which must succeed."""
    path = f"{folder}/.venv/bin{os.pathsep}{ENVIRONMENT['PATH']}"
    ours = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(FOREIGN)}
    with tempfile.TemporaryFile("w+") as said:  # not a pipe: background processes would keep it open
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=ours | IDENTITY | {"PATH": path, "DVC_NO_ANALYTICS": "1"},
            stdout=said,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
        )
        said.seek(0)
        text = said.read()
    assert done.returncode == 0, f"{command}\n{text}"
    return text
