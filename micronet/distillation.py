"""Knowledge distillation: Hinton et al. 2015, arXiv:1503.02531."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet.params import Distillation
from micronet.training import Loss, Machine, cross_entropy


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), the mean over the batch.

    Both sides go through a log-softmax: `kl_div` takes log-probabilities, and fed with probabilities it computes
    something else without complaint. T^2 keeps the gradient's size when T changes.

    Args:
        student, teacher: logits (N, classes).
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(student.float() / temperature, dim=1),
        F.log_softmax(teacher.float() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def distilled(
    teacher: Callable[[], nn.Module], config: Distillation, machine: Machine, *, label_smoothing: float = 0.0
) -> Loss:
    """alpha * distillation_loss + (1 - alpha) * cross entropy with the labels.

    The teacher stands in eval mode, without gradients, and sees the very crop that the student sees ("a good
    teacher is patient and consistent", arXiv:2106.05237); on mixed images its answer is that to the mixed image.

    Args:
        teacher: gives the teacher; not called with alpha 0, where only the labels count.
    """
    labels_loss = cross_entropy(label_smoothing)
    if config.alpha == 0:
        return labels_loss
    model = teacher().to(machine.device, memory_format=machine.memory_format).eval().requires_grad_(False)

    def loss(logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(machine.device.type, torch.bfloat16, enabled=machine.autocast):
            answers = model(images)
        value = config.alpha * distillation_loss(logits, answers, config.temperature)
        return value + (1 - config.alpha) * labels_loss(logits, targets, images) if config.alpha < 1 else value

    return loss
