"""Inference of a packed model in integers, in numpy only: an independent check of `packed.module` and of the scores.

`run` computes logits as docs/format.md says. `witness` does so number by number in the order that the file states,
checks every partial sum against its proven range, and counts each operation: the logits must equal the torch module's,
and the counts, under challenge and strict rules, those that `scoring.packed_counts` derives from the codes without
computing anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch

import numpy as np

from micronet.errors import shown
from micronet.packed.errors import InferenceError
from micronet.packed.limits import EXACT_FLOAT32
from micronet.packed.model import PackedModel, ends, joined, logit_ranges, shifts
from micronet.packed.steps import Affine, Concat, Conv, Input, Linear, Maximum, Pool, Product, Step, Table
from micronet.packed.steps.base import reaches
from micronet.packed.steps.geometry import Geometry
from micronet.packed.steps.outline import last_uses
from micronet.packed.steps.pool import Window
from micronet.packed.steps.product import products
from micronet.packed.steps.scaling import Requantization, in_integers
from micronet.packed.steps.weights import Weights
from micronet.packed.sums import Counts, Witness, earlier
from micronet.packed.widths import code_width, product_range, signed_width

NO_CODE = np.iinfo(np.int32).min  # lower than any code
RELU_BITS = LOOKUP_BITS = 32  # the challenge charges 1 for a ReLU, whatever its width; a lookup costs as much
STRICT_BITS = 32  # of biases and average pools under strict rules


# What steps compute


@dataclass(frozen=True)
class _Context:
    """The network that a step belongs to, and how its dot products are summed."""

    steps: tuple[Step, ...]
    dot_products: Callable[[Weights, Step, np.ndarray], np.ndarray]


@singledispatch
def _compute(step: Step, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
    """The value of a step, (N, C, H, W), from the values that it reads; for the input: from pixels."""
    raise NotImplementedError(type(step).__name__)


@_compute.register
def _(step: Input, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
    return (inputs[0].astype(np.int32) - 128) >> (8 - step.code_bits)


@_compute.register
def _(step: Concat, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
    return np.concatenate(inputs, axis=1)


@_compute.register
def _(step: Pool, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
    return _windows(inputs[0], step.geometry, 0).sum(axis=(4, 5), dtype=np.int32)


@_compute.register
def _(step: Maximum, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
    return _windows(inputs[0], step.geometry, NO_CODE).max(axis=(4, 5))


@_compute.register
def _(step: Conv, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
    source = context.steps[step.inputs[0]]
    sums = context.dot_products(step.weights, source, _columns(inputs[0], step))
    _check_range(step, source, sums)
    rows, height, width = step.sum_shape(source)
    sums = sums.reshape(rows, len(inputs[0]), height, width).transpose(1, 0, 2, 3)
    if step.window > 1:
        sums = _windows(sums, Geometry.tiles((step.window, step.window)), 0).max(axis=(4, 5))
    return _requantized(sums, in_integers(step), inputs[1:])


@_compute.register
def _(step: Affine, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
    return _requantized(inputs[0][:, step.chosen].astype(np.int64), in_integers(step), inputs[1:])


@_compute.register
def _(step: Product, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
    first, second, *residual = inputs
    return _requantized(first.astype(np.int64) * second.astype(np.int64), in_integers(step), residual)


@_compute.register
def _(step: Table, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
    places = inputs[0] - step.first
    if places.size and not 0 <= places.min() <= places.max() < len(step.entries):
        raise InferenceError(f"{step.name}: a code has no entry in the table")
    return step.entries[places].astype(np.int32)


@_compute.register
def _(step: Linear, inputs: list[np.ndarray], context: _Context) -> np.ndarray:
    source, columns = context.steps[step.inputs[0]], inputs[0].reshape(len(inputs[0]), -1).T[None]
    sums = context.dot_products(step.weights, source, columns)
    _check_range(step, source, sums)
    return (sums.T + step.bias)[:, :, None, None]


def _check_range(step: Conv | Linear, source: Step, sums: np.ndarray) -> None:
    """Checks sums (O, positions) against their proven range."""
    proven = step.weights.sums(source)
    if sums.size and ((sums.min(axis=1) < proven.low) | (sums.max(axis=1) > proven.high)).any():
        raise InferenceError(f"{step.name}: a sum lies outside of its proven range")


def _columns(x: np.ndarray, step: Conv) -> np.ndarray:
    """The inputs of each output: (N, C, H, W) -> (groups, taps, N * H' * W')."""
    columns = _windows(x, step.geometry, 0).transpose(1, 4, 5, 0, 2, 3)  # C, kernel, N, H', W'
    return columns.reshape(step.weights.groups, -1, math.prod(columns.shape[3:]))


def _windows(x: np.ndarray, geometry: Geometry, padding: int) -> np.ndarray:
    """The windows on maps: (N, C, H, W) -> (N, C, H', W', kernel height, kernel width); a view unless padded.

    Args:
        padding: the value beyond the edges of a map.
    """
    if geometry.padding != (0, 0):
        sides = ((side, side) for side in geometry.padding)
        x = np.pad(x, ((0, 0), (0, 0), *sides), constant_values=padding)
    windows = np.lib.stride_tricks.sliding_window_view(x, geometry.extent, axis=(2, 3))
    (down, right), (below, beside) = geometry.stride, geometry.dilation
    return windows[:, :, ::down, ::right, ::below, ::beside]


def _requantized(sums: np.ndarray, scaling: Requantization, residual: list[np.ndarray]) -> np.ndarray:
    total = sums * scaling.multiplier[:, None, None] + scaling.scaled_bias[:, None, None]
    for codes in residual:
        total += codes.astype(np.int64) * scaling.residual_factor[:, None, None]
    return np.clip(total >> scaling.shift[:, None, None], *scaling.edges).astype(np.int32)


def _fast_dot_products(weights: Weights, source: Step, columns: np.ndarray) -> np.ndarray:
    """(O, N * H' * W') int64. Floats represent these sums exactly, and their products are fast."""
    sums, rows = weights.sums(source), weights.rows
    dtype = np.float32 if reaches(sums.low, sums.high) < EXACT_FLOAT32 else np.float64
    total = np.empty((len(rows), columns.shape[2]), np.int64)
    for group, part in enumerate(np.split(np.arange(len(rows)), weights.groups)):
        total[part] = rows[part].astype(dtype) @ columns[group].astype(dtype)
    return total


@singledispatch
def _count_rest(step: Step, steps: tuple[Step, ...], counts: Counts) -> None:
    """Counts the operations of a step for one image besides its dot products; most steps have none."""


@_count_rest.register
def _(step: Window, steps: tuple[Step, ...], counts: Counts) -> None:
    # A comparison is a subtraction whose sign is used; beyond the map there is nothing to compare.
    on_the_map = np.ones((1, 1, *steps[step.inputs[0]].shape[1:]), np.int64)
    held = _windows(on_the_map, step.geometry, 0).sum(axis=(4, 5))
    least = STRICT_BITS if isinstance(step, Pool) else 0
    for low, high in zip(step.low.tolist(), step.high.tolist(), strict=True):
        counts.add(int(code_width(low, high)), int((held - 1).sum()), least)


@_count_rest.register
def _(step: Conv, steps: tuple[Step, ...], counts: Counts) -> None:
    sums, rows = step.weights.sums(steps[step.inputs[0]]), step.weights.rows
    live = step.weights.live.tolist()
    if step.window > 1:
        for bits in sums.bits[live].tolist():
            counts.add(bits, (step.window**2 - 1) * math.prod(step.shape[1:]))
    first = list(range(len(rows)))
    if step.weights.factored and step.window == 1:
        magnitudes = np.abs(in_integers(step).multiplier).tolist()
        known: dict[tuple[int, int], int] = {}
        before = earlier(rows, len(rows) // step.weights.groups)
        first = [known.setdefault(key, row) for row, key in enumerate(zip(before, magnitudes, strict=True))]
    _count_requantization(step, steps, (sums.low, sums.high), sums.bits.tolist(), live, first, counts)


@_count_rest.register
def _(step: Affine, steps: tuple[Step, ...], counts: Counts) -> None:
    source = steps[step.inputs[0]]
    low, high = (side.astype(np.int64)[step.chosen] for side in (source.low, source.high))
    channels = list(range(len(low)))
    widths = code_width(low, high).tolist()
    _count_requantization(step, steps, (low, high), widths, [True] * len(low), channels, counts)


@_count_rest.register
def _(step: Product, steps: tuple[Step, ...], counts: Counts) -> None:
    first, second = (steps[index] for index in step.inputs)
    widths = [int(code_width(each.low, each.high).max()) for each in (first, second)]
    counts.multiply(max(widths), math.prod(step.shape))
    low, high = products(first, second)
    channels = list(range(len(low)))
    each_width = signed_width(low, high).tolist()
    _count_requantization(step, steps, (low, high), each_width, [True] * len(low), channels, counts)


@_count_rest.register
def _(step: Table, steps: tuple[Step, ...], counts: Counts) -> None:
    counts.add(LOOKUP_BITS, math.prod(step.shape))
    counts.strict_additions[LOOKUP_BITS] += 3 * math.prod(step.shape)  # like swish, the most expensive priced function


@_count_rest.register
def _(step: Linear, steps: tuple[Step, ...], counts: Counts) -> None:
    sums = step.weights.sums(steps[step.inputs[0]])
    for row, codes in enumerate(step.weights.rows):
        if codes.any():
            bias = int(signed_width(step.bias[row], step.bias[row]))
            counts.add(max(int(sums.bits[row]), bias), 1, STRICT_BITS)
    all_ends = ends(steps)
    behind = next(number for number, end in enumerate(all_ends) if end is step)
    passes = {behind} | ({behind + 1} if step is all_ends[-1] and step.margin else set())
    if any(number % 2 for number in passes):  # mirroring moves every value of the image
        counts.strict_additions[1] += math.prod(steps[0].shape)
    if step.choice is not None:
        # 2 C - 3 comparisons find the two greatest of C logits, a subtraction and a comparison test the margin, and C
        # additions join the logits of the next pass; counted in every pass, whether the next one follows or not.
        low, high = logit_ranges(steps)[behind + 1]
        width = max(int(signed_width(*edges)) for edges in zip(low, high, strict=True))
        counts.add(max(step.choice.bits, width), 3 * step.shape[0] - 1)


def _count_requantization(
    step: Conv | Affine | Product,
    steps: tuple[Step, ...],
    sums: tuple[np.ndarray, np.ndarray],
    sum_bits: list[int],
    live: list[bool],
    first: list[int],
    counts: Counts,
) -> None:
    """Channel by channel, in Python integers.

    Args:
        sums: range of the values to scale, (C,) each. sum_bits: their widths.
        live: whether the channel's sum is not a constant.
        first: the first channel with the same product, up to the sign; the channel itself if there is none before.
    """
    scaling, positions = in_integers(step), math.prod(step.shape[1:])
    products = np.stack(product_range(*sums, scaling.multiplier), axis=1).tolist()
    for channel, bias in enumerate(scaling.scaled_bias.tolist()):
        low, high = products[channel]
        if live[channel]:
            width = max(sum_bits[channel], scaling.multiplier_bits)
            counts.strict_multiplications[width] += positions
            if first[channel] == channel:
                counts.multiplications[width] += positions
            # The reused product may have the opposite sign, and need one bit more at a bound that is a power of two.
            ranges = (low, high), products[first[channel]], (bias, bias)
            counts.add(max(int(signed_width(*edges)) for edges in ranges), positions, STRICT_BITS)
        if scaling.residual is not None:
            added = steps[scaling.residual.value]
            code_bits = int(code_width(added.low, added.high).max())
            factor = int(scaling.residual_factor[channel])
            other = product_range(added.low[channel], added.high[channel], factor)
            width = max(int(signed_width(low + bias, high + bias)), int(signed_width(*other)))
            counts.multiply(max(scaling.residual.bits, code_bits), positions)
            counts.add(width, positions)
    if scaling.relu:
        counts.add(RELU_BITS, math.prod(step.shape))


# Whole networks


def _walk(
    model: PackedModel, images: np.ndarray, network: int, compute: Callable[[Step, list[np.ndarray]], np.ndarray]
) -> np.ndarray:
    """Logits (N, classes) int64 of one pass of one network."""
    if model.arithmetic != "integer":
        raise InferenceError("the reference computes in integers, this model holds 16-bit floats; use load_packed")
    _check_images(model, images)
    last_use = last_uses([step.reads for step in model.steps])
    values = {0: compute(model.steps[0], [images])}
    for index in model.networks[network]:
        step = model.steps[index]
        made = compute(step, [values[value] for value in step.reads])
        values[index] = made
        for value in (*step.reads, index):
            if last_use[value] == index:
                values.pop(value, None)
    return made.reshape(len(images), -1).astype(np.int64)


def _check_images(model: PackedModel, images: np.ndarray, empty: bool = False) -> None:
    """Raises `InferenceError` unless these are raw images. `empty`: there may be none."""
    wanted = "({}, {}, {}, {})".format("N", *model.image)
    if not isinstance(images, np.ndarray):
        raise InferenceError(f"images must be an array of {wanted} uint8 (got a {type(images).__name__})")
    if images.dtype != np.uint8 or images.shape[1:] != model.image or (len(images) == 0 and not empty):
        said = shown(f"{images.shape} {images.dtype}")
        raise InferenceError(f"images must be {wanted} uint8, pixels as they are (got {said})")


def run(model: PackedModel, images: np.ndarray, *, network: int = 0) -> np.ndarray:
    """Logits of images in one pass of one network, (N, classes) int64.

    Args:
        images: (N, C, H, W) uint8, of the shape that the model takes.
        network: index of the network in the file.

    Raises:
        InferenceError: a model in 16-bit floats, or unsuitable images.
    """
    context = _Context(model.steps, _fast_dot_products)
    return _walk(model, images, network, lambda step, inputs: _compute(step, inputs, context))


def witness(model: PackedModel, images: np.ndarray, *, network: int = 0) -> tuple[np.ndarray, list[Counts]]:
    """Like `run`, number by number in the stated order, with counts and checked partial sums; slow, so for few images.

    Returns:
        logits: (N, classes) int64. Counts: one per step, for one image.

    Raises:
        InferenceError: as for `run`, or a sum outside its proven width.
    """
    counters: list[Counts] = []

    def compute(step: Step, inputs: list[np.ndarray]) -> np.ndarray:
        one = Witness(len(images), step.name)
        counters.append(one.counts)
        _count_rest(step, model.steps, one.counts)
        return _compute(step, inputs, _Context(model.steps, one.dot_products))

    return _walk(model, images, network, compute), counters


def predict(model: PackedModel, images: np.ndarray, batch_size: int = 100) -> np.ndarray:
    """Logits (N, classes) int64 of any number of images (N, C, H, W) uint8, over all the passes that each takes.

    Raises:
        InferenceError: as for `run`.
    """
    _check_images(model, images, empty=True)
    if not len(images):
        return np.zeros((0, model.classes), np.int64)
    together = model.at_once(batch_size)

    def one_pass(rows: np.ndarray, number: int) -> np.ndarray:
        seen = images[rows, :, :, ::-1] if number % 2 else images[rows]
        network = min(number, len(model.networks) - 1)
        starts = range(0, len(rows), together)
        parts = [run(model, np.ascontiguousarray(seen[i : i + together]), network=network) for i in starts]
        return np.concatenate(parts)

    going = np.arange(len(images))
    total = one_pass(going, 0)
    for number, (end, shift) in enumerate(zip(model.ends, shifts(model.steps), strict=True), 1):
        going = going[margins(total[going]) < end.margin] if end.choice else going[:0]
        if len(going):
            total[going] = joined(total[going], one_pass(going, number), shift)
    return total


def margins(logits: np.ndarray) -> np.ndarray:
    """By how much the greatest logit of each image exceeds the second greatest, (N,)."""
    ordered = np.sort(logits, axis=1)
    return ordered[:, -1] - ordered[:, -2]
