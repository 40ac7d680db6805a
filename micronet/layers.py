"""Which parameters of a network are weights that may be pruned or quantized."""

from __future__ import annotations

from torch import nn


def prunable(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Convolutions and linear layers by name, in the order of the network; their `weight` is prunable.

    Batch norms and biases are left alone.
    """
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def count_zeros(model: nn.Module) -> tuple[int, int]:
    """Zeros among the prunable weights, and how many prunable weights there are."""
    layers = [module.weight for _, module in prunable(model)]
    return sum(int((weight == 0).sum()) for weight in layers), sum(weight.numel() for weight in layers)
