"""What `make site` writes into pages while it builds them, a hook of mkdocs: params, make's targets, Python's names.

A page has a comment where such a part goes, so that it reads without it too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

from _tool import ROOT
from params_reference import reference

DOORS = ("packed", "scoring", "compress", "training", "data", "export")  # rooms of micronet whose names users import


def targets() -> str:
    """A table of each group of the Makefile: its targets, and the purpose that each states."""
    head = ["", "| command | what it does |", "|---|---|"]
    parts = list[str]()
    for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines():
        if group := re.match(r"# --- (.*) ---$", line):
            parts += ["", f"## {group[1].capitalize()}", *head]
        elif target := re.match(r"([a-z][a-z-]*):.*## (.*)", line):
            purpose = target[2].replace("|", "\\|")
            parts.append(f"| `make {target[1]}` | {purpose} |")
    return "\n".join(parts)


def names() -> str:
    """The names that the rooms hand on, with directives for mkdocstrings, which reads their docstrings."""
    parts = list[str]()
    for module, found in {"models": ("build", "normalise"), "micronet.params": ("load", "parse")}.items():
        parts += ["", f"## {module}", "", "\n\n".join(f"::: {module}.{name}" for name in found)]
    for door in DOORS:
        module = import_module(f"micronet.{door}")
        parts += ["", f"## micronet.{door}", "", (module.__doc__ or "").strip(), ""]
        parts.append("\n\n".join(f"::: micronet.{door}.{home}.{name}" for name, home in module._HOMES.items()))
    return "\n".join(parts)


PARTS: dict[str, Callable[[], str]] = {"keys": reference, "targets": targets, "names": names}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs asks this of every page."""
    return re.sub(r"<!-- make site: (\w+) -->", lambda mark: PARTS[mark[1]](), markdown)
