"""A packed file layer by layer: where its score goes, its sparsity, its bits and its codes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from micronet.packed.model import PackedModel
from micronet.packed.steps import Conv, Linear
from micronet.scoring.books import BOOKS, RuleBook
from micronet.scoring.packed_counts import packed_operations
from micronet.scoring.records import ONCE, Operation, Reference
from report.checked import group, percent, text, value


def passes_of(model: PackedModel, score: dict[str, Any]) -> tuple[float, ...]:
    """Mean passes per image through each network, from `metrics/score.json`."""
    flipped = percent(score, "flipped_images_percent") / 100
    shares = [percent / 100 for percent in score["cascade"]["images_percent"]] if "cascade" in score else list(ONCE)
    if len(shares) != len(model.networks):
        raise ValueError(f"the file has {len(model.networks)} networks, its score speaks of {len(shares)}")
    return (*shares[:-1], shares[-1] + flipped)


def reference_of(book: RuleBook, score: dict[str, Any]) -> Reference | None:
    """What a rule book's score is relative to; None: the book's default for the number of classes."""
    if "reference" not in score:
        return None
    named = group(score, "reference")
    operations, parameters = (value(named, f"{book.name}.{one}") for one in ("operations", "parameters"))
    return Reference(text(named, "name"), operations, parameters)


def shares(model: PackedModel, score: dict[str, Any]) -> list[dict[str, Any]]:
    """What each layer adds to each rule book's score, by storage and by operations.

    The rows of a rule book sum to its score.
    """
    ops, passes = packed_operations(model), passes_of(model, score)
    rows: list[dict[str, Any]] = []
    for book in BOOKS:
        price = book.score(ops, passes, reference_of(book, score))
        counts = [passes[op.network] * book.operations(op) for op in ops]
        bits = [book.bits(op) for op in ops]
        operations, storage = price.score_operations, price.score - price.score_operations
        for part, whole, each in (("storage", storage, bits), ("operations", operations, counts)):
            of_layer = defaultdict[str, float](float)
            for layer, count in zip(_layers(model, ops), each, strict=True):
                of_layer[layer] += whole * count / (sum(each) or 1)
            rows += [
                {
                    "book": book.name,
                    "layer": layer,
                    "part": part,
                    "score": value,
                    "share_percent": 100 * value / price.score,
                }
                for layer, value in of_layer.items()
                if any(each)
            ]
    return rows


def _layers(model: PackedModel, ops: Sequence[Operation]) -> Iterator[str]:
    """The step each operation belongs to: `conv1` for `conv1.requantize`."""
    names = sorted((step.name for step in model.steps), key=len, reverse=True)
    for op in ops:
        yield next((name for name in names if op.name == name or op.name.startswith(f"{name}.")), op.name)


def weights(model: PackedModel) -> list[dict[str, Any]]:
    """One row per layer with weights: shape, total and nonzero counts, bits per code, bits in the file."""
    return [
        {
            "layer": step.name,
            "shape": " x ".join(map(str, step.weights.codes.shape)),
            "weights": step.weights.codes.size,
            "nonzeros": step.weights.nonzeros,
            "nonzero_percent": 100 * step.weights.nonzeros / step.weights.codes.size,
            "bits": step.weights.bits,
            "stored_bits": step.stored("weight"),
        }
        for step in _with_weights(model)
    ]


def codes(model: PackedModel) -> list[dict[str, Any]]:
    """How often each weight code occurs in each layer, without zeros. Empty for a model of 16-bit floats."""
    if model.arithmetic == "half":
        return []
    rows = []
    for step in _with_weights(model):
        found, counts = np.unique(step.weights.codes[step.weights.codes != 0], return_counts=True)
        pairs = zip(found.tolist(), counts.tolist(), strict=True)
        rows += [{"layer": step.name, "code": code, "count": count} for code, count in pairs]
    return rows


def _with_weights(model: PackedModel) -> list[Conv | Linear]:
    return [step for step in model.steps if isinstance(step, Conv | Linear)]
