"""The user's own networks: any `nn.Module` in a file; its settings are the arguments of its constructor.

A spec is `{"file": "my_net.py", "class": "MyNet", "settings": {...}}`. A relative path is relative to `networks/`.
The file may import its neighbours there by name, and whatever else Python finds. What its syntax tree shows is known
without running it: that it has the class, and the arguments of the constructor with their types.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from micronet.errors import MicronetError, shown
from micronet.faults import LONGEST_VALUE, said
from models.arguments import Signature, signature_in, signature_of, validated
from models.settings import SpecError

if TYPE_CHECKING:
    from torch import nn

NETWORKS = Path(__file__).resolve().parents[1] / "networks"
KEYS = ("file", "class", "settings")
SPELLINGS = {"classes": ("num_classes", "n_classes", "nb_classes", "num_labels")}  # other names for facts of the data
MOST_BYTES = 1_000_000  # of a file: no network takes that much
# They import modules that a syntax tree does not show, so changes would go unnoticed. The first: only as bare names.
_COMPUTED_NAMES = frozenset(("__import__", "exec", "eval", "compile"))
_COMPUTED = frozenset(("import_module", "__import__", "spec_from_file_location", "run_path", "SourceFileLoader"))
_PACKAGE = "micronet_networks"  # the package of these files' modules: no other module has such a name
_DIGEST = "__micronet_digest__"  # of the code that a module was made from
# A neighbour with such a name does not shadow the module that everybody means by it.
_NOT_NEIGHBOURS = sys.stdlib_module_names | {"torch", "torchvision", "numpy", "models", "micronet"}


def is_own(spec: object) -> bool:
    """Whether a spec names a file instead of an architecture."""
    return isinstance(spec, dict) and "file" in spec


@dataclass(frozen=True)
class Own:
    """A spec that names a file, read."""

    path: Path
    file: str  # as in specs: networks/NAME.py, or an absolute path
    kind: str  # the class
    settings: dict[str, Any]


def read(spec: dict[str, Any]) -> Own:
    """Reads a spec, not its file. Raises `SpecError` with every invalid key."""
    file, kind, settings = spec["file"], spec.get("class"), spec.get("settings", {})
    wrong = [
        f"{shown(key, LONGEST_VALUE)}: no such key (a network in a file of one's own takes {', '.join(KEYS)})"
        for key in spec
        if key not in KEYS
    ]
    if not isinstance(file, str) or not file.endswith(".py") or not file.isprintable():
        wrong.append(f"file: must be the path of a Python file, such as my_net.py (got {said(file)})")
    if "class" not in spec:
        wrong.append("class: is missing")
    elif not isinstance(kind, str) or not kind.isidentifier():
        wrong.append(f"class: must be the name of a class (got {said(kind)})")
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        wrong.append(f"settings: must be a section with keys (got {said(settings)})")
    if wrong:
        raise SpecError(*wrong)
    assert isinstance(file, str) and isinstance(kind, str)
    path = Path(os.path.normpath(NETWORKS / file.removeprefix("networks/")))
    if path.is_relative_to(NETWORKS):
        return Own(path, f"networks/{path.relative_to(NETWORKS).as_posix()}", kind, settings)
    if not Path(file).is_absolute():
        raise SpecError(f"file: {shown(file, 100)} leads out of networks/; the name of a file in there would work")
    return Own(path, str(path), kind, settings)


def normalise(spec: dict[str, Any]) -> dict[str, Any]:
    """The full spec: the file's canonical name, and every setting with a known value. The file is not run.

    Raises:
        SpecError: the file cannot be read or is not Python, has no such class, or the class takes no such settings.
    """
    own = read(spec)
    signature = signature_in(_parsed(own.path), own.kind)
    settings = own.settings if signature is None else validated(signature, own.settings, own.kind)[1]
    return {"file": own.file, "class": own.kind, "settings": settings}


def suited(spec: dict[str, Any], facts: dict[str, Any], *, runs: bool) -> dict[str, Any]:
    """The full spec, with the facts of the data filled in for constructor arguments of these names.

    Args:
        runs: whether the file may be run if only that tells the arguments.

    Raises:
        SpecError: see `normalise`; or a setting contradicts the data.
    """
    own = read(spec)
    signature = signature_in(_parsed(own.path), own.kind)
    if signature is None:
        signature = signature_of(_class(own)) if runs else Signature()
    facts = {spelled(key, signature): fact for key, fact in facts.items()}
    names = [argument.name for argument in signature.arguments if argument.name in facts]
    given = {**own.settings, **{name: facts[name] for name in names if name not in own.settings}}
    full = normalise({"file": own.file, "class": own.kind, "settings": given})
    wrong = [
        f"settings.{name}: must be {fact}, that of the data (got {said(full['settings'][name])})"
        for name, fact in facts.items()
        if name in names and full["settings"][name] != fact
    ]
    if wrong:
        raise SpecError(*wrong)
    return full


def spelled(fact: str, signature: Signature) -> str:
    """A constructor's name for a fact of the data."""
    names = {argument.name for argument in signature.arguments}
    return next((name for name in (fact, *SPELLINGS.get(fact, ())) if name in names), fact)


