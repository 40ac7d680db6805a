"""The packed model's answers to the test images, from `metrics/predictions.csv`: confusions, calibration, mistakes."""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from micronet.data import store
from micronet.data.manifest import MARKER, Manifest, read_marker
from micronet.data.pieces import label_type
from micronet.errors import MicronetError, shown
from micronet.params import Data
from report.checked import group, percent, text
from report.errors import ReportError
from report.gathered import Row, Run
from report.tables import number

BINS = 10
ROUNDED = 0.00501  # percent: a score has two decimals
SHOWN = 12  # pictures of each kind
COLUMNS = ("image", "actual", "predicted", "confidence_percent")
Z = 1.959964  # a normal variable lies within so many standard deviations 95 times in 100


@dataclass(frozen=True)
class Answer:
    """The answer to a test image: its number, its class, the predicted class, and the confidence, if known."""

    image: int
    actual: str
    predicted: str
    confidence_percent: float | None

    @property
    def right(self) -> bool:
        return self.actual == self.predicted


def answers(rows: Sequence[Row]) -> list[Answer]:
    """The rows of the file. Raises `KeyError`, `ValueError`: they have an unexpected form."""
    found = []
    for row in rows:
        image, actual, predicted, _ = (row[name] for name in COLUMNS)
        found.append(Answer(int(image), actual, predicted, number(row, "confidence_percent")))
    return found


def of(run: Run) -> list[Answer]:
    """The answers of a run.

    Raises:
        ReportError: they contradict the run's other results: a different number of images, other classes, or another
            accuracy than its score's.
        KeyError, ValueError: they have an unexpected form.
    """
    found, place = answers(run.predictions), f"{run.places.metrics}/predictions.csv"
    if not found:
        return []
    if len({answer.image for answer in found}) != len(found):
        raise ReportError(f"{place} has an image twice")
    if (images := run.counted_images) is not None and images != len(found):
        raise ReportError(f"{place} has {len(found):,} images, {images:,} were tested")
    classes = set(run.model.class_names if run.model is not None else ())
    strangers = {name for answer in found for name in (answer.actual, answer.predicted)} - classes
    if classes and strangers:
        raise ReportError(f"{place} names {shown(min(strangers), 40)}, which is no class of the model")
    if run.score is not None:
        right = 100 * sum(answer.right for answer in found) / len(found)
        claimed = percent(run.score, "test_accuracy_percent")
        if abs(right - claimed) > ROUNDED:
            raise ReportError(f"{place} is right in {right:.2f} % of its images, score.json says {claimed:.2f} %")
    return found


