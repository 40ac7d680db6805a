"""Knowledge distillation: Hinton et al. 2015, arXiv:1503.02531.

The teacher answers every image that the student sees, or a few fixed views of every image once for all (`views`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet.params import Distillation
from micronet.training.hardware import Machine, machine_for
from micronet.training.losses import Loss, cross_entropy
from micronet.training.sampling import Batch
from micronet.training.trial import TrainingError


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), the mean over the batch.

    Both sides go through a log-softmax: `kl_div` expects log-probabilities and, given probabilities, silently
    computes something else. T^2 keeps the size of the gradient when T changes.

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

    The teacher is in eval mode, without gradients, and sees exactly the same crop as the student ("a good
    teacher is patient and consistent", arXiv:2106.05237); with mixup or CutMix it answers the mixed image.

    Args:
        teacher: returns the teacher; not called when alpha is 0, as only the labels count, nor with `views`, as
            every batch brings its answers along.
    """
    labels_loss = cross_entropy(label_smoothing)
    if config.alpha == 0:
        return labels_loss
    answer = None if config.views else answering(teacher(), machine, mirror=config.mirror_answers)

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        answers = answer(batch.images) if answer else batch.answers
        assert answers is not None, "with views, every batch brings its answers along"
        check_answers(answers, logits.shape[1])
        value = config.alpha * distillation_loss(logits, answers, config.temperature)
        return value + (1 - config.alpha) * labels_loss(logits, batch) if config.alpha < 1 else value

    return loss


def check_same_classes(teacher: int, student: int) -> None:
    """Raises `TrainingError` if teacher and student have different numbers of classes."""
    if teacher != student:
        raise TrainingError(f"the teacher tells {teacher} classes apart, the student {student}; they must be as many")


def check_answers(answers: Tensor, classes: int) -> None:
    """Checks that a teacher's answers, (N, classes), suit a student with `classes` classes.

    Raises:
        TrainingError: the teacher has another number of classes, or an answer is not finite, which is checked on the
            CPU only: a GPU would have to wait for the check in every step.
    """
    check_same_classes(answers.shape[1], classes)
    if answers.device.type == "cpu" and not answers.isfinite().all():
        raise TrainingError("the teacher's answers are not finite; a teacher that has not diverged is needed")


def answering(teacher: nn.Module, machine: Machine, *, mirror: bool = False) -> Callable[[Tensor], Tensor]:
    """The teacher on this machine as a function of normalised images: in eval mode, without gradients.

    Args:
        mirror: answer with the mean of the logits for an image and its mirror image.
    """
    machine = machine_for(teacher, machine)
    model = machine.place(teacher).eval().requires_grad_(False)

    def answer(images: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(machine.device.type, torch.bfloat16, enabled=machine.autocast):
            logits = model(images.contiguous(memory_format=machine.memory_format))
            if not mirror:
                return logits
            return (logits + model(images.flip(-1).contiguous(memory_format=machine.memory_format))) / 2

    return answer
