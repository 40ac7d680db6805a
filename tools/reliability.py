"""Writes docs/reliability.md from what `make reliability` left in metrics/."""

from __future__ import annotations

import sys
from pathlib import Path

import documents
from _tool import METRICS, arguments_of, front, read_json

from micronet.files import write_atomically

DOCUMENT = Path("docs/reliability.md")


def render(metrics: Path) -> str:
    """docs/reliability.md."""
    return documents.render("reliability", read_json(metrics / "reliability.json", "make reliability"))


def main() -> int:
    def work() -> int:
        write_atomically(DOCUMENT, render(METRICS))
        return 0

    return front("reliability", work)


if __name__ == "__main__":
    arguments_of("reliability", __doc__).parse_args()
    sys.exit(main())
