"""Fixed views: augmented once for all, so that a teacher answers each of them once, however long a student trains.

A view of an image is what `augment` could make of it: a crop, perhaps mirrored, with a box cut out, mixed with another
image in the same view. What is kept is what was drawn, a few bytes per image, and the teacher's answer.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from micronet.data.images import PIXEL_ZERO
from micronet.data.progress import Watch, unwatched
from micronet.params import Augment
from micronet.training.augmentation import (
    WHOLE,
    box_masks,
    crop_and_flip,
    cutout_boxes,
    draw_mixing,
    mix,
    mixed_targets,
)
from micronet.training.distillation import answering, check_answers
from micronet.training.hardware import Machine
from micronet.training.memory import NoMemory, available_memory
from micronet.training.sampling import Batch, Sampler


@dataclass(frozen=True)
class Views:
    """The fixed views of the images: V of each of M images. Tensors of (V, M), boxes of (V, M, 4)."""

    padding: int  # pixels
    rows: Tensor  # uint8, top left corner of the crop in the padded image
    columns: Tensor
    mirrored: Tensor  # bool
    cutout: Tensor | None = None  # int16, the box that is grey: top, left, height, width
    partner: Tensor | None = None  # int32, the image that is mixed in
    cutmix: Tensor | None = None  # int16, the box that shows the partner
    weight: Tensor | None = None  # float32, mixup: how much of its own pixels an image keeps

    def __len__(self) -> int:
        return len(self.rows)

    def tables(self) -> dict[str, Tensor]:
        """What was drawn, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: table for name, table in found.items() if isinstance(table, Tensor)}

    def to(self, device: torch.device) -> Views:
        return Views(self.padding, **{name: table.to(device) for name, table in self.tables().items()})

    def alone(self, view: int) -> Views:
        """One of the views."""
        return Views(self.padding, **{name: table[view : view + 1] for name, table in self.tables().items()})

    def show(self, images: Tensor, view: Tensor | int, indices: Tensor | slice) -> Tensor:
        """One view of each of the images at `indices`: (N, C, H, W) float32, normalised.

        Args:
            images: the whole split, (M, C, H, W) uint8.
            view: the number of the view, one for all or (N,).
        """
        return self._show(images, view, indices)[0]

    def show_labelled(
        self, images: Tensor, labels: Tensor, view: Tensor | int, indices: Tensor | slice, classes: int
    ) -> tuple[Tensor, Tensor]:
        """What `show` returns, and the targets: (N,) int64, or (N, classes) float32 if images are mixed.

        Args:
            labels: of the whole split, (M,) int64.
        """
        shown, kept = self._show(images, view, indices)
        if self.partner is None:
            return shown, labels[indices]
        partner = self.partner[view, indices].long()
        return shown, mixed_targets(labels[indices], labels[partner], kept, classes)

    def _show(self, images: Tensor, view: Tensor | int, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        """The images shown, and how much of its own label each of them keeps, (N,) float32."""
        own = self._crops(images, view, indices)
        others = own if self.partner is None else self._crops(images, view, self.partner[view, indices].long())
        cutmix = None if self.cutmix is None else self.cutmix[view, indices].long()
        return mix(own, others, cutmix, None if self.weight is None else self.weight[view, indices])

    def _crops(self, images: Tensor, view: Tensor | int, indices: Tensor | slice) -> Tensor:
        """Crops, before any is mixed with another: (N, C, H, W) uint8."""
        rows, columns = self.rows[view, indices].long(), self.columns[view, indices].long()
        crops = crop_and_flip(images[indices], rows, columns, self.mirrored[view, indices], self.padding)
        if self.cutout is None:
            return crops
        size = (crops.shape[2], crops.shape[3])
        return crops.masked_fill(box_masks(self.cutout[view, indices].long(), size), PIXEL_ZERO)


def fixed_views(count: int, images: Tensor, config: Augment, seed: int, *, pairs: bool = False) -> Views:
    """Draws `count` views of each image, as `augment` draws them; the same for the same seed.

    Args:
        images: (M, C, H, W); only their number and size matter.
        pairs: draw only half of them; view v + count / 2 is the mirror image of view v.

    Raises:
        ValueError: `pairs` with an odd `count`.
    """
    if pairs and count % 2:
        raise ValueError(f"{count} views are no pairs")
    generator = torch.Generator().manual_seed(seed)
    shape, places = (count // 2 if pairs else count, len(images)), 2 * config.crop_padding + 1
    rows, columns = (torch.randint(places, shape, generator=generator).to(torch.uint8) for _ in range(2))
    mirrored = torch.rand(shape, generator=generator) < (0.5 if config.flip else 0.0)
    drawn = Views(config.crop_padding, rows, columns, mirrored, **_further(shape, images, config, generator))
    return _with_mirror_images(drawn, images.shape[3]) if pairs else drawn


def _further(shape: tuple[int, int], images: Tensor, config: Augment, generator: torch.Generator) -> dict[str, Tensor]:
    """Draws the tables of cutout, mixup and CutMix that the params ask for, view by view."""
    size, found = (images.shape[2], images.shape[3]), dict[str, list[Tensor]]()
    for _ in range(shape[0]):
        if config.cutout_size:
            boxes = cutout_boxes(shape[1], size, config.cutout_size, generator)
            found.setdefault("cutout", []).append(boxes.to(torch.int16))
        if mixing := draw_mixing(shape[1], size, config, generator):
            found.setdefault("partner", []).append(mixing.partner.to(torch.int32))
            if mixing.boxes is not None:
                found.setdefault("cutmix", []).append(mixing.boxes.to(torch.int16))
            if mixing.weight is not None:
                found.setdefault("weight", []).append(mixing.weight)
    return {name: torch.stack(tables) for name, tables in found.items()}


def _with_mirror_images(views: Views, width: int) -> Views:
    """The views, then their mirror images."""

    def mirrored(name: str, table: Tensor) -> Tensor:
        if name == "mirrored":
            return ~table
        if name in ("cutout", "cutmix"):
            top, left, height, wide = table.unbind(-1)
            return torch.stack([top, width - left - wide, height, wide], -1)
        return table

    tables = {name: torch.cat([table, mirrored(name, table)]) for name, table in views.tables().items()}
    return Views(views.padding, **tables)


def views_memory(images: int, classes: int) -> int:
    """The most bytes that a fixed view takes: what was drawn for every image, while it is drawn, and the answers while
    they are held, stacked, averaged and written."""
    return images * (64 + 4 * 4 * classes)


def check_memory(count: int, images: int, classes: int, machine: Machine, processes: int = 1) -> None:
    """Raises `NoMemory` if `count` fixed views, which each process holds, do not fit; says how many would."""
    free, need = available_memory(), views_memory(images, classes) * processes
    if machine.device.type == "cuda":
        on_device = images * (27 + 4 * classes)  # what was drawn, and answers
        free = min(free, torch.cuda.mem_get_info(machine.device)[0] * need / on_device)  # each process has its own GPU
    if count * need > free:
        raise NoMemory(
            f"views: {count} views of {images} images take {count * need / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free; views: {int(free // need) // 2 * 2} would fit, 0 asks the teacher anew"
        )


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
    answer, only, images = answering(teacher, machine), views.alone(view).to(machine.device), images.to(machine.device)
    parts = [slice(start, start + size) for start in range(0, len(images), size)]
    known = []
    with watch("the teacher answers", len(images), "images") as told:
        for part in parts:
            known.append(answer(only.show(images, 0, part)).float().cpu())
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
    classes = answers.shape[2]

    def sample(
        images: Tensor, labels: Tensor, indices: Tensor, generator: torch.Generator, part: slice = WHOLE
    ) -> Batch:
        drawn = torch.randint(len(views), (len(indices),), generator=generator, device=generator.device)
        drawn, indices = drawn[part], indices[part]
        shown, targets = views.show_labelled(images, labels, drawn, indices, classes)
        return Batch(shown, targets, answers[drawn, indices])

    return sample
