"""C compilers: which one is available, and what it makes of C exports."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _tool import ToolError

from micronet.errors import shown

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
NAMES = ("cc", "gcc", "clang")
READER = "size"  # of binutils
LONGEST = 600  # seconds


@dataclass(frozen=True)
class Sizes:
    """Bytes of compiled C."""

    code: int
    constants: int
    memory: int


def compiler() -> str | None:
    """The C compiler of this machine: $CC, or the first of `NAMES`."""
    return next((found for name in (os.environ.get("CC"), *NAMES) if name and (found := shutil.which(name))), None)


def compiled(compiler: str, *words: str | Path) -> None:
    """Runs a compiler. Raises `ToolError` with its first error line."""
    done = subprocess.run([compiler, *map(str, words)], capture_output=True, text=True, timeout=LONGEST)
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise ToolError(f"{shown(compiler, 60)} failed ({shown(said, 180)})")


def sizes(source: Path, compiler: str, flags: Sequence[str]) -> Sizes | None:
    """The sizes of a compiled source; None if `READER` is missing or cannot read it.

    Raises:
        ToolError: it does not compile.
    """
    tool = shutil.which(READER)
    if tool is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        compiled(compiler, *STRICT, *flags, "-c", "-o", Path(folder, "model.o"), source)
        done = subprocess.run([tool, "-A", "-d", str(Path(folder, "model.o"))], capture_output=True, text=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    found = {row[0]: int(row[1]) for row in rows if len(row) == 3 and row[1].isdigit()}

    def of(*names: str) -> int:
        return sum(size for name, size in found.items() if name.startswith(names))

    if done.returncode or not of(".text"):
        return None
    return Sizes(of(".text"), of(".rodata", ".data", ".srodata"), of(".bss"))
