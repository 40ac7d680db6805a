"""Which files of this repository determine what a script computes, and digests of what they do.

A digest is of the syntax tree that runs: it leaves out comments, layout, docstrings and imports for type checkers. DVC
compares digests through the stage `code`; the saved state of an interrupted run is found by them.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from micronet.params import Params

ROOT = Path(__file__).resolve().parents[1]

# The stages in order, with the params sections whose architectures they build.
ARCHITECTURES = {
    "prepare_data": (),
    "train_teacher": ("teacher",),
    "train_student": ("student",),
    "distill": ("teacher", "student"),
    "prune": ("teacher", "student"),
    "retrain": ("teacher", "student"),
    "quantize": ("teacher", "student"),
    "score": ("teacher", "student"),
}

# The stages of a cascade: its networks come from other pipelines.
OF_A_CASCADE = ("prepare_data", "join", "score")

# These do not affect results: they handle input, messages and display. This file only identifies the code.
PRESENTATION = {
    "micronet/console.py",
    "micronet/data/progress.py",
    "micronet/environment.py",
    "micronet/front.py",
    "micronet/printing.py",
    "micronet/scoring/tables.py",
    "micronet/training/terminal.py",
    "micronet/training/trackers.py",
    "stages/common.py",
    "stages/dependencies.py",
    "stages/validation.py",
}


def digests(*starts: str | Path, without: Collection[str] = PRESENTATION, root: Path | None = None) -> dict[str, str]:
    """A digest of each file that determines what some files compute: of these and of their imports, direct or not.

    Imports inside functions count too. Imports by a computed name are not seen: the families of `models`, which
    `families` names, and the public names in a package's `__init__`, which nothing in the repository uses.

    Args:
        starts: paths, absolute or relative to the root.
        without: paths relative to the root that neither count nor are followed.
        root: by default this repository's.

    Returns:
        `{path from the root: digest}`, sorted.

    Raises:
        MicronetError: a file is not valid Python; with its name and line.
    """
    root = root or ROOT
    ours = {path.stem for base in _bases(root) for path in base.iterdir()}  # most imports are of external packages
    found: dict[str, str] = {}
    followed: set[str] = set()
    waiting = [root / start for start in starts]
    while waiting:
        path = waiting.pop()
        name = path.relative_to(root).as_posix()
        if name not in found and name not in without:
            try:
                found[name], modules = _read(path.read_text(encoding="utf-8"))
            except SyntaxError as error:
                from micronet.errors import MicronetError

                raise MicronetError(f"{name}: line {error.lineno}: is no Python: {error.msg}") from None
            for module in set(modules) - followed:
                if module.partition(".")[0] in ours:
                    waiting += _files(module, root)
            followed.update(modules)
    return dict(sorted(found.items()))


def stage_digests(stage: str, params: Params) -> dict[str, str]:
    """The digests of the code that determines a stage's result under these params."""
    specs = [getattr(params, section).model.spec() for section in ARCHITECTURES.get(stage, ())]
    return digests(f"stages/{stage}.py", *families(*specs))


def families(*specs: dict[str, Any]) -> list[str]:
    """The files of these specs' architectures, each once; for a user's own network, its files.

    Raises:
        SpecError: as `models.normalise` does.
    """
    import models
    from models import own

    found: set[str] = set()
    for spec in specs:
        if own.is_own(spec):
            found |= {path.relative_to(ROOT).as_posix() for path in own.files(spec)}
        else:
            found.add(f"models/{models.normalise(spec)['name']}.py")
    return sorted(found)


def digest(source: str) -> str:
    """A short sha256 of what Python code does, the same in every version of Python that can parse it."""
    return _read(source)[0]


@functools.cache
def _read(source: str) -> tuple[str, tuple[str, ...]]:
    """Digest and imported modules of Python code."""
    words: list[str] = []
    modules: list[str] = []
    _tell(ast.parse(source), words, modules)
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16], tuple(modules)


@functools.cache
def _fields(kind: Any) -> list[str]:
    """The field names of a node class."""
    return sorted(kind._fields)


def _tell(value: Any, words: list[str], modules: list[str]) -> None:
    """Appends a syntax tree to `words` as text, and its imports to `modules`.

    Empty fields are left out: newer versions of Python have fields that older ones lack.
    """
    if isinstance(value, list):
        words.append("[")
        for item in value:
            _tell(item, words, modules)
        words.append("]")
    elif isinstance(value, ast.AST):
        kind: Any = type(value)
        modules += _modules(value)
        words += (kind.__name__, "(")
        for name in _fields(kind):
            field = getattr(value, name, None)
            if isinstance(field, list):
                field = _joined(field) if isinstance(value, ast.JoinedStr) else list(_running(field))
            if field is not None and field != []:
                words.append(name)
                _tell(field, words, modules)
        words.append(")")
    else:
        words.append(ascii(value))


def _running(nodes: Iterable[Any]) -> Iterator[Any]:
    """Nodes without those that never run (imports for type checkers) or compute nothing (docstrings)."""
    for node in nodes:
        if isinstance(node, ast.If) and _for_type_checkers(node.test):
            yield from _running(node.orelse)
        elif not (isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)):
            yield node


def _for_type_checkers(test: ast.expr) -> bool:
    """Whether a condition is `TYPE_CHECKING` or `typing.TYPE_CHECKING`."""
    if isinstance(test, ast.Attribute):
        return test.attr == "TYPE_CHECKING" and getattr(test.value, "id", "") == "typing"
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def _joined(values: Iterable[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string with adjacent text merged, as Python versions split it in different places."""
    parts: list[ast.expr] = []
    for value in values:
        last = parts[-1] if parts else None
        if isinstance(value, ast.Constant) and isinstance(last, ast.Constant):
            parts[-1] = ast.Constant(str(last.value) + str(value.value))
        else:
            parts.append(value)
    return [part for part in parts if not (isinstance(part, ast.Constant) and part.value == "")]


def _modules(node: ast.AST) -> Iterator[str]:
    """The dotted names that a node imports; `from a import b` may mean the module `a.b`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        if node.level == 0:  # tests/test_house.py refuses relative ones; in networks/ `families` follows them
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _bases(root: Path) -> Iterator[Path]:
    """The folders where imports are looked up: stage scripts also import their neighbours."""
    yield from (folder for folder in (root, root / "stages") if folder.is_dir())


def _files(module: str, root: Path) -> Iterator[Path]:
    """The files that run when a module is imported, including its packages'."""
    parts = module.split(".")
    for base in _bases(root):
        for length in range(1, len(parts) + 1):
            stem = base.joinpath(*parts[:length])
            yield from (file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file())
