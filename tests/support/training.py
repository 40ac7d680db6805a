"""Short training runs, on learnable images."""

from __future__ import annotations

from typing import Any

from torch import nn

from micronet.params import Train
from micronet.training import loop
from micronet.training.loop import TrainResult
from tests.support.configs import MACHINE
from tests.support.images import bright_split

STEPS = 4  # per epoch: 64 images in batches of 16


def train(model: nn.Module, settings: Train, **more: Any) -> TrainResult:
    """Trains on `STEPS` batches of 16 per epoch, unless other images are given."""
    data = {"training": bright_split(16 * STEPS), "validation": bright_split(20, 1)}
    return loop.train(model, config=settings, machine=MACHINE, seed=3, **data | more)
