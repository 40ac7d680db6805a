"""Writes docs/reference/{params,make,sweeps}.md: every key of params.yaml, every make target, every key of a sweep."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import documents
import params_reference
from _tool import ROOT, arguments_of, front

from micronet.files import write_atomically
from sweeps.spec import Spec

PAGES = Path("docs/reference")


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


def keys_of_a_sweep() -> str:
    """One table per class of a sweep's spec."""
    return "\n".join(params_reference.table(section, paths) for section, paths in params_reference.places(Spec).items())


TABLES: dict[str, Callable[[], str]] = {
    "params": params_reference.reference,
    "make": targets,
    "sweeps": keys_of_a_sweep,
}


def render(name: str) -> str:
    """The page of `TABLES` with this name."""
    return documents.render(name, {"tables": TABLES[name]().strip()})


def main() -> int:
    def work() -> None:
        for name in TABLES:
            write_atomically(PAGES / f"{name}.md", render(name))

    return front("references", work)


if __name__ == "__main__":
    arguments_of("references", __doc__).parse_args()
    sys.exit(main())
