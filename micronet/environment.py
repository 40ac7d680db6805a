"""Checks that the running Python has what the code imports: one line, instead of an import that ends in a traceback.

It needs nothing but Python itself, in any version that can parse this file.
"""

from __future__ import annotations

import importlib.util
import os
import sys

OLDEST = (3, 11)
# Module name -> package name in the index, if they differ.
PACKAGES = {
    "numpy": "numpy",
    "PIL": "pillow",
    "ptflops": "ptflops",
    "pydantic": "pydantic",
    "rich": "rich",
    "ruamel.yaml": "ruamel-yaml",
    "safetensors": "safetensors",
    "torch": "torch",
}


def lacking() -> list[str]:
    """The missing packages."""
    return [package for module, package in PACKAGES.items() if not _found(module)]


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is missing too, or it was put there by hand
        return module in sys.modules


def fault(root: str) -> str:
    """What this Python lacks and what to do, in one line; empty if it lacks nothing.

    Args:
        root: of the checkout; the environment that `make env` builds is its `.venv`.
    """
    old = sys.version_info[:2] < OLDEST
    missing = [] if old else lacking()
    if not old and not missing:
        return ""
    what = f"is older than {OLDEST[0]}.{OLDEST[1]}" if old else f"lacks {', '.join(missing)}"
    activate = os.path.join(root, ".venv", "bin", "activate")
    way = "source .venv/bin/activate" if os.path.isfile(activate) else "make env && source .venv/bin/activate"
    return f"this Python ({sys.executable}) {what}; in the checkout: {way}, then the same again"


def require(root: str) -> None:
    """If something is missing, prints the line and exits with 1."""
    if said := fault(root):
        name = os.path.basename(sys.argv[0] or "python").removesuffix(".py")
        print(f"{name}: {said}", file=sys.stderr)
        sys.exit(1)