def files(spec: dict[str, Any]) -> list[Path]:
    """The network's file and the neighbours that it imports, directly or not. Raises `SpecError`."""
    return list(_sources(read(spec).path))


def known(spec: dict[str, Any]) -> bool:
    """Whether a spec in a weights file may be built: the network is in `networks/`, or has been run here before."""
    own = read(spec)
    return own.path.is_relative_to(NETWORKS) or _name(own.path) in sys.modules


def build(spec: dict[str, Any]) -> nn.Module:
    """The network; its file is run once. Raises `SpecError`, naming the line of the file that is at fault."""
    own = read(spec)
    kind = _class(own)
    values, _ = validated(signature_of(kind), own.settings, own.kind)
    with told():
        network: nn.Module = kind(**values)
        network.state_dict()  # fails without super().__init__()
    _refuse_lazy(network)
    return network


def _refuse_lazy(network: nn.Module) -> None:
    """Raises `SpecError` for a lazy layer: until it sees an image, it has no weights to count or to start from."""
    from torch.nn.parameter import is_lazy

    for name, parameter in network.named_parameters():
        if is_lazy(parameter):
            layer = name.rpartition(".")[0]
            kind = type(network.get_submodule(layer)).__name__
            takes = "in_features" if kind == "LazyLinear" else "in_channels or num_features"
            raise SpecError(
                f"class: its layer {shown(layer, 60)} is a {kind}, which has no weights before it sees an image; "
                f"{kind.removeprefix('Lazy')} with its {takes} would work"
            )


