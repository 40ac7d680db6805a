"""Writes the documents that each come straight from one file of metrics/: reliability, and how sweeps scale."""

from __future__ import annotations

import sys
from pathlib import Path

import documents
from _tool import METRICS, arguments_of, front, read_json

from micronet.files import write_atomically

DOCUMENTS = {  # in docs/: the file of metrics/, what makes it
    "reliability": ("reliability.json", "make reliability"),
    "scale": ("bench_scale.json", "python bench/scale.py"),
}


def render(name: str, metrics: Path) -> str:
    """The text of docs/NAME.md from a metrics folder. Raises `ToolError`: its file is missing or damaged."""
    file, made_by = DOCUMENTS[name]
    return documents.render(name, read_json(metrics / file, made_by))


def main() -> int:
    def work() -> None:
        for name in DOCUMENTS:
            write_atomically(Path(f"docs/{name}.md"), render(name, METRICS))

    return front("measured", work)


if __name__ == "__main__":
    arguments_of("measured", __doc__).parse_args()
    sys.exit(main())
