"""The house: which way imports run, how long things are, what the rooms hand on. Read from the source, not run."""

from __future__ import annotations

import ast
import functools
import graphlib
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from tests.support.places import ROOT
from tests.support.sources import facts, sources

# A module imports from rooms of a lower rank and from its own room. Those before the data are single files.
RANKS = {
    "micronet.environment": 0,
    "micronet.console": 0,
    "micronet.errors": 0,
    "micronet.pipeline": 0,
    "micronet.faults": 1,
    "micronet.files": 1,
    "micronet.printing": 2,
    "micronet.reading": 2,
    "micronet.sections": 1,
    "micronet.data_params": 2,
    "micronet.model_params": 2,
    "micronet.front": 2,
    "micronet.params": 3,
    "micronet.data": 4,
    "models": 4,
    "micronet.training": 5,
    "micronet.compress": 6,
    "micronet.packed": 7,
    "micronet.scoring": 8,
    "micronet.export": 9,
    "micronet.predict": 10,
}
ROOMS = sorted(f"micronet.{door.parent.name}" for door in (ROOT / "micronet").glob("*/__init__.py"))
LIBRARY = ("micronet", "models")
PIPELINE = (*LIBRARY, "stages")
PACKAGES = (*PIPELINE, "sweeps", "report")
FOLDERS = (*PACKAGES, "tools", "bench", "tests")
# What can run other programs or other people's code: reading an archive of images needs it, nothing else does.
DATA_ONLY = {"pickle", "tarfile", "subprocess"}
MOST_LINES_OF_A_MODULE, MOST_LINES_OF_A_FUNCTION = 500, 80


