"""Images in memory: a split, and how pixels become numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # torch takes seconds to import; a stage's --help does not need it
    from torch import Tensor

SplitName = Literal["train", "validation", "test"]

PIXEL_ZERO = 128  # the pixel that becomes 0.0; padding has this value
PIXEL_SCALE = 1 / 64  # a normalised input is an exact signed 8-bit code times this


@dataclass(frozen=True)
class Split:
    """Images and their labels, in the same order."""

    images: Tensor  # (N, C, H, W) uint8; from a prepared folder: mapped from disk
    labels: Tensor  # (N,) int64
    classes: tuple[str, ...] = ()  # the labels' names, if known
    dataset: str | None = None  # its name in the manifest, if it comes from a prepared folder

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, images: int) -> Split:
        """A split of `images` images, or itself if it has no more: the first of each class, in proportion to the class
        sizes, the largest remainders rounded up."""
        if images >= len(self):
            return self
        import torch

        places = [torch.nonzero(self.labels == label).flatten() for label in self.labels.unique()]
        due = torch.tensor([len(own) * images for own in places])
        counts = due // len(self)
        rest = images - int(counts.sum())
        counts[torch.argsort(due % len(self), descending=True, stable=True)[:rest]] += 1
        indices = torch.cat([own[:count] for own, count in zip(places, counts.tolist(), strict=True)]).sort().values
        return Split(self.images[indices], self.labels[indices], self.classes, self.dataset)


def normalise(images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 to float32: (pixel - 128) / 64, exact, in the same memory format.

    Close to the per-pixel mean (about 121) and standard deviation (63), and the network's first layer gets exact
    integers, `pixel - 128`, at a scale of 1/64.
    """
    import torch

    return images.to(torch.float32, copy=True).sub_(PIXEL_ZERO).mul_(PIXEL_SCALE)
