"""What `make site` inserts into a page while building it, as an mkdocs hook: the names that Python can import.

The page marks the place with a comment, so that it also reads well without the insertion.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import _tool  # noqa: F401 - puts the repository on sys.path

MARK = "<!-- make site: names -->"
DOORS = ("packed", "scoring", "compress", "training", "data", "export")  # modules of micronet that users import from


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


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return re.sub(MARK, lambda _: names(), markdown)
