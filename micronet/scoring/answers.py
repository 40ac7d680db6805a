"""A packed model's answer to each image: its class, and how sure it is of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from micronet.data.datasets import CLASSES
from micronet.data.images import Split, normalise
from micronet.data.progress import Watch, counted, unwatched
from micronet.errors import shown
from micronet.packed.module import PackedModule

COLUMNS = ("image", "actual", "predicted", "confidence_percent")
CALIBRATED_ON = 2000  # images: a single number is fitted to them
LEAST_A_WAY = 50  # images needed to fit the scale of the logits for one route through a cascade
MOST_SCALED = 1e3  # natural units between logits: no softmax needs more
HALVINGS = 60  # of the interval in which the scale is searched
TOLERANCE = 0.05  # percent: the last bits of a float softmax differ between machines


@dataclass(frozen=True)
class Answers:
    """A packed model's output for N images."""

    logits: Tensor  # (N, classes): integers in float64; float32 for `half`
    passes: Tensor  # (N,) int64, total per image
    one_pass: Tensor  # (N, classes): of one pass of each network


def ask(model: PackedModule, split: Split, batch_size: int = 500, watch: Watch = unwatched) -> Answers:
    """The answers to a split; in a cascade every network sees every image, for `one_pass`.

    Args:
        watch: shows how many images have been answered.
    """
    with watch("measuring the packed model", len(split), "images") as told:
        seen = counted(split.images.split(batch_size), told)
        looks = [model.look(normalise(images), all_networks=True) for images in seen]
    parts = ("logits", "passes", "all_networks")
    return Answers(*(torch.cat([getattr(look, part) for look in looks]) for part in parts))


def confidences(model: PackedModule, answers: Answers, validation: Split, batch_size: int = 500) -> Tensor:
    """How sure the model is of its answers: the largest softmax of each image, (N,) float64 in 0 to 1.

    The logits are integers. If the file states the value of one unit, the result is what `micronet.predict` gives: the
    softmax of the logits, averaged over both passes if the image was also seen mirrored. Otherwise (CIFAR-10 files, and
    each route through a cascade) the scale is the one with which the labels of validation images are most likely:
    temperature scaling, Guo et al. 2017, arXiv:1706.04599.

    Args:
        validation: images neither used to train the model nor contained in `answers`; some of them are used if the
            file does not state the value of its logits.
    """
    single = len(model.packed.networks) == 1
    logits = _means(answers) if single else answers.logits.double()
    if single and model.packed.logit_scale is not None:
        return _largest_softmax(logits * model.packed.logit_scale)
    known = validation.part(CALIBRATED_ON)
    said = ask(model, known, batch_size)
    if single:
        return _largest_softmax(logits * worth(_means(said), known.labels))
    overall, found = worth(said.logits.double(), known.labels), torch.empty(len(logits), dtype=torch.float64)
    for way in answers.passes.unique().tolist():
        same, mine = answers.passes == way, said.passes == way
        enough = int(mine.sum()) >= LEAST_A_WAY
        scale = worth(said.logits[mine].double(), known.labels[mine]) if enough else overall
        found[same] = _largest_softmax(logits[same] * scale)
    return found


def _means(answers: Answers) -> Tensor:
    """The logits of one network, averaged for an image that was seen twice; float64."""
    return answers.logits.double() / answers.passes[:, None]


def _largest_softmax(logits: Tensor) -> Tensor:
    return logits.softmax(1).amax(1)


def worth(logits: Tensor, labels: Tensor) -> float:
    """The scale of logits (N, classes) that minimises the cross entropy of the labels (N,), 0 or more.

    The cross entropy is convex in the scale, so the zero of its slope is found by bisection; if larger is always
    better, because every image is right, the end of the interval is used.
    """

    def slope(scale: float) -> float:
        expected = ((logits * scale).softmax(1) * logits).sum(1)
        return float((expected - logits.gather(1, labels[:, None])[:, 0]).mean())

    spread = float((logits - logits.mean(1, keepdim=True)).abs().max()) if len(logits) else 0.0
    if spread == 0.0 or slope(0.0) >= 0.0:
        return 0.0
    low, high = 0.0, MOST_SCALED / spread
    if slope(high) <= 0.0:
        return high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0.0 else (low, middle)
    return (low + high) / 2


def table(answers: Answers, sure: Tensor, test: Split) -> list[dict[str, Any]]:
    """The rows of `metrics/predictions.csv`, one per image.

    Args:
        sure: from `confidences`.
        test: the images that were answered, with their class names.
    """
    predicted = answers.logits.argmax(1).tolist()
    names = test.classes or CLASSES
    columns = zip(test.labels.tolist(), predicted, sure.tolist(), strict=True)
    return [
        dict(zip(COLUMNS, (image, names[actual], names[said], f"{100.0 * confidence:.2f}"), strict=True))
        for image, (actual, said, confidence) in enumerate(columns)
    ]


def differences(claimed: Sequence[Mapping[str, str]], measured: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The differences between two tables of predictions: at most one line per column and one for their length.

    Confidences may differ by `TOLERANCE`, too little to matter to a reader.

    Args:
        claimed: as read from a file; a row may lack a column or hold any text.
    """
    if len(claimed) != len(measured):
        yield f"claimed {len(claimed):,} images, measured {len(measured):,}"
    for column in COLUMNS:
        wrong = [
            (mine, said.get(column))
            for said, mine in zip(claimed, measured, strict=False)
            if not _same(column, said.get(column), mine[column])
        ]
        if wrong:
            mine, said = wrong[0]
            place = f"{column} of {len(wrong):,} image{'s' if len(wrong) > 1 else ''}"
            yield f"{place}, first of {mine['image']}: claimed {shown(said, 60)}, measured {shown(mine[column], 60)}"


def _same(column: str, said: str | None, mine: Any) -> bool:
    if column != "confidence_percent":
        return said == str(mine)
    try:
        return said is not None and abs(float(said) - float(mine)) <= TOLERANCE
    except ValueError:
        return False
