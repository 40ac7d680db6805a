"""What a prepared network learns from images: the steps of its activations, the statistics of its batch norms."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from micronet.compress import fx_int8
from micronet.compress.errors import QuantizationError
from micronet.compress.quantizers import (
    SMALLEST_STEP,
    LsqActivation,
    LsqWeight,
    QuantizedConv2d,
    QuantizedLinear,
)
from micronet.data.images import normalise
from micronet.data.progress import Advance, Watch, counted, unwatched
from micronet.errors import shown
from micronet.params import Augment
from micronet.training.augmentation import augment


def _checked(images: Tensor) -> None:
    """Raises `QuantizationError` for anything but images as they are stored."""
    if not isinstance(images, Tensor) or images.dim() != 4 or images.dtype != torch.uint8 or not images.numel():
        said = f"{images.dtype} of {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise QuantizationError(
            f"calibration takes images (N, C, H, W) of torch.uint8, pixels that nobody has normalised (got {said})"
        )


@contextmanager
def _observed(prepared: nn.Module) -> Iterator[None]:
    """Raises `QuantizationError` for images that do not fit, and at the first layer whose output is not finite."""

    def look(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and not output.isfinite().all():
            raise QuantizationError(
                f"{shown(name, 100)}: gives values that are not finite for the images of the calibration; "
                "a network that has not diverged would work"
            )

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: look(name, output))
        for name, module in prepared.named_modules()
        if name and not list(module.children())
    ]
    try:
        yield
    except RuntimeError as error:
        raise QuantizationError(
            f"the network does not take the images of the calibration: {shown(error, 200)}"
        ) from None
    finally:
        for hook in hooks:
            hook.remove()


def _batches(prepared: nn.Module, images: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Normalised images, (N, C, H, W) float32, on the network's device."""
    device = next(prepared.parameters()).device
    for batch in images.split(batch_size):
        yield normalise(batch).to(device)


@torch.no_grad()
def calibrate(prepared: nn.Module, images: Tensor, batch_size: int = 250, watch: Watch = unwatched) -> None:
    """Sets the step of every activation quantizer from images, (N, C, H, W) uint8, by least squared error.

    Activations are observed with quantized weights but unquantized activations. Batch norms are left alone.

    Raises:
        QuantizationError: these are not images, or a layer's outputs for them are not finite. No step has changed then.
    """
    _checked(images)
    with watch("calibration", len(images), "images") as told:
        if isinstance(prepared, fx.GraphModule) and "float_model" in prepared.meta:
            with _observed(prepared):
                fx_int8.observe_ranges(prepared, counted(_batches(prepared, images, batch_size), told))
            return
        quantizers = [module for module in prepared.modules() if isinstance(module, LsqActivation)]
        _set_steps(prepared, quantizers, images, batch_size, told)


def refit_lost_steps(prepared: nn.Module, images: Tensor, batch_size: int = 250) -> list[str]:
    """Resets every step that training has driven to 0 or below, where all that it quantizes is lost.

    An update can be larger than the step: with few images, a few updates at a high learning rate.

    Args:
        images: (N, C, H, W) uint8, the calibration images.

    Returns:
        The names of the affected layers and activations, weights first.
    """
    layers: dict[str, Any] = {
        name: layer for name, layer in prepared.named_modules() if isinstance(layer, QuantizedConv2d | QuantizedLinear)
    }
    lost = [
        name
        for name, layer in layers.items()
        if isinstance(layer.quantizer, LsqWeight) and layer.quantizer.refit(layer.weight)
    ]
    activations = {
        name: module
        for name, module in prepared.named_modules()
        if isinstance(module, LsqActivation) and float(module.step.detach()) <= SMALLEST_STEP
    }
    _set_steps(prepared, list(activations.values()), images, batch_size)
    return lost + [*activations]


def _set_steps(
    prepared: nn.Module,
    quantizers: list[LsqActivation],
    images: Tensor,
    batch_size: int,
    told: Advance = lambda done: None,
) -> None:
    """Sets the steps of these quantizers; while they observe, they quantize nothing."""
    if not quantizers:
        return
    was_training = prepared.training
    prepared.eval()
    for quantizer in quantizers:
        quantizer.samples = []
    try:
        with _observed(prepared):
            for batch in counted(_batches(prepared, images, batch_size), told):
                prepared(batch)
        for quantizer in quantizers:
            quantizer.calibrate()
    finally:
        for quantizer in quantizers:
            quantizer.samples = None
        prepared.train(was_training)


@torch.no_grad()
def recalibrate_batch_norm(prepared: nn.Module, batches: Iterable[Tensor]) -> None:
    """Re-estimates the statistics of every batch norm, as the mean over batches of normalised images.

    Everything else stays in eval mode, so steps and weights do not change. A batch of one image is skipped where a norm
    would see one value per channel of it, which has no variance.

    Raises:
        QuantizationError: there is no batch to estimate from, or the statistics are not finite.
    """
    norms = {name: module for name, module in prepared.named_modules() if isinstance(module, _BatchNorm)}
    was_training, momenta = prepared.training, [norm.momentum for norm in norms.values()]
    prepared.eval()
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    seen = 0
    try:
        for batch in batches:
            seen += _estimated(prepared, norms, batch)
    finally:
        for norm, momentum in zip(norms.values(), momenta, strict=True):
            norm.momentum = momentum
        prepared.train(was_training)
    if norms and not seen:
        raise QuantizationError("batch norms cannot be estimated without images; two would do, or more")
    for name, norm in norms.items():
        if norm.running_var is not None and not norm.running_var.isfinite().all():
            raise QuantizationError(f"{shown(name, 100)}: sees values that are not finite; has the network diverged?")


def _estimated(prepared: nn.Module, norms: dict[str, _BatchNorm], batch: Tensor) -> bool:
    """Whether the norms could take statistics from a batch; if not, they are unchanged."""
    if len(batch) > 1:
        prepared(batch)
        return True
    before = [copy.deepcopy(norm.state_dict()) for norm in norms.values()]
    try:
        prepared(batch)
    except ValueError:  # torch's, for one value per channel
        for norm, state in zip(norms.values(), before, strict=True):
            norm.load_state_dict(state)
        return False
    return True


def training_batches(images: Tensor, config: Augment, seed: int, batch_size: int = 500) -> Iterable[Tensor]:
    """Normalised batches of images (N, C, H, W) uint8, augmented as in training, for `recalibrate_batch_norm`.

    The weights are adapted to the statistics of augmented images, whose crops have grey borders: with those of
    unaugmented images, the laptop student lost half a point on validation.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    for batch in images.tensor_split(-(-len(images) // batch_size)):  # of equal size: a norm weights them equally
        labels = torch.zeros(len(batch), dtype=torch.int64, device=batch.device)  # mixed like real ones, and unused
        yield augment(batch, labels, config, generator, classes=1)[0]
