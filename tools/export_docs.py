"""Writes docs/export.md and docs/microcontroller.md from what `make exports` left in metrics/."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import documents
from _tool import METRICS, ROOT, arguments_of, front, read_json

from micronet.files import write_atomically


class Board(NamedTuple):
    """A microcontroller board, from its vendor's data sheet; memory in units of 1,024 bytes."""

    name: str
    core: str
    flash: int
    ram: int


BOARDS = (
    Board("Nordic nRF52840", "M4F, 64 MHz", 1024, 256),
    Board("ST STM32F411", "M4F, 100 MHz", 512, 128),
    Board("Raspberry Pi Pico (RP2040)", "M0+, 133 MHz", 2048, 264),
    Board('ST STM32F103C8 ("blue pill")', "M3, 72 MHz", 64, 20),
    Board("ST STM32L031", "M0+, 32 MHz", 32, 8),
)
MEASURED, OTHER = "Cortex-M4", "Cortex-M55"  # the second is described by how much it differs
MEMORY, INSTRUCTIONS = ("flash_bytes", "ram_bytes"), ("instructions_an_image",)


def fits(board: Board, rows: Sequence[dict[str, Any]]) -> str:
    """Which of a model's forms fit on a board: `size or speed`, or what it has too little of."""
    held, lacking = [], []
    for row in rows:
        sizes = (("flash", board.flash, row["flash_bytes"]), ("RAM", board.ram, row["ram_bytes"]))
        lacks = {what for what, has, needs in sizes if needs > 1024 * has}
        if lacks:
            lacking.append(lacks)
        else:
            held.append(row["optimize"])
    return " or ".join(held) or f"no: {' and '.join(sorted(set.intersection(*lacking)))}"


def apart_percent(rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> float:
    """The largest difference of the other board, in percent of the measured one."""
    found = {(row["board"], row["model"], row["optimize"]): row for row in rows}
    pairs = [(row, found[OTHER, row["model"], row["optimize"]]) for row in rows if row["board"] == MEASURED]
    return max(100 * abs(other[key] / one[key] - 1) for one, other in pairs for key in keys)


def boards_of(found: dict[str, Any]) -> dict[str, Any]:
    """The facts of docs/microcontroller.md."""
    rows = [row for row in found["boards"] if row["board"] == MEASURED]
    models = list(dict.fromkeys(row["model"] for row in rows))
    of_model = {name: [row for row in rows if row["model"] == name] for name in models}
    return {
        "compiler": found["compiler"],
        "rows": rows,
        "models": models,
        "boards": [
            board._asdict() | {"fits": {name: fits(board, of_model[name]) for name in models}} for board in BOARDS
        ],
        "apart": {
            "memory_percent": apart_percent(found["boards"], MEMORY),
            "instructions_percent": apart_percent(found["boards"], INSTRUCTIONS),
        },
    }


def render(metrics: Path) -> dict[str, str]:
    """The documents by name."""
    found = read_json(metrics / "exports.json", "make exports")
    return {
        "export": documents.render("export", found),
        "microcontroller": documents.render("microcontroller", boards_of(found)),
    }


def main() -> int:
    def work() -> None:
        for name, text in render(METRICS).items():
            write_atomically(ROOT / f"docs/{name}.md", text)

    return front("export_docs", work)


if __name__ == "__main__":
    arguments_of("export_docs", __doc__).parse_args()
    sys.exit(main())
