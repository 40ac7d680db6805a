"""Packed models with random steps, not derived from a torch network: any operation and window."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from micronet.packed.bits import weight_storage
from micronet.packed.cascade import join
from micronet.packed.file import decode, encode
from micronet.packed.steps import Affine, Concat, Conv, Input, Linear, Maximum, Pool, Product, Step, Table
from micronet.packed.steps.base import joined_ranges
from micronet.packed.steps.geometry import Geometry
from micronet.packed.steps.linear import Choice, chosen
from micronet.packed.steps.product import products
from micronet.packed.steps.scaling import Requantization, Residual
from micronet.packed.steps.table import reach
from micronet.packed.steps.weights import Weights
from micronet.packed.widths import signed_width

MOST_NUMBERS, MOST_CHANNELS = 4000, 30  # of a map
MOST_REACH = 1 << 20  # bound on what is scaled, so that 16-bit multipliers stay within what a file may hold


def _pair(chance: random.Random, low: int, *most: int) -> tuple[int, int]:
    height, width = (chance.randint(low, max(low, each)) for each in (most * 2)[:2])
    return height, width


def _weights(chance: random.Random, shape: tuple[int, ...], source: Step, groups: int = 1) -> Weights:
    """Codes of any width, often sparse, in the most compact mask or another one."""
    bits = chance.randint(1, 8)
    top = max(1, (1 << (bits - 1)) - 1)
    draw = np.random.default_rng(chance.randrange(1 << 30))
    codes = draw.integers(-top, top + 1, shape).astype(np.int8)
    codes[draw.random(shape) < chance.choice([0, 0.3, 0.9, 0.97])] = 0
    width, mask = weight_storage(codes)
    found = Weights(codes=codes, bits=width, mask=mask, groups=groups, factored=chance.random() < 0.5)
    return replace(found, accumulator_bits=int(found.sums(source).bits.max()))


def _scaling(
    chance: random.Random, channels: int, low: np.ndarray, high: np.ndarray, others: list[tuple[int, Step]]
) -> Requantization:
    """A scaling that brings sums in a range to about its codes."""
    signed = chance.random() < 0.5
    code_bits = chance.randint(2, 8)
    draw = np.random.default_rng(chance.randrange(1 << 30))
    most = max(1, int(max(-low.min(), high.max())))
    multiplier = draw.integers(-127, 128, channels)
    shift = max(0, (most * 100).bit_length() - code_bits)
    exponents = draw.integers(0, 3, channels) * chance.randint(0, 1)
    exponents[0] = 0
    fraction = chance.randint(0, shift)
    bias = draw.integers(-(1 << (code_bits + fraction)), (1 << (code_bits + fraction)) + 1, channels)
    residual = None
    if others and chance.random() < 0.5:
        value, _ = chance.choice(others)
        points = chance.randint(0, min(6, shift))
        residual = Residual(value=value, multiplier=chance.randint(-100, 100), bits=8, fraction=points)
    top, ends = (1 << (code_bits - signed)) - 1, None
    if chance.random() < 0.3:
        ends = (chance.randint(-top, 0) if signed else 0, chance.randint(0, top))
    return Requantization(
        code_bits=code_bits,
        signed=signed,
        relu=chance.random() < 0.5,
        ends=ends,
        residual=residual,
        multiplier=multiplier,
        multiplier_bits=8,
        shift=shift + exponents,
        exponent_bits=2 if exponents.any() else 0,
        bias=bias,
        bias_bits=int(signed_width(bias.min(), bias.max())),
        bias_fraction=fraction,
    )


def _edges(scaling: Requantization, channels: int) -> dict[str, np.ndarray]:
    low, high = scaling.edges
    return {"low": np.full(channels, low, np.int32), "high": np.full(channels, high, np.int32)}


def _added(steps: list[Step], own: range, shape: tuple[int, int, int]) -> list[tuple[int, Step]]:
    return [(index, steps[index]) for index in own if steps[index].shape == shape]


def _conv(chance: random.Random, steps: list[Step], own: range) -> Step | None:
    index = chance.choice(own)
    source = steps[index]
    channels, sides = source.shape[0], source.shape[1:]
    groups = chance.choice([size for size in range(1, channels + 1) if channels % size == 0])
    out = groups * chance.randint(1, max(1, 8 // groups))
    kernel, dilation = _pair(chance, 1, *(min(4, side + 2) for side in sides)), _pair(chance, 1, 3)
    padding, stride = _pair(chance, 0, 4), _pair(chance, 1, 4)
    height, width = Geometry(kernel, stride, padding, dilation).size(source.shape)
    if min(height, width) < 1:
        return None
    weights = _weights(chance, (out, channels // groups, *kernel), source, groups)
    window = chance.choice([1, 1, min(2, height, width), min(3, height, width)])
    shape = out, height // window, width // window
    bounds = weights.sums(source)
    scaling = _scaling(chance, out, bounds.low, bounds.high, _added(steps, own, shape))
    placed = {"stride": stride, "padding": padding, "dilation": dilation, "window": window}
    return Conv(
        name="conv", inputs=(index,), shape=shape, weights=weights, scaling=scaling, **placed, **_edges(scaling, out)
    )


def _affine(chance: random.Random, steps: list[Step], own: range) -> Step | None:
    index = chance.choice(own)
    source = steps[index]
    channels = source.shape[0]
    order = chance.choice([1, 1, *(size for size in range(1, channels + 1) if channels % size == 0)])
    scaling = _scaling(chance, channels, source.low, source.high, _added(steps, own, source.shape))
    edges = _edges(scaling, channels)
    return Affine(name="affine", inputs=(index,), shape=source.shape, scaling=scaling, order=order, **edges)


def _product(chance: random.Random, steps: list[Step], own: range) -> Step | None:
    index = chance.choice(own)
    source = steps[index]
    fitting = [i for i in own if steps[i].shape in (source.shape, (source.shape[0], 1, 1))]
    other = chance.choice(fitting)
    low, high = products(source, steps[other])
    scaling = _scaling(chance, source.shape[0], low, high, _added(steps, own, source.shape))
    edges = _edges(scaling, source.shape[0])
    return Product(name="product", inputs=(index, other), shape=source.shape, scaling=scaling, **edges)


def _table(chance: random.Random, steps: list[Step], own: range) -> Step | None:
    index = chance.choice(own)
    first, last = reach(steps[index])
    if last - first > 255:
        return None
    low, high = chance.choice([(0, 255), (-128, 127), (-3, 4), (0, 1)])
    return Table.over(steps[index], index, np.array([chance.randint(low, high) for _ in range(last - first + 1)]), "t")


def _window(kind: type[Pool] | type[Maximum]) -> Callable[[random.Random, list[Step], range], Step | None]:
    def made(chance: random.Random, steps: list[Step], own: range) -> Step | None:
        index = chance.choice(own)
        source = steps[index]
        kernel = _pair(chance, 1, *(min(4, side) for side in source.shape[1:]))
        padding = _pair(chance, 0, *(size // 2 for size in kernel))
        return kind.over(source, index, Geometry(kernel, _pair(chance, 1, 4), padding), "window")

    return made


def _concat(chance: random.Random, steps: list[Step], own: range) -> Step | None:
    size = steps[chance.choice(own)].shape[1:]
    fitting = [index for index in own if steps[index].shape[1:] == size]
    inputs = tuple(chance.choice(fitting) for _ in range(chance.randint(1, 3)))
    channels = sum(steps[index].shape[0] for index in inputs)
    low, high = joined_ranges(steps[index] for index in inputs)
    return Concat(name="concat", inputs=inputs, shape=(channels, *size), low=low, high=high)


DRAWS = (_conv, _conv, _conv, _affine, _product, _table, _window(Pool), _window(Maximum), _concat)


def packed_file(seed: int, networks: int | None = None) -> bytes:
    """The packed file of a number: one network or two in a row, with or without margins."""
    chance = random.Random(seed)
    image = chance.choice((1, 2, 3)), chance.randint(1, 13), chance.randint(1, 13)
    classes, bits = chance.randint(2, 5), chance.randint(1, 8)
    made = []
    for _ in range(networks or chance.choice((1, 1, 2))):
        flips = chance.random() < 0.5
        made.append(_network(chance, Input.of(bits, image), classes, flips))
    return made[0] if len(made) == 1 else _in_a_row(chance, made)


def _in_a_row(chance: random.Random, files: list[bytes]) -> bytes:
    """A cascade, with margins below which about half of the images continue."""
    model = decode(join([decode(one) for one in files]))
    steps = list(model.steps)
    for number, network in enumerate(model.networks):
        end = steps[network[-1]]
        margin = chance.randint(1, max(1, int(end.high.max() - end.low.min())))
        choice = Choice(margin=margin, bits=margin.bit_length(), logit_shift=chance.randint(-3, 3))
        if number == len(model.networks) - 1:
            choice = replace(choice, logit_shift=None)
        steps[network[-1]] = chosen(end, choice)
    return encode(steps, None, "integer", {}, class_names=model.class_names)


def _network(chance: random.Random, image: Input, classes: int, flips: bool) -> bytes:
    steps: list[Step] = [image]
    for _ in range(chance.randint(1, 9)):
        step = chance.choice(DRAWS)(chance, steps, range(len(steps)))
        if step is None or math.prod(step.shape) > MOST_NUMBERS or step.shape[0] > MOST_CHANNELS:
            continue
        if max(-step.low.min(), step.high.max()) <= MOST_REACH:
            steps.append(step)
    index = len(steps) - 1 if chance.random() < 0.7 else chance.randrange(len(steps))
    source = steps[index]
    whole = () if source.shape[1:] == (1, 1) else source.shape[1:]
    weights = _weights(chance, (classes, source.shape[0], *whole), source)
    bounds = weights.sums(source)
    spread = max(1, int(bounds.high.max() - bounds.low.min()))
    bias = np.array([chance.randint(-spread, spread) for _ in range(classes)], np.int64)
    margin = chance.randint(1, spread)
    choice = Choice(margin=margin, bits=margin.bit_length()) if flips else None
    last = Linear(
        name="linear",
        inputs=(index,),
        shape=(classes, 1, 1),
        low=(bounds.low + bias).astype(np.int32),
        high=(bounds.high + bias).astype(np.int32),
        weights=weights,
        bias=bias,
        bias_bits=int(signed_width(bias.min(), bias.max())),
        choice=choice,
    )
    names = tuple(f"class {number}" for number in range(classes))
    return encode([*steps, last], None, "integer", {}, class_names=names)
