"""The architectures, one family per file, and `build(spec)`.

A spec is a name (`"densenet_nano"`) or a dict with a name and settings
(`{"name": "densenet", "blocks": [6, 12, 24, 16], "growth_rate": 4}`); or it names one of the user's own files, a class
in it and its settings (`models.own`). A family's file holds its settings, derived from `models.settings.Settings`, and
after them its module. No table lists the families: a new file is a new model.
"""

from __future__ import annotations

import ast
import importlib
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from micronet.errors import shown
from micronet.faults import LONGEST_VALUE, faults, said
from models import own
from models.settings import IMAGE, Settings, SpecError

if TYPE_CHECKING:
    from torch import Tensor, nn

    NAMED: dict[str, dict[str, Any]]

# Five to ten times the largest networks for small images: 1 GB of weights, and training takes four times as much.
MOST_PARAMETERS = 250_000_000

__all__ = [
    "NAMED",
    "SpecError",
    "build",
    "check",
    "check_known",
    "families",
    "fit",
    "narrowed",
    "narrows",
    "normalise",
    "suited",
]


def _imports_torch(statement: ast.stmt) -> bool:
    names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
    names += [statement.module or ""] if isinstance(statement, ast.ImportFrom) else []
    return any(name.split(".")[0] in ("torch", "torchvision") for name in names)


def _settings_name(statement: ast.stmt) -> str | None:
    """The name of the settings class that a statement defines."""
    if isinstance(statement, ast.ClassDef) and any(ast.unparse(base).endswith("Settings") for base in statement.bases):
        return statement.name
    return None


def _settings_in(path: Path) -> type[Settings] | None:
    """The settings of the family in a file; None if there is none.

    Importing the file would load torch, which takes a second or more, but an invalid params file is to be reported at
    once. So the file is parsed, and only the statements before its first import of torch, which include the settings,
    are run. A file that has them further down is imported as a whole, which is slow but works.
    """
    statements = ast.parse(path.read_bytes(), str(path)).body
    found = [(place, name) for place, statement in enumerate(statements) if (name := _settings_name(statement))]
    if not found:
        return None
    if len(found) > 1:
        names = " and ".join(name for _, name in found)
        part = "micronet.sections.Section"
        raise SpecError(f"{names}: a family has one class of settings; derive parts of it from {part}")
    ((place, name),) = found
    torch = next((at for at, statement in enumerate(statements) if _imports_torch(statement)), len(statements))
    if place > torch:
        return getattr(importlib.import_module(f"{__name__}.{path.stem}"), name)
    head = ModuleType(f"{__name__}.{path.stem} up to torch")
    sys.modules[head.__name__] = head  # where pydantic looks up names in annotations
    try:
        exec(compile(ast.Module(statements[:torch], []), str(path), "exec", dont_inherit=True), vars(head))
        settings: type[Settings] = getattr(head, name)
        settings.model_rebuild()
    finally:
        del sys.modules[head.__name__]
    if settings.__abstractmethods__:
        raise SpecError(f"{name}: lacks {', '.join(sorted(settings.__abstractmethods__))}()")
    return settings


def _fault_of(path: Path, error: Exception) -> SpecError:
    """What is wrong with a family's file, in one line."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
    kind = "" if isinstance(error, SpecError) else f"{type(error).__name__}: "
    reason = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return SpecError(f"models/{path.name}: {f'line {line}: ' if line else ''}{kind}{reason}")


@cache
def _files() -> tuple[dict[str, type[Settings]], dict[str, SpecError]]:
    """The settings of each family, by file name; and what is wrong with the files that cannot be read.

    A broken file is reported when its model is asked for, and does not affect other models.
    """
    families: dict[str, type[Settings]] = {}
    broken: dict[str, SpecError] = {}
    for path in sorted(Path(__file__).parent.glob("[!_.]*.py")):
        try:
            settings = _settings_in(path)
        except Exception as error:  # a user's own file can raise anything
            broken[path.stem] = _fault_of(path, error)
        else:
            families |= {} if settings is None else {path.stem: settings}
    return families, broken


def _named() -> dict[str, dict[str, Any]]:
    """The families' well-known sizes, by name. Raises `SpecError` for a name that two files claim."""
    families, _ = _files()
    claimed = {family: family for family in families}
    named: dict[str, dict[str, Any]] = {}
    for family, found in families.items():
        for name, settings in found.NAMED.items():
            if name in claimed:
                raise SpecError(f"models/{family}.py: NAMED: models/{claimed[name]}.py has the name {name!r} already")
            claimed[name] = family
            named[name] = {"name": family, **settings}
    return named


def families() -> dict[str, type[Settings]]:
    """The settings of each family whose file can be read, by name."""
    return dict(_files()[0])


def __getattr__(name: str) -> Any:
    if name == "NAMED":
        return _named()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _read(spec: str | dict[str, Any], facts: Mapping[str, Any] = MappingProxyType({})) -> tuple[str, Settings]:
    """A spec's family and its checked settings, completed from `facts`. Raises `SpecError`."""
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise SpecError(f"a model is a name, or a section with the key name, or file (got {said(spec)})")
    name, named, (families, broken) = spec["name"], _named(), _files()
    if name in broken:
        raise broken[name]
    if name not in named and name not in families:
        raise SpecError(
            f"name: there is no model {shown(name, LONGEST_VALUE)!r} (there are {', '.join([*named, *families])})"
        )
    family = named[name]["name"] if name in named else name
    known = {key: fact for key, fact in facts.items() if key in families[family].model_fields}
    given = {**known, **named.get(name, {}), **spec}
    del given["name"]
    try:
        return family, families[family].model_validate(given)
    except ValidationError as error:
        raise SpecError(*(_with_keys(fault, name, families[family]) for fault in faults(error))) from None


