"""A packed file as a torch module that computes in its integers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet.data.images import normalise
from micronet.errors import MicronetError
from micronet.packed.file import PackedModel, read
from micronet.packed.steps import IMAGE, Step, again, ends, interleave, joined

CACHED_IMAGES = 50  # at once on a CPU: their maps stay in its cache, which more than halves the time


@dataclass(frozen=True)
class Look:
    """What a packed model says to N images."""

    logits: Tensor  # (N, classes), the answers'
    passes: Tensor  # (N,) int64: 1 for an image that the first network was sure of
    all_networks: Tensor | None  # (N, classes): what one pass of each network gives, None where some saw nothing


def mean_passes(taken: Tensor, networks: int) -> tuple[float, ...]:
    """Passes through each of so many networks, mean of the images: what both rule books charge.

    Args:
        taken: (N,) int64, the passes of each image in all, as `Look.passes` has them.
    """
    shares = [int((taken > number).sum()) / len(taken) for number in range(networks + 1)]
    return (*shares[:-2], shares[-2] + shares[-1])


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
        for index, step in enumerate(model.steps):
            arrays = {"weight": step.weight, "multiplier": step.multiplier, "bias": step.bias}
            if step.shift is not None:
                arrays |= {"bias": step.scaled_bias, "scale": 2.0**-step.shift}
                if step.residual is not None:
                    arrays["factor"] = step.residual_factor
            for key, array in arrays.items():
                if array is not None:
                    single = key == "weight" or model.arithmetic == "half"
                    tensor = torch.from_numpy(array.astype(np.float32 if single else np.float64))
                    shape = tensor.shape if key == "weight" or step.op == "linear" else (-1, 1, 1)
                    self.register_buffer(f"{key}_{index}", tensor.reshape(shape), persistent=False)
        self._last_use = {}
        for index, step in enumerate(model.steps):
            for value in (*step.inputs, *(() if step.residual is None else (step.residual,))):
                self._last_use[value] = index

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
        steps, networks = self.packed.steps, len(self.packed.networks)
        total = self.one_pass(images)
        static = total
        passes = torch.ones(len(images), dtype=torch.int64, device=total.device)
        going = torch.arange(len(images), device=total.device)
        for network, before in enumerate(ends(steps), 1):
            mirrored = network == networks
            shift = again(steps) if mirrored else before.logit_shift
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
        values: dict[int, Tensor] = {}
        for index in (0, *self.packed.networks[network]):
            step = self.packed.steps[index]
            inputs = [values[value] for value in step.inputs]
            residual = None if step.residual is None else values[step.residual]
            values[index] = self._step(index, step, inputs, residual, images)
            for value in (*step.inputs, step.residual):
                if self._last_use.get(value) == index:
                    values.pop(value, None)
        return values[index]

    def _step(self, index: int, step: Step, inputs: list[Tensor], residual: Tensor | None, images: Tensor) -> Tensor:
        exact = images.dtype if self.in_floats or images.device.type == "cpu" else torch.float64
        if step.op == "input":
            if self.in_floats:
                return images
            # A normalised image is (pixel - 128) / 64.
            codes = torch.floor(images * (64 / 2 ** (8 - step.code_bits)))
            return codes.clamp_(int(step.low[0]), int(step.high[0])).to(exact)
        if step.op == "concat":
            return torch.cat(inputs, 1)
        (x,) = inputs
        if step.op == "pool":
            if self.in_floats:
                return F.avg_pool2d(x, step.kernel)
            return F.avg_pool2d(x, step.kernel, divisor_override=1)
        if step.op == "maximum":
            return F.max_pool2d(x, step.kernel)
        weight, bias = getattr(self, f"weight_{index}", None), getattr(self, f"bias_{index}")
        if step.op == "linear":
            if self.in_floats:
                return F.linear(x.flatten(1), weight, bias)
            return F.linear(x.flatten(1).double(), weight.double(), bias)
        if step.op == "conv":
            if step.accumulator_bits > 25 and not self.in_floats:
                x = x.double()
            x = F.conv2d(x, weight.to(x.dtype), None, step.stride, step.padding, 1, step.groups)
            x = F.max_pool2d(x, step.window) if step.window > 1 else x
        elif step.order > 1:
            x = x[:, torch.from_numpy(interleave(step.shape[0], step.order)).to(x.device)]
        multiplier = getattr(self, f"multiplier_{index}", None)
        if self.in_floats:
            x = x + bias if multiplier is None else x * multiplier + bias
            x = x if residual is None else x + residual
            return F.relu(x) if step.relu else x
        x = x.to(torch.float64, copy=True).mul_(multiplier).add_(bias)  # a copy: others may read the value too
        if residual is not None:
            x.addcmul_(residual.double(), getattr(self, f"factor_{index}"))
        scale = getattr(self, f"scale_{index}")
        return x.mul_(scale).floor_().clamp_(int(step.low[0]), int(step.high[0])).to(exact)


def margins(logits: Tensor) -> Tensor:
    """By how much the greatest logit of each image exceeds the second, (N,)."""
    greatest = logits.topk(2, 1).values
    return greatest[:, 0] - greatest[:, 1]


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


def margin_of(found: Tensor, count: int) -> int:
    """The least whole number below which at least `count` of the margins (N,) lie: those of the least sure images.

    Adaptive inference, as of BranchyNet (arXiv:1709.01686): the mean price of an image is what the challenge charges.
    """
    return int(found.kthvalue(count).values) + 1


def load_packed(path: Path | str) -> PackedModule:
    """A packed file as a module in eval mode; `module.packed` holds its steps and digest.

    Raises:
        PackedFileError: the file is missing, damaged or no packed model; one line.
    """
    return PackedModule(read(path)).eval()
