"""A packed file as a torch module that computes in its integers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from micronet.data.images import normalise
from micronet.errors import MicronetError
from micronet.packed.file import read
from micronet.packed.limits import IMAGE
from micronet.packed.margins import margin_of, margins
from micronet.packed.model import PackedModel, joined, shifts
from micronet.packed.runners import runner

CACHED_IMAGES = 50  # at once on a CPU: their maps stay in its cache, which more than halves the time


@dataclass(frozen=True)
class Look:
    """What a packed model says to N images."""

    logits: Tensor  # (N, classes), the answers'
    passes: Tensor  # (N,) int64: 1 for an image that the first network was sure of
    all_networks: Tensor | None  # (N, classes): what one pass of each network gives, None where some saw nothing


class PackedModule(nn.Module):
    """A packed model as a module: normalised images (N, 3, 32, 32) -> logits (N, classes).

    Each image takes the passes that its margins ask for: the first network's, the next one's as long as it is unsure,
    the last one's again where that has a margin. Every second pass sees the mirror image. The logits are the sums of an
    image's passes, and integers; those of images with different passes may have different scales.

    Codes and accumulators are held in floats that are exact for them: float32 where no sum reaches 2**24, on a CPU,
    whose convolutions sum plain products; float64 for larger sums, and elsewhere, where float32 may mean Winograd or
    TF32. A requantization computes in float64, exact below 2**53. Logits are float64, because float32 could round two
    of them to the same. `half` models compute in float32 and give float32; they may differ in the last bits from
    machine to machine.
    """

    def __init__(self, model: PackedModel):
        super().__init__()
        self.packed = model
        self.spec = model.spec
        self.steps = nn.ModuleList(runner(step, self.in_floats) for step in model.steps)
        self._last_use = {value: index for index, step in enumerate(model.steps) for value in step.reads}

    @property
    def in_floats(self) -> bool:
        return self.packed.arithmetic == "half"

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or tuple(images.shape[1:]) != IMAGE:
            raise MicronetError(f"a packed model takes images of (N, 3, 32, 32), got {tuple(images.shape)}")
        return self.look(images).logits

    @torch.no_grad()
    def look(self, images: Tensor, *, all_networks: bool = False) -> Look:
        """The answers to normalised images, and what they took.

        Args:
            all_networks: let every network see every image, for `Look.all_networks` of a cascade.
        """
        networks = len(self.packed.networks)
        total = self.one_pass(images)
        static = total
        passes = torch.ones(len(images), dtype=torch.int64, device=total.device)
        going = torch.arange(len(images), device=total.device)
        joining = zip(self.packed.ends, shifts(self.packed.steps), strict=True)
        for network, (before, shift) in enumerate(joining, 1):
            mirrored = network == networks
            going = going[margins(total[going]) < before.margin]
            rows = torch.arange(len(images), device=total.device) if all_networks and not mirrored else going
            if not len(rows):
                continue
            # Every second pass sees the mirror image.
            seen = images[rows].flip(3) if network % 2 else images[rows]
            logits = self.one_pass(seen, min(network, networks - 1))
            if all_networks and not mirrored:
                static, logits = joined(static, logits, shift), logits[going]
            total = total.index_copy(0, going, joined(total[going], logits, shift))
            passes[going] += 1
        return Look(total, passes, static if all_networks or networks == 1 else None)

    def one_pass(self, images: Tensor, network: int = 0) -> Tensor:
        """The logits of one network for the images as they are, none of them mirrored."""
        whole = self.in_floats or images.device.type != "cpu" or len(images) <= CACHED_IMAGES
        parts = (images,) if whole else images.split(CACHED_IMAGES)
        with torch.autocast(images.device.type, enabled=False), torch.no_grad():
            return torch.cat([self._forward(part.float(), network) for part in parts])

    def _forward(self, images: Tensor, network: int) -> Tensor:
        values = {0: self.steps[0](images)}
        last = 0
        for last in self.packed.networks[network]:
            reads = self.packed.steps[last].reads
            values[last] = self.steps[last](*(values[value] for value in reads))
            for value in reads:  # what nobody reads any more makes room
                if self._last_use[value] == last:
                    values.pop(value, None)
        return values[last]


def flip_margin(module: PackedModule, images: Tensor, share: float) -> int:
    """The margin of one network below which lies this share of the images, which a mirrored pass helps most.

    Args:
        module: on the CPU.
        images: (N, 3, 32, 32) uint8, N > 0, not those of the test set. They are seen once, as they are.
        share: above 0, below 1; at least one image is below the margin.
    """
    count = max(1, round(share * len(images)))
    parts = [margins(module.one_pass(normalise(part))) for part in images.cpu().split(CACHED_IMAGES)]
    return margin_of(torch.cat(parts), count)


def load_packed(path: Path | str) -> PackedModule:
    """A packed file as a module in eval mode; `module.packed` holds its steps and digest.

    Raises:
        PackedFileError: the file is missing, damaged or no packed model; one line.
    """
    return PackedModule(read(path)).eval()
