"""Knowledge distillation: Hinton et al. 2015, arXiv:1503.02531.

The teacher answers every crop that the student sees, or a few fixed crops of every image once for all
(`fixed_views`), which costs one pass of the teacher per crop, however long the student trains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet.data.images import normalise
from micronet.data.progress import Watch, unwatched
from micronet.params import Augment, Distillation
from micronet.training.augmentation import WHOLE, crop_and_flip
from micronet.training.hardware import Machine, machine_for
from micronet.training.losses import Loss, cross_entropy
from micronet.training.memory import NoMemory, available_memory
from micronet.training.sampling import Batch, Sampler
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


@dataclass(frozen=True)
class Views:
    """The fixed crops of the images: V of each of M images. Tensors of (V, M)."""

    rows: Tensor  # uint8, top left corner of the crop in the padded image
    columns: Tensor
    mirrored: Tensor  # bool
    padding: int  # pixels

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> Views:
        return Views(self.rows.to(device), self.columns.to(device), self.mirrored.to(device), self.padding)

    def show(self, images: Tensor, view: Tensor | int, indices: Tensor | slice) -> Tensor:
        """One view of each image, (N, C, H, W) float32, normalised; `images`, (N, C, H, W) uint8, are at `indices`."""
        rows, columns = self.rows[view, indices].long(), self.columns[view, indices].long()
        return normalise(crop_and_flip(images, rows, columns, self.mirrored[view, indices], self.padding))


def views_memory(images: int, classes: int) -> int:
    """The most bytes that a fixed view takes: the crop of every image while it is drawn, and the answers while they
    are held, stacked, averaged and written."""
    return images * (16 + 4 * 4 * classes)


def check_memory(count: int, images: int, classes: int, machine: Machine, processes: int = 1) -> None:
    """Raises `NoMemory` if `count` fixed views, which each process holds, do not fit; says how many would."""
    free, need = available_memory(), views_memory(images, classes) * processes
    if machine.device.type == "cuda":
        on_device = images * (3 + 4 * classes)  # crops and answers
        free = min(free, torch.cuda.mem_get_info(machine.device)[0] * need / on_device)  # each process has its own GPU
    if count * need > free:
        raise NoMemory(
            f"views: {count} views of {images} images take {count * need / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free; views: {int(free // need) // 2 * 2} would fit, 0 asks the teacher anew"
        )


def fixed_views(count: int, images: int, config: Augment, seed: int, *, pairs: bool = False) -> Views:
    """Draws `count` views of each image, as `augment` draws its crops; the same for the same seed.

    Args:
        pairs: draw only half of them; view v + count / 2 is the mirror image of view v.

    Raises:
        ValueError: the augmentation is more than crop and flip, or `pairs` with an odd `count`.
    """
    if pairs and count % 2:
        raise ValueError(f"{count} views are no pairs")
    if config.cutout_size or config.mixup_alpha or config.cutmix_alpha:
        raise ValueError("fixed views are crops and mirror images; cutout, mixup and CutMix draw every image anew")
    generator = torch.Generator().manual_seed(seed)
    shape, places = (count // 2 if pairs else count, images), 2 * config.crop_padding + 1
    rows, columns = (torch.randint(places, shape, generator=generator).to(torch.uint8) for _ in range(2))
    mirrored = torch.rand(shape, generator=generator) < (0.5 if config.flip else 0.0)
    if pairs:
        rows, columns = torch.cat([rows, rows]), torch.cat([columns, columns])
        mirrored = torch.cat([mirrored, ~mirrored])
    return Views(rows, columns, mirrored, config.crop_padding)


def answers_to_view(
    teacher: nn.Module,
    images: Tensor,
    views: Views,
    view: int,
    machine: Machine,
    size: int,
    watch: Watch = unwatched,
) -> Tensor:
    """The teacher's logits for one view of every image, (M, classes) float32 on the CPU; `size` images at a time."""
    answer, views = answering(teacher, machine), views.to(machine.device)
    parts = [slice(start, start + size) for start in range(0, len(images), size)]
    known = []
    with watch("the teacher answers", len(images), "images") as told:
        for part in parts:
            known.append(answer(views.show(images[part].to(machine.device), view, part)).float().cpu())
            told(min(part.stop, len(images)))
    answers = torch.cat(known)
    check_answers(answers, answers.shape[1])
    return answers


def mean_of_pairs(answers: Tensor) -> Tensor:
    """The mean over each view and its mirror image, for both. `answers`: (V, M, classes) for views drawn in `pairs`."""
    first, second = answers.chunk(2)
    mean = (first + second) / 2
    return torch.cat([mean, mean])


def known_answers(views: Views, answers: Tensor, machine: Machine) -> Sampler:
    """Draws one of its views for every image of a batch, with the teacher's answer to it.

    Args:
        answers: (V, M, classes) float32.
    """
    answers, views = answers.to(machine.device), views.to(machine.device)

    def sample(
        images: Tensor, labels: Tensor, indices: Tensor, generator: torch.Generator, part: slice = WHOLE
    ) -> Batch:
        drawn = torch.randint(len(views), (len(indices),), generator=generator, device=generator.device)
        drawn, indices = drawn[part], indices[part]
        return Batch(views.show(images[indices], drawn, indices), labels[indices], answers[drawn, indices])

    return sample
