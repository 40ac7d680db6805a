"""Inference of a packed model in integers, in numpy alone, with counters of what it really did.

The slow witness of `packing.PackedModule` (same logits) and of the challenge score (same operations): `run` computes
the logits and counts, `packed_operations` says from the codes what must be counted. `strict` inference multiplies and
adds number by number in the order that the file states, and checks every partial sum against its proven width.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from micronet import packed
from micronet.errors import MicronetError
from micronet.packed import PackedModel, Step

CHOICE = "choice"  # ends the name of the record of a choice to look at an image again
RELU_BITS = 32  # the challenge charges 1 for a ReLU, whatever its width


class InferenceError(MicronetError):
    """The reference cannot run on this, or found a sum outside of its proven width: one line."""


@dataclass
class Counts:
    """Multiplications and additions of one step for one image: {bits: count}."""

    name: str
    multiplications: Counter[int] = field(default_factory=Counter)
    additions: Counter[int] = field(default_factory=Counter)


def _width(low: np.ndarray, high: np.ndarray) -> int:
    """Bits that hold the codes of all channels."""
    return int(packed.code_width(low, high).max())


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
        return int(packed.code_width(self.low, self.high))

    def bits_with(self, other: _Sum) -> int:
        """Of an addition of both."""
        return int(packed.addition_width(self.low, self.high, other.low, other.high))

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
    for magnitude, *sides in packed.factors(row):
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


def _count_dot_products(step: Step, source: Step, positions: int, counts: Counts) -> None:
    """What the sums of one image take, from the codes."""
    multiplications, additions = packed.work(
        step.weight, step.groups, source.low, source.high, step.weight_bits, step.factored
    )
    counts.multiplications.update({bits: count * positions for bits, count in multiplications.items()})
    counts.additions.update({bits: count * positions for bits, count in additions.items()})


def _dot_products(x: np.ndarray, source: Step, step: Step, counts: Counts, strict: bool) -> np.ndarray:
    """Accumulators of a conv or linear step, (N, O, H', W') int64."""
    images, rows = len(x), len(step.weight)
    columns = _columns(x, step)
    sums = packed.accumulation(step.weight, step.groups, source.low, source.high)
    width = max(step.weight_bits, _width(source.low, source.high))
    positions = columns.shape[2] // images
    weight = step.weight.reshape(rows, -1)
    total = np.zeros((rows, columns.shape[2]), np.int64)
    group_rows = rows // step.groups
    if strict:
        earlier = packed.earlier_rows(step.weight, step.groups)
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
        dtype = np.float32 if largest < packed.EXACT_FLOAT32 else np.float64
        for group in range(step.groups):
            part = slice(group * group_rows, (group + 1) * group_rows)
            total[part] = weight[part].astype(dtype) @ columns[group].astype(dtype)
        _count_dot_products(step, source, positions, counts)
    for row in range(rows):
        _fits(total[row], int(sums.bits[row]), counts.name)
        if total[row].size and not sums.low[row] <= total[row].min() <= total[row].max() <= sums.high[row]:
            raise InferenceError(f"{counts.name}: a sum lies outside of its proven range")
    shape = (rows, images, *packed.sum_shape(step, source)[1:])
    return total.reshape(shape).transpose(1, 0, 2, 3)


@dataclass(frozen=True)
class _Requantization:
    """Widths of one step's requantization, an entry an output channel; `alive`: the channel's sum is no constant."""

    alive: np.ndarray
    multiplied: np.ndarray  # alive, and no earlier channel has the product already
    product_bits: np.ndarray  # of sum * multiplier as an input of the multiplication
    bias_bits: np.ndarray  # of the bias's addition
    residual_product_bits: int
    residual_bits: np.ndarray  # of the residual's addition


def _requantization(step: Step, source: Step, residual: Step | None) -> _Requantization:
    if step.op == "conv":
        sums = packed.accumulation(step.weight, step.groups, source.low, source.high)
        low, high, sum_bits, alive = sums.low, sums.high, sums.bits, sums.nonzeros > 0
    else:
        chosen = packed.interleave(step.shape[0], step.order)
        low, high = source.low.astype(np.int64)[chosen], source.high.astype(np.int64)[chosen]
        sum_bits, alive = packed.code_width(low, high), np.ones(step.shape[0], bool)
    low, high = packed.product_range(low, high, step.multiplier)
    bias = step.scaled_bias
    bias_width = packed.signed_width(bias, bias)
    bias_bits = np.maximum(packed.signed_width(low, high), bias_width)
    biased = packed.signed_width(low + bias, high + bias)
    product_bits, residual_bits = np.maximum(sum_bits, step.multiplier_bits), np.zeros_like(biased)
    first = packed.earlier_products(step)[0]
    multiplied = alive & (first == np.arange(step.shape[0]))
    # The product that there is may have the other sign, and one bit more at a bound that is a power of two.
    bias_bits = np.maximum(bias_bits, packed.signed_width(low[first], high[first]))
    if residual is None:
        return _Requantization(alive, multiplied, product_bits, bias_bits, 0, residual_bits)
    added = packed.product_range(residual.low, residual.high, step.residual_factor)
    residual_bits = np.maximum(biased, packed.signed_width(*added))
    width = max(step.residual_bits, _width(residual.low, residual.high))
    return _Requantization(alive, multiplied, product_bits, bias_bits, width, residual_bits)


def _count_requantization(step: Step, widths: _Requantization, counts: Counts) -> None:
    """What a requantization of one image takes. A channel without weights is a constant, its bias is no addition."""
    positions = math.prod(step.shape[1:])
    for product in widths.product_bits[widths.multiplied]:
        counts.multiplications[int(product)] += positions
    for bias in widths.bias_bits[widths.alive]:
        counts.additions[int(bias)] += positions
    if step.residual is not None:
        for bits in widths.residual_bits:
            counts.multiplications[widths.residual_product_bits] += positions
            counts.additions[int(bits)] += positions
    if step.relu:
        counts.additions[RELU_BITS] += math.prod(step.shape)


def _requantize(x: np.ndarray, step: Step, residual: np.ndarray | None) -> np.ndarray:
    first, sign = packed.earlier_products(step)
    products = x * step.multiplier[:, None, None]
    total = products[:, first] * sign[:, None, None] + step.scaled_bias[:, None, None]
    if residual is not None:
        total += residual.astype(np.int64) * step.residual_factor[:, None, None]
    return np.clip(total >> step.shift[:, None, None], step.low[0], step.high[0])


def _count_comparisons(step: Step, source: Step, counts: Counts) -> None:
    """What the maxima of one image take: k^2 - 1 additions each, for a comparison is a subtraction's sign."""
    for bits in packed.code_width(source.low, source.high):
        counts.additions[int(bits)] += (step.kernel**2 - 1) * math.prod(step.shape[1:])


