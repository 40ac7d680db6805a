"""Random images and labels, the same for the same seed."""

from __future__ import annotations

import torch
from torch import Tensor

from micronet.data.images import Split


def random_images(count: int, seed: int = 0, image: tuple[int, int, int] = (3, 32, 32)) -> Tensor:
    """(N, C, H, W) uint8, every pixel drawn from all values."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *image), generator=generator, dtype=torch.uint8)


def random_labels(count: int, seed: int = 0) -> Tensor:
    """(N,) int64, of ten classes."""
    return torch.randint(10, (count,), generator=torch.Generator().manual_seed(seed))


def random_split(count: int, seed: int = 0) -> Split:
    """Random images whose labels have nothing to do with them."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Split(pixels, torch.randint(10, (count,), generator=generator))


def bright_split(count: int, seed: int = 0) -> Split:
    """Random images whose brightness shows their label, so that a network can learn it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    noise = torch.randint(0, 100, (count, 3, 32, 32), generator=generator)
    return Split((noise + 15 * labels[:, None, None, None]).to(torch.uint8), labels)
