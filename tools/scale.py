"""Writes docs/scale.md, with what `python bench/scale.py` left in metrics/."""

from __future__ import annotations

import sys
from pathlib import Path

import documents
from _tool import METRICS, arguments_of, front, read_json

from micronet.files import write_atomically

DOCUMENT = Path("docs/scale.md")


def render(metrics: Path) -> str:
    """docs/scale.md."""
    return documents.render("scale", read_json(metrics / "bench_scale.json", "python bench/scale.py"))


def main() -> int:
    def work() -> None:
        write_atomically(DOCUMENT, render(METRICS))

    return front("scale", work)


if __name__ == "__main__":
    arguments_of("scale", __doc__).parse_args()
    sys.exit(main())
