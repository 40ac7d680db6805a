"""What a dataset must contain, by checksum: CIFAR-10 and the sample of it in this repository."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from micronet import params
from micronet.errors import MicronetError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
PIXELS = 3072  # bytes an image, CHW


class DataError(MicronetError):
    """The data cannot be had or cannot be trusted; one line with the way out."""


@dataclass(frozen=True)
class Dataset:
    """What a dataset must contain, by checksum: all of it, and the files that it is distributed as."""

    name: str
    train_images_sha256: str
    train_labels_sha256: str
    test_images_sha256: str
    test_labels_sha256: str
    binary_md5: Mapping[str, str]  # of the batches of the binary version
    python_md5: Mapping[str, str]  # of the batches of the python version
    archive_md5: Mapping[str, str]  # of the archives: binary, python, npm


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
# The first 100 training and 50 test images of each class, in their order (data/sample/make.py)
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
class Description:
    """What a network for a dataset must know of it."""

    name: str
    shape: tuple[int, int, int]  # (C, H, W) of an image
    classes: tuple[str, ...]  # in the order of the labels


def described(config: params.Data) -> Description:
    """The images and classes of a source, before anything is prepared.

    Raises:
        DataError: the folder that the source names cannot be read.
    """
    return Description(dataset_of(config.source).name, SHAPE, CLASSES)


def dataset_of(source: str) -> Dataset:
    """The dataset that a source of `data.source` serves."""
    return SAMPLE if source == "sample" else CIFAR10


@dataclass(frozen=True)
class Arrays:
    """A whole dataset in the official order: images (N, 3072) uint8 in CHW order, labels (N,) uint8."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    def check(self, dataset: Dataset, where: str) -> None:
        """Raises `DataError`, which names where they came from, when they are not those of the dataset."""
        for part in (field.name for field in fields(self)):
            got, wanted = sha256(getattr(self, part)), getattr(dataset, f"{part}_sha256")
            if got != wanted:
                raise DataError(f"{where}: {part} are not {dataset.name}'s: their sha256 is {got}, it must be {wanted}")


def sha256(array: np.ndarray) -> str:
    """The checksum of an array's values in their order, in hexadecimal digits."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
