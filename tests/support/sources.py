"""What the tests check in the repository's own source."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import NamedTuple

from tests.support.places import ROOT


def sources(*folders: str) -> list[Path]:
    """The Python files of some folders, from the root."""
    return sorted(path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py"))


class Facts(NamedTuple):
    """What the tests check in a file, so that its syntax tree is neither walked repeatedly nor kept."""

    imports: list[tuple[int, str, str]]  # (line, module, name) as written; "" as name if the module is meant
    relative: list[int]  # lines
    calls: list[tuple[int, str]]  # (line, last name of the callee)
    functions: list[tuple[int, str, int]]  # (line, name, lines)


@functools.cache
def facts(path: Path) -> Facts:
    """The facts of a file, named from the root."""
    found = Facts([], [], [], [])
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.imports.extend((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.imports.extend((node.lineno, node.module or ".", alias.name) for alias in node.names)
            found.relative.extend([node.lineno] if node.level else [])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            found.calls.append((node.lineno, getattr(node.func, "attr", getattr(node.func, "id", ""))))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.functions.append((node.lineno, node.name, node.end_lineno - node.lineno + 1))
    return found
