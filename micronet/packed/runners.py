"""The steps of a packed model in torch, one small module each; `runner` makes the module of a step.

Codes and accumulators are held in floats that represent them exactly; `packed.module` says which and why.
"""

from __future__ import annotations

from functools import singledispatch

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet.compress.pointwise import computed
from micronet.packed.limits import EXACT_FLOAT32
from micronet.packed.steps import Affine, Concat, Conv, Input, Linear, Maximum, Pool, Product, Step, Table
from micronet.packed.steps.base import reaches
from micronet.packed.steps.geometry import Pair
from micronet.packed.steps.pool import Window
from micronet.packed.steps.scaling import FloatScaling, Requantization, Scaling
from micronet.packed.steps.table import Applied

EXACT_SUM_BITS = 25  # float32 represents every sum of this many bits, including the sign


@singledispatch
def runner(step: Step, half: bool) -> nn.Module:
    """The module that computes a step, from the values that it reads to its own, (N, C, H, W).

    Args:
        half: the file holds 16-bit floats.
    """
    raise NotImplementedError(type(step).__name__)


@singledispatch
def scaler(scaling: Scaling) -> nn.Module:
    """The module that turns a step's sums, with the residual or None, into its output codes."""
    raise NotImplementedError(type(scaling).__name__)


def _constant(array: np.ndarray, dtype: type[np.floating]) -> nn.Buffer:
    """A constant that moves with the module but is not in the state dict; a vector has one entry per channel."""
    tensor = torch.from_numpy(array.astype(dtype))
    return nn.Buffer(tensor.reshape(-1, 1, 1) if tensor.dim() == 1 else tensor, persistent=False)


@runner.register(Input)
class RunInput(nn.Module):
    """Normalised images as codes."""

    def __init__(self, step: Input, half: bool):
        super().__init__()
        self.bits, self.low, self.high, self.as_floats = step.code_bits, int(step.low[0]), int(step.high[0]), half

    def forward(self, images: Tensor) -> Tensor:
        if self.as_floats:
            return images
        # A normalised image is (pixel - 128) / 64.
        codes = torch.floor(images * (64 / 2 ** (8 - self.bits))).clamp_(self.low, self.high)
        return codes if images.device.type == "cpu" else codes.double()


@runner.register(Concat)
class RunConcat(nn.Module):
    """Concatenates channels."""

    def __init__(self, step: Concat, half: bool):
        super().__init__()

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, 1)


def _windows(step: Window) -> tuple[Pair, Pair, Pair]:
    """Kernel, stride and padding, in the form torch's pools take."""
    return step.geometry.kernel, step.geometry.stride, step.geometry.padding


@runner.register(Pool)
class RunPool(nn.Module):
    """Sums of codes, or means of floats."""

    def __init__(self, step: Pool, half: bool):
        super().__init__()
        self.windows, self.divisor = _windows(step), None if half else 1
        self.wide = not half and reaches(step.low, step.high) >= EXACT_FLOAT32

    def forward(self, x: Tensor) -> Tensor:
        x = x.double() if self.wide else x
        return F.avg_pool2d(x, *self.windows, divisor_override=self.divisor)


@runner.register(Maximum)
class RunMaximum(nn.Module):
    """The greatest value of each window."""

    def __init__(self, step: Maximum, half: bool):
        super().__init__()
        self.windows = _windows(step)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, *self.windows)


@runner.register(Conv)
class RunConv(nn.Module):
    """Dot products, the greatest of each window of them, scaled."""

    def __init__(self, step: Conv, half: bool):
        super().__init__()
        self.weight = _constant(step.weights.codes, np.float32)
        self.geometry = step.stride, step.padding, step.dilation, step.weights.groups
        self.window = step.window
        self.wide = step.weights.accumulator_bits > EXACT_SUM_BITS and not half
        self.scaling = scaler(step.scaling)

    def sums(self, x: Tensor) -> Tensor:
        """The values to scale."""
        sums = x.double() if self.wide else x
        sums = F.conv2d(sums, self.weight.to(sums.dtype), None, *self.geometry)
        return F.max_pool2d(sums, self.window) if self.window > 1 else sums

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.scaling(self.sums(x), residual).to(x.dtype)


