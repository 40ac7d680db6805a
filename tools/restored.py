"""Compares what DVC restores with `dvc.lock` and repairs it: DVC checks out files from its cache unverified.

Every output of dvc.lock is looked up in three places: here, `.dvc/cache` and `release/cache`. A damaged object of the
cache is replaced by an intact copy or removed, and so is a file here that was checked out from it. A file here that
differs otherwise gets today's date, so that DVC looks at it again. Exit code 1 if something is beyond repair.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from micronet.errors import MicronetError, shown  # noqa: E402 - the line above makes it importable
from micronet.files import checksum, read_bytes, reason, write_atomically  # noqa: E402
from micronet.front import Parser  # noqa: E402

LOCK = Path("dvc.lock")
CACHE = Path(".dvc/cache/files/md5")
REMOTE = Path("release/cache/files/md5")


class RestoreError(MicronetError):
    """Something DVC would restore is damaged; a one-line message."""


@dataclass(frozen=True)
class Output:
    """An output file of a stage, as dvc.lock describes it."""

    path: Path
    md5: str
    size: int

    def object_in(self, folder: Path) -> Path:
        """Its path in a cache."""
        return folder / self.md5[:2] / self.md5[2:]

    def is_right(self, path: Path) -> bool:
        """Whether a file has exactly these bytes."""
        return path.is_file() and path.stat().st_size == self.size and checksum(path, "md5") == self.md5


def outputs(lock: Path = LOCK) -> Iterator[Output]:
    """The outputs named in dvc.lock, without folders. Raises `RestoreError` if it is damaged."""
    way = f"`git checkout -- {lock}` restores the committed one"
    try:
        stages = yaml.load(read_bytes(lock), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stages"].values()
        for stage in stages:
            for out in stage.get("outs", []):
                path, md5, size = out["path"], out["md5"], out["size"]
                if not md5.endswith(".dir"):
                    int(md5, 16)
                    yield Output(Path(path), md5, int(size))
    except (yaml.YAMLError, LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise RestoreError(f"{lock}: is damaged ({shown(reason(error), 100)}); {way}") from None


def mend(output: Output) -> str | None:
    """What was done, or None. Raises `RestoreError` for a damaged file without an intact copy that git keeps."""
    here, cached, remote = output.path, output.object_in(CACHE), output.object_in(REMOTE)
    if not cached.exists():
        if remote.exists() and not output.is_right(remote):
            raise RestoreError(f"{remote} ({here}): is damaged; `git checkout -- {REMOTE.parents[1]}` restores it")
        if here.is_file() and not output.is_right(here):
            os.utime(here)
        return None
    right = output.is_right(cached)
    if here.is_file() and not output.is_right(here):
        if right or read_bytes(here) != read_bytes(cached):
            os.utime(here)
        else:
            here.unlink()
    if right:
        return None
    source = next((path for path in (here, remote) if output.is_right(path)), None)
    content = source and read_bytes(source)
    if cached.is_dir():
        raise RestoreError(f"{cached} ({here}): is a folder; remove it: rm -r {cached}")
    cached.unlink()
    if content is None:
        return f"{here}: its copy in {CACHE.parents[1]} was damaged and is removed; the stage makes it anew"
    write_atomically(cached, content)
    cached.chmod(0o444)  # as DVC keeps them
    if not here.exists():
        write_atomically(here, content)
    return f"{here}: its copy in {CACHE.parents[1]} was damaged; it is restored from {source}"


def main() -> int:
    if not LOCK.is_file():
        return 0
    try:
        for output in outputs():
            said = mend(output)
            if said:
                print(f"make: {said}", file=sys.stderr)
    except (MicronetError, OSError) as error:
        said = str(error) if isinstance(error, MicronetError) else f"{error.filename}: {reason(error)}"
        print(f"make: {said}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    Parser(description=__doc__).parse_args()
    sys.exit(main())
