"""What `make site` inserts into pages while building them, as an mkdocs hook: params, make targets, Python names.

A page marks each place with a comment, so that it also reads well without the insertion.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

from _tool import ROOT
from params_reference import reference

DOORS = ("packed", "scoring", "compress", "training", "data", "export")  # modules of micronet that users import from


def targets() -> str:
    """One table per Makefile group: its targets, each with its stated purpose."""
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
    """The names these modules export, with directives for mkdocstrings, which reads their docstrings."""
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
    """Called by mkdocs for every page."""
    return re.sub(r"<!-- make site: (\w+) -->", lambda mark: PARTS[mark[1]](), markdown)