def _with_keys(fault: str, name: str, settings: type[Settings]) -> str:
    """A fault; for an unknown key, with the keys that its section takes."""
    key, unknown, _ = fault.partition(": no such key")
    *sections, _ = key.split(".")
    keys: dict[str, Any] = {key: field for key, field in settings.model_fields.items() if key != "image"}
    for part in sections:
        keys = getattr(keys[part].annotation, "model_fields", {}) if part in keys else {}
    there = "there are" if sections else f"{name} takes"
    return f"{fault} ({there} {', '.join(keys)})" if unknown and keys else fault


def _spec(family: str, settings: Settings) -> dict[str, Any]:
    return {"name": family, **settings.model_dump(mode="json")}


def normalise(spec: str | dict[str, Any]) -> dict[str, Any]:
    """The full spec: every setting given, in plain JSON types, with the name of the family.

    Raises:
        SpecError: an unknown name or key, a wrong type, a value out of range, settings that do not fit together.
    """
    return own.normalise(spec) if own.is_own(spec) else _spec(*_read(spec))  # type: ignore[arg-type]


def suited(
    spec: str | dict[str, Any], *, image: tuple[int, int, int] = IMAGE, classes: int, runs: bool = True
) -> dict[str, Any]:
    """The full spec of a network, with image shape (C, H, W) and number of classes filled in if it does not give them.

    A user's own network gets them if its constructor has arguments `image` and `classes`.

    Args:
        runs: whether a user's own file may be run for this, with torch, if its text alone does not tell.

    Raises:
        SpecError: see `normalise`; the spec contradicts these values; or the images are too small for it.
    """
    facts = {"image": list(image), "classes": classes}
    if own.is_own(spec):
        return own.suited(spec, facts, runs=runs)  # type: ignore[arg-type]
    family, settings = _read(spec, facts)
    found = {key: _plain(getattr(settings, key)) for key in facts if key in type(settings).model_fields}
    wrong = [
        f"{key}: must be {fact}, {_FACTS[key]} (got {found[key]})"
        for key, fact in facts.items()
        if key in found and found[key] != fact
    ]
    if wrong:
        raise SpecError(*wrong)
    return _spec(family, settings)


_FACTS = {"image": "the channels, height and width of the data's images", "classes": "the number of the data's labels"}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check_known(spec: str | dict[str, Any]) -> None:
    """Checks that a spec in a weights file, which may come from anybody, runs no code without the user's consent.

    Raises:
        SpecError: it names a user's own file that is neither in `networks/` nor was built here before.
    """
    if own.is_own(spec) and not own.known(spec):  # type: ignore[arg-type]
        file = shown(spec["file"], 100)  # type: ignore[index]
        raise SpecError(f"file: {file} is run where models.build is given it; in networks/ it would be known here")


def check(spec: str | dict[str, Any]) -> None:
    """Refuses all that `build` would, without building or torch; for a user's own file, as far as its text shows.

    Raises:
        SpecError: see `normalise`.
    """
    normalise(spec)


@contextmanager
def _limited() -> Iterator[None]:
    """Inside, building a model with more than `MOST_PARAMETERS` raises `SpecError`."""
    from torch.nn.modules.module import register_module_parameter_registration_hook
    from torch.nn.parameter import is_lazy

    found = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal found
        found += 0 if parameter is None or is_lazy(parameter) else parameter.numel()
        if found > MOST_PARAMETERS:
            raise SpecError(
                f"such a model has more than {MOST_PARAMETERS:,} parameters; fewer channels or layers would work"
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def build(spec: str | dict[str, Any]) -> nn.Module:
    """A new model with random weights, from (N, C, H, W) float images to logits (N, classes).

    `model.spec` is the full spec: `build(model.spec)` builds the same architecture.

    Raises:
        SpecError: one line that says what is wrong with the spec or with a user's own file, or that the model would
            have too many parameters.
    """
    if own.is_own(spec):
        full = normalise(spec)
        with _limited():
            network: Any = own.build(full)
        network.spec = full
        return network
    family, settings = _read(spec)
    # These settings are from the head of the file, without its module; those of the whole file know it.
    whole = getattr(importlib.import_module(f"{__name__}.{family}"), type(settings).__name__)
    with _limited():
        model: Any = whole.model_validate(settings.model_dump()).build()
    model.spec = _spec(family, settings)
    return model


def fit(model: Any, images: Tensor) -> None:
    """Sets the parts of an architecture that are taken from the data before training; most have none.

    Args:
        images: normalised training images, (N, C, H, W) float32; a few thousand suffice.
    """
    if hasattr(model, "fit") and not own.is_own(getattr(model, "spec", None)):
        model.fit(images)


def narrows(spec: str | dict[str, Any], wider: str | dict[str, Any]) -> bool:
    """Whether a model of `spec` can be made from one of `wider`: it is the same, or the family can narrow itself."""
    if own.is_own(spec) or own.is_own(wider):
        return normalise(spec) == normalise(wider)
    (family, settings), (wider_family, wider_settings) = _read(spec), _read(wider)
    return family == wider_family and (settings == wider_settings or settings.narrows(wider_settings))


def narrowed(model: Any, spec: str | dict[str, Any]) -> nn.Module:
    """A model of `spec` made from another model: that model itself, or its most-read channels.

    Raises:
        SpecError: the model cannot become one of `spec` (see `narrows`).
    """
    full = normalise(spec)
    if not narrows(full, model.spec):
        raise SpecError(f"a model of {full} cannot start from one of {model.spec}")
    if full == model.spec:
        return model
    narrow = model.narrowed(_read(full)[1])
    narrow.spec = full
    return narrow