@runner.register(Affine)
class RunAffine(nn.Module):
    """Codes, possibly with reordered channels, scaled."""

    def __init__(self, step: Affine, half: bool):
        super().__init__()
        self.scaling = scaler(step.scaling)
        self.chosen = nn.Buffer(torch.from_numpy(step.chosen), persistent=False) if step.order > 1 else None

    def sums(self, x: Tensor) -> Tensor:
        """The values to scale."""
        return x if self.chosen is None else x[:, self.chosen]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.scaling(self.sums(x), residual).to(x.dtype)


@runner.register(Product)
class RunProduct(nn.Module):
    """Products of two maps, elementwise or with one factor per channel, scaled."""

    def __init__(self, step: Product, half: bool):
        super().__init__()
        self.as_floats, self.scaling = half, scaler(step.scaling)

    def sums(self, x: Tensor, factor: Tensor) -> Tensor:
        """The values to scale: products of codes, in float64, which represents them exactly."""
        return x * factor if self.as_floats else x.double() * factor.double()

    def forward(self, x: Tensor, factor: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.scaling(self.sums(x, factor), residual).to(x.dtype)


@runner.register(Table)
class RunTable(nn.Module):
    """The entry of each code."""

    def __init__(self, step: Table, half: bool):
        super().__init__()
        self.first = step.first
        self.entries = nn.Buffer(torch.from_numpy(step.entries.astype(np.float32)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.entries[(x - self.first).long()].to(x.dtype)


@runner.register(Applied)
class RunApplied(nn.Module):
    """A function computed in floats."""

    def __init__(self, step: Applied, half: bool):
        super().__init__()
        self.function = step.function

    def forward(self, x: Tensor) -> Tensor:
        return computed(self.function, x)


@runner.register(Linear)
class RunLinear(nn.Module):
    """Logits, (N, classes): integers in float64, or floats in float32."""

    def __init__(self, step: Linear, half: bool):
        super().__init__()
        self.dtype = torch.float32 if half else torch.float64
        self.weight = _constant(step.weights.rows, np.float32)
        bias = torch.from_numpy(step.bias.astype(np.float32 if half else np.float64))
        self.bias = nn.Buffer(bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1).to(self.dtype), self.weight.to(self.dtype), self.bias)


@scaler.register(Requantization)
class Requantize(nn.Module):
    """In float64, exact below 2**53."""

    def __init__(self, scaling: Requantization):
        super().__init__()
        self.low, self.high = scaling.edges
        self.multiplier = _constant(scaling.multiplier, np.float64)
        self.bias = _constant(scaling.scaled_bias, np.float64)
        self.scale = _constant(2.0**-scaling.shift, np.float64)
        self.factor = None if scaling.residual is None else _constant(scaling.residual_factor, np.float64)

    def forward(self, sums: Tensor, residual: Tensor | None) -> Tensor:
        x = sums.to(torch.float64, copy=True).mul_(self.multiplier).add_(self.bias)  # copy: others may read them too
        if residual is not None and self.factor is not None:
            x.addcmul_(residual.double(), self.factor)
        return x.mul_(self.scale).floor_().clamp_(self.low, self.high)


@scaler.register(FloatScaling)
class ScaleFloats(nn.Module):
    """In float32."""

    def __init__(self, scaling: FloatScaling):
        super().__init__()
        self.relu = scaling.relu
        self.multiplier = None if scaling.multiplier is None else _constant(scaling.multiplier, np.float32)
        self.bias = _constant(scaling.bias, np.float32)

    def forward(self, sums: Tensor, residual: Tensor | None) -> Tensor:
        x = sums + self.bias if self.multiplier is None else sums * self.multiplier + self.bias
        x = x if residual is None else x + residual
        return F.relu(x) if self.relu else x
