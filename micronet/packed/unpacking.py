"""From a packed file back to a network that can be trained: float weights, batch norms split off again.

A packed step combines a convolution, its batch norm and the steps of both quantizers in one multiplier and one bias
per channel. A float network needs only their product: the value of an activation's code can be chosen freely, because
the next norm undoes any scale.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import models
from micronet.compress.graph import read
from micronet.data.images import PIXEL_SCALE, normalise
from micronet.errors import MicronetError, shown
from micronet.packed.model import PackedModel
from micronet.packed.steps import Conv, Linear, Pool
from micronet.packed.steps.scaling import in_integers
from models.meta import build_meta

TYPICAL = 4.0  # value of an activation's greatest code: a few standard deviations of a batch norm's output
LOGIT_SCALES = torch.logspace(-8, 0, 81, dtype=torch.float64)  # candidate values of one logit unit
SHOWN, SHOWN_NAME = 160, 60  # characters of messages about a spec, and of a layer's name

Layer = TypeVar("Layer", bound=nn.Module)


class UnpackError(MicronetError):
    """A packed model that cannot be turned into a float network."""


def unpack(packed: PackedModel, images: Tensor, labels: Tensor) -> nn.Module:
    """The network of a packed file in floats, in eval mode: it computes what the file does, up to rounding.

    Args:
        packed: one network in which each convolution is followed by a batch norm of its own, as in a MobileNet or a
            ResNet.
        images: (N, C, H, W) uint8, training images on which the batch norm statistics are measured.
        labels: (N,) int64, which determine the scale of the logits: integers have none.

    Raises:
        UnpackError: a cascade, a file in 16-bit floats or without a spec, an unsupported architecture.
    """
    if len(packed.networks) > 1 or packed.arithmetic != "integer" or packed.spec is None:
        raise UnpackError("only a file of one network in integers, which names its architecture, can be unpacked")
    model = _architecture(packed).eval()
    _check_activations(model, packed)
    norms = _norms(model)
    worth: dict[int, float] = {0: PIXEL_SCALE}
    for index, step in enumerate(packed.steps[1:], 1):
        if isinstance(step, Pool):
            worth[index] = worth[step.inputs[0]] / step.geometry.area
        elif isinstance(step, Conv) and step.name in norms and step.window == 1:
            worth[index] = _restore(_layer(model, step.name, nn.Conv2d), norms[step.name], step, worth)
        elif isinstance(step, Linear):
            _restore_linear(_layer(model, step.name, nn.Linear), step, worth[step.inputs[0]])
        else:
            raise UnpackError(
                f"{shown(step.name, SHOWN_NAME)}: a {step.op} cannot be unpacked, only a convolution with a batch norm"
            )
    _measure(model, [(model.get_submodule(name), norm) for name, norm in norms.items()], normalise(images))
    _fit_scale(model, _layer(model, packed.steps[-1].name, nn.Linear), normalise(images), labels)
    return model


def _architecture(packed: PackedModel) -> nn.Module:
    """The network that the file names, checked to have the layers of the file's steps.

    Raises:
        UnpackError: it cannot be built, or has different layers.
    """
    assert packed.spec is not None
    try:
        models.check_known(packed.spec)
        claimed = build_meta(packed.spec)
    except models.SpecError as error:
        raise UnpackError(f"the file names no architecture that can be built: {shown(error, SHOWN)}") from None
    layers = {
        name: tuple(layer.weight.shape)
        for name, layer in claimed.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    }
    steps = [step for step in packed.steps if isinstance(step, Conv | Linear)]
    for step in steps:
        shape = step.weights.rows.shape if isinstance(step, Linear) else step.weights.codes.shape
        if layers.get(step.name, shape) != shape:
            sizes = f"{shape} in its step, {layers[step.name]} in the file's spec"
            raise UnpackError(f"{shown(step.name, SHOWN_NAME)}: has a weight of {sizes}")
    missing = layers.keys() - {step.name for step in steps}
    if missing or len(steps) > len(layers):
        raise UnpackError(
            f"the file's spec has {len(layers)} layers, its steps have {len(steps)}: one of them is wrong"
        )
    return models.build(packed.spec)


def _check_activations(model: nn.Module, packed: PackedModel) -> None:
    """Refuses what a step's codes do not show: the limits of a clamp, and what is added or looked up after a norm."""
    for found in read(model, image=packed.image, shapes_alone=True).calls.values():
        if found.kind in ("clamp", "shift", "function", "prelu", "product"):
            raise UnpackError(
                f"{shown(found.place, SHOWN_NAME)}: a {found.kind} cannot be unpacked; ReLUs behind batch norms can"
            )