def _count_window(step: Step, source: Step, counts: Counts) -> None:
    """What it takes to find the greatest sum of each window; a channel without weights has nothing to compare."""
    sums = packed.accumulation(step.weight, step.groups, source.low, source.high)
    for bits in sums.bits[sums.nonzeros > 0]:
        counts.additions[int(bits)] += (step.window**2 - 1) * math.prod(step.shape[1:])


def _greatest(x: np.ndarray, side: int) -> np.ndarray:
    """(N, C, H, W) -> (N, C, H // side, W // side): the greatest number of each window."""
    height, width = x.shape[2] // side, x.shape[3] // side
    inside = x[:, :, : height * side, : width * side]
    return inside.reshape(*x.shape[:2], height, side, width, side).max(axis=(3, 5))


def _pool_width(step: Step, source: Step) -> np.ndarray:
    """Width of the running sum of each channel's window."""
    return packed.code_width(step.low, step.high)


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
        for bits in _pool_width(step, source):
            counts.additions[int(bits)] += (step.kernel**2 - 1) * height * width
        return windows.sum(axis=(3, 5), dtype=np.int32)
    if step.op == "maximum":
        _count_comparisons(step, source, counts)
        return _greatest(x, step.kernel)
    if step.op == "affine":
        total = x[:, packed.interleave(step.shape[0], step.order)].astype(np.int64)
    else:
        total = _dot_products(x, source, step, counts, strict)
    if step.window > 1:
        _count_window(step, source, counts)
        total = _greatest(total, step.window)
    if step.op == "linear":
        sums = packed.accumulation(step.weight, 1, source.low, source.high)
        for bits in _linear_bias_bits(step, sums):
            counts.additions[int(bits)] += 1
        if step.margin:
            _count_choice(step, choice_bits(steps, step), counts)
        return total + step.bias[:, None, None]
    residual = None if step.residual is None else values[step.residual]
    other = None if step.residual is None else steps[step.residual]
    _count_requantization(step, _requantization(step, source, other), counts)
    return _requantize(total, step, residual).astype(np.int32)


