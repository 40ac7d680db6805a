"""What a training step sees: batches of indices, augmented images, targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from micronet.params import Augment
from micronet.training.augmentation import WHOLE, augment


@dataclass(frozen=True)
class Batch:
    """What one step trains on."""

    images: Tensor  # (N, C, H, W) float32, augmented and normalised
    targets: Tensor  # (N,) int64, or (N, classes) float32 if images are mixed
    answers: Tensor | None = None  # (N, classes) float32, the teacher's logits, if they were computed in advance


class Sampler(Protocol):
    """Draws a batch, or a part of it, which is the same as that part of the whole batch."""

    def __call__(
        self, images: Tensor, labels: Tensor, indices: Tensor, generator: torch.Generator, part: slice = WHOLE
    ) -> Batch:
        """
        Args:
            images, labels: the whole split, (M, C, H, W) uint8 and (M,).
            indices: of the whole batch, (N,).
            generator: ends in the same state, whatever the part.
        """


def augmented(config: Augment, classes: int) -> Sampler:
    """The plain sampler: an image is augmented anew every time it is seen; mixed targets are (N, classes)."""

    def sample(
        images: Tensor, labels: Tensor, indices: Tensor, generator: torch.Generator, part: slice = WHOLE
    ) -> Batch:
        return Batch(*augment(images[indices], labels[indices], config, generator, classes, part))

    return sample


def batches(count: int, batch_size: int, seed: int, device: torch.device | str = "cpu") -> list[Tensor]:
    """Index batches of one epoch: a permutation by seed, cut into equal batches; leftover images wait for
    another epoch, so that every step sees a full batch (one short batch if there are fewer images than that)."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(device)
    full = count // batch_size
    return list(order[: full * batch_size].view(full, batch_size)) if full else [order]
