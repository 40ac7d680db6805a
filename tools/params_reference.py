"""Every key of `params.yaml`, or of another typed file, as Markdown: type, default, range, meaning, source.

Each settings class is a table; keys inherited from another class appear once, in that class's table.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from _tool import parameters
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import models
from micronet.sections import HomePlace, Place, Section
from models.settings import Settings

PAPER = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
NAMES = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null"}
LOWER, UPPER = {"ge": "≥", "gt": ">"}, {"le": "≤", "lt": "<"}
COLUMNS = ("key", "meaning", "type", "default", "range", "source")
PATHS = {one.func for place in (Place, HomePlace) for one in place.__metadata__}  # what checks a path
BARE = {Section, Settings, BaseModel, object}  # base classes without keys of their own to document


def of(annotation: Any) -> tuple[Any, list[Any]]:
    """An annotation's type without its wrappers, and the wrappers, pydantic's `Field` taken apart."""
    metadata: list[Any] = []
    while get_origin(annotation) is Annotated:
        annotation, *around = get_args(annotation)
        for one in around:
            metadata += one.metadata if isinstance(one, FieldInfo) else [one]
    return annotation, metadata


def kind(annotation: Any, around: Sequence[Any] = ()) -> str:
    """The type of a value, in words: `` `a` or `b` ``, `list of whole numbers`, `path`."""
    annotation, inside = of(annotation)
    if annotation is str and any(isinstance(one, AfterValidator) and one.func in PATHS for one in (*around, *inside)):
        return "path"
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind(one) for one in inner))
    if origin is list and inner == (Any,):
        return "list"
    if origin in (list, tuple):
        parts = " and ".join(dict.fromkeys(kind(one) for one in inner if one is not ...))
        many = "" if parts.endswith(("`", ")")) else "s"
        return f"list of {'' if origin is list else f'{len(inner)} '}{parts}{many}"
    if origin is dict or annotation is dict:
        return f"keys with a {kind(inner[1])} each" if inner and inner[1] is not Any else "keys"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[section](#{anchor(annotation)})"
    return NAMES.get(annotation, "any value")


def limits(metadata: list[Any]) -> str:
    """The bounds set by constraints: `≥ 0, < 1`, the narrowest on each side; empty if none."""
    said = []
    for signs, narrowest in ((LOWER, max), (UPPER, min)):
        bounds = [
            (getattr(one, name), name in ("gt", "lt"), name) for one in metadata for name in signs if hasattr(one, name)
        ]
        if bounds:
            value = narrowest(bound[0] for bound in bounds)
            name = max(bound for bound in bounds if bound[0] == value)[2]
            said.append(f"{signs[name]} {value:,.0f}" if value == int(value) else f"{signs[name]} {value:g}")
    for one in metadata:
        if isinstance(one, annotated_types.MinLen | annotated_types.MaxLen):
            least = isinstance(one, annotated_types.MinLen)
            said.append(f"{one.min_length} or more" if least else f"at most {one.max_length}")  # type: ignore[union-attr]
    return ", ".join(said)


def ranges(annotation: Any, metadata: list[Any]) -> str:
    """The bounds of a value and of its parts."""
    annotation, around = of(annotation)
    here = limits([*metadata, *around])
    parts = [ranges(one, []) for one in get_args(annotation)] if get_origin(annotation) is not Literal else []
    each = "; ".join(dict.fromkeys(part for part in parts if part))
    if get_origin(annotation) in (list, tuple, dict) and each:
        each = f"each {each}"
    return "; ".join(part for part in (here, each) if part)


def default(field: FieldInfo) -> str:
    """A key's default."""
    if field.is_required():
        return "required"
    if field.default is PydanticUndefined:
        return (
            "of other keys"
            if field.default_factory_takes_validated_data
            else f"`{field.get_default(call_default_factory=True)}`"
        )
    if isinstance(field.default, BaseModel):
        return "its own defaults"
    return f"`{_yaml(field.default)}`"


def _yaml(value: Any) -> str:
    """A value in the spelling of params.yaml."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(list(value)) if isinstance(value, tuple) else str(value)


def linked(text: str) -> str:
    """A text's Markdown, with arXiv numbers linked to the papers."""
    return PAPER.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def parted(text: str) -> tuple[str, str]:
    """A meaning without its sources, and the sources: a final `(arXiv:1503.02531)` goes to its own column."""
    papers = ", ".join(dict.fromkeys(linked(f"arXiv:{number}") for number in PAPER.findall(text)))
    return linked(re.sub(r" \((?:arXiv:[\d.]+(?:, )?)+\)$", "", text)), papers


