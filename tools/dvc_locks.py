"""Repairs what a killed DVC left in `.dvc/tmp`, before the next one refuses to start; prints a line for what was done.

DVC records in `rwlock` which process uses which file, and does not write it atomically: a kill leaves it empty, and
every later command says "JSON structure is corrupted". Nothing is touched while a DVC of this checkout runs. The other
locks belong to the system and end with the process that holds them.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from micronet.errors import MicronetError  # noqa: E402 - the line above makes it importable
from micronet.files import FileError, read_json, reason, write_atomically  # noqa: E402
from micronet.front import Parser  # noqa: E402

FOLDER = Path(".dvc/tmp")
FILES = ("lock", "rwlock", "rwlock.lock")


class LockError(MicronetError):
    """A DVC lock is in the way and cannot be repaired; a one-line message."""


def runs_dvc(process: Path) -> bool:
    """Whether a folder of `/proc` belongs to a DVC, or to `tools/repro.py`, which is DVC under another name."""
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # it has ended, or is another user's
        return False
    names = [Path(word).name for word in words[:4]]
    scripts = [Path(word).parts[-2:] for word in words[:4]]
    return "dvc" in names or ("dvc", "__main__.py") in scripts or ("tools", "repro.py") in scripts


def others_here() -> list[int]:
    """The ids of the DVC processes running in or below this folder, as far as the system shows them."""
    here, found = Path.cwd().resolve(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if runs_dvc(process) and Path(os.readlink(process / "cwd")).is_relative_to(here):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def lives(entry: Any) -> bool:
    """Whether an entry's process is still a DVC; its id may have been reused."""
    number = entry["pid"]
    if not Path("/proc").is_dir():
        return True  # DVC looks itself
    return type(number) is int and runs_dvc(Path(f"/proc/{number}"))


def without_the_dead(locks: Any) -> dict[str, Any]:
    """The entries of processes that run.

    Raises:
        LookupError, TypeError, AttributeError: DVC did not write this.
    """
    write = {path: entry for path, entry in locks.get("write", {}).items() if lives(entry)}
    read = {path: [entry for entry in entries if lives(entry)] for path, entries in locks.get("read", {}).items()}
    return {"write": write, "read": {path: entries for path, entries in read.items() if entries}}


def check_folders(folder: Path = FOLDER) -> None:
    """Raises `LockError` for a folder in place of a DVC lock."""
    for name in FILES:
        if (folder / name).is_dir():
            raise LockError(f"{folder / name} is a folder where DVC keeps a lock; remove it: rm -r {folder / name}")


def read(path: Path) -> tuple[Any, dict[str, Any], str]:
    """The content of `rwlock`, None if damaged; the part to keep; and what is wrong with the rest."""
    try:
        locks = read_json(path)
        return locks, without_the_dead(locks), "locks of processes that have ended are removed"
    except (FileError, LookupError, TypeError, AttributeError):
        said = "was left damaged by a DVC that was killed; it is mended"
        return None, {"write": {}, "read": {}}, said


def is_right(locks: Any, kept: dict[str, Any]) -> bool:
    """Whether nothing needs to be removed from what `read` returned."""
    return locks is not None and kept == {"write": locks.get("write", {}), "read": locks.get("read", {})}


def look(folder: Path = FOLDER) -> tuple[str, str]:
    """What is wrong and the command that fixes it, touching nothing; two empty texts if all is well."""
    path = folder / "rwlock"
    try:
        check_folders(folder)
    except LockError as error:
        said, _, way = str(error).partition("; remove it: ")
        return said, way
    if not path.exists():
        return "", ""
    locks, kept, _ = read(path)
    if is_right(locks, kept) or (locks is None and others_here()):
        return "", ""
    return f"{path}: was left {'damaged' if locks is None else 'behind'} by a DVC that was killed", "make unlock"


def mend(folder: Path = FOLDER) -> str | None:
    """What was done, or None. Raises `LockError`."""
    check_folders(folder)
    path = folder / "rwlock"
    if not path.exists():
        return None
    with (folder / "rwlock.lock").open("a") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return None  # a DVC is writing it now, or this disk has no locks
        locks, kept, done = read(path)
        if is_right(locks, kept):
            return None
        running = others_here() if locks is None else []
        if running:
            raise LockError(f"{path}: is damaged, and DVC runs here as process {running[0]}; wait for it or stop it")
        write_atomically(path, json.dumps(kept))
    return f"{path}: {done}"


def main() -> int:
    try:
        said = mend()
    except (MicronetError, OSError) as error:
        print(f"make: {error if isinstance(error, MicronetError) else f'{FOLDER}: {reason(error)}'}", file=sys.stderr)
        return 1
    if said:
        print(f"make: {said}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    Parser(description=__doc__).parse_args()
    sys.exit(main())
