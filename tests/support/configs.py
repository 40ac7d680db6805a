"""Machines and params sections for test trainings, and params trees with changed values."""

from __future__ import annotations

import copy
from typing import Any

import torch

from micronet import params
from micronet.training.hardware import Machine
from tests.support.places import ROOT

MACHINE = Machine(torch.device("cpu"), autocast=False, channels_last=True)
_DEMO = params.read_yaml(ROOT / "recipes/demo.yaml")


def train_config(**changes: Any) -> params.Train:
    """Two short epochs."""
    return params.Train(**({"epochs": 2, "batch_size": 16, "learning_rate": 0.05} | changes))


def quantize_config(**changes: Any) -> params.Quantize:
    """A quantization with hardly any training."""
    return params.Quantize(**({"train": params.Train(epochs=1, learning_rate=0.1)} | changes))


def demo(*changes: tuple[str, Any]) -> dict[str, Any]:
    """The demo recipe as a separate tree, with values changed by key path: `("teacher.train.epochs", 3)`."""
    tree = copy.deepcopy(_DEMO)
    for path, value in changes:
        *sections, key = path.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    return tree
