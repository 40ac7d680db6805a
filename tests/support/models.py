"""Networks small enough to train and pack in a test, and how to compare two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

import models
from micronet.compress.calibration import calibrate, recalibrate_batch_norm
from micronet.compress.graph import IMAGE
from micronet.compress.quantization import prepare
from micronet.data.images import normalise
from micronet.params import Quantize
from models.meta import build_meta

TINY = {"name": "resnet", "blocks": [1], "widths": [4]}
WIDER = TINY | {"widths": [8]}
RESNET = {"name": "resnet", "blocks": [1, 1], "widths": [4, 8]}
MOBILENET = {"name": "mobilenet", "blocks": [2, 1], "widths": [4, 8], "expansion": 2}
CONVNET = {"name": "convnet", "widths": [4, 8, 6]}
DENSENET = {"name": "densenet", "blocks": [2, 2], "growth_rate": 4}
GROUPED_DENSENET = DENSENET | {
    "groups": {"bottleneck": 2, "transition": 4},
    "interleave": {"bottleneck": True, "transition": True},
}


def new_model(spec: Mapping[str, Any] = TINY, seed: int = 0) -> nn.Module:
    """A freshly initialised network, in train mode."""
    torch.manual_seed(seed)
    return models.build(dict(spec))


def meta(spec: str | Mapping[str, Any]) -> nn.Module:
    """A network without weights, for what depends only on shapes."""
    return build_meta(spec if isinstance(spec, str) else dict(spec))


def random_model(
    spec: Mapping[str, Any], seed: int = 0, *, zeros: float = 0.0, norms: tuple[float, float] = (0.5, 1.5)
) -> nn.Module:
    """A network whose norms are random too, as if trained, in train mode.

    Args:
        zeros: the share of zero weights in convolutions and linear layers.
        norms: the range from which the factors of batch norms are drawn.
    """
    model = new_model(spec, seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(*norms)
                module.bias.normal_(0, 0.3)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                if spec["name"] == "convnet":  # starts as the identity, with hardly any nonzero weight
                    nn.init.kaiming_normal_(module.weight)
                module.weight.mul_(torch.rand_like(module.weight) >= zeros)
    return model


def calibrated(
    model: nn.Module, quantize: Quantize, images: Tensor, image: tuple[int, int, int] = IMAGE
) -> fx.GraphModule:
    """The network with its quantizers in place, mode unchanged, their steps set from images (N, *image) uint8."""
    prepared = prepare(model, quantize, image)
    calibrate(prepared, images)
    return prepared


def quantized(
    model: nn.Module, quantize: Quantize, images: Tensor, image: tuple[int, int, int] = IMAGE
) -> fx.GraphModule:
    """The same in eval mode, its norm statistics set from the images too."""
    prepared = calibrated(model, quantize, images, image)
    recalibrate_batch_norm(prepared, [normalise(images)])
    return prepared.eval()


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all of a network's parameters and buffers, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Whether the `weights` of two networks have the same names and bytes."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
