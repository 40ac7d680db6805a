"""Says whether what the pipeline stands on is right: Python, params, data, cache. Exit code 1 when something is not.

Nothing is changed; each line that is wrong names the command that mends it.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from _tool import MANIFEST, ROOT, SHOWN, add_params, arguments_of, front, parameters

from micronet.data import store
from micronet.data.arrays import DataError
from micronet.data.cache import cache_folder, cache_size
from micronet.data.datasets import pictures, standing_in
from micronet.errors import shown
from micronet.files import FileError, check_place, read_bytes

LOCK = ROOT / "requirements.lock"


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, and the command that mends it where it is wrong."""

    name: str
    said: str
    mend: str = ""


def environment() -> Iterator[Finding]:
    """Python, and whether its packages are those of the lock."""
    version = platform.python_version()
    old = sys.version_info < (3, 11)
    yield Finding("python", f"{version}, {sys.executable}", "make env PYTHON=python3.11" if old else "")
    installed = Path(sys.prefix) / "installed.lock"
    if not installed.is_file():
        yield Finding("environment", f"{sys.prefix}: one of your own; make env builds .venv from requirements.lock")
        return
    try:
        same = read_bytes(installed) == read_bytes(LOCK)
    except FileError as error:
        yield Finding("environment", str(error), "git checkout requirements.lock && make env")
        return
    said = f"{sys.prefix}: {'of' if same else 'not of'} requirements.lock"
    yield Finding("environment", said, "" if same else "make env")


def data(config: parameters.Data) -> Iterator[Finding]:
    """The manifest and the prepared folder, and the pictures that it was made of."""
    again = store.MAKE
    try:
        manifest = store.check_manifest(config, MANIFEST)
    except DataError as error:
        yield Finding("manifest", str(error), again)
        return
    sizes = ", ".join(f"{manifest['splits'][name]['images']:,} {name}" for name in store.SPLITS)
    shape = " x ".join(map(str, manifest["image_shape"]))
    yield Finding("manifest", f"{manifest['dataset']}, {len(manifest['classes'])} classes, {shape}: {sizes}")
    fault = store.folder_fault(config, manifest)
    yield Finding("data", f"{config.folder}: {fault or 'is whole'}", again if fault else "")
    if config.source == "folder":
        yield from _own(config)


def _own(config: parameters.Data) -> Iterator[Finding]:
    path, way_out = shown(config.path, SHOWN), "set data.path in params.yaml"
    try:
        if line := standing_in(config):
            yield Finding("pictures", line)
        elif pictures(config) is None:
            yield Finding("pictures", f"{path}: is not here, and nothing was prepared of it", way_out)
        elif store.changed(config):
            yield Finding("pictures", f"{path}: have changed since they were prepared", store.MAKE)
        else:
            found = ", ".join(
                f"{shown(key, SHOWN)} {shown(value, SHOWN)}" for key, value in store.facts(config).items()
            )
            yield Finding("pictures", f"{path}: as they were prepared" + (f"; {found}" if found else ""))
    except DataError as error:
        yield Finding("pictures", str(error), way_out)


def cache() -> Finding:
    """Where downloads are kept."""
    folder, elsewhere = cache_folder(), "export XDG_CACHE_HOME=A_FOLDER_OF_YOURS"
    if folder is None:
        return Finding("cache", "there is no home folder: downloads are not kept", elsewhere)
    try:
        check_place(folder)
    except FileError as error:
        return Finding("cache", str(error), elsewhere)
    return Finding("cache", f"{folder}: {cache_size() / 1e6:,.0f} MB")


def findings(path: str) -> Iterator[Finding]:
    """All of them, for a params file."""
    yield from environment()
    try:
        config = parameters.load(path).data
    except parameters.ParamsError as error:
        yield Finding("params", error.faults[0], "make check")
    else:
        yield Finding("params", f"{shown(path, SHOWN)}: data.source {config.source}")
        yield from data(config)
    yield cache()


def examine(path: str) -> int:
    """Prints the table. Returns the exit code."""
    from rich.markup import escape
    from rich.table import Table

    from micronet.scoring.tables import show

    found = list(findings(path))
    table = Table(title="doctor")
    for column in ("", "what", "how it is", "what mends it"):
        table.add_column(column)
    for one in found:
        mark = "WRONG" if one.mend else "ok"
        table.add_row(mark, one.name, escape(shown(one.said)), escape(one.mend))
    show(table, wraps=True)
    return 1 if any(one.mend for one in found) else 0


def main(argv: list[str] | None = None) -> int:
    parser = arguments_of("doctor", __doc__)
    add_params(parser)
    arguments = parser.parse_args(argv)
    return front("doctor", lambda: examine(arguments.params))


if __name__ == "__main__":
    sys.exit(main())
