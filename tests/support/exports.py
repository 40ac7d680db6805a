"""Packed files for export tests: random networks, and their expected results."""

from __future__ import annotations

import functools
import hashlib
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from micronet import params
from micronet.data.sources import fetch
from micronet.errors import MicronetError
from micronet.packed.errors import PackedFileError
from micronet.packed.file import decode
from micronet.packed.model import PackedModel
from micronet.packed.packing import pack
from tests.support import generated_networks, generated_shapes
from tests.support.hostile import hostile_file
from tests.support.images import random_images
from tests.support.models import calibrated
from tests.support.networks import settled
from tests.support.packed import tiny_files
from tests.support.places import ROOT


@torch.no_grad()
def random_file(seed: int) -> bytes | None:
    """The packed file of a random network, with odd shapes or odd operations; None: the packer refuses it."""
    chance = random.Random(seed)
    if seed % 2:
        model, image = generated_shapes.network(chance)
        method = chance.choice(generated_shapes.METHODS)
    else:
        model, image = generated_networks.Recipe(chance), (3, 32, 32)
        method = chance.choice(generated_networks.METHODS)
    images = random_images(8, image=image)
    try:
        prepared = calibrated(settled(model, images), method, images, image).eval()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "packed"
            pack(prepared, path, quantize=method, seen=images)
            return path.read_bytes()
    except MicronetError:
        return None


RELEASED: dict[str, Any] = json.loads((ROOT / "tests/packed/released.json").read_text(encoding="utf-8"))
"""The facts each released file was released with, by name."""
INTEGERS = [name for name, facts in RELEASED.items() if "answers_sha256" in facts]
"""Those whose logits are the same integers everywhere; one of 16-bit floats is computed in floats (`FLOATS`)."""
FLOATS = [name for name in RELEASED if name not in INTEGERS]


def released(name: str) -> bytes:
    """A released file; superseded ones are kept beside their tests."""
    path = ROOT / f"release/{name}.safetensors"
    return (path if path.exists() else ROOT / "tests/packed" / path.name).read_bytes()


@functools.cache
def sample() -> np.ndarray:
    """(100, 3, 32, 32) uint8: every fifth test image of the sample, whose logits are in `released.json`."""
    arrays = fetch(params.Data(source="sample", validation_size=500))[1]
    return arrays.test_images[::5].reshape(-1, 3, 32, 32).copy()


def seen_by(model: PackedModel, pixels: np.ndarray) -> np.ndarray:
    """Images in a model's shape: a smaller network sees a corner of each."""
    channels, height, width = model.image
    return np.ascontiguousarray(pixels[:, :channels, :height, :width])


def digest(logits: np.ndarray) -> str:
    """The sha256 of integer logits, as in `released.json`."""
    return hashlib.sha256(np.ascontiguousarray(np.asarray(logits).astype("<i8")).tobytes()).hexdigest()


def altered_files(count: int, seed: int = 0) -> list[bytes]:
    """The hostile files, of so many, that still decode to networks; together they contain every operation."""
    sources = tiny_files()
    return [data for data in (hostile_file(sources, number, seed) for number in range(count)) if _decodes(data)]


def _decodes(data: bytes) -> bool:
    try:
        decode(data)
    except PackedFileError:
        return False
    return True
