"""Checks the settings of a user's own network against the arguments of its constructor and their types."""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import CoreConfig, PydanticKnownError, SchemaValidator

from micronet.errors import shown
from micronet.faults import LONGEST_VALUE, faults, said
from models.settings import SpecError

MISSING = inspect.Parameter.empty  # as a default: there is none
UNKNOWN = object()  # as a default: there is one, but only running the file tells which

_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_NAMES = {name: getattr(builtins, name) for name in ("int", "float", "bool", "str", "list", "tuple", "dict", "set")}
_NAMES |= {name: getattr(typing, name) for name in typing.__all__} | {"typing": typing}
_NO_SCHEMAS = ("default", "metadata", "serialization", "expected")  # keys of a schema that hold no schemas
_PLAIN = (ast.Name, ast.Attribute, ast.Subscript, ast.Tuple, ast.List, ast.Constant, ast.BinOp, ast.BitOr, ast.Load)


@dataclass(frozen=True)
class Argument:
    """An argument of a constructor that can be given by name."""

    name: str
    annotation: Any = Any  # Any: there is none, or only running the file tells
    default: Any = MISSING


@dataclass(frozen=True)
class Signature:
    """What a constructor takes."""

    arguments: tuple[Argument, ...] = ()
    more: bool = False  # it also takes arguments of any other name


def signature_of(kind: type) -> Signature:
    """What the constructor of a module's class takes."""
    from torch import nn

    if kind.__init__ is nn.Module.__init__:  # type: ignore[misc]
        return Signature()
    try:
        hints = typing.get_type_hints(kind.__init__, include_extras=True)  # type: ignore[misc]
    except Exception:  # an annotation that cannot be evaluated can raise anything
        hints = {}
    _, *parameters = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    arguments = (
        Argument(each.name, hints.get(each.name, Any), each.default) for each in parameters if each.kind in named
    )
    return Signature(tuple(arguments), any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters))


def signature_in(tree: ast.Module, name: str) -> Signature | None:
    """The same, from a file's syntax tree; None if only running the file tells.

    Raises:
        SpecError: the file has no class of that name.
    """
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        if name in _bound(tree):
            return None
        there = f"it has {', '.join(map(shown, classes))}" if classes else "it has none"
        raise SpecError(f"class: no class {shown(name, LONGEST_VALUE)!r} in the file ({shown(there, 150)})")
    node = classes[name]
    for _ in classes:  # at most this many bases in a chain
        if node.decorator_list or node.keywords or len(node.bases) != 1:
            return None
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
                return None if statement.decorator_list else _signature(statement.args)
        base = ast.unparse(node.bases[0])
        if base.split(".")[-1] == "Module":
            return Signature()
        if base not in classes:
            return None
        node = classes[base]
    return None


def _bound(tree: ast.Module) -> set[str]:
    """Names that a file may bind in other ways than by a top-level class."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.ClassDef):
            found.add(node.name)
    return found


def _signature(arguments: ast.arguments) -> Signature:
    named = arguments.args[0 if arguments.posonlyargs else 1 :]
    defaults: list[ast.expr | None] = [None, *[None] * len(named), *arguments.defaults][-len(named) :] if named else []
    pairs = [*zip(named, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    found = (Argument(each.arg, _type(each.annotation), _value(default)) for each, default in pairs)
    return Signature(tuple(found), arguments.kwarg is not None)


def _type(annotation: ast.expr | None) -> Any:
    """The type that an annotation of plain names means; Any if it is more complex."""
    try:
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval").body
        if annotation is None or not all(isinstance(node, _PLAIN) for node in ast.walk(annotation)):
            return Any
        found = eval(ast.unparse(annotation), {"__builtins__": {}}, _NAMES)
        TypeAdapter(found)
    except Exception:  # an annotation without a meaning here can raise anything
        return Any
    return found


def _value(default: ast.expr | None) -> Any:
    if default is None:
        return MISSING
    try:
        return ast.literal_eval(default)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNKNOWN


def validated(signature: Signature, settings: dict[str, Any], kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings as the constructor of class `kind` takes them; and as a spec holds them, with the defaults.

    Types are strict, as in a params file; a list is accepted for a tuple.

    Raises:
        SpecError: one line per fault, `settings.NAME: reason`.
    """
    arguments = {argument.name: argument for argument in signature.arguments}
    wrong, values, plain = list[str](), dict[str, Any](), dict[str, Any]()
    for name, argument in arguments.items():
        if name in settings:
            values[name], lines = _checked(argument, settings[name])
            wrong += lines
            plain[name] = settings[name]
        elif argument.default is MISSING:
            wrong.append(f"settings.{name}: is missing")
        elif argument.default is not UNKNOWN:
            plain |= dict(_if_plain(name, argument.default))
    for name in settings.keys() - arguments.keys():
        if signature.more:
            values[name], lines = _checked(Argument(name), settings[name])
            wrong += lines
            plain[name] = settings[name]
        else:
            takes = f"{kind} takes {', '.join(arguments)}" if arguments else f"{kind} takes none"
            wrong.append(f"settings.{shown(name, LONGEST_VALUE)}: no such key ({shown(takes, 150)})")
    if wrong:
        raise SpecError(*wrong)
    return values, json.loads(json.dumps(plain))


