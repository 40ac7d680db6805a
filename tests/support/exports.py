"""Packed files for the tests of exports: random networks, and what they should say."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import torch

from micronet.compress.calibration import calibrate
from micronet.compress.quantization import prepare
from micronet.errors import MicronetError
from micronet.packed.packing import pack
from tests.support import generated_networks, generated_shapes
from tests.support.images import random_images
from tests.support.networks import settled


@torch.no_grad()
def random_file(seed: int) -> bytes | None:
    """The packed file of a random network: of odd shapes, or of odd operations; None: the packer refuses it."""
    chance = random.Random(seed)
    if seed % 2:
        model, image = generated_shapes.network(chance)
        method = chance.choice(generated_shapes.METHODS)
    else:
        model, image = generated_networks.Recipe(chance), (3, 32, 32)
        method = chance.choice(generated_networks.METHODS)
    images = random_images(8, image=image)
    try:
        prepared = prepare(settled(model, images), method, image).eval()
        calibrate(prepared, images)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "packed"
            pack(prepared, path, quantize=method, seen=images)
            return path.read_bytes()
    except MicronetError:
        return None