def module_name(path: Path) -> str:
    """`micronet/data/store.py` is `micronet.data.store`, a script in `stages/` is known by its stem."""
    parts = path.with_suffix("").parts
    parts = parts[1:] if parts[0] == "stages" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def modules() -> frozenset[str]:
    """The dotted names of all modules of the pipeline, of sweeps and of the report."""
    return frozenset(module_name(path) for path in sources(*PACKAGES))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import in a file, wherever it stands: in functions and for type checkers too.

    `from a import b` is an import of `a.b` where that is a module of ours, else of `a`.
    """
    for line, module, name in facts(path).imports:
        yield line, f"{module}.{name}" if name and f"{module}.{name}" in modules() else module


def room(module: str) -> str | None:
    """The ranked room that a module stands in, None for what is not ours and for `micronet` itself."""
    return next((name for name in RANKS if module == name or module.startswith(f"{name}.")), None)


def is_in(module: str, *packages: str) -> bool:
    return module.split(".")[0] in packages


def is_room_door(path: Path) -> bool:
    """Whether a file only hands on names of its room to users."""
    return module_name(path) in ROOMS


def refuse(faults: Iterable[str]) -> None:
    """Fails with one fault a line when there are any."""
    lines = list(faults)
    assert not lines, "\n".join(["", *lines])


# --- imports ---


def test_every_file_of_the_library_stands_in_a_room_with_a_rank():
    strangers = [path.as_posix() for path in sources(*LIBRARY) if room(module_name(path)) is None]
    assert strangers == ["micronet/__init__.py"]
    assert {"micronet.data", "micronet.training", "micronet.compress", "micronet.packed"} < set(ROOMS) < set(RANKS)


def test_imports_run_one_way_through_the_rooms():
    def faults() -> Iterator[str]:
        for path in sources(*LIBRARY):
            mine = room(module_name(path))
            for line, module in imports(path):
                theirs = room(module)
                if mine and theirs and theirs != mine and RANKS[theirs] >= RANKS[mine]:
                    yield f"{path}:{line}: {mine} must not import {module}"

    refuse(faults())


def test_the_library_knows_nothing_of_what_uses_it():
    users = {path.stem for path in (ROOT / "stages").glob("*.py")} | set(FOLDERS) - set(LIBRARY)
    refuse(
        f"{path}:{line}: imports {module}"
        for path in sources(*LIBRARY)
        for line, module in imports(path)
        if is_in(module, *users)
    )


def test_the_architectures_need_no_more_of_the_library_than_params_errors_and_files():
    names = ("params", "sections", "data_params", "errors", "faults", "files")
    allowed = {f"micronet.{name}" for name in names}
    refuse(
        f"{path}:{line}: imports {module}"
        for path in sources("models")
        for line, module in imports(path)
        if is_in(module, "micronet") and module not in allowed
    )


def test_no_two_modules_need_each_other():
    # What a room's door names for type checkers are its own modules, which are behind it in any case.
    graph = {
        module_name(path): {module for _, module in imports(path) if module in modules()}
        for path in sources(*PACKAGES)
        if not is_room_door(path)
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_names_come_from_the_module_that_defines_them_and_not_from_a_rooms_door():
    # Which code a stage depends on is read from its imports, and a door's names are looked up while it runs.
    refuse(
        f"{path}:{line}: imports from {module}, not from the module behind it"
        for path in sources(*FOLDERS)
        if path.parts[0] != "tests"
        for line, module in imports(path)
        if module in ROOMS
    )


def test_nothing_but_doors_and_the_architectures_imports_a_module_by_a_computed_name():
    refuse(
        f"{path}:{line}: which module this is cannot be read from the code"
        for path in sources(*PIPELINE)
        if not is_room_door(path) and path.as_posix() != "models/__init__.py"
        for line, called in facts(path).calls
        if called in ("import_module", "__import__")
    )


def test_one_place_makes_consoles_and_asks_a_stream_whether_it_is_a_terminal():
    refuse(
        f"{path}:{line}: {called}(), which micronet/console.py is for"
        for path in sources("micronet", "stages", "tools", "sweeps", "bench", "report")
        for line, called in facts(path).calls
        if called in ("Console", "isatty") and path.as_posix() not in ("micronet/console.py", "tools/pixels.py")
    )


def test_imports_are_absolute():
    refuse(f"{path}:{line}: a relative import" for path in sources(*FOLDERS) for line in facts(path).relative)


def test_only_code_for_data_opens_archives_unpickles_or_starts_programs():
    refuse(
        f"{path}:{line}: imports {module}"
        for path in sources("micronet")
        if room(module_name(path)) != "micronet.data"
        for line, module in imports(path)
        if is_in(module, *DATA_ONLY)
    )


def test_nothing_in_a_stage_or_the_library_imports_dvc():
    refuse(
        f"{path}:{line}: imports {module}"
        for path in sources(*PIPELINE)
        for line, module in imports(path)
        if is_in(module, "dvc", "dvclive")
    )


# --- sizes ---


def test_no_module_is_longer_than_500_lines():
    lengths = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in sources(*FOLDERS)}
    refuse(f"{path}: {length} lines" for path, length in lengths.items() if length > MOST_LINES_OF_A_MODULE)


def test_no_function_is_longer_than_80_lines():
    refuse(
        f"{path}:{line}: {name} has {length} lines"
        for path in sources(*FOLDERS)
        for line, name, length in facts(path).functions
        if length > MOST_LINES_OF_A_FUNCTION
    )


# --- doors ---


@pytest.mark.parametrize("name", ROOMS)
def test_every_name_that_a_room_promises_exists_where_it_says(name):
    door = import_module(name)
    promised = {
        alias.asname: (node.module, alias.name)
        for node in ast.walk(ast.parse((ROOT.joinpath(*name.split(".")) / "__init__.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and is_in(node.module or "", "micronet")
        for alias in node.names
    }
    assert promised == {key: (f"{name}.{home}", key) for key, home in door._HOMES.items()}, "as type checkers see it"
    for key, (home, _) in promised.items():
        defined = getattr(import_module(home), key)
        assert getattr(door, key) is defined
        assert getattr(defined, "__module__", home) == home, f"{name}.{key} is defined elsewhere"
    with pytest.raises(AttributeError, match="has no attribute 'nothing_of_the_kind'"):
        _ = door.nothing_of_the_kind
