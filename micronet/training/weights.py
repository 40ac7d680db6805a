"""Which parameters of a network are weights that may be pruned or quantized, how many are zero, and their use."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from micronet.data.datasets import SHAPE


def prunable(model: nn.Module) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    """Convolutions and linear layers by name, in the order of the network; their `weight` is prunable.

    Batch norms and biases are left alone.
    """
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def count_zeros(model: nn.Module) -> tuple[int, int]:
    """Zeros among the prunable weights, and how many prunable weights there are."""
    layers = [module.weight for _, module in prunable(model)]
    return sum(int((weight == 0).sum()) for weight in layers), sum(weight.numel() for weight in layers)


def count_nonzero(model: nn.Module) -> int:
    """Parameters of any kind that are not zero."""
    return sum(int(parameter.count_nonzero()) for parameter in model.parameters())


def positions(model: nn.Module) -> dict[str, int]:
    """How often one (3, 32, 32) image uses a weight of each prunable layer: the height times the width of its output.

    Weights of a linear layer are used once. Nothing is computed, and the model stays as it is.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    found: dict[str, int] = {}
    for name, module in prunable(shadow):
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.__setitem__(name, math.prod(output.shape[2:]))
        )
    with torch.no_grad():
        shadow(torch.zeros(1, *SHAPE, device="meta"))
    return found
