"""Optimizers, the batch size that fits, and the moving average of weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from micronet.params import Train
from micronet.training.hardware import Machine

CPU_BATCH_SIZE = 128  # what `batch_size: auto` is on CPU, where a larger batch is no faster


class Average:
    """Exponential moving average of weights and batch norm statistics (arXiv:1703.01780, section 3).

    The decay rises as (1 + t) / (10 + t), so that the start is forgotten early.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.steps += 1
        weight = 1.0 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        pairs = zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        averaged, current = [], []
        for mine, theirs in pairs:
            if mine.is_floating_point():
                averaged.append(mine)
                current.append(theirs)
            else:
                mine.copy_(theirs)
        torch._foreach_lerp_(averaged, current, weight)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for convolution and linear weights only, not for batch norms, biases and quantizer steps."""
    weights, others = [], []
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


def find_batch_size(model: nn.Module, config: Train, machine: Machine) -> tuple[int, float]:
    """The batch size and the peak learning rate of a run.

    For `batch_size: auto` on CUDA: the largest power of two up to `max_batch_size` whose training step fits in
    memory, with the rate scaled linearly from 128 (arXiv:1706.02677). On CPU: 128.
    """
    if config.batch_size != "auto":
        return config.batch_size, config.learning_rate
    if machine.device.type != "cuda":
        return CPU_BATCH_SIZE, config.learning_rate
    size = 2 ** int(math.log2(config.max_batch_size))
    while size > 1:
        trial = copy.deepcopy(model).train()
        try:
            images = torch.zeros(size, 3, 32, 32, device=machine.device)
            with torch.autocast("cuda", torch.bfloat16, enabled=machine.autocast):
                logits = trial(images.contiguous(memory_format=machine.memory_format))
            logits.float().sum().backward()
            break
        except torch.cuda.OutOfMemoryError:
            size //= 2
        finally:
            del trial
            torch.cuda.empty_cache()
    return size, config.learning_rate * size / 128