def interval(correct: float, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, both ends in percent.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Args:
        correct: percent of the images. images: their number.
    """
    share = correct / 100
    center = (share + Z**2 / (2 * images)) / (1 + Z**2 / images)
    half = Z / (1 + Z**2 / images) * math.sqrt(share * (1 - share) / images + Z**2 / (4 * images**2))
    return 100 * max(0.0, center - half), 100 * min(1.0, center + half)


def confusions(found: Sequence[Answer]) -> list[dict[str, Any]]:
    """Counts of (actual, predicted), and their share of the actual class's images in percent."""
    counts = Counter((answer.actual, answer.predicted) for answer in found)
    of_class = Counter(answer.actual for answer in found)
    return [
        {
            "actual": actual,
            "predicted": predicted,
            "images": count,
            "percent": 100 * count / of_class[actual],
            "right": "right" if actual == predicted else "wrong",
        }
        for (actual, predicted), count in sorted(counts.items())
    ]


def worst_class(found: Sequence[Answer]) -> tuple[str, float]:
    """The class with the lowest accuracy, and that accuracy in percent."""
    total = Counter(answer.actual for answer in found)
    # A class without a right answer has no row among the right ones, so all classes are tried.
    right = Counter(answer.actual for answer in found if answer.right)
    shares = {name: 100 * right[name] / total[name] for name in sorted(total)}
    worst = min(shares, key=lambda name: shares[name])
    return worst, shares[worst]


def calibration(found: Sequence[Answer]) -> tuple[list[dict[str, Any]], float] | None:
    """Images by confidence in bins of equal width, and the expected calibration error in percent.

    Naeini et al. 2015, AAAI; Guo et al. 2017, arXiv:1706.04599. None: no confidence is known.
    """
    known = [(answer.confidence_percent, answer.right) for answer in found if answer.confidence_percent is not None]
    if not known:
        return None
    rows, error = [], 0.0
    for place in range(BINS):
        # A bin includes its upper end, as in Guo et al.
        low, high = 100 * place / BINS, 100 * (place + 1) / BINS
        inside = [one for one in known if low < one[0] <= high or (place == 0 and one[0] == 0)]
        if not inside:
            continue
        confidence = sum(one[0] for one in inside) / len(inside)
        accuracy = 100 * sum(one[1] for one in inside) / len(inside)
        error += len(inside) / len(known) * abs(confidence - accuracy)
        rows.append({"from": low, "to": high, "images": len(inside), "confidence": confidence, "accuracy": accuracy})
    return rows, error


def most_confident_mistakes(found: Sequence[Answer]) -> list[Answer]:
    """Up to `SHOWN` wrong answers, most confident first; none with unknown confidence."""
    return _ranked([answer for answer in found if not answer.right], descending=True)


def least_sure_right_ones(found: Sequence[Answer]) -> list[Answer]:
    """Up to `SHOWN` right answers, least confident first; none with unknown confidence."""
    return _ranked([answer for answer in found if answer.right], descending=False)


def _ranked(found: list[Answer], *, descending: bool) -> list[Answer]:
    sign = -1 if descending else 1
    known = [answer for answer in found if answer.confidence_percent is not None]
    return sorted(known, key=lambda answer: (sign * (answer.confidence_percent or 0.0), answer.image))[:SHOWN]


class Pictures:
    """A run's test images as PNG data URIs, from its prepared folder. Nothing is prepared or fetched for this.

    Attributes:
        others: whether that folder holds other images than those answered, so that none is given.
    """

    def __init__(self, root: Path, run: Run) -> None:
        self.others = False
        self._pixels: np.ndarray | None = None
        self._names: list[str] = []
        try:
            self._open(root, run)
        except (MicronetError, OSError, ValueError, TypeError, LookupError, AttributeError):
            return

    def _open(self, root: Path, run: Run) -> None:
        """Maps (N, C, H, W) uint8, and reads the class of each; nothing if the folder does not match the run."""
        config = Data.model_validate((run.params or {})["data"])
        folder = root / run.places.home / config.folder
        manifest = Manifest.model_validate(run.manifest).model_dump(exclude_none=True)
        marker = read_marker(folder / MARKER)
        self.others = marker is not None and (marker["manifest"] != manifest or _answered_another_manifest(run))
        if self.others or store.folder_fault(config.model_copy(update={"folder": str(folder)}), manifest):
            return
        classes = manifest["classes"]
        labels = np.fromfile(folder / "test_labels.bin", label_type(len(classes)))
        self._pixels = np.memmap(
            folder / "test_images.bin", np.uint8, mode="r", shape=(len(labels), *manifest["image_shape"])
        )
        self._names = [classes[label] for label in labels.tolist()]

    def uri(self, image: int, actual: str) -> str | None:
        """A picture of the class `actual`; None if it is missing, of another class, or not a picture."""
        if self._pixels is None or not 0 <= image < len(self._names) or self._names[image] != actual:
            return None
        if self._pixels.shape[1] not in (1, 3):
            return None
        pixels = np.moveaxis(np.asarray(self._pixels[image]), 0, -1)
        content = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(content, "PNG")
        return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _answered_another_manifest(run: Run) -> bool:
    """Whether the packed file that answered was made from data that has been prepared anew since.

    Preparing data overwrites the manifest beside the answers, so the record of the stage that made the file is
    consulted; a record of another file says nothing.
    """
    record = run.records.get("quantize", {})
    known = group(record, "made_of").get(store.MANIFEST.as_posix())
    is_of_the_file = text(record, "checkpoint") == text(run.score or {}, "packed.sha256") != ""
    return is_of_the_file and known is not None and known != run.manifest_sha256
