"""How pixels become numbers, and what the room for data brings in."""

from __future__ import annotations

import subprocess
import sys

import torch

from micronet.data.images import normalise
from tests.support.places import ROOT


def test_normalised_pixels_are_exact_codes_and_the_input_stays():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(12).reshape(1, 3, 32, 32)
    before = pixels.clone()
    result = normalise(pixels)
    assert torch.equal(result * 64, pixels.float() - 128) and result.dtype == torch.float32
    floats = pixels.float()
    assert torch.equal(normalise(floats), result) and torch.equal(floats, before.float())


def test_importing_the_room_does_not_import_torch():
    program = "import sys, micronet.data.store; sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
