"""Weights and activations at few bits: quantizers, and the layers that compute with them.

Widths below 9: LSQ, a learned step per tensor (Esser et al. 2020, arXiv:1902.08153) or per output channel, as in
Krishnamoorthi 2018 (arXiv:1806.08342). 1-bit weights: BinaryConnect (Courbariaux et al. 2015, arXiv:1511.00363) with
one scale per output channel. All quantizers compute in float32, regardless of autocast.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet.compress.errors import QuantizationError
from micronet.compress.functions import Ends

SMALLEST_STEP = 1e-6
SAMPLES = 1 << 16  # values that an activation quantizer keeps from each calibration batch
CANDIDATES = 80  # steps that a search tries
AT_ONCE = 2**15 - 1  # values per pass: torch splits more of them among threads, which changes the order of a sum


def coprime_stride(count: int, wanted: int, period: int) -> int:
    """The stride that takes about `wanted` of `count` values whose positions repeat every `period` values.

    The period is the values of one image. A stride that shares a factor with it visits only some of an image's
    positions: a multiple of the width visits a single column. A coprime one visits all of them, equally often.
    """
    stride = max(1, count // wanted)
    while math.gcd(stride, period) > 1:
        stride += 1
    return stride


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Lowest and highest code: symmetric if signed, else from 0."""
    return (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of all products, without a temporary if both have the same memory layout."""
    if a.stride() != b.stride():
        return (a * b).sum()
    if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


class _Lsq(torch.autograd.Function):
    """round(clamp(x / step)) * step; the straight-through gradient for x, LSQ's gradient for the step.

    The step's gradient is (q - x / step) inside the range and the bound outside. Summed against the incoming
    gradient g, that is g . q - g_inside . (x / step): two dot products, so no mask is ever stored.
    """

    @staticmethod
    def forward(ctx, x: Tensor, step: Tensor, low: int, high: int, gradient_scale: float) -> Tensor:
        scaled = x.float() / step
        values = torch.clamp(scaled, low, high).round_().mul_(step)
        ctx.save_for_backward(scaled, values, step)
        ctx.settings = low, high, gradient_scale, x.dtype
        return values

    @staticmethod
    def backward(ctx, gradient: Tensor):
        scaled, values, step = ctx.saved_tensors
        low, high, gradient_scale, dtype = ctx.settings
        gradient = gradient.float()
        inside = torch.ops.aten.hardtanh_backward(gradient, scaled, low, high)
        step_gradient = None
        if ctx.needs_input_grad[1]:
            if step.dim():
                parts = (gradient * (values / step) - inside * scaled).flatten(1).sum(1)
            else:
                parts = _dot(gradient, values) / step - _dot(inside, scaled)
            step_gradient = (parts * gradient_scale).reshape(step.shape)
        return inside.to(dtype), step_gradient, None, None, None


class _Binary(torch.autograd.Function):
    """scale * sign(w) with sign(0) = +1, and 0 under the mask; the gradient passes straight to the real weight."""

    @staticmethod
    def forward(ctx, weight: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(codes)
        return codes * scale

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (codes,) = ctx.saved_tensors
        return gradient * codes.abs(), None, None


def best_step(values: Tensor, low: int, high: int) -> float:
    """The step of least squared error for these values, among `CANDIDATES` from a twentieth to all of the range.

    Raises:
        QuantizationError: there are no values, or one of them is not finite.
    """
    values = values.detach().float().reshape(-1)
    if not len(values) or not values.isfinite().all():
        raise QuantizationError("a step needs values, all of them finite; a network that has diverged has none")
    bound = high if low == 0 else min(-low, high)
    largest = float(values.max() if low == 0 else values.abs().max())
    if largest <= 0:
        return 1.0 / bound
    steps = [largest / bound * (1.0 - 0.95 * index / CANDIDATES) for index in range(CANDIDATES)]
    errors: list[float] = []
    for some in torch.tensor(steps, device=values.device)[:, None].split(max(1, AT_ONCE // len(values))):
        off = torch.clamp(values / some, low, high).round_().mul_(some).sub_(values)
        errors += off.square_().mean(dim=1).nan_to_num_(nan=float("inf")).tolist()
    return max(steps[errors.index(min(errors))], SMALLEST_STEP)


class LsqWeight(nn.Module):
    """A weight on a grid of 2**bits - 1 codes, symmetric about 0, with a learned step (float32, > 0).

    One step for the tensor, or one per output channel, (C_out, 1, ..): requantization has a multiplier per channel
    anyway, so that costs nothing in the packed file. The step of a `frozen` weight never changes, so that filters in
    opposite pairs, as in a whitening, keep opposite codes.
    """

    def __init__(self, weight: Tensor, bits: int, per_channel: bool = False, frozen: bool = False):
        super().__init__()
        self.bits = bits
        self.low, self.high = code_range(bits, signed=True)
        steps = [self._first_step(part) for part in (weight if per_channel else weight[None])]
        step = torch.tensor(steps, device=weight.device).reshape(-1, *[1] * (weight.dim() - 1))
        self.step = nn.Parameter(step if per_channel else step.reshape(()), requires_grad=not frozen)

    def _first_step(self, weight: Tensor) -> float:
        # The zeros of a pruned weight stay zero at any step and would only distort the search.
        return best_step(weight[weight != 0], self.low, self.high) if (weight != 0).any() else 1.0

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.step.clamp_(min=SMALLEST_STEP)
        each = weight.numel() // self.step.numel()
        step = self.step if self.training else self.step.clamp(min=SMALLEST_STEP)
        return _Lsq.apply(weight, step, self.low, self.high, (each * self.high) ** -0.5)

    @torch.no_grad()
    def refit(self, weight: Tensor) -> bool:
        """Refits each step that its last updates reduced to nothing. Returns whether there was one."""
        steps, parts = self.step.view(-1), weight if self.step.dim() else weight[None]
        lost = [index for index, step in enumerate(steps.tolist()) if step <= SMALLEST_STEP]
        for index in lost:
            steps[index] = self._first_step(parts[index])
        return bool(lost)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Integer codes (int64, as `weight`) and the scale of each output channel (float64, (C_out,))."""
        step = self.step.clamp(min=SMALLEST_STEP)  # the last update may have left it below
        codes = torch.clamp(weight.float() / step, self.low, self.high).round_()
        return codes.long(), step.double().flatten().expand(weight.shape[0])

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class BinaryWeight(nn.Module):
    """A weight of two values, ±scale; where it is exactly 0 (pruned) when the quantizer is made, it stays 0.

    `scale` is the mean |w| of each output channel, or of the whole tensor if `per_tensor`. During training the real
    weights are clipped to [-1, 1] in place, as in the paper after every update.
    """

    bits = 1
    mask: Tensor

    def __init__(self, weight: Tensor, per_tensor: bool = False):
        super().__init__()
        self.per_tensor = per_tensor
        self.register_buffer("mask", weight.detach() != 0)
        if not self.mask.any():
            self.mask.fill_(True)

    def _codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        mask = self.mask.float()
        codes = torch.where(weight >= 0, mask, -mask)
        size, count = weight.detach().float().abs() * mask, mask
        if self.per_tensor:
            scale = (size.sum() / count.sum()).expand(weight.shape[0])
        else:
            scale = size.flatten(1).sum(1) / count.flatten(1).sum(1).clamp(min=1)
        return codes, scale.clamp(min=SMALLEST_STEP)

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                weight.clamp_(-1, 1)
        codes, scale = self._codes(weight.detach())
        return _Binary.apply(weight, codes, scale.reshape(-1, *[1] * (weight.dim() - 1)))

    @torch.no_grad()
    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes -1, +1, and 0 under the mask (int64, as `weight`), and the scale of each output channel (float64)."""
        codes, scale = self._codes(weight)
        return codes.long(), scale.double()


class HalfWeight(nn.Module):
    """A weight rounded to the nearest 16-bit float."""

    bits = 16

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (weight.detach().half().float() - weight.detach())


class InputCodes(nn.Module):
    """A normalised image (pixel - 128) / 64 as codes floor((pixel - 128) / 2**(8 - bits)) times `step`.

    The convolution pads with code 0, a pixel of 128. The floor drops the low bits of a pixel, so a value is up to one
    step below its pixel; the first batch norm absorbs the mean of that.
    """

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits
        self.low, self.high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.step = 2.0 ** (8 - bits) / 64

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(torch.floor(x.float() / self.step), self.low, self.high).mul_(self.step)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class LsqActivation(nn.Module):
    """An activation on 2**bits codes from 0 (which includes the ReLU), or on 2**bits - 1 codes about 0 if signed.

    One learned step (float32, > 0), first set by `calibrate`. `relu` says whether it includes a ReLU of the model or a
    clamp. A value clamped at `ends` has no code beyond them: rounding and clamping commute, so the code of the clamped
    value is its code clamped at the limits' own codes (`edges`); the step never grows so far that a code is unused.
    """

    def __init__(self, bits: int, signed: bool, *, relu: bool | None = None, ends: Ends | None = None):
        super().__init__()
        self.bits, self.signed, self.ends = bits, signed, ends
        self.relu = not signed if relu is None else relu
        self.low, self.high = code_range(bits, signed)
        self.most: float | None = None  # upper bound of the step
        if ends is not None and ends.high is not None and (not signed or ends.low is not None):
            self.most = max(ends.high, -(ends.low or 0.0)) / self.high
        self.step = nn.Parameter(torch.tensor(min(6.0 / self.high, self.most or math.inf)))
        self.samples: list[Tensor] | None = None
        self._period = 1  # values of one image

    @property
    def worth(self) -> Tensor:
        """The real value of one code: the step, clamped, as the last update may have left it out of bounds."""
        return self.step.clamp(min=SMALLEST_STEP, max=self.most)

    @property
    def edges(self) -> tuple[int, int]:
        """Lowest and highest code in use."""
        if self.ends is None:
            return self.low, self.high
        ends = torch.tensor([self._end(self.ends.low, self.low), self._end(self.ends.high, self.high)])
        low, high = self.codes(ends.to(self.step.device)).tolist()
        return int(low), int(high)

    def _end(self, end: float | None, code: int) -> float:
        return end if end is not None else 2.0 * code * float(self.worth.detach())

    def _cut(self, x: Tensor) -> Tensor:
        """The value that is quantized."""
        if self.ends is not None:
            return x.clamp(self.ends.low, self.ends.high)
        return F.relu(x) if self.relu else x

    def forward(self, x: Tensor) -> Tensor:
        if self.samples is not None:
            values, self._period = x.detach().float().flatten(), x[0].numel()
            self.samples.append(values[:: coprime_stride(len(values), SAMPLES, self._period)].clone())
            return self._cut(x)
        if self.training:
            with torch.no_grad():
                self.step.clamp_(min=SMALLEST_STEP, max=self.most)
        x = x if self.ends is None else self._cut(x)
        return _Lsq.apply(x, self.worth, self.low, self.high, (x[0].numel() * self.high) ** -0.5)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """The integer code of each value, int64."""
        return torch.clamp(self._cut(x.float()) / self.worth, self.low, self.high).round_().long()

    @torch.no_grad()
    def calibrate(self) -> None:
        """Sets the step from the samples taken. Raises `QuantizationError`, see `best_step`."""
        values = torch.cat(self.samples or [torch.empty(0)])
        values = values[:: coprime_stride(len(values), 4 * SAMPLES, self._period)]
        self.step.fill_(best_step(self._cut(values), self.low, self.high))
        if self.most is not None:
            self.step.clamp_(max=self.most)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, signed={self.signed}"


class FloatActivation(nn.Module):
    """The end of a step of the packed model under `half`: a ReLU or nothing."""

    bits = 16

    def __init__(self, signed: bool):
        super().__init__()
        self.signed, self.relu = signed, not signed

    def forward(self, x: Tensor) -> Tensor:
        return x if self.signed else F.relu(x)


class QuantizedConv2d(nn.Conv2d):
    """A convolution that computes with `quantizer(weight)`; `weight` stays real, under its usual name."""

    quantizer: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.quantizer(self.weight), self.bias)


class QuantizedLinear(nn.Linear):
    """A linear layer that computes with `quantizer(weight)`."""

    quantizer: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.quantizer(self.weight), self.bias)


ACTIVATIONS = (LsqActivation, FloatActivation)
