"""Short training runs of pruned and quantized networks, on images from which something can be learned."""

from __future__ import annotations

import torch
from torch import nn

from micronet.data.images import Split
from micronet.params import Train
from micronet.training import loop
from micronet.training.hardware import Machine
from micronet.training.loop import TrainResult
from micronet.training.reporting import Reporter

MACHINE = Machine(torch.device("cpu"), autocast=False, channels_last=True)
STEPS = 4  # an epoch: 64 images in batches of 16


def images(count: int, seed: int = 0) -> Split:
    """Noise on a brightness that tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    noise = torch.randint(0, 100, (count, 3, 32, 32), generator=generator)
    return Split((noise + 15 * labels[:, None, None, None]).to(torch.uint8), labels)


def train(model: nn.Module, settings: Train, **more) -> TrainResult:
    """Trains on `STEPS` batches of 16 an epoch."""
    data = {"training": images(16 * STEPS), "validation": images(20, 1)}
    return loop.train(model, config=settings, machine=MACHINE, seed=3, **data, **more)


class StopAt(Reporter):
    """Dies at one step, as a process that is killed does."""

    def __init__(self, where: tuple[int, int]):
        self.where = where

    def step(self, *, epoch: int, images: int, loss: float) -> None:
        if (epoch, images) == self.where:
            raise ProcessLookupError
