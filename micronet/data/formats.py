"""The three forms that CIFAR-10 comes in, rebuilt into the official binary version and checked batch by batch.

That version has a label byte and 3072 bytes CHW an image; its md5 sums are compared whatever the source.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # torch takes seconds to import; a stage's --help needs none of it
    pass
from micronet.data.datasets import BATCHES, PIXELS, TEST_LABELS, TRAIN_LABELS, Arrays, DataError, Dataset
from micronet.data.progress import Report, progress


class Unreadable(Exception):
    """A file of a source does not decode."""


# Reading the three forms that CIFAR-10 comes in


class _BatchUnpickler(pickle.Unpickler):
    """Reads a dict of numpy arrays, bytes, strings, integers and lists; anything else is refused."""

    allowed = {
        **{(f"numpy.{core}.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0] for core in ("core", "_core")},
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not data") from None


def _check_md5(content: bytes | np.ndarray, wanted: str, name: str, where: str) -> None:
    got = hashlib.md5(content).hexdigest()
    if got != wanted:
        raise DataError(f"{where}: {name} is damaged or not official: its md5 is {got}, the official one is {wanted}")


def _from_binary(content: bytes) -> np.ndarray:
    if not content or len(content) % (1 + PIXELS):
        raise Unreadable(f"{len(content)} bytes are not whole images")
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + PIXELS)


def _from_python(content: bytes) -> np.ndarray:
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        return _rebuild(batch[b"data"].reshape(-1, PIXELS), np.asarray(batch[b"labels"]))
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise Unreadable(f"not a batch of the python version, {error}") from None


def from_sheet(content: bytes, labels: np.ndarray) -> np.ndarray:
    """A PNG sheet, 1024 pixels wide, a row an image in row-major order."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    try:
        sheet = decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        raise Unreadable(f"not a PNG, {str(error).splitlines()[0]}") from None
    if sheet.shape[2] != 1024:
        raise Unreadable(f"a sheet is 1024 pixels wide, this is {sheet.shape[2]}")
    return _rebuild(sheet.permute(1, 0, 2).reshape(-1, PIXELS).numpy(), labels)


def _rebuild(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The official binary version, (N, 3073) uint8: the label, then the pixels CHW."""
    if len(images) != len(labels):
        raise Unreadable(f"{len(images)} images and {len(labels)} labels")
    records = np.empty((len(images), 1 + PIXELS), dtype=np.uint8)
    records[:, 0], records[:, 1:] = labels, images
    return records


def read_labels(content: bytes) -> np.ndarray:
    try:
        labels = json.loads(content)
        return np.array(labels, dtype=np.uint8).reshape(-1)
    except (ValueError, TypeError, OverflowError) as error:
        raise Unreadable(f"not a list of labels, {error}") from None


Files = Mapping[str, Callable[[], bytes]]  # a file's name, and how to get its content


def read_batches(files: Files, dataset: Dataset, where: str, report: Report) -> Arrays:
    """Rebuilds the six batches from whichever form `files` holds, and checks every one.

    Raises:
        DataError: incomplete, or a sum differs. Unreadable: a file does not decode.
    """
    forms = {
        "binary": [f"{name}.bin" for name in BATCHES],
        "python": list(BATCHES),
        "sheets": [*(f"{name}.png" for name in BATCHES), TRAIN_LABELS, TEST_LABELS],
    }
    form = max(forms, key=lambda key: sum(name in files for name in forms[key]) / len(forms[key]))
    missing = [name for name in forms[form] if name not in files]
    if len(missing) == len(forms[form]):
        raise DataError(
            f"{where}: holds no CIFAR-10 (wanted data_batch_1 to 5 and test_batch: .bin files, python batches, "
            f"or .png sheets with {TRAIN_LABELS} and {TEST_LABELS})"
        )
    if missing:
        raise DataError(f"{where}: lacks {', '.join(missing)}")

    batches: dict[str, np.ndarray] = {}
    name = ""
    try:
        labels: dict[str, np.ndarray] = {}
        if form == "sheets":
            name = TRAIN_LABELS
            parts = np.split(read_labels(files[name]()), 5)
            name = TEST_LABELS
            labels = dict(zip(BATCHES, [*parts, read_labels(files[name]())], strict=True))
        with progress(f"{where}: reading", len(BATCHES), "batches", report) as update:
            for done, (batch, name) in enumerate(zip(BATCHES, forms[form], strict=False), start=1):
                content = files[name]()
                if form == "python":  # checked before it is unpickled
                    _check_md5(content, dataset.python_md5[batch], name, where)
                    records = _from_python(content)
                elif form == "sheets":
                    records = from_sheet(content, labels[batch])
                else:
                    records = _from_binary(content)
                rebuilt = name if form == "binary" else f"{name} (rebuilt as {batch}.bin)"
                _check_md5(records, dataset.binary_md5[batch], rebuilt, where)
                batches[batch] = records
                update(done)
    except (Unreadable, ValueError) as error:
        raise Unreadable(f"{name}: {error}") from None

    train, test = [batches[name] for name in BATCHES[:-1]], batches[BATCHES[-1]]
    return Arrays(
        train_images=np.concatenate([records[:, 1:] for records in train]),
        train_labels=np.concatenate([records[:, 0] for records in train]),
        test_images=np.ascontiguousarray(test[:, 1:]),
        test_labels=test[:, 0].copy(),
    )


def is_wanted(name: str) -> bool:
    return name in (TRAIN_LABELS, TEST_LABELS) or name.removesuffix(".bin").removesuffix(".png") in BATCHES