def choice_bits(steps: tuple[Step, ...], step: Step) -> int:
    """Width of the choice that a linear step with a margin makes: that of the sum of logits behind the next pass."""
    behind = next(number for number, end in enumerate(packed.ends(steps)) if end is step)
    low, high = packed.sums(steps)[behind + 1]
    return max(step.margin_bits, int(packed.signed_width(low, high).max()))


def _count_choice(step: Step, bits: int, counts: Counts) -> None:
    """What the choice to look at an image again takes at most, and the sum with the logits of that pass, in every pass.

    2 C - 3 comparisons find the two greatest of C logits, their difference is compared with the margin, and C logits
    are added to the others.
    """
    counts.additions[bits] += 3 * step.shape[0] - 1


def _linear_bias_bits(step: Step, sums: packed.Accumulation) -> np.ndarray:
    """Widths of the biases' additions of the outputs that have weights."""
    alive = sums.nonzeros > 0
    return np.maximum(sums.bits, packed.signed_width(step.bias, step.bias))[alive]


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
    if images.dtype != np.uint8 or images.shape[1:] != packed.IMAGE or len(images) == 0:
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
    for number, end in enumerate(packed.ends(model.steps), 1):
        going = going[margins(total[going]) < end.margin]
        if len(going):
            shift = packed.again(model.steps) if end.logit_shift is None else end.logit_shift
            total[going] = packed.joined(total[going], one_pass(going, number), shift)
    return total


def margins(logits: np.ndarray) -> np.ndarray:
    """By how much the greatest logit of each image exceeds the second, (N,)."""
    ordered = np.sort(logits, axis=1)
    return ordered[:, -1] - ordered[:, -2]


def _bits(step: Step, *fields: str) -> int:
    return sum(bits for name, bits in step.storage if name in fields)


def _pairs(counts: Counter[int]) -> tuple[tuple[int, int], ...]:
    return tuple(sorted((bits, count) for bits, count in counts.items() if count))


def packed_operations(model: PackedModel) -> list[dict[str, Any]]:
    """The fields of one `scoring.Operation` a record, from the codes alone, in the order of the work.

    Under challenge rules the records of a step equal the counters of `run`, and all `storage_bits` together are the
    payload's bits. Under deck rules (`rules` both or deck) they are the architecture as it was designed: batch norms
    unfolded, at the width that their constants are stored in.
    """
    return [
        {"network": number, **record}
        for number, network in enumerate(model.networks)
        for index in network
        for record in _step_operations(model, model.steps[index])
    ]