def row(key: str, field: FieldInfo) -> tuple[str, ...]:
    """The cells of a key's row, one for each of `COLUMNS`."""
    meaning, papers = parted(field.description or _about(field))
    bounds = ranges(field.annotation, field.metadata)
    return f"`{key}`", meaning, kind(field.annotation, field.metadata), default(field), bounds, papers


def keyed(fields: Mapping[str, FieldInfo]) -> list[str]:
    """The lines of a table of keys, without the source column if no key has one; none for no keys."""
    rows = [row(key, field) for key, field in fields.items()]
    width = len(COLUMNS) if any(cells[-1] for cells in rows) else len(COLUMNS) - 1
    head = [COLUMNS, ("---",) * width]
    return [_line(cells[:width]) for cells in [*head, *rows]] + [""] if rows else []


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _about(field: FieldInfo) -> str:
    """The first sentence of the docstring of a key's class."""
    said = [" ".join((section.__doc__ or "").split()) for section in sections_in(field.annotation)]
    return said[0].split(". ")[0].rstrip(".") if said else ""


def own_keys(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The keys a class declares itself, under their names in params.yaml."""
    mine = section.__dict__.get("__annotations__", {})
    return {field.alias or key: field for key, field in section.model_fields.items() if key in mine}


def anchor(section: type[BaseModel]) -> str:
    """The fragment of a link to a class's heading, as GitHub and the site make it."""
    return title(section).replace(" ", "-")


def title(section: type[BaseModel]) -> str:
    """The heading of a class: its name as words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", section.__name__).lower()


def above(section: type[BaseModel]) -> list[type[BaseModel]]:
    """A class and its bases that declare keys, itself first."""
    return [one for one in section.__mro__ if one not in BARE and issubclass(one, BaseModel) and own_keys(one)]


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections an annotation names."""
    annotation, _ = of(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        if get_origin(annotation) is not Literal:
            yield from sections_in(inner)


def places(root: type[BaseModel]) -> dict[type[BaseModel], list[str]]:
    """Each settings class below a root with the paths of its keys, in the order of params.yaml."""
    found: dict[type[BaseModel], list[str]] = {}

    def walk(section: type[BaseModel], path: str) -> None:
        for owner in dict.fromkeys([section, *above(section)]):
            found.setdefault(owner, []).append(path)
        for key, field in section.model_fields.items():
            for inner in sections_in(field.annotation):
                walk(inner, f"{path}.{field.alias or key}".strip("."))

    walk(root, "")
    return found


def table(section: type[BaseModel], paths: Sequence[str], level: int = 2) -> str:
    """The keys a class declares, under a heading."""
    lines = [
        f"{'#' * level} {title(section)}",
        "",
        linked(" ".join((section.__doc__ or "").split("\n\n")[0].split())),
        "",
    ]
    where = ", ".join(f"`{path}`" for path in paths if path)
    lines += [f"At {where}." if where else "The top of the file.", ""]
    if others := [one for one in above(section) if one is not section]:
        lines += ["Has the keys of " + " and ".join(f"[{title(one)}](#{anchor(one)})" for one in others) + " too.", ""]
    return "\n".join([*lines, *keyed(own_keys(section))])


def family(name: str, settings: type[Settings]) -> str:
    """The settings of an architecture of models/."""
    lines = [f"### {name}", ""]
    if known := ", ".join(f"`{one}`" for one, spec in models.NAMED.items() if spec["name"] == name):
        lines += [f"Sizes with a name: {known}.", ""]
    lines += keyed(settings.model_fields)
    for key, field in settings.model_fields.items():
        lines += [table(inner, [f"model.{key}"], level=4) for inner in sections_in(field.annotation)]
    return "\n".join(lines)


def reference() -> str:
    """All tables: those of params.yaml, then the architectures."""
    tables = [table(section, paths) for section, paths in places(parameters.Params).items()]
    families = [family(name, settings) for name, settings in models.families().items()]
    return "\n".join([*tables, "## architectures", "", "What a `model` takes beside its name.", "", *families])
