"""What a prepared network takes from images: the steps of its activations, the statistics of its batch norms."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx, nn

from micronet.compress import fx_int8
from micronet.compress.quantizers import SAMPLES, LsqActivation, best_step
from micronet.data.images import normalise
from micronet.params import Augment
from micronet.training.augmentation import augment


@torch.no_grad()
def calibrate(prepared: nn.Module, images: Tensor, batch_size: int = 250) -> None:
    """Sets the step of every activation quantizer from images, (N, 3, 32, 32) uint8: least squared error.

    Activations are observed with the weights quantized and the activations not. Batch norms are left alone.
    """
    if isinstance(prepared, fx.GraphModule) and "float_model" in prepared.meta:
        fx_int8.observe_ranges(prepared, (normalise(batch) for batch in images.split(batch_size)))
        return
    quantizers = [module for module in prepared.modules() if isinstance(module, LsqActivation)]
    if not quantizers:
        return
    was_training = prepared.training
    prepared.eval()
    device = quantizers[0].step.device
    for quantizer in quantizers:
        quantizer.samples = []
    try:
        for start in range(0, len(images), batch_size):
            prepared(normalise(images[start : start + batch_size]).to(device))
        for quantizer in quantizers:
            values = torch.cat(quantizer.samples or [])
            values = values[:: max(1, len(values) // (4 * SAMPLES))]
            quantizer.step.fill_(best_step(values.relu() if quantizer.relu else values, quantizer.low, quantizer.high))
    finally:
        for quantizer in quantizers:
            quantizer.samples = None
        prepared.train(was_training)


@torch.no_grad()
def recalibrate_batch_norm(prepared: nn.Module, batches: Iterable[Tensor]) -> None:
    """Estimates the statistics of every batch norm anew, as the mean over batches of normalised images.

    Everything else stays in eval mode, so steps and weights do not move.
    """
    norms = [module for module in prepared.modules() if isinstance(module, nn.BatchNorm2d)]
    was_training, momenta = prepared.training, [norm.momentum for norm in norms]
    prepared.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        for batch in batches:
            prepared(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        prepared.train(was_training)


def training_batches(images: Tensor, config: Augment, seed: int, batch_size: int = 500) -> Iterable[Tensor]:
    """Normalised batches of images (N, 3, 32, 32) uint8, augmented as in training, for `recalibrate_batch_norm`.

    The weights have learned to live with the statistics of augmented images, whose crops have grey borders: with
    those of the images as they are, the laptop student lost half a point on validation.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    for batch in images.split(batch_size):
        labels = torch.zeros(len(batch), dtype=torch.int64, device=batch.device)  # mixed like any other, and unused
        yield augment(batch, labels, config, generator)[0]
