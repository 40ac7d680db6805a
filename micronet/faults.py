"""What is wrong with a section of settings, one line per fault, in this project's wording."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from micronet.errors import shown

UNIONS = ("of a name", "of a file")  # what pydantic adds to a key path for the variant of a section
LONGEST_VALUE = 60  # characters of a value repeated in a fault, so that the reason beside it stays readable

_REASONS = {
    "missing": "is missing",
    "extra_forbidden": "no such key",
    "greater_than": "must be > {gt:g} (got {got})",
    "greater_than_equal": "must be >= {ge:g} (got {got})",
    "less_than": "must be < {lt:g} (got {got})",
    "less_than_equal": "must be <= {le:g} (got {got})",
    "literal_error": "must be {expected} (got {got})",
    "model_type": "must be a section with keys (got {got})",
    "dict_type": "must be a section with keys (got {got})",
    "string_type": "must be text (got {got})",
    "invalid_key": "keys must be text (got {got})",
    "int_type": "must be a whole number (got {got})",
    "bool_type": "must be true or false (got {got})",
    "float_type": "must be a number (got {got})",
    "int_from_float": "must be a whole number (got {got})",
    "finite_number": "must be a finite number (got {got})",
    "list_type": "must be a list (got {got})",
    "tuple_type": "must be a list (got {got})",
    "too_short": "must have {min_length} items or more (got {actual_length})",
    "too_long": "must have at most {max_length} items (got {actual_length})",
}


def said(value: Any) -> str:
    """A value from a file, shortened for a message."""
    try:
        return shown(repr(value), LONGEST_VALUE)
    except (ValueError, RecursionError):  # a number with more digits than Python prints
        return f"a value of type {type(value).__name__}"


def _fault(error: Mapping[str, Any]) -> str:
    """One line for one pydantic error: key path, reason."""
    context, kind, got = error.get("ctx", {}), error["type"], said(error.get("input"))
    tags = UNIONS if kind == "extra_forbidden" else (*UNIONS, "constrained-int", "int", "literal['auto']")
    where = shown(".".join(str(part) for part in error["loc"] if part not in tags), 2 * LONGEST_VALUE)
    if kind in _REASONS:
        reason = _REASONS[kind].format(**context, got=got)
    elif kind == "value_error":
        reason = str(context["error"])
        key, _, rest = reason.partition(": ")
        if re.fullmatch(r"[\w. +]+", key) and rest and " " not in key.replace(" + ", "+"):
            where, reason = f"{where}.{key}" if where else key, rest
    else:
        reason = f"{error['msg'][0].lower()}{error['msg'][1:]} (got {got})"
    return f"{where}: {reason}" if where else reason


def faults(error: ValidationError, *within: str) -> list[str]:
    """One line per fault of a section, `key.path: reason`, in this project's wording.

    Args:
        within: the keys of the section that was checked.
    """
    # Each member of a union reports: the literal's line adds nothing to the number's. Nor does a default that could
    # not be derived from a setting add anything to that setting's own line.
    items = [item for item in error.errors() if item["loc"][-1:] != ("literal['auto']",)]
    items = [item for item in items if item["type"] != "default_factory_not_called"]
    return list(dict.fromkeys(_fault({**item, "loc": (*within, *item["loc"])}) for item in items))
