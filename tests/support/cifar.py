"""CIFAR-10's three on-disk forms, made from any images."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from micronet import params
from micronet.data.formats import BATCHES, TEST_LABELS, TRAIN_LABELS


def python_2_pickle(batch: np.ndarray) -> bytes:
    """A batch as Python 2 wrote it: byte strings with the opcodes U and T, an array via numpy.core."""
    pixels = batch[:, 1:].tobytes()
    shape = b"(M" + len(batch).to_bytes(2, "little") + b"M" + (3072).to_bytes(2, "little") + b"t"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T" + len(pixels).to_bytes(4, "little") + pixels + b"tb"
    )  # fmt: skip
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in batch[:, 0]) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + labels + b"u."


def sheet_of(batch: np.ndarray) -> Image.Image:
    """A batch, (N, 3073) uint8, as a picture with one row per image."""
    return Image.fromarray(batch[:, 1:].reshape(-1, 3, 1024).transpose(0, 2, 1).copy())


def write_form(folder: Path, records: dict[str, np.ndarray], form: str) -> Path:
    """Writes six batches, (N, 3073) uint8 by name, as `binary`, `python` or `sheets` into a new folder."""
    folder.mkdir(parents=True)
    for name, batch in records.items():
        if form == "binary":
            (folder / f"{name}.bin").write_bytes(batch.tobytes())
        elif form == "python":
            (folder / name).write_bytes(python_2_pickle(batch))
        else:
            sheet_of(batch).save(folder / f"{name}.png", compress_level=1)
    if form == "sheets":
        train = np.concatenate([records[name][:, 0] for name in BATCHES[:-1]])
        (folder / TRAIN_LABELS).write_text(json.dumps(train.tolist()))
        (folder / TEST_LABELS).write_text(json.dumps(records["test_batch"][:, 0].tolist()))
    return folder


def write_archive(folder: Path, archive: Path) -> Path:
    """Packs a folder like the npm package."""
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, arcname="package")
    return archive


def config_for(path: Path | None, folder: Path, source: str = "path") -> params.Data:
    """A data section that prepares `folder` from a folder or archive."""
    return params.Data(source=source, path=path and str(path), folder=str(folder), validation_size=200)
