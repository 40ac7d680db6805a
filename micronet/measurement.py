"""What a release claims, measured: the accuracy of the packed file read back, and its price under both rule books."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import models
from micronet import packed
from micronet.data import CLASSES, Split, normalise
from micronet.packing import PackedModule
from micronet.scoring import ScoreError, challenge_score, cross_check_macs, deck_score, macs, nonzero_macs, operations


@torch.no_grad()
def predictions(model: PackedModule, split: Split, batch_size: int = 500) -> torch.Tensor:
    """The predicted class of every image, (N,) int64: the first of the largest logits.

    Raises:
        ScoreError: the model has another number of classes than the dataset.
    """
    _check_classes(model)
    parts = [model(normalise(images)).argmax(1) for images in split.images.split(batch_size)]
    return torch.cat(parts)


def _check_classes(model: PackedModule) -> None:
    if model.packed.classes != len(CLASSES):
        raise ScoreError(
            f"the packed model has {model.packed.classes} classes, CIFAR-10 has {len(CLASSES)}; "
            "it can be priced but not measured on this data"
        )


def passes(model: PackedModule, split: Split, batch_size: int = 500) -> float:
    """How many passes an image takes, mean of the split: above 1 where the model sees unsure ones mirrored too."""
    if not model.packed.flip_margin:
        return 1.0
    device = next(model.buffers()).device
    again = [model.look(normalise(images.to(device)))[2] for images in split.images.split(batch_size)]
    return 1 + int(torch.cat(again).sum()) / len(split)


def plain(model: packed.PackedModel) -> packed.PackedModel:
    """The same network without our ways to save.

    One pass, at most one bit of a mask for every weight, and a product for every weight, each added to the accumulator.
    """
    saving = {"factored": False, "flip_margin": 0, "flip_bits": 0}
    steps = [replace(step, mask=None if step.mask is None else (), **saving) for step in model.steps]
    return packed.decode(packed.encode(steps, model.spec, model.arithmetic, {}))


def price(model: PackedModule, passes: float = 1.0) -> dict[str, Any]:
    """Both scores of a packed model, and the MACs of one pass, which ptflops counts too.

    Args:
        passes: mean of the images, above 1 where the model sees some of them mirrored too.

    Raises:
        ScoreError: ptflops counts other MACs for the architecture that the file names, or it names none.
    """
    ops = operations(model)
    try:
        designed = models.build(model.spec or {})
    except models.SpecError as error:
        raise ScoreError(f"the file names no architecture that can be built: {error}") from None
    return {
        "deck": asdict(deck_score(ops, passes)),
        "challenge": asdict(challenge_score(ops, passes)),
        "macs": macs(ops),
        "nonzero_macs": nonzero_macs(ops),
        "ptflops_macs": cross_check_macs(designed),
    }


def measure(path: Path | str, model: PackedModule, test: Split, batch_size: int = 500) -> dict[str, Any]:
    """The content of `metrics/score.json`.

    Args:
        path: the packed file that `model` was read from.
        test: the images that accuracy is measured on.
    """
    _check_classes(model)
    looks = [model.look(normalise(images)) for images in test.images.split(batch_size)]
    answers, first, again = (torch.cat(parts) for parts in zip(*looks, strict=True))
    flipped = int(again.sum())

    def accuracy(logits: torch.Tensor) -> float:
        return 100.0 * int((logits.argmax(1) == test.labels).sum()) / len(test)

    ops, content = operations(model), Path(path).read_bytes()
    return {
        "test_accuracy_percent": accuracy(answers),
        "flipped_images_percent": 100.0 * flipped / len(test),
        **price(model, 1 + flipped / len(test)),
        "one_pass": {
            "test_accuracy_percent": accuracy(first),
            "deck_score": deck_score(ops).score,
            "challenge_score": challenge_score(ops).score,
            "plain_challenge_score": challenge_score(operations(plain(model.packed))).score,
        },
        "packed": {
            "bytes": len(content),
            "payload_bits": model.packed.payload_bits,
            "sha256": hashlib.sha256(content).hexdigest(),
        },
    }


def differences(claimed: dict[str, Any], measured: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two results, a line each: `deck.score: claimed 0.04, measured 0.05`."""
    lines = []
    for key in sorted(claimed.keys() | measured.keys()):
        mine, theirs = measured.get(key), claimed.get(key)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            lines += differences(theirs, mine, f"{prefix}{key}.")
        elif mine != theirs:
            lines.append(f"{prefix}{key}: claimed {theirs}, measured {mine}")
    return lines


def class_accuracies(predicted: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Accuracy in percent of the images of each class."""
    return {
        name: 100.0 * float((predicted[labels == index] == index).float().mean()) for index, name in enumerate(CLASSES)
    }
