"""Images that need not fit into memory: written, compared and rejoined in pieces."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from micronet.data.arrays import Description
from micronet.data.progress import Report, progress_bar

PIECE = 1 << 23  # bytes


class Rows(Protocol):
    """Images (N, C*H*W) uint8, read one slice at a time."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        """The images of a slice without a step."""


def label_type(classes: int) -> str:
    """The numpy name of the type in which labels are stored."""
    return "u1" if classes <= 256 else "<u2"


def pixels_of(shape: Sequence[int]) -> int:
    """Bytes of an image of shape (C, H, W)."""
    return math.prod(shape)


def slices(count: int, pixels: int) -> Iterator[slice]:
    """Slices that cover `count` images in pieces of equal size."""
    step = max(1, PIECE // max(1, pixels))
    yield from (slice(start, min(start + step, count)) for start in range(0, count, step))


class Joined:
    """The images of two splits, in their order before the split."""

    def __init__(self, kept: np.ndarray, held_out: np.ndarray, mask: np.ndarray):
        """Args: kept: (K, P) and held_out: (M, P), uint8. mask: (K + M,) bool, true where an image is held out.

        Raises:
            ValueError: the mask does not match the numbers of images.
        """
        if (np.count_nonzero(~mask), np.count_nonzero(mask)) != (len(kept), len(held_out)):
            raise ValueError("the images that are held out are not as many as the marker says")
        self._kept, self._held_out, self._mask = kept, held_out, mask
        self._before = np.concatenate([[0], np.cumsum(mask)])  # how many are held out before each image

    def __len__(self) -> int:
        return len(self._mask)

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        mask = self._mask[rows]
        first, last = int(self._before[rows.start]), int(self._before[rows.stop])
        piece = np.empty((len(mask), self._kept.shape[1]), dtype=np.uint8)
        piece[mask] = self._held_out[first:last]
        piece[~mask] = self._kept[rows.start - first : rows.stop - last]
        return piece

    def sha256(self) -> str:
        """The checksum of all images, in order."""
        digest = hashlib.sha256()
        for rows in slices(len(self), self._kept.shape[1]):
            digest.update(self[rows].data)
        return digest.hexdigest()


def image_digests(images: Rows, pixels: int) -> list[str]:
    """The checksum of each image's pixels, in hexadecimal digits."""
    return [hashlib.sha256(row).hexdigest() for rows in slices(len(images), pixels) for row in images[rows]]


@dataclass(frozen=True)
class Written:
    """What was measured while images were written."""

    whole: dict[str, Any]  # number and checksums of all images, in order
    splits: dict[str, dict[str, Any]]  # the same for each split
    histogram: np.ndarray  # (C, 256) int64: how many pixels have each value

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel over all pixels, in 0..1; from integer counts, so exact anywhere."""
        means, deviations = [], []
        for counts in self.histogram.tolist():
            total = sum(counts)
            first = sum(value * count for value, count in enumerate(counts))
            second = sum(value * value * count for value, count in enumerate(counts))
            means.append(round(first / total / 255, 8))
            deviations.append(round(((second * total - first * first) ** 0.5) / total / 255, 8))
        return means, deviations


def write_splits(
    folder: Path,
    description: Description,
    images: Rows,
    labels: np.ndarray,
    masks: Mapping[str, np.ndarray],
    report: Report,
) -> Written:
    """Writes SPLIT_images.bin and SPLIT_labels.bin of several splits in one pass.

    Args:
        images: (N, C*H*W) uint8. labels: (N,). masks: (N,) bool for each split, by name.

    Raises:
        OSError: they cannot be written.
    """
    channels, *_ = description.shape
    classes = len(description.classes)
    labels = labels.astype(label_type(classes))
    histogram = np.zeros((channels, 256), dtype=np.int64)
    whole, parts = hashlib.sha256(), {name: hashlib.sha256() for name in masks}
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / f"{name}_images.bin").open("wb")) for name in masks}
        update = stack.enter_context(progress_bar("storing", len(labels), "images", report))
        for rows in slices(len(labels), pixels_of(description.shape)):
            piece = np.ascontiguousarray(images[rows])
            whole.update(piece.data)
            for channel, plane in enumerate(piece.reshape(len(piece), channels, -1).swapaxes(0, 1)):
                histogram[channel] += np.bincount(plane.reshape(-1), minlength=256)
            for name, mask in masks.items():
                own = piece[mask[rows]]
                parts[name].update(own.data)
                files[name].write(own.data)
            update(rows.stop)
    for name, mask in masks.items():
        (folder / f"{name}_labels.bin").write_bytes(labels[mask].tobytes())
    return Written(
        whole=_facts(whole.hexdigest(), labels, classes),
        splits={name: _facts(parts[name].hexdigest(), labels[mask], classes) for name, mask in masks.items()},
        histogram=histogram,
    )


def _facts(images_sha256: str, labels: np.ndarray, classes: int) -> dict[str, Any]:
    """What a manifest says about images, with the number of each class if those differ."""
    sizes = np.bincount(labels, minlength=classes).tolist()
    uneven = {"class_images": sizes} if len(set(sizes)) > 1 else {}
    digest = hashlib.sha256(labels.tobytes()).hexdigest()
    return {"images": len(labels), "images_sha256": images_sha256, "labels_sha256": digest, **uneven}
