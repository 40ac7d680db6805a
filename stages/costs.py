"""What a student will cost, before it is trained: packed untrained, as it would be quantized.

Only `check.py` imports this: no stage's result depends on it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from micronet.data.datasets import described
from micronet.packed.estimate import packed_untrained, untrained_student
from micronet.params import Params
from micronet.scoring.books import BOOKS
from micronet.scoring.counting import operations
from micronet.scoring.records import macs
from micronet.scoring.references import References, of_params

PATIENCE = 5.0  # seconds
ASKS_MODE = (
    "student.model: its forward asks whether it trains; quantize trains what it does at inference (dropout is kept)"
)


def costs(params: Params) -> tuple[list[dict[str, Any]], References, list[str]]:
    """Rows for `scoring.tables.cost_table`, what their scores are relative to, and notes for the user.

    The packed row is an estimate (`packed.estimate`). The state of torch's global generators is left unchanged.

    Raises:
        MicronetError: the student cannot be built, priced or packed.
    """
    data, quantize = described(params.data), params.quantize
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        against = of_params(params)
        torch.manual_seed(0)
        student = untrained_student(params)
        weights = sum(parameter.numel() for parameter in student.parameters())
        ops = operations(student, data.shape, weight_bits=16)
        with _said_when_slow():
            packed, prepared = packed_untrained(student, params)
    rows = [_row("student", "", weights, ops, against, weights * 16 / 8, "16")]
    bits = "16" if quantize.method == "half" else f"{quantize.weight_bits}/{quantize.activation_bits}"
    zeros = f"{100 * packed.zero_weights / max(1, packed.weights):.0f} %"
    rows.append(_row("packed", zeros, packed.nonzero_parameters, operations(packed), against, packed.file_bytes, bits))
    return rows, against, [ASKS_MODE] if prepared.meta["asks_mode"] else []


@contextmanager
def _said_when_slow() -> Iterator[None]:
    """Prints a line if the work inside takes so long that a user would wonder."""
    line = (
        "check: packing the student untrained to price it; a large one takes minutes (stages/check.py --quiet skips it)"
    )
    timer = threading.Timer(PATIENCE, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _row(
    name: str, zeros: str, parameters: int, ops: Any, against: References, size: float, bits: str
) -> dict[str, Any]:
    return {
        "network": name,
        "zeros": zeros,
        "parameters": parameters,
        "bits": bits,
        "bytes": int(size),
        "macs": macs(ops),
        **{f"{book.name}_score": book.score(ops, reference=against.of[book.name]).score for book in BOOKS},
    }
