"""Where things lie."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MADE = {".git", ".venv", "build", "run", "__pycache__", "cache"}  # folders that using an unpacked archive creates


def listed(root: Path = ROOT) -> list[str]:
    """The checkout's files, from the root: those git lists, or all of an unpacked archive."""
    if (root / ".git").exists():
        done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.rstrip("\0").split("\0")
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - MADE)
        found += [Path(folder, name).relative_to(root).as_posix() for name in sorted(names)]
    return found


def entries(folder: Path) -> list[str]:
    """The names in a folder, including hidden ones."""
    return sorted(path.name for path in folder.iterdir())