def _layer(model: nn.Module, name: str, kind: type[Layer]) -> Layer:
    """The layer of a step. Raises `UnpackError` if the architecture has no layer of its kind there."""
    layer = dict(model.named_modules()).get(name)
    if not isinstance(layer, kind):
        raise UnpackError(f"{shown(name, SHOWN_NAME)}: is no {kind.__name__} of the architecture that the file names")
    return layer


def _norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """The batch norm right behind each convolution, by the convolution's name."""
    modules = dict(model.named_modules())
    calls = [node for node in fx.symbolic_trace(model).graph.nodes if node.op == "call_module"]
    pairs = [(node, user) for node in calls for user in node.users if user.op == "call_module"]
    return {
        node.target: modules[user.target]
        for node, user in pairs
        if isinstance(modules[node.target], nn.Conv2d) and isinstance(modules[user.target], nn.BatchNorm2d)
    }


@torch.no_grad()
def _restore(layer: nn.Conv2d, norm: nn.BatchNorm2d, step: Conv, worth: dict[int, float]) -> float:
    """Sets a convolution and its norm, with statistics 0 and 1 for now; returns the value of one output code."""
    scaling = in_integers(step)
    if scaling.residual is None:
        scale = TYPICAL / float(np.abs(step.high).max())
    elif scaling.residual.multiplier == 0:
        raise UnpackError(f"{shown(step.name, SHOWN_NAME)}: adds a map times 0, which no network in floats does")
    else:  # the network adds both sides unscaled
        scale = worth[scaling.residual.value] * 2.0**scaling.residual.fraction / scaling.residual.multiplier
    codes = torch.from_numpy(step.weights.codes.astype(np.float64))
    deviation = (2.0 / (codes.shape[1] * step.geometry.area)) ** 0.5  # as weights are initialised: He et al. 2015
    unit = deviation / float(codes.square().mean().sqrt().clamp(min=1e-9))
    layer.weight.copy_((codes * unit).float())
    gain = scaling.multiplier / 2.0**scaling.shift * scale / (worth[step.inputs[0]] * unit)
    bias = (scaling.bias / 2.0**scaling.bias_fraction - 0.5) * scale  # without the half that makes a floor a rounding
    if not norm.affine:
        raise UnpackError(
            f"{shown(step.name, SHOWN_NAME)}: has a batch norm without gain and bias; one with both works"
        )
    if layer.bias is not None:
        layer.bias.zero_()  # the norm's bias includes it
    norm.weight.copy_(torch.from_numpy(gain).float())
    norm.bias.copy_(torch.from_numpy(bias).float())
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0 - norm.eps)
    return scale


@torch.no_grad()
def _restore_linear(layer: nn.Linear, step: Linear, worth: float) -> None:
    layer.weight.copy_(torch.from_numpy(step.weights.codes.astype(np.float32)).view_as(layer.weight) / worth)
    if layer.bias is not None:
        layer.bias.copy_(torch.from_numpy(step.bias.astype(np.float32)))
    elif step.bias.any():
        raise UnpackError(f"{shown(step.name, SHOWN_NAME)}: has a bias in its step and none in the architecture")


@torch.no_grad()
def _measure(model: nn.Module, pairs: list[tuple[nn.Module, nn.BatchNorm2d]], images: Tensor) -> None:
    """Gives every norm the statistics of its input, with gain and bias adjusted so that its output stays the same."""
    sums: dict[nn.Module, list[Tensor]] = {layer: [] for layer, _ in pairs}

    def note(layer: nn.Module, _: object, output: Tensor) -> None:
        values = output.double()
        sums[layer].append(torch.stack([values.mean((0, 2, 3)), values.square().mean((0, 2, 3))]))

    hooks = [layer.register_forward_hook(note) for layer, _ in pairs]
    for part in images.split(250):
        model(part)
    for hook in hooks:
        hook.remove()
    for layer, norm in pairs:
        mean, square = torch.stack(sums[layer]).mean(0)
        variance = (square - mean.square()).clamp(min=0)
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(mean.float())
        norm.running_var.copy_(variance.float())
        norm.bias.add_((norm.weight.double() * mean).float())
        norm.weight.mul_((variance + norm.eps).sqrt().float())


@torch.no_grad()
def _fit_scale(model: nn.Module, classifier: nn.Linear, images: Tensor, labels: Tensor) -> None:
    """Scales the logits, integers until now, to minimise cross entropy. `classifier` computes them."""
    logits = torch.cat([model(part) for part in images.split(250)]).double()
    scale = min(LOGIT_SCALES.tolist(), key=lambda scale: float(F.cross_entropy(logits * scale, labels.long())))
    for parameter in classifier.parameters():
        parameter.mul_(scale)
