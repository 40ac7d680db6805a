"""What the training loop takes as a loss, and the plain one."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from micronet.training.sampling import Batch

Loss = Callable[[Tensor, Batch], Tensor]  # logits (N, classes), the batch they came from -> scalar


def cross_entropy(label_smoothing: float = 0.0) -> Loss:
    """The plain loss: cross entropy with hard or soft targets."""

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(logits.float(), batch.targets, label_smoothing=label_smoothing)

    return loss
