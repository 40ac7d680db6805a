"""A whole dataset in memory or mapped from disk, what a network must know about it, and this package's error."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from micronet.errors import MicronetError


class DataError(MicronetError):
    """The data cannot be obtained or cannot be trusted; the message is one line with the way out."""

    remedy = "docs/your-images.md says what would work, `make doctor` what is wrong"


@dataclass(frozen=True)
class Description:
    """What a network must know about its dataset."""

    name: str
    shape: tuple[int, int, int]  # (C, H, W) of an image
    classes: tuple[str, ...]  # in the order of the labels


@dataclass(frozen=True)
class Arrays:
    """A whole dataset in its original order: images (N, C*H*W) uint8 in CHW order, labels (N,) integers."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def sha256(array: np.ndarray) -> str:
    """The checksum of an array's values in order, in hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
