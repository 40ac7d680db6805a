"""Measures what a release claims: the accuracy of the packed file as read back, and its price in each rule book."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import models
from micronet.data.datasets import CIFAR10, CLASSES, SAMPLE
from micronet.data.images import Split, normalise
from micronet.data.progress import Watch, counted, unwatched
from micronet.errors import shown
from micronet.packed.file import content, decode, encode
from micronet.packed.margins import mean_passes
from micronet.packed.model import PackedModel
from micronet.packed.module import PackedModule
from micronet.packed.steps import Conv, Linear, Step
from micronet.packed.steps.linear import chosen
from micronet.scoring.answers import Answers, ask
from micronet.scoring.books import BOOKS, CHALLENGE
from micronet.scoring.counting import cross_check_macs, operations
from micronet.scoring.records import ONCE, Operation, ScoreError, macs, nonzero_macs
from micronet.scoring.references import OF_CIFAR10, References, reference_of
from models.meta import build_meta

SHOWN = 160  # characters of a library's message about a spec
SHOWN_KEY = 70  # characters of a claim's key, and of its value
_NOTHING = object()  # for a missing key


@torch.no_grad()
def predictions(model: PackedModule, split: Split, batch_size: int = 500, watch: Watch = unwatched) -> torch.Tensor:
    """The predicted class of every image, (N,) int64: the first of the largest logits.

    Raises:
        ScoreError: model and dataset have different numbers of classes.
    """
    check_classes(model, split)
    with watch("measuring", len(split), "images") as told:
        parts = [model(normalise(images)).argmax(1) for images in counted(split.images.split(batch_size), told)]
    return torch.cat(parts)


def check_classes(model: PackedModule, split: Split) -> None:
    """Raises `ScoreError` if model and dataset have different numbers of classes."""
    names = split.classes or CLASSES
    if model.packed.classes != len(names):
        data = "CIFAR-10" if _of_cifar10(split) else "the data"
        raise ScoreError(
            f"the packed model has {model.packed.classes} classes, {data} has {len(names)}; "
            "it can be priced but not measured on this data"
        )


def passes(model: PackedModule, split: Split, batch_size: int = 500) -> tuple[float, ...]:
    """How many passes an image takes through each network, mean over the split.

    Above 1 if the last network sees unsure images again, mirrored; below 1 for networks that see only unsure images.
    """
    device = next(model.buffers()).device
    if len(model.packed.networks) == 1 and not model.packed.flip_margin:
        return ONCE
    looks = [model.look(normalise(images.to(device))) for images in split.images.split(batch_size)]
    return mean_passes(torch.cat([look.passes for look in looks]), len(model.packed.networks))


def plain(model: PackedModel) -> PackedModel:
    """The same networks without our savings.

    At most one mask bit per weight, one product per weight, each added to the accumulator; no second look by the last
    network.
    """

    def unspared(step: Step) -> Step:
        if not isinstance(step, Conv | Linear):
            return step
        mask = None if step.weights.mask is None else ()
        return replace(step, weights=replace(step.weights, factored=False, mask=mask))

    *steps, last = (unspared(step) for step in model.steps)
    steps = [*steps, chosen(last, None)]
    return decode(encode(steps, model.spec, model.arithmetic, {}, class_names=model.class_names))


def price(
    model: PackedModule,
    passes: Sequence[float] = ONCE,
    references: References | None = None,
    *,
    ops: list[Operation] | None = None,
) -> dict[str, Any]:
    """The scores of a packed model, and the MACs of one pass of each network, cross-checked with ptflops.

    Args:
        passes: through each network, mean over the images.
        references: what the scores are relative to; None: each rule book's default.
        ops: the model's operations, if already counted.

    Raises:
        ScoreError: ptflops and we count different MACs for an architecture, or the file names none that can be built.
    """
    ops = operations(model) if ops is None else ops
    if model.packed.specs is None:
        raise ScoreError("the file names no architecture, so its operations cannot be compared with one")
    try:
        designed = [_designed(spec) for spec in model.packed.specs]
    except models.SpecError as error:
        raise ScoreError(f"the file names no architecture that can be built: {shown(error, SHOWN)}") from None
    return {
        **{book.name: asdict(book.score(ops, passes, reference_of(book, references))) for book in BOOKS},
        "macs": macs(ops),
        "nonzero_macs": nonzero_macs(ops),
        "ptflops_macs": sum(cross_check_macs(network, model.packed.image) for network in designed),
    }


def _designed(spec: dict[str, Any]) -> nn.Module:
    """The network of a spec, without weight values. Raises `SpecError`."""
    models.check_known(spec)
    return build_meta(spec)


def measure(
    path: Path | str,
    model: PackedModule,
    test: Split,
    batch_size: int = 500,
    references: References | None = None,
    *,
    answers: Answers | None = None,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """The content of `metrics/score.json`.

    `one_pass` is for the same file if every image took one pass of each network. `cascade`, if there are several
    networks: the share of the images that each one sees, and its accuracy if it alone classified all of them. For
    images other than CIFAR-10's also the accuracy of each class and their mean, the balanced accuracy; for a different
    reference also what the scores are relative to.

    Args:
        path: the packed file that `model` was read from.
        test: the images that accuracy is measured on.
        references: see `price`.
        answers: to `test`, if already computed.
        watch: shows how many images have been measured.

    Raises:
        ScoreError: model and dataset have different numbers of classes; see also `price`.
    """
    check_classes(model, test)
    networks = len(model.packed.networks)
    answers = answers or ask(model, test, batch_size, watch)
    flipped = int((answers.passes > networks).sum())

    def accuracy(logits: torch.Tensor) -> float:
        return 100.0 * int((logits.argmax(1) == test.labels).sum()) / len(test)

    def alone(network: int) -> float:
        with watch(f"network {network + 1} alone", len(test), "images") as told:
            seen = counted(test.images.split(batch_size), told)
            return accuracy(torch.cat([model.one_pass(normalise(images), network) for images in seen]))

    cascade = {
        "images_percent": [100.0 * int((answers.passes > network).sum()) / len(test) for network in range(networks)],
        "alone_test_accuracy_percent": [alone(network) for network in range(networks)],
    }
    ops, data, once = operations(model), content(path), ONCE * networks
    plainly = CHALLENGE.score(operations(plain(model.packed)), once, reference_of(CHALLENGE, references))
    return {
        "test_accuracy_percent": accuracy(answers.logits),
        "flipped_images_percent": 100.0 * flipped / len(test),
        **_by_class(answers.logits.argmax(1), test),
        **({} if references is None or references == OF_CIFAR10 else {"reference": references.facts()}),
        **price(model, mean_passes(answers.passes, networks), references, ops=ops),
        "one_pass": {
            "test_accuracy_percent": accuracy(answers.one_pass),
            **{f"{book.name}_score": book.score(ops, once, reference_of(book, references)).score for book in BOOKS},
            "plain_challenge_score": plainly.score,
        },
        **({"cascade": cascade} if networks > 1 else {}),
        "packed": {
            "bytes": len(data),
            "payload_bits": model.packed.payload_bits,
            "sha256": hashlib.sha256(data).hexdigest(),
        },
    }


def differences(claimed: dict[str, Any], measured: dict[str, Any], prefix: str = "") -> list[str]:
    """The differences between two results, one line each: `deck.score: claimed 0.04, measured 0.05`.

    Args:
        claimed: anything a JSON file may say; shown short and on one line.
    """
    lines = []
    for key in sorted(claimed.keys() | measured.keys()):
        mine, theirs = measured.get(key, _NOTHING), claimed.get(key, _NOTHING)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            lines += differences(theirs, mine, f"{prefix}{shown(key, SHOWN_KEY)}.")
        elif mine != theirs or isinstance(mine, bool) != isinstance(theirs, bool):
            said, found = (_said(value, other) for value, other in ((theirs, mine), (mine, theirs)))
            lines.append(f"{prefix}{shown(key, SHOWN_KEY)}: claimed {said}, measured {found}")
    return lines


def _said(value: Any, other: Any) -> str:
    """A value as text, quoted if it would look like `other`, which is not text."""
    if value is _NOTHING:
        return "None"
    if value is None:
        return "null"
    if isinstance(value, list | dict):
        return f"{len(value)} values"
    told = shown(value, SHOWN_KEY)
    return repr(told) if isinstance(value, str) and not isinstance(other, str) else told


def _of_cifar10(split: Split) -> bool:
    """Whether these are CIFAR-10 images: by the manifest's name or, without one, by their classes."""
    if split.dataset is not None:
        return split.dataset in (CIFAR10.name, SAMPLE.name)
    return split.classes in ((), CLASSES)


def _by_class(predicted: torch.Tensor, test: Split) -> dict[str, Any]:
    """Each class's accuracy and their mean if not CIFAR-10; for CIFAR-10 only the mean, if classes are uneven."""
    found = class_accuracies(predicted, test.labels, test.classes)
    there = [accuracy for accuracy in found.values() if accuracy is not None]
    balanced = {"balanced_accuracy_percent": sum(there) / len(there)}
    if not _of_cifar10(test):
        return {**balanced, "class_accuracy_percent": found}
    counts = torch.bincount(test.labels)
    return balanced if (counts != counts[0]).any() else {}


def class_accuracies(
    predicted: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...] = ()
) -> dict[str, float | None]:
    """Accuracy in percent on the images of each class; None if there are none.

    Args:
        classes: their names, in the order of the labels; CIFAR-10's if left out.
    """
    of_class = [predicted[labels == index] == index for index in range(len(classes or CLASSES))]
    return {
        name: 100.0 * int(correct.sum()) / len(correct) if len(correct) else None
        for name, correct in zip(classes or CLASSES, of_class, strict=True)
    }
