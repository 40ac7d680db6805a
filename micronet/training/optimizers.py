"""Optimizers, and which parameters get weight decay."""

from __future__ import annotations

import torch
from torch import nn

from micronet.params import Train


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for convolution and linear weights only, not for batch norms, biases and quantizer steps."""
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_weight = parameter.ndim > 1 and name.rpartition(".")[2] == "weight"
            (weights if is_weight else others).append(parameter)
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, config: Train) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or Adam with decoupled weight decay."""
    groups = parameter_groups(model, config.weight_decay)
    if config.optimizer == "adam":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    nesterov = config.momentum > 0
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov, fused=True)
