"""Checks a network and its images before a run, so that a fault visible at once does not end it half-way."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from micronet.data.images import Split, normalise
from micronet.errors import MicronetError, shown
from micronet.training.hardware import Machine
from micronet.training.weights import plain_weights


class TrainingError(MicronetError):
    """A network, images and params do not fit together; the message says what would work."""


def check_split(split: Split, name: str) -> None:
    """Checks the form of a split: images (N, C, H, W) uint8 with a label each, (N,) integers.

    Args:
        name: what a message calls it, `training` or `validation`.

    Raises:
        TrainingError: it is not.
    """
    images, labels = split.images, split.labels
    if images.dim() != 4 or images.dtype != torch.uint8:
        got = f"{images.dtype} of {tuple(images.shape)}"
        raise TrainingError(f"the {name} images must be (N, C, H, W) of torch.uint8, as they are stored (got {got})")
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex():
        got = f"{labels.dtype} of {tuple(labels.shape)}"
        raise TrainingError(f"the {name} labels must be one whole number for each of {len(images)} images (got {got})")
    if not len(images):
        raise TrainingError(f"there are no {name} images; one would do, or more")


def check_labels(labels: Tensor, classes: int, name: str) -> None:
    """Raises `TrainingError` if a label, of (N,), is not one of the network's classes."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        way = "labels count from 0" if low < 0 else f"a model of {high + 1} classes would work"
        raise TrainingError(f"the {name} labels hold {wrong}, the model has classes 0 to {classes - 1}; {way}")


def check_network(model: nn.Module) -> None:
    """Checks that a network has weights that can be moved to a device and trained.

    Raises:
        WeightsError: they are not plain (see `plain_weights`).
        TrainingError: they are on the device `meta`, where tensors hold nothing.
    """
    plain_weights(model)
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise TrainingError(
                f"{shown(name, 100)}: is on the device meta and holds nothing; build the network on the CPU"
            )


def check_shares(batch_size: int, ranks: int) -> int:
    """The smallest number of images of a batch that a rank sees. Raises `TrainingError` if that is 0."""
    if batch_size < ranks:
        raise TrainingError(
            f"a batch of {batch_size} has no image for each of {ranks} ranks; engine.processes: {batch_size} would work"
        )
    return batch_size // ranks


def class_count(
    model: nn.Module, images: Tensor, machine: Machine, *, batch_size: int, trains: bool = True, ranks: int = 1
) -> int:
    """The number of classes of a network, found by showing a copy of it one or two images, as in a step.

    Args:
        images: (N, C, H, W) uint8.
        batch_size: of a step on one rank; 1 is tried with one image.
        trains: whether it is to be trained, or only measured.

    Raises:
        TrainingError: the network does not take these images, gives no logits, or has nothing to train.
    """
    batch = normalise(images[: min(2, batch_size)].to(machine.device))
    if trains and not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError("every parameter is frozen; one that trains is needed, or epochs: 0")
    try:
        with torch.random.fork_rng([machine.device] if machine.device.type == "cuda" else []):
            trial = machine.place(copy.deepcopy(model)).train(trains)
            with torch.autocast(machine.device.type, torch.bfloat16, enabled=machine.autocast):
                logits = trial(batch.contiguous(memory_format=machine.memory_format))
    except MicronetError:
        raise
    except Exception as error:  # a user's own network can raise anything
        raise TrainingError(_why(error, model, batch, ranks)) from None
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(batch) or not logits.shape[1]:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TrainingError(f"the network gives {got} for {len(batch)} images, it must give logits (N, classes)")
    if trains and not logits.requires_grad:
        raise TrainingError("no parameter that trains has a part in the logits; unfreeze one that has, or epochs: 0")
    return logits.shape[1]


def _why(error: Exception, model: nn.Module, batch: Tensor, ranks: int) -> str:
    """One line about what a network raised on its first images."""
    if len(batch) == 1 and "more than 1 value per channel" in str(error):
        return (
            "a batch norm behind a map of 1 x 1 sees one value a channel of a batch of one image, which has no "
            f"variance; batch_size: {2 * ranks} works, with {2 * ranks} training images or more"
        )
    kinds = {tensor.dtype for tensor in model.parameters() if tensor.dtype != torch.float32}
    if kinds:
        kind = sorted(str(each) for each in kinds)[0]
        return f"the network has parameters of {kind} and gets images of torch.float32; model.float() would work"
    reason = f"{type(error).__name__}: {shown(error, 180)}"
    return f"the network does not take images {tuple(batch.shape)} of torch.float32: {reason}"