def _if_plain(name: str, default: Any) -> Iterator[tuple[str, Any]]:
    try:
        json.dumps(default, allow_nan=False)
    except (TypeError, ValueError):
        return
    yield name, default


def _checked(argument: Argument, given: Any) -> tuple[Any, list[str]]:
    """The value that the constructor gets for a setting, and what is wrong with it."""
    key = f"settings.{shown(argument.name, LONGEST_VALUE)}"
    try:
        text = json.dumps(given, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None, [f"{key}: must be a plain value: a finite number, text, true, false, a list (got {said(given)})"]
    if argument.annotation is Any:
        return given, []
    try:
        return _validator(argument.annotation).validate_json(text, strict=True), []
    except ValidationError as error:
        lines = faults(error, "settings", argument.name)
        if type(None) in typing.get_args(argument.annotation):
            lines = [line.replace(" (got ", " or null (got ") for line in lines]
        return None, lines
    except PydanticUserError:
        return None, [f"{key}: its type has no plain form; int, float, bool, str or lists of them would work"]


def _validator(annotation: Any) -> SchemaValidator:
    """A validator for values of a type. Raises `PydanticUserError` if the type has no plain values."""
    try:
        adapter = TypeAdapter[Any](annotation, config=_STRICT)
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            raise
        adapter = TypeAdapter(annotation)
    return SchemaValidator(_told(adapter.core_schema), CoreConfig(strict=True, allow_inf_nan=False))


def _told(schema: Any) -> Any:
    """The schema of a type, changed so that a union gives one line and a literal does not accept 1 for true."""
    if isinstance(schema, list | tuple):
        return type(schema)(_told(part) for part in schema)
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "literal":
        check = partial(_of_a_literal, schema["expected"])
        return {"type": "function-before", "function": {"type": "no-info", "function": check}, "schema": schema}
    told = {key: part if key in _NO_SCHEMAS else _told(part) for key, part in schema.items()}
    if schema.get("type") == "union":
        told |= {"custom_error_type": "no_member", "custom_error_message": f"must be {_said_type(schema)}"}
    return told


def _of_a_literal(expected: list[Any], given: Any) -> Any:
    if isinstance(given, bool | int | float) and type(given) not in map(type, expected):
        raise PydanticKnownError("literal_error", {"expected": " or ".join(map(repr, expected))})
    return given


def _said_type(schema: Any) -> str:
    """A type in Python's notation."""
    kind = schema["type"]
    if kind == "union":
        members = [choice[0] if isinstance(choice, tuple) else choice for choice in schema["choices"]]
        return " or ".join(dict.fromkeys(map(_said_type, members)))
    if kind == "nullable":
        return f"{_said_type(schema['schema'])} or None"
    if kind == "literal":
        return " or ".join(map(repr, schema["expected"]))
    if items := schema.get("items_schema"):
        parts = map(_said_type, items if isinstance(items, list) else [items])
        return f"{kind}[{', '.join(parts)}{', ...' if 'variadic_item_index' in schema else ''}]"
    return _said_type(schema["schema"]) if isinstance(schema.get("schema"), dict) else str(kind)