def _class(own: Own) -> Any:
    """The class, from running its file. Raises `SpecError`."""
    from torch import nn

    kind = getattr(_module(own.path), own.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise SpecError(
            f"class: {own.kind} of {shown(own.file, 100)} is no torch.nn.Module; a class of that would work"
        )
    return kind


# --- what went wrong, in one line ---


@contextmanager
def told() -> Iterator[None]:
    """Turns anything that a network's code raises inside into a `SpecError` with the file and line."""
    try:
        yield
    except (MicronetError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise SpecError(reason(error)) from None


def reason(error: BaseException) -> str:
    """What was raised, preceded by the last line of a network's file in its traceback."""
    ours = {getattr(module, "__file__", None) for name, module in [*sys.modules.items()] if name.startswith(_PACKAGE)}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in ours]
    place = f"{_shown(Path(frames[-1].filename))}: line {frames[-1].lineno}: " if frames else ""
    return f"{place}{type(error).__name__}: {shown(' '.join(str(error).split()), 150)}"


def _shown(path: Path) -> str:
    inside = path.is_relative_to(NETWORKS)
    return shown(f"networks/{path.relative_to(NETWORKS).as_posix()}" if inside else path, 100)


# --- files ---


def _parsed(path: Path) -> ast.Module:
    """The syntax tree of a file. Raises `SpecError`."""
    where = _shown(path)
    try:
        if not path.is_file():
            there = ", ".join(sorted(file.name for file in NETWORKS.glob("*.py")))
            fault = "is no file" if path.exists() else "there is no such file"
            raise SpecError(f"file: {where}: {fault} (in networks/ there are {shown(there, 100) or 'none'})")
        with path.open("rb") as file:
            source = file.read(MOST_BYTES + 1)
        if len(source) > MOST_BYTES:
            raise SpecError(f"file: {where}: is longer than {MOST_BYTES:,} bytes, which no network is")
        return ast.parse(source, str(path))
    except SpecError:
        raise
    except SyntaxError as error:
        line = f"line {error.lineno}: " if error.lineno else ""
        raise SpecError(f"file: {where}: {line}is no Python: {shown(error.msg, 100)}") from None
    except OSError as error:
        raise SpecError(f"file: {where}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise SpecError(f"file: {where}: is no Python: {shown(error, 100)}") from None


@dataclass(frozen=True)
class _Source:
    """A file, ready to run."""

    tree: ast.Module
    neighbours: tuple[Path, ...]  # those that it imports


def _sources(path: Path) -> dict[Path, _Source]:
    """A file and the neighbours that it imports, directly or not, the file first."""
    found: dict[Path, _Source] = {}
    waiting = [path]
    while waiting:
        path = waiting.pop()
        if path not in found:
            imports = _Neighbours(path.parent)
            tree = ast.fix_missing_locations(imports.visit(_parsed(path)))
            others = tuple(path.parent / f"{name}.py" for name in sorted(imports.found - {path.stem}))
            found[path] = _Source(tree, others)
            waiting += others
    return found


def _package(folder: Path) -> str:
    return _PACKAGE if folder == NETWORKS else f"{_PACKAGE}_{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def _name(path: Path) -> str:
    return f"{_package(path.parent)}.{path.stem}"


class _Neighbours(ast.NodeTransformer):
    """Rewrites imports of a file's neighbours, however written, to import the modules that we make from them."""

    def __init__(self, folder: Path):
        self.folder, self.package = folder, _package(folder)
        self.found: set[str] = set()

    def _within(self, module: str, level: int) -> str | None:
        """Which neighbour is meant, "" for their folder; None if it is not a neighbour."""
        if level > 1:
            raise SpecError(
                f"file: it imports {'.' * level}{module}, which leads out of its folder; a file beside it would work"
            )
        if level == 0 and self.folder == NETWORKS and (module == "networks" or module.startswith("networks.")):
            module, level = module.removeprefix("networks").removeprefix("."), 1
        if level == 0 and (module in _NOT_NEIGHBOURS or not (self.folder / f"{module}.py").is_file()):
            return None
        return module

    def visit_Call(self, node: ast.Call) -> ast.AST:
        called = node.func
        name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
        if name in _COMPUTED or isinstance(called, ast.Name) and name in _COMPUTED_NAMES:
            raise SpecError(
                f"file: line {node.lineno}: {name}(...) runs code that nobody sees change; "
                "an import of a file beside it would work"
            )
        return self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        name = self._within(node.module or "", node.level)
        if name is None:
            return node
        names = [name] if name else [alias.name for alias in node.names]
        self.found |= {each for each in names if (self.folder / f"{each}.py").is_file()}
        module = f"{self.package}.{name}" if name else self.package
        return ast.copy_location(ast.ImportFrom(module, node.names, 0), node)

    def visit_Import(self, node: ast.Import) -> Any:
        made: list[ast.stmt] = []
        for alias in node.names:
            name = self._within(alias.name, 0)
            if name is None:
                made.append(ast.Import([alias]))
            elif alias.name.startswith("networks") and alias.asname is None:
                self.found.add(name)
                made.append(ast.Import([ast.alias(self.package, "networks")]))
            else:
                self.found.add(name)
                made.append(ast.ImportFrom(self.package, [ast.alias(name, alias.asname or name)], 0))
        return [ast.copy_location(statement, node) for statement in made]


def _module(path: Path) -> ModuleType:
    """The module of a file, which is run if it has not been, or has changed since. Raises `SpecError`."""
    sources = _sources(path)
    digest = hashlib.sha256("\n".join(ast.dump(source.tree) for source in sources.values()).encode()).hexdigest()
    name, package = _name(path), _package(path.parent)
    found = sys.modules.get(name)
    if found is not None and getattr(found, _DIGEST, None) == digest:
        return found
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    sys.modules.setdefault(package, ModuleType(package)).__dict__.setdefault("__path__", [])
    module = importlib.util.module_from_spec(spec)
    setattr(module, _DIGEST, digest)
    sys.modules[name] = module  # before it runs: pickle, dataclasses and its neighbours look it up there
    setattr(sys.modules[package], path.stem, module)
    try:
        for neighbour in sources[path].neighbours:
            _module(neighbour)
        with told():
            exec(compile(sources[path].tree, str(path), "exec", dont_inherit=True), vars(module))
    except SpecError:
        sys.modules.pop(name)
        raise
    return module