def _step_operations(model: PackedModel, step: Step) -> list[dict[str, Any]]:
    """What `packed_operations` says of one step; nothing of one that computes nothing."""
    half = model.arithmetic == "half"
    records: list[dict[str, Any]] = []
    if step.op in ("input", "concat"):
        return records
    source = model.steps[step.inputs[0]]
    positions = math.prod(step.shape[1:])
    codes = 16 if half else _width(source.low, source.high)
    vector_bits = 16 if half else _vector_bits(step)
    counts = Counts(step.name)
    shape = {"output_shape": step.shape, "input_shape": source.shape}
    if step.op == "pool":
        window = step.kernel**2
        if half:
            counts.additions[32] += (window - 1) * math.prod(step.shape)
            counts.multiplications[16] += math.prod(step.shape)
        else:
            for bits in _pool_width(step, source):
                counts.additions[int(bits)] += (window - 1) * positions
        records.append(_record(step.name, "pool", counts, rules="challenge", activation_bits=codes, **shape))
        return records
    if step.op == "maximum":
        if half:
            counts.additions[16] += (step.kernel**2 - 1) * math.prod(step.shape)
        else:
            _count_comparisons(step, source, counts)
        records.append(_record(step.name, "pool", counts, rules="challenge", activation_bits=codes, **shape))
        return records
    sum_shape = packed.sum_shape(step, source)
    if step.op in ("conv", "linear"):
        sum_positions = math.prod(sum_shape[1:])
        nonzeros = int(np.count_nonzero(step.weight))
        rows = np.count_nonzero(step.weight.reshape(len(step.weight), -1), axis=1)
        if half:
            counts.multiplications[16] += nonzeros * sum_positions
            counts.additions[32] += int(np.maximum(rows - 1, 0).sum()) * sum_positions
        else:
            _count_dot_products(step, source, sum_positions, counts)
        fields = {
            "kernel": step.kernel if step.op == "conv" else 1,
            "groups": step.groups,
            "weights": step.weight.size,
            "nonzeros": nonzeros,
            "weight_bits": step.weight_bits,
            "activation_bits": codes,
            "accumulator_bits": step.accumulator_bits,
            "storage_bits": _bits(step, "weight"),
        }
    if step.op == "linear":
        shape = {"output_shape": (step.shape[0],), "input_shape": (source.shape[0],)}
        if half:
            counts.additions[32] += int(np.count_nonzero(rows))
        else:
            sums = packed.accumulation(step.weight, 1, source.low, source.high)
            counts.additions.update(int(bits) for bits in _linear_bias_bits(step, sums))
        # The bits that fill the payload's last byte are charged here.
        stored = sum(bits for each in model.steps for _, bits in each.storage)
        filling = model.payload_bits - stored if step is model.steps[-1] else 0
        fields["storage_bits"] += _bits(step, "bias") + filling
        fields |= {"bias": True, "bias_parameters": step.shape[0], "vector_bits": vector_bits}
        records.append(_record(step.name, "linear", counts, **fields, **shape))
        if step.margin:
            counts = Counts(step.name)
            _count_choice(step, choice_bits(model.steps, step), counts)
            more = {"storage_bits": _bits(step, "margin", "logit_shift"), "rules": "challenge", **shape}
            records.append(_record(f"{step.name}.{CHOICE}", "add", counts, **more))
        return records
    if step.op == "conv":
        records.append(_record(step.name, "conv", counts, **fields, **shape | {"output_shape": sum_shape}))
    if step.window > 1:
        counts = Counts(step.name)
        _count_window(step, source, counts)
        window = {"output_shape": step.shape, "input_shape": sum_shape, "activation_bits": step.accumulator_bits}
        records.append(_record(f"{step.name}.maximum", "pool", counts, rules="challenge", **window))
    same = {"output_shape": step.shape, "input_shape": step.shape, "vector_bits": vector_bits}
    if step.norm:
        norm = {"norm_parameters": 2 * step.shape[0], "rules": "deck"}
        records.append(_record(f"{step.name}.norm", "batch_norm", Counts(step.name), **norm, **same))
    counts = Counts(step.name)
    if half:
        alive = int(np.count_nonzero(rows)) if step.op == "conv" else step.shape[0]
        counts.additions[32] += alive * positions
        if step.op == "affine":
            counts.multiplications[16] += math.prod(step.shape)
        if step.residual is not None:
            counts.additions[32] += math.prod(step.shape)
        if step.relu:
            counts.additions[RELU_BITS] += math.prod(step.shape)
    else:
        other = None if step.residual is None else model.steps[step.residual]
        _count_requantization(step, _requantization(step, source, other), counts)
    name, kind = (step.name, "affine") if step.op == "affine" else (f"{step.name}.requantize", "requantize")
    stored = _bits(step, "multiplier", "exponent", "bias", "shift", "residual")
    widths = {"activation_bits": step.code_bits, "storage_bits": stored, "rules": "challenge"}
    records.append(_record(name, kind, counts, **widths, **same))
    return records


def _vector_bits(step: Step) -> int:
    """Mean width of the two constants a channel that a batch norm is stored in, rounded up; of a linear's biases."""
    if step.op == "linear":
        return step.bias_bits
    return -(-(step.multiplier_bits + step.exponent_bits + step.bias_bits) // 2)


def _record(name: str, kind: str, counts: Counts, **fields: Any) -> dict[str, Any]:
    done = {"multiplications": _pairs(counts.multiplications), "additions": _pairs(counts.additions)}
    return {"name": name, "kind": kind, **fields, **done}
