"""The batch size of a run that leaves it to the machine."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn

from micronet.params import Train
from micronet.training.hardware import Machine

AUTO_BATCH_SIZE = 128  # `batch_size: auto` on a CPU, where larger is no faster; the given rate is for this size


def find_batch_size(model: nn.Module, config: Train, machine: Machine, images: Sequence[int]) -> tuple[int, float]:
    """The batch size and the peak learning rate of a run; a batch is never larger than the training set.

    For `batch_size: auto` on CUDA: the largest power of two up to `max_batch_size` whose training step fits in
    memory, with the rate scaled linearly from 128 (arXiv:1706.02677). On a CPU: 128, or `max_batch_size` if smaller.

    Args:
        images: shape of the training images, (N, C, H, W).
    """
    count, *image_shape = images
    if config.batch_size != "auto":
        return min(config.batch_size, count), config.learning_rate
    if machine.device.type != "cuda":
        return min(AUTO_BATCH_SIZE, config.max_batch_size, count), config.learning_rate
    size = 2 ** int(math.log2(config.max_batch_size))
    while size > 1:
        trial = copy.deepcopy(model).train()
        try:
            trial_images = torch.zeros(size, *image_shape, device=machine.device)
            with torch.autocast("cuda", torch.bfloat16, enabled=machine.autocast):
                logits = trial(trial_images.contiguous(memory_format=machine.memory_format))
            logits.float().sum().backward()
            break
        except torch.cuda.OutOfMemoryError:
            size //= 2
        finally:
            del trial
            torch.cuda.empty_cache()
    size = min(size, count)
    return size, config.learning_rate * size / AUTO_BATCH_SIZE
