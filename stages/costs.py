"""What a student will cost before anybody trains it: packed untrained, as it would be quantized.

`check.py` alone imports this: no stage's result depends on it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import models
from micronet.compress.calibration import calibrate
from micronet.compress.pruning import apply_masks, global_masks
from micronet.compress.quantization import prepare
from micronet.data.datasets import described
from micronet.packed.packing import pack
from micronet.params import Params
from micronet.scoring.books import BOOKS
from micronet.scoring.counting import operations
from micronet.scoring.records import macs
from micronet.scoring.references import References, of_params

IMAGES = 32  # random ones that set the ranges
PATIENCE = 5.0  # seconds


ASKS_MODE = (
    "student.model: its forward asks whether it trains; quantize trains what it does at inference (dropout is kept)"
)


def costs(params: Params) -> tuple[list[dict[str, Any]], References, list[str]]:
    """Rows for `scoring.tables.cost_table`, what their scores are relative to, and what else is to be known.

    The weights are random and the smallest of them zero, `prune.amount`; `trim` takes more away in training, and which
    codes appear changes too, so the packed row is an estimate. Nothing is drawn from torch's own generators.

    Raises:
        MicronetError: the student cannot be built, priced or packed.
    """
    data = described(params.data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        against = of_params(params)
        torch.manual_seed(0)
        student = models.build(
            models.suited(params.student.model.spec(), image=data.shape, classes=len(data.classes))
        ).eval()
    weights = sum(parameter.numel() for parameter in student.parameters())
    ops = operations(student, data.shape, weight_bits=16)
    rows = [_row("student", "", weights, ops, against, weights * 16 / 8, "16")]
    prune, quantize = params.prune, params.quantize.model_copy(update={"flip_share": 0.0})
    if prune.amount:
        masks = global_masks(
            student,
            prune.amount,
            layer_floor=prune.layer_floor,
            cost_exponent=prune.cost_exponent,
            image=data.shape,
        )
        apply_masks(student, masks)
    with _said_when_slow():
        prepared = prepare(student, quantize, data.shape)
        generator = torch.Generator().manual_seed(0)
        calibrate(prepared, torch.randint(0, 256, (IMAGES, *data.shape), generator=generator, dtype=torch.uint8))
        packed = pack(prepared, quantize=quantize, class_names=data.classes)
    bits = "16" if quantize.method == "half" else f"{quantize.weight_bits}/{quantize.activation_bits}"
    zeros = f"{100 * packed.zero_weights / max(1, packed.weights):.0f} %"
    rows.append(_row("packed", zeros, packed.nonzero_parameters, operations(packed), against, packed.file_bytes, bits))
    return rows, against, [ASKS_MODE] if prepared.meta["asks_mode"] else []


@contextmanager
def _said_when_slow() -> Iterator[None]:
    """Says a line when what is done within takes longer than somebody waits without wondering."""
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
