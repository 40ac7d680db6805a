"""Inference of a packed model in integers, in numpy alone, with counters of what it really did.

The slow witness of `packing.PackedModule` (same logits) and of the challenge score (same operations): `run` computes
the logits and counts, `packed_operations` says from the codes what must be counted. `strict` inference multiplies and
adds number by number in the order that the file states, and checks every partial sum against its proven width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from micronet.errors import MicronetError
from micronet.packed.arithmetic import earlier_products, earlier_rows, factors
from micronet.packed.costs import (
    Counts,
    choice_bits,
    count_choice,
    count_comparisons,
    count_dot_products,
    count_requantization,
    count_window,
    linear_bias_bits,
    pool_width,
    requantization,
    width_of,
)
from micronet.packed.file import EXACT_FLOAT32, PackedModel
from micronet.packed.steps import IMAGE, Step, again, ends, interleave, joined, sum_shape
from micronet.packed.widths import accumulation, addition_width, code_width


class InferenceError(MicronetError):
    """The reference cannot run on this, or found a sum outside of its proven width: one line."""


def _columns(x: np.ndarray, step: Step) -> np.ndarray:
    """The inputs of each output: (N, C, H, W) -> (groups, taps, N * H' * W')."""
    if step.op == "linear":
        return x.reshape(len(x), -1).T[None]
    kernel, stride, padding = step.kernel, step.stride, step.padding
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))[:, :, ::stride, ::stride]
    columns = windows.transpose(1, 4, 5, 0, 2, 3)  # C, k, k, N, H', W'
    return columns.reshape(step.groups, -1, math.prod(columns.shape[3:]))


def _fits(values: np.ndarray, bits: int, name: str) -> None:
    if values.size and not -(1 << (bits - 1)) <= int(values.min()) <= int(values.max()) < 1 << (bits - 1):
        raise InferenceError(f"{name}: a partial sum does not fit the {bits} bits that were proven for it")


def _sum_running(products: np.ndarray, bits: int, images: int, counts: Counts) -> np.ndarray:
    """Sums (taps, positions) one tap after the other in an accumulator of `bits`."""
    total = products[0].copy()
    _fits(total, bits, counts.name)
    for product in products[1:]:
        total += product
        _fits(total, bits, counts.name)
        counts.additions[bits] += total.size // images
    return total


@dataclass(frozen=True)
class _Sum:
    """A partial sum at every position, and the range that is proven for it."""

    values: np.ndarray
    low: int
    high: int

    @property
    def bits(self) -> int:
        return int(code_width(self.low, self.high))

    def bits_with(self, other: _Sum) -> int:
        """Of an addition of both."""
        return int(addition_width(self.low, self.high, other.low, other.high))

    def checked(self, name: str) -> _Sum:
        if self.values.size and not self.low <= int(self.values.min()) <= int(self.values.max()) <= self.high:
            raise InferenceError(f"{name}: a partial sum lies outside of [{self.low}, {self.high}], its proven range")
        return self

    def times(self, factor: int) -> _Sum:
        low, high = sorted((self.low * factor, self.high * factor))
        return _Sum(self.values * factor, low, high)


def _sum_tree(nodes: list[_Sum], images: int, counts: Counts) -> _Sum:
    """Adds neighbours, level by level."""
    while len(nodes) > 1:
        level = []
        for left, right in zip(nodes[::2], nodes[1::2], strict=False):
            both = _Sum(left.values + right.values, left.low + right.low, left.high + right.high)
            level.append(both.checked(counts.name))
            counts.additions[left.bits_with(right)] += left.values.size // images
        nodes = level + (nodes[-1:] if len(nodes) % 2 else [])
    return nodes[0]


def _sum_factored(row: np.ndarray, inputs: list[_Sum], weight_bits: int, images: int, counts: Counts) -> np.ndarray:
    """One output channel: `row`: codes of its taps; `inputs`: what each tap reads."""
    terms = []
    for magnitude, *sides in factors(row):
        taps = ([inputs[tap] for tap in side] for side in sides)
        plus, minus = (_sum_tree(side, images, counts) if side else None for side in taps)
        term, factor = plus or minus, magnitude if plus else -magnitude
        if plus and minus:
            term = _Sum(plus.values - minus.values, plus.low - minus.high, plus.high - minus.low).checked(counts.name)
            counts.additions[plus.bits_with(minus)] += term.values.size // images
        if factor != 1:
            counts.multiplications[max(weight_bits, term.bits)] += term.values.size // images
        terms.append(term.times(factor))
    return _sum_tree(terms, images, counts).values


def _dot_products(x: np.ndarray, source: Step, step: Step, counts: Counts, strict: bool) -> np.ndarray:
    """Accumulators of a conv or linear step, (N, O, H', W') int64."""
    images, rows = len(x), len(step.weight)
    columns = _columns(x, step)
    sums = accumulation(step.weight, step.groups, source.low, source.high)
    width = max(step.weight_bits, width_of(source.low, source.high))
    positions = columns.shape[2] // images
    weight = step.weight.reshape(rows, -1)
    total = np.zeros((rows, columns.shape[2]), np.int64)
    group_rows = rows // step.groups
    if strict:
        earlier = earlier_rows(step.weight, step.groups)
        for row in range(rows):
            taps = np.flatnonzero(weight[row])
            if not len(taps):
                continue
            if step.factored and earlier[row] < row:
                same = np.array_equal(weight[row], weight[earlier[row]])
                total[row] = total[earlier[row]] if same else -total[earlier[row]]
                continue
            codes, group = weight[row, taps].astype(np.int64), row // group_rows
            inputs = columns[group][taps].astype(np.int64)
            if step.factored:
                channels = group * step.weight.shape[1] + taps // (weight.shape[1] // step.weight.shape[1])
                ranges = zip(source.low[channels].tolist(), source.high[channels].tolist(), strict=True)
                read = [_Sum(x, low, high).checked(counts.name) for x, (low, high) in zip(inputs, ranges, strict=True)]
                total[row] = _sum_factored(codes, read, step.weight_bits, images, counts)
            else:
                counts.multiplications[width] += inputs.size // images
                total[row] = _sum_running(codes[:, None] * inputs, int(sums.bits[row]), images, counts)
    else:
        # Floats hold these sums exactly, and their products are fast.
        largest = max(-int(sums.low.min()), int(sums.high.max()))
        dtype = np.float32 if largest < EXACT_FLOAT32 else np.float64
        for group in range(step.groups):
            part = slice(group * group_rows, (group + 1) * group_rows)
            total[part] = weight[part].astype(dtype) @ columns[group].astype(dtype)
        count_dot_products(step, source, positions, counts)
    for row in range(rows):
        _fits(total[row], int(sums.bits[row]), counts.name)
        if total[row].size and not sums.low[row] <= total[row].min() <= total[row].max() <= sums.high[row]:
            raise InferenceError(f"{counts.name}: a sum lies outside of its proven range")
    shape = (rows, images, *sum_shape(step, source)[1:])
    return total.reshape(shape).transpose(1, 0, 2, 3)


def _requantize(x: np.ndarray, step: Step, residual: np.ndarray | None) -> np.ndarray:
    first, sign = earlier_products(step)
    products = x * step.multiplier[:, None, None]
    total = products[:, first] * sign[:, None, None] + step.scaled_bias[:, None, None]
    if residual is not None:
        total += residual.astype(np.int64) * step.residual_factor[:, None, None]
    return np.clip(total >> step.shift[:, None, None], step.low[0], step.high[0])


def _greatest(x: np.ndarray, side: int) -> np.ndarray:
    """(N, C, H, W) -> (N, C, H // side, W // side): the greatest number of each window."""
    height, width = x.shape[2] // side, x.shape[3] // side
    inside = x[:, :, : height * side, : width * side]
    return inside.reshape(*x.shape[:2], height, side, width, side).max(axis=(3, 5))


def _run_step(
    step: Step, steps: tuple[Step, ...], values: dict[int, np.ndarray], counts: Counts, pixels: np.ndarray, strict: bool
) -> np.ndarray:
    if step.op == "input":
        return (pixels.astype(np.int32) - 128) >> (8 - step.code_bits)
    if step.op == "concat":
        return np.concatenate([values[index] for index in step.inputs], axis=1)
    x, source = values[step.inputs[0]], steps[step.inputs[0]]
    if step.op == "pool":
        channels, height, width = step.shape
        windows = x.reshape(len(x), channels, height, step.kernel, width, step.kernel)
        for bits in pool_width(step, source):
            counts.additions[int(bits)] += (step.kernel**2 - 1) * height * width
        return windows.sum(axis=(3, 5), dtype=np.int32)
    if step.op == "maximum":
        count_comparisons(step, source, counts)
        return _greatest(x, step.kernel)
    if step.op == "affine":
        total = x[:, interleave(step.shape[0], step.order)].astype(np.int64)
    else:
        total = _dot_products(x, source, step, counts, strict)
    if step.window > 1:
        count_window(step, source, counts)
        total = _greatest(total, step.window)
    if step.op == "linear":
        sums = accumulation(step.weight, 1, source.low, source.high)
        for bits in linear_bias_bits(step, sums):
            counts.additions[int(bits)] += 1
        if step.margin:
            count_choice(step, choice_bits(steps, step), counts)
        return total + step.bias[:, None, None]
    residual = None if step.residual is None else values[step.residual]
    other = None if step.residual is None else steps[step.residual]
    count_requantization(step, requantization(step, source, other), counts)
    return _requantize(total, step, residual).astype(np.int32)


def run(
    model: PackedModel, images: np.ndarray, *, network: int = 0, strict: bool = False
) -> tuple[np.ndarray, list[Counts]]:
    """Logits of images in one pass of one network, and what it took for one image, step by step.

    Args:
        images: (N, 3, 32, 32) uint8.
        network: which of the file's.
        strict: multiply and add number by number in the stated order (slow: a few images), counting each and checking
            every partial sum.

    Returns:
        logits: (N, classes) int64. Counts: one a step, for one image.

    Raises:
        InferenceError: a model in 16-bit floats, other images, or a sum outside of its proven width.
    """
    if model.arithmetic != "integer":
        raise InferenceError("the reference computes in integers, this model holds 16-bit floats; use load_packed")
    if images.dtype != np.uint8 or images.shape[1:] != IMAGE or len(images) == 0:
        raise InferenceError(f"images must be (N, 3, 32, 32) uint8 (got {images.shape} {images.dtype})")
    last_use = {}
    for index, step in enumerate(model.steps):
        last_use |= {value: index for value in (*step.inputs, step.residual)}
    values: dict[int, np.ndarray] = {}
    counters = []
    for index in (0, *model.networks[network]):
        step = model.steps[index]
        counts = Counts(step.name)
        values[index] = _run_step(step, model.steps, values, counts, images, strict)
        counters.append(counts)
        for value in [value for value in values if last_use.get(value, index) <= index and value != index]:
            del values[value]
    return values[index].reshape(len(images), -1).astype(np.int64), counters


def predict(model: PackedModel, images: np.ndarray, batch_size: int = 100) -> np.ndarray:
    """Logits (N, classes) int64 of any number of images (N, 3, 32, 32) uint8, of all the passes that each takes."""

    def one_pass(rows: np.ndarray, number: int) -> np.ndarray:
        seen = images[rows, :, :, ::-1] if number % 2 else images[rows]
        network = min(number, len(model.networks) - 1)
        starts = range(0, len(rows), batch_size)
        parts = [run(model, np.ascontiguousarray(seen[i : i + batch_size]), network=network)[0] for i in starts]
        return np.concatenate(parts)

    going = np.arange(len(images))
    total = one_pass(going, 0)
    for number, end in enumerate(ends(model.steps), 1):
        going = going[margins(total[going]) < end.margin]
        if len(going):
            shift = again(model.steps) if end.logit_shift is None else end.logit_shift
            total[going] = joined(total[going], one_pass(going, number), shift)
    return total


def margins(logits: np.ndarray) -> np.ndarray:
    """By how much the greatest logit of each image exceeds the second, (N,)."""
    ordered = np.sort(logits, axis=1)
    return ordered[:, -1] - ordered[:, -2]
