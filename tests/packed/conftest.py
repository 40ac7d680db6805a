"""Packed files that several tests read, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from micronet.data.datasets import CLASSES
from micronet.packed.cascade import Cascade
from micronet.packed.file import read
from micronet.packed.packing import pack
from micronet.packed.steps import Conv
from tests.support.configs import quantize_config
from tests.support.models import CONVNET, RESNET
from tests.support.packed import IMAGES, prepared_model

NAMED = {"class_names": CLASSES}  # so that the oldest version holds them


@pytest.fixture(scope="session")
def windowed(tmp_path_factory) -> Path:
    """A convnet's packed file, whose convolutions have windows of sums."""
    path = tmp_path_factory.mktemp("packed") / "quantized.safetensors"
    pack(prepared_model(CONVNET, quantize_config()), path, quantize=quantize_config(), **NAMED)
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Path:
    """A sparse 4-bit ResNet's packed file."""
    path = tmp_path_factory.mktemp("packed") / "quantized.safetensors"
    quantize = quantize_config(weight_bits=4, activation_bits=4)
    pack(
        prepared_model(RESNET, quantize, 0.5),
        path,
        quantize=quantize,
        metadata={"stage": "quantize"},
        class_names=CLASSES,
    )
    return path


@pytest.fixture(scope="session")
def flipping(tmp_path_factory) -> Path:
    """The same with a flip margin, and most of its weights zero, so that masks have blocks."""
    path = tmp_path_factory.mktemp("packed") / "quantized.safetensors"
    quantize = quantize_config(weight_bits=4, activation_bits=4, flip_share=0.3)
    pack(prepared_model(RESNET, quantize, 0.9), path, quantize=quantize, images=IMAGES, **NAMED)
    assert any(step.weights.mask for step in read(path).steps if isinstance(step, Conv))
    return path


@pytest.fixture(scope="session")
def joined(tmp_path_factory) -> Path:
    """A cascade of two networks, both of which have margins."""
    folder = tmp_path_factory.mktemp("packed")
    quantize = quantize_config(weight_bits=4, activation_bits=4)
    networks = [
        pack(prepared_model(spec, quantize, 0.7), folder / "one", quantize=quantize, **NAMED)
        for spec in (RESNET, CONVNET)
    ]
    cascade = Cascade(networks, IMAGES, torch.zeros(len(IMAGES), dtype=torch.int64))
    cascade.write(folder / "cascade.safetensors", cascade.tune([0.5, 0.2]), {"stage": "cascade"})
    return folder / "cascade.safetensors"
