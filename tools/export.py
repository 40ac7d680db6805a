"""Exports a packed model for other runtimes: C99 (c), ONNX (onnx), a web page (web).

Everything comes from the packed file alone. Each target has its own folder below OUT, which is replaced as a whole, and
only if an export made it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _tool import PACKED, SHOWN, ToolError, arguments_of, front
from compiled import compiler, sizes

from micronet.errors import shown
from micronet.files import FileError, in_the_way, read_json, reason, temporary_folder
from micronet.front import ArgumentError

if TYPE_CHECKING:
    from micronet.export.targets import Export

OUT = Path("build/export")
MARK = "export.json"  # lists which files of a folder an export made
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"  # of files, so not a path to elsewhere; C demands more
FLAGS = {"size": ("-Os", "-fno-pie"), "speed": ("-O3", "-fno-pie")}


def _c() -> Callable[..., Export]:
    from micronet.export.c import export

    return export


def _onnx() -> Callable[..., Export]:
    from micronet.export.onnx import export

    return export


def _web() -> Callable[..., Export]:
    from micronet.export.web import export

    return export


TARGETS: dict[str, Callable[[], Callable[..., Export]]] = {"c": _c, "onnx": _onnx, "web": _web}
"""name -> a loader of the export function, called when it is needed."""


def export(arguments: argparse.Namespace) -> int:
    """Writes `file` in the requested forms, each into its own folder of `out`; prints the size of each.

    Nothing is written until all of them are made.

    Returns:
        The exit code: 1 if one of several forms is not possible; the others are written.

    Raises:
        ArgumentError: the name cannot be a file name.
        MicronetError: the file cannot be read, the only requested form is not possible, or a folder is in the way.
    """
    if not re.fullmatch(NAME, arguments.name):
        raise ArgumentError(
            f"--name: '{shown(arguments.name, SHOWN)}' is no name for files; up to 100 letters, digits and _.- work, "
            "as in: micronet"
        )
    targets = list(TARGETS) if arguments.to == "all" else [arguments.to]
    for target in targets:
        _check_place(arguments.out / target)

    from micronet.export.errors import ExportError
    from micronet.export.targets import Options
    from micronet.packed.errors import PackedFileError
    from micronet.packed.file import content, decode

    data = content(arguments.file)
    try:
        model = decode(data)
    except PackedFileError as error:
        raise PackedFileError(f"{shown(arguments.file, SHOWN)}: {error}") from None
    options = Options(arguments.optimize, arguments.name)
    made: dict[str, Export] = {}
    for target in targets:
        try:
            made[target] = TARGETS[target]()(model, data, options)
        except ExportError as error:
            # Of several targets, those that can express the model are worth having.
            if len(targets) == 1:
                raise
            print(f"export: {target}: {shown(error)}", file=sys.stderr)
    for target, found in made.items():
        _write(arguments.out / target, found, {"target": target, "digest": model.digest})
    for target, found in made.items():
        folder = arguments.out / target
        _say(folder, found, measured(folder, arguments) if target == "c" else [])
    return 0 if len(made) == len(targets) else 1


def measured(folder: Path, arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """The size of the C, compiled here."""
    found = compiler()
    if found is None:
        return [("code", "not measured: there is no C compiler here; gcc or clang would say")]
    flags = FLAGS[arguments.optimize]
    taken = sizes(folder / f"{arguments.name}.c", found, flags)
    if taken is None:
        return [("code", "not measured: there is no `size` (binutils) here")]
    by = f"{Path(found).name} {flags[0]}, {os.uname().machine}"
    return [
        (f"code ({by})", f"{taken.code:,} bytes"),
        ("constants with all tables", f"{taken.constants:,} bytes"),
        ("static memory", f"{taken.memory:,} bytes"),
    ]


# Files


def _check_place(folder: Path) -> None:
    """Raises `ToolError` for an existing folder that no export made, or that also holds other files."""
    said = shown(folder, SHOWN)
    if why := in_the_way(folder / MARK):
        raise ToolError(f"{said}: cannot be written ({shown(why, SHOWN)})")
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        listed: Any = read_json(folder / MARK)
        known = {MARK, *listed["files"]}
    except (FileError, KeyError, TypeError):
        raise ToolError(f"{said}: is there, and no export made it; move it away, or name another OUT=") from None
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if others := sorted(there - known):
        raise ToolError(f"{said}: holds {shown(others[0], SHOWN)}, which no export made; move it away")


def _write(folder: Path, made: Export, facts: dict[str, str]) -> None:
    """Puts a target's folder in place, whole. Raises `FileError`."""
    mark = json.dumps(facts | {"files": sorted(map(str, made.files))}, indent=2) + "\n"
    try:
        with temporary_folder(folder) as temporary:
            new, old = temporary / "new", temporary / "old"
            new.mkdir()
            for name, content in {**made.files, Path(MARK): mark.encode()}.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_bytes(content)
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise FileError(f"{shown(folder, SHOWN)}: cannot be written ({reason(error)})") from error


def _say(folder: Path, made: Export, more: list[tuple[str, str]]) -> None:
    print(f"{shown(folder)}: {', '.join(sorted(shown(name, SHOWN) for name in made.files))}")
    rows = [*made.table, *more]
    width = max((len(what) for what, _ in rows), default=0)
    for what, much in rows:
        print(f"  {what.ljust(width)}  {much}")
    for note in made.notes:
        print(f"  {note}")


def main(argv: list[str] | None = None) -> int:
    parser = arguments_of("export", __doc__)
    parser.add_argument("file", metavar="FILE", nargs="?", type=Path, default=PACKED, help="default: %(default)s")
    parser.add_argument("--to", choices=(*TARGETS, "all"), default="all", help="default: %(default)s")
    parser.add_argument("--out", metavar="OUT", type=Path, default=OUT, help="folder; default: %(default)s")
    parser.add_argument(
        "--optimize",
        choices=("size", "speed"),
        default="size",
        help="of C: weights stay packed, or the ones that are not zero are listed; default: %(default)s",
    )
    parser.add_argument("--name", default="micronet", help="of files, and of functions in C; default: %(default)s")
    arguments = parser.parse_args(argv)
    return front("export", lambda: export(arguments))


if __name__ == "__main__":
    sys.exit(main())
