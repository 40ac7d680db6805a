"""A packed file as a torch module that computes with its integers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from micronet.data.images import normalise
from micronet.errors import MicronetError, shown
from micronet.packed.file import read
from micronet.packed.margins import margin_of, margins
from micronet.packed.model import PackedModel, joined, shifts
from micronet.packed.runners import runner
from micronet.packed.steps.outline import last_uses

CACHED_IMAGES = 50  # at once on a CPU: their maps stay in its cache, which more than halves the time


@dataclass(frozen=True)
class Look:
    """What a packed model says about N images."""

    logits: Tensor  # (N, classes), of the final answers
    passes: Tensor  # (N,) int64: 1 if the first network was sure
    all_networks: Tensor | None  # (N, classes): of one pass of each network; None if a network saw only some images


class InputError(MicronetError):
    """The input is not a batch of images that the packed model can take: one line."""


class PackedModule(nn.Module):
    """A packed model as a module: normalised images (N, C, H, W) -> logits (N, classes).

    Images are finite floats on the module's device; `micronet.data.images.normalise` makes them from pixels. Anything
    else raises `InputError`.

    Each image takes the passes that its margins call for: the first network's, the next one's while the answer is
    unsure, the last one's again if that has a margin. Every second pass sees the mirror image. The logits are integers,
    the sums of an image's passes; those of images with different passes may have different scales.

    Codes and accumulators are held in floats that represent them exactly: float32 on a CPU, whose convolutions sum
    plain products, if no sum reaches 2**24; float64 for larger sums and on other devices, where float32 may mean
    Winograd or TF32. A requantization computes in float64, exact below 2**53. Logits are float64, because float32 could
    round two different ones to the same value. `half` models compute and return float32; the last bits may differ
    between machines.
    """

    def __init__(self, model: PackedModel):
        super().__init__()
        self.packed = model
        self.spec = model.spec
        self.steps = nn.ModuleList(runner(step, self.in_floats) for step in model.steps)
        self._last_use = last_uses([step.reads for step in model.steps])

    @property
    def in_floats(self) -> bool:
        return self.packed.arithmetic == "half"

    def forward(self, images: Tensor) -> Tensor:
        return self.look(images).logits

    @torch.no_grad()
    def look(self, images: Tensor, *, all_networks: bool = False) -> Look:
        """The answers to normalised images, and the passes they took.

        Args:
            all_networks: let every network of a cascade see every image, for `Look.all_networks`.
        """
        networks = len(self.packed.networks)
        total = self.one_pass(images)  # also checks the images
        static = total
        passes = torch.ones(len(images), dtype=torch.int64, device=total.device)
        going = torch.arange(len(images), device=total.device)
        joining = zip(self.packed.ends, shifts(self.packed.steps), strict=True)
        for network, (before, shift) in enumerate(joining, 1):
            mirrored = network == networks
            going = going[margins(total[going]) < before.margin] if before.choice else going[:0]
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
        """The logits of one network for the images as given; nothing is mirrored here."""
        self._check(images)
        cached = not self.in_floats and images.device.type == "cpu"
        together = self.packed.at_once(CACHED_IMAGES if cached else max(1, len(images)))
        parts = images.split(together)
        with torch.autocast(images.device.type, enabled=False), torch.no_grad():
            return torch.cat([self._forward(part.float(), network) for part in parts])

    def _check(self, images: Tensor) -> None:
        """Raises `InputError` unless these are images that the networks can take."""
        if not isinstance(images, Tensor):
            raise InputError(f"a packed model takes a tensor of images, got a {type(images).__name__}")
        if images.dim() != 4 or tuple(images.shape[1:]) != self.packed.image:
            wanted = "({}, {}, {}, {})".format("N", *self.packed.image)
            raise InputError(f"this packed model takes images of {wanted}, got {shown(tuple(images.shape))}")
        if not images.is_floating_point():
            raise InputError(
                f"a packed model takes normalised images in floats, got {images.dtype}; "
                "micronet.data.images.normalise makes them of uint8 pixels"
            )
        device = next(self.buffers()).device
        if images.device != device:
            raise InputError(f"the images are on {images.device}, the packed model on {device}; `.to` moves either")
        # One sum instead of a mask of all pixels; if it overflows, the mask decides.
        if not torch.isfinite(images.sum(dtype=torch.float64)) and not torch.isfinite(images).all():
            raise InputError("a packed model takes finite pixels, got NaN or an infinite one")

    def _forward(self, images: Tensor, network: int) -> Tensor:
        values = {0: self.steps[0](images)}
        last = 0
        for last in self.packed.networks[network]:
            made = self.steps[last](*(values[value] for value in self.packed.steps[last].reads))
            values[last] = made
            # Free the values that no later step reads.
            for value in (*self.packed.steps[last].reads, last):
                if self._last_use[value] == last:
                    values.pop(value, None)
        return made


def flip_margin(module: PackedModule, images: Tensor, share: float) -> int:
    """One network's margin with this share of the images below it, those that a mirrored pass helps most.

    Args:
        module: on the CPU, with at least two classes.
        images: (N, C, H, W) uint8, N > 0, not from the test set. They are seen once, unmirrored.
        share: above 0, below 1; at least one image is below the margin.

    Raises:
        InputError: invalid images, an invalid share, a network with one class.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or len(images) == 0:
        said = f"{len(images)} of {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"a margin is found on images of uint8 pixels, one or more (got {said})")
    if not 0 < share < 1:
        raise InputError(f"a margin is for a share of the images above 0, below 1 (got {shown(share)})")
    if module.packed.classes < 2:
        raise InputError("a network of one class is never unsure, so no image needs a mirrored pass")
    count = max(1, round(share * len(images)))
    parts = [margins(module.one_pass(normalise(part))) for part in images.cpu().split(CACHED_IMAGES)]
    return margin_of(torch.cat(parts), count)


def load_packed(path: Path | str) -> PackedModule:
    """A packed file as a module in eval mode; `module.packed` holds its steps and digest.

    Raises:
        PackedFileError: the file is missing, damaged or not a packed model; one line.
    """
    return PackedModule(read(path)).eval()
