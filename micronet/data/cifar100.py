"""CIFAR-100's python version: two pickles, `train` and `test`, with fine and coarse labels; the fine ones are used."""

from __future__ import annotations

import numpy as np

from micronet.data.arrays import Arrays, DataError
from micronet.data.datasets import Dataset
from micronet.data.formats import Files, Undecodable, check_md5, from_python
from micronet.data.progress import Report

NAMES = ("train", "test")


def is_wanted(name: str) -> bool:
    """Whether a file of that name is one of the two."""
    return name in NAMES


def read_files(files: Files, dataset: Dataset, where: str, report: Report) -> Arrays:
    """Reads both pickles, after comparing each with its official md5.

    Raises:
        DataError: one is missing, or a checksum differs. Undecodable: one cannot be decoded.
    """
    missing = [name for name in NAMES if name not in files]
    if missing:
        raise DataError(f"{where}: lacks {' and '.join(missing)} of {dataset.title}'s python version")
    parts = []
    for name in NAMES:
        content = files[name]()
        check_md5(content, dataset.python_md5[name], name, where)
        try:
            records = from_python(content, labels=b"fine_labels")
        except Undecodable as error:
            raise Undecodable(f"{name}: {error}") from None
        parts += [np.ascontiguousarray(records[:, 1:]), records[:, 0].copy()]
    return Arrays(*parts)
