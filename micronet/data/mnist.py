"""MNIST's four files in idx format, plain or gzipped: a header of big-endian integers, then bytes."""

from __future__ import annotations

import gzip
import io
import zlib

import numpy as np

from micronet.data.arrays import Arrays, DataError
from micronet.data.datasets import Dataset
from micronet.data.formats import Files, Undecodable, check_md5
from micronet.data.progress import Report
from micronet.files import reason

NAMES = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
MOST_BYTES = 2**26  # of an unpacked file: the images are 47 MB


def plain_name(name: str) -> str:
    """The official name of a file that may be gzipped, or, as in some copies, have a dot for the second hyphen."""
    return name.removesuffix(".gz").replace(".idx", "-idx")


def is_wanted(name: str) -> bool:
    """Whether a file of that name is one of the four."""
    return plain_name(name) in NAMES


def from_idx(content: bytes) -> np.ndarray:
    """The array in an idx file of bytes, in the shape given by its header. Raises `Undecodable`."""
    dimensions = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * dimensions
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").tolist()) if len(content) >= start else ()
    size = 1
    for length in shape:
        size *= length
    if not dimensions or len(shape) != dimensions or len(content) - start != size:
        raise Undecodable("not an idx file of bytes, or cut short")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _unpacked(content: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            return file.read(MOST_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise Undecodable(f"a damaged gzip file, {reason(error)}") from None


def read_files(files: Files, dataset: Dataset, where: str, report: Report) -> Arrays:
    """Reads the four files and compares each, unpacked, with its official md5.

    Raises:
        DataError: one is missing, or a checksum differs. Undecodable: one cannot be decoded.
    """
    there = {plain_name(name): name for name in sorted(files, reverse=True)}  # prefers a plain file to a gzipped one
    missing = [name for name in NAMES if name not in there]
    if missing:
        lacks = "holds no" if len(missing) == len(NAMES) else "lacks files of"
        raise DataError(f"{where}: {lacks} {dataset.title} ({', '.join(missing)}, plain or .gz)")
    parts: dict[str, np.ndarray] = {}
    for name in NAMES:
        try:
            content = files[there[name]]()
            content = _unpacked(content) if there[name].endswith(".gz") else content
            check_md5(content, dataset.files_md5[name], there[name], where)
            parts[name] = from_idx(content)
        except Undecodable as error:
            raise Undecodable(f"{there[name]}: {error}") from None
    train, train_labels, test, test_labels = parts.values()
    return Arrays(train.reshape(len(train), -1), train_labels, test.reshape(len(test), -1), test_labels)
