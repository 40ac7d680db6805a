"""What a dataset must contain, by checksum: CIFAR-10 and the sample of it in this repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from micronet.errors import MicronetError

if TYPE_CHECKING:  # torch takes seconds to import; a stage's --help needs none of it
    pass


SAMPLE_FOLDER = Path(__file__).resolve().parents[2] / "data" / "sample"


CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


SHAPE = (3, 32, 32)


PIXELS = 3072  # bytes an image, CHW


BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


TRAIN_LABELS, TEST_LABELS = "train_lables.json", "test_lables.json"  # spelled so in the package


class DataError(MicronetError):
    """The data cannot be had or cannot be trusted; one line with the way out."""


@dataclass(frozen=True)
class Dataset:
    """What a dataset must contain, by checksum. `binary_md5` and the others are keyed by file name or version."""

    name: str
    train_images_sha256: str
    train_labels_sha256: str
    test_images_sha256: str
    test_labels_sha256: str
    binary_md5: Mapping[str, str]
    python_md5: Mapping[str, str]
    archive_md5: Mapping[str, str]


CIFAR10 = Dataset(
    name="cifar10",
    train_images_sha256="9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
    train_labels_sha256="2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    test_images_sha256="177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
    test_labels_sha256="cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    binary_md5={
        "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d",
    },
    python_md5={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    archive_md5={
        "binary": "c32a1d4ab5d03f1284b67883e8d87530",
        "python": "c58f30108f718f92721af3b95e74349a",
        "npm": "62a5aed944185fb7dbe404d8fed5be50",
    },
)


# the first 100 training and 50 test images of each class, in their order (data/sample/make.py)
SAMPLE = Dataset(
    name="cifar10-sample",
    train_images_sha256="a867f997256a35f67b9321981f6243a2ea9e49a346a0290b31f26dd3c9435b28",
    train_labels_sha256="e759947fe69fe0f2bb22a97d325a470d61f7ec00ab59043c35b4534c888e05f3",
    test_images_sha256="9bc54919dd26fb31d13e41be1c4e91e9f757f0385e9adda3184bce27358ed42d",
    test_labels_sha256="ef05233573cbaa3aef37039dda9546f3232a1e96050a39502b89413dc8c9e952",
    binary_md5={},
    python_md5={},
    archive_md5={},
)


@dataclass(frozen=True)
class Arrays:
    """A whole dataset in the official order: images (N, 3072) uint8 in CHW order, labels (N,) uint8."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
