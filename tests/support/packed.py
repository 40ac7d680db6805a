"""Packed models for tests: small networks with random weights, and models of hand-made steps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from micronet.compress.calibration import recalibrate_batch_norm
from micronet.data.datasets import CLASSES
from micronet.data.images import normalise
from micronet.packed.bits import weight_storage
from micronet.packed.cascade import join
from micronet.packed.file import decode, encode
from micronet.packed.model import PackedModel
from micronet.packed.module import load_packed
from micronet.packed.packing import pack
from micronet.packed.steps import Affine, Concat, Conv, Input, Linear, Maximum, Pool, Product, Step, Table
from micronet.packed.steps.geometry import Geometry
from micronet.packed.steps.linear import Choice
from micronet.packed.steps.scaling import Requantization, Residual, in_integers
from micronet.packed.steps.weights import Weights
from micronet.packed.sums import Counts
from micronet.packed.widths import signed_width
from micronet.params import Quantize
from micronet.scoring.packed_counts import CHOICE
from micronet.scoring.records import Operation
from micronet.scoring.strict import challenge_work, strict_work
from tests.support.images import random_images
from tests.support.models import calibrated, quantized, random_model

IMAGES = random_images(32)
PIXEL_RANGE = np.full(3, -128), np.full(3, 127)


def prepared_model(spec: dict[str, Any], quantize: Quantize, zeros: float = 0.0) -> fx.GraphModule:
    """A network with random weights and norms, pruned, quantized, calibrated on `IMAGES`."""
    return quantized(random_model(spec, 1, zeros=zeros), quantize, IMAGES)


def packed_network(
    spec: dict[str, Any], quantize: Quantize, images: Tensor, path: Path, zeros: float = 0.0
) -> PackedModel:
    """A packed network with norms of both signs, as if trained: otherwise the first steps clip nearly all codes."""
    model = random_model(spec, 2, zeros=zeros, norms=(-0.5, 1.5))
    recalibrate_batch_norm(model, [normalise(images)])
    names = CLASSES if model.spec["classes"] == len(CLASSES) else ()
    return pack(quantized(model, quantize, images), path, quantize=quantize, images=images, class_names=names)


@torch.no_grad()
def packed_and_compared(
    model: nn.Module, quantize: Quantize, images: Tensor, path: Path
) -> tuple[PackedModel, Tensor, float]:
    """Quantizes a network without further training and packs it; the file, its logits, how far the two are apart.

    Returns:
        Logits: (N, classes) float64. The distance: a share of the spread of the network's logits; a common factor does
            not count, as integers lose their scale.
    """
    wanted = model(normalise(images)).double()
    packed = pack(calibrated(model, quantize, images).eval(), path, quantize=quantize, seen=images)
    logits = load_packed(path)(normalise(images)).double()
    scaled = logits * (logits * wanted).sum() / logits.square().sum()
    return packed, logits, float((scaled - wanted).norm() / (wanted - wanted.mean(0)).norm())


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, including dataclass fields and array entries."""
    if is_dataclass(one):
        names = [item.name for item in fields(one)]
        return type(one) is type(other) and all(same(getattr(one, name), getattr(other, name)) for name in names)
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


# Steps made by hand


def hand_made(*steps: Step) -> PackedModel:
    """A model of hand-made steps after an 8-bit image, written and read back."""
    return decode(encode([Input.of(8), *steps], None, "integer", {}))


def tiles(side: int) -> Geometry:
    """Adjacent square windows."""
    return Geometry.tiles((side, side))


def vector(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def weights(codes: np.ndarray, input_range: tuple[np.ndarray, np.ndarray], factored: bool = False) -> Weights:
    """Codes with the widths a file must state, for inputs in this range."""
    source = Input.of(8)
    bits, mask = weight_storage(codes)
    found = Weights(codes=codes, bits=bits, mask=mask, factored=factored)
    low, high = (np.asarray(side, np.int64) for side in input_range)
    reading = Pool(name="", inputs=(0,), shape=source.shape, low=low, high=high, geometry=tiles(1))
    return Weights(
        codes=codes, bits=bits, mask=mask, factored=factored, accumulator_bits=int(found.sums(reading).bits.max())
    )


def conv(
    weight: list[list[int]],
    source: int = 0,
    *,
    name: str = "conv",
    input_range: tuple[np.ndarray, np.ndarray] = PIXEL_RANGE,
    factored: bool = False,
    window: int = 1,
    shape: tuple[int, int, int] | None = None,
    residual: Residual | None = None,
    **scaling: Any,
) -> Conv:
    """A 1x1 convolution to 4-bit codes with multiplier 1, bias 0 unless given; widths as a file must state them."""
    codes = np.array(weight, np.int8)[:, :, None, None]
    rows = len(codes)
    usual = {
        "code_bits": 4,
        "signed": False,
        "multiplier": np.ones(rows, np.int64),
        "multiplier_bits": 2,
        "shift": np.zeros(rows, np.int64),
        "bias": np.zeros(rows, np.int64),
        "bias_bits": 1,
    }
    return Conv(
        name=name,
        inputs=(source,),
        shape=shape or (rows, 32, 32),
        low=np.zeros(rows, np.int32),
        high=np.full(rows, 15, np.int32),
        weights=weights(codes, input_range, factored),
        scaling=Requantization(residual=residual, **usual | scaling),
        window=window,
    )


def linear(
    weight: list[list[int]],
    bias: list[int],
    source: int,
    input_range: tuple[np.ndarray, np.ndarray],
    choice: Choice | None = None,
) -> Linear:
    """A linear step; widths as a file must state them."""
    codes, biases = np.array(weight, np.int8), vector(*bias)
    zero = np.zeros(len(codes), np.int32)
    return Linear(
        name="linear",
        inputs=(source,),
        shape=(len(codes), 1, 1),
        low=zero,
        high=zero,
        weights=weights(codes, input_range),
        bias=biases,
        bias_bits=int(signed_width(biases.min(), biases.max())),
        choice=choice,
    )


def pool(source: int, channels: int, high: int = 15, kernel: int = 32) -> Pool:
    """A global pool of 4-bit codes."""
    side = 32 // kernel
    edges = np.zeros(channels, np.int32), np.full(channels, high * kernel**2, np.int32)
    shape = (channels, side, side)
    return Pool(name="pool", inputs=(source,), shape=shape, low=edges[0], high=edges[1], geometry=tiles(kernel))


def tiny_files() -> list[bytes]:
    """Small files that together contain every operation: one network, one with a flip margin, two networks."""
    few = replace(conv([[3, 0, -2], [1, 1, 0], [0, 0, 0], [-3, 2, 1]], name="stem", **PER_CHANNEL), stride=(8, 8))
    few = replace(few, shape=(4, 4, 4))
    codes = np.zeros(4), np.full(4, 15)
    added = Residual(value=1, multiplier=3, bits=3, fraction=2)
    block = conv(
        [[2, 0, 1, 0], [-2, 0, -1, 0], [1, 3, 0, 0], [0, 0, 0, 1]],
        1,
        name="block",
        input_range=codes,
        factored=True,
        shape=(4, 4, 4),
        **{**PER_CHANNEL, "residual": added, "norm": True},
    )
    mixed = Affine(
        name="mixed",
        inputs=(2,),
        shape=(4, 4, 4),
        low=np.zeros(4, np.int32),
        high=np.full(4, 15, np.int32),
        scaling=replace(in_integers(few), norm=True),
        order=2,
    )
    greatest = Maximum(name="maximum3", inputs=(3,), shape=(4, 2, 2), low=mixed.low, high=mixed.high, geometry=tiles(2))
    both = Concat(
        name="concat4", inputs=(4, 4), shape=(8, 2, 2), low=np.zeros(8, np.int32), high=np.full(8, 15, np.int32)
    )
    windowed = conv([[1, -1] * 4, [2, 0] * 4], 5, name="windowed", input_range=(np.zeros(8), np.full(8, 15)), window=2)
    windowed = replace(windowed, shape=(2, 1, 1))
    pooled = replace(pool(6, 2, kernel=1), shape=(2, 1, 1))
    steps = [few, block, mixed, greatest, both, windowed, pooled]
    last = linear([[1, 2], [-1, 0], [0, 3]], [5, -7, 0], 7, (np.zeros(2), np.full(2, 15)))
    made = {"stage": "quantize", "validation_accuracy_percent": "90.1"}
    spec = {"name": "resnet", "blocks": [1], "widths": [4], "classes": 3}
    one = encode([Input.of(8), *steps, last], spec, "integer", made)
    sure = replace(last, choice=Choice(margin=40, bits=6))
    flipping = encode([Input.of(8), *steps, sure], spec, "integer", made)
    return [one, flipping, join([decode(one), decode(flipping)]), general_file(), gated_file()]


def general_file() -> bytes:
    """A small file of what version 5 added: an image, names, a scale and windows of other shapes, a linear on a map."""
    image = Input.of(6, (1, 9, 12))
    across = np.array([[[[1, 0, -2, 3]]], [[[-1, 2, 0, 0]]]], np.int8)
    stem = weights(across, (image.low, image.high))
    pixels_to_codes = {"multiplier": vector(3, -2), "multiplier_bits": 3, "shift": vector(4, 4), "bias_fraction": 3}
    scaling = Requantization(code_bits=4, signed=True, bias=vector(4, 40), bias_bits=7, **pixels_to_codes)
    codes = np.full(2, -7, np.int32), np.full(2, 7, np.int32)
    edges: dict[str, Any] = {"low": codes[0], "high": codes[1]}
    placed: dict[str, Any] = {"stride": (2, 1), "padding": (1, 3), "dilation": (1, 2)}
    first = Conv(name="stem", inputs=(0,), shape=(2, 6, 12), weights=stem, scaling=scaling, **placed, **edges)
    greatest = Maximum.over(first, 1, Geometry((3, 2), (2, 1), (1, 1)), "maximum2")
    summed = Pool.over(greatest, 2, Geometry((2, 3), (1, 2), (0, 1)), "pool3")
    row = list(range(-3, 4)) * (math.prod(summed.shape) // 7 + 1)
    whole = np.array([row[: math.prod(summed.shape)]], np.int8).reshape(1, *summed.shape)
    both = weights(np.concatenate([whole, -whole, whole[:, ::-1]]), (summed.low, summed.high))
    last = replace(linear([[1], [1], [1]], [5, -7, 0], 3, (np.zeros(1), np.ones(1))), weights=both)
    made = {"stage": "quantize", "image_fit": "crop"}
    spec = {"file": "net.py", "class": "Net", "settings": {"width": 2}}
    steps = [image, first, greatest, summed, last]
    return encode(steps, spec, "integer", made, class_names=("Katze", "a b", "\u732b"), logit_scale=0.03125)


def gated_file() -> bytes:
    """A small file of tables and products: a code range with ends, a gate of a map, one of its channels' sums."""
    stem = weights(np.array([[[[1]], [[-2]], [[3]]], [[[0]], [[1]], [[1]]]], np.int8), PIXEL_RANGE)
    scaled: dict[str, Any] = {"multiplier": vector(3, -2), "multiplier_bits": 3, "bias_fraction": 3, "code_bits": 4}
    scaled |= {"bias": vector(4, 40), "bias_bits": 7, "signed": True, "relu": True}
    ended = Requantization(shift=vector(6, 5), ends=(-3, 7), **scaled)
    edges: dict[str, Any] = {"low": np.full(2, -3, np.int32), "high": np.full(2, 7, np.int32)}
    first = Conv(name="stem", inputs=(0,), shape=(2, 4, 4), stride=(8, 8), weights=stem, scaling=ended, **edges)
    gate = Table.over(first, 1, vector(0, 0, 1, 2, 4, 6, 8, 9, 10, 11, 12), "gate")
    added = Residual(value=1, multiplier=3, bits=3, fraction=2)
    edges = {"low": np.full(2, -7, np.int32), "high": np.full(2, 7, np.int32)}
    whole = Requantization(shift=vector(5, 4), residual=added, **scaled)
    gated = Product(name="gated", inputs=(1, 2), shape=(2, 4, 4), scaling=whole, **edges)
    summed = Pool.over(gated, 3, tiles(4), "pool4")
    excited = Requantization(shift=vector(7, 8), **scaled)
    both = Product(name="excited", inputs=(2, 4), shape=(2, 4, 4), scaling=excited, **edges)
    odd = Table.over(both, 5, np.arange(15)[::-1] * 9 - 70, "odd")
    pooled = Pool.over(odd, 6, tiles(4), "pool7")
    last = linear([[1, 2], [-1, 3], [0, 3]], [5, -7, 0], 7, (pooled.low, pooled.high))
    steps = [Input.of(8), first, gate, gated, summed, both, odd, pooled, last]
    spec = {"file": "net.py", "class": "Net", "settings": {}}
    return encode(steps, spec, "integer", {"stage": "quantize"}, logit_scale=0.5)


PER_CHANNEL = {
    "multiplier": vector(3, -2, 3, 1),
    "multiplier_bits": 3,
    "shift": vector(6, 7, 6, 6),
    "exponent_bits": 1,
    "bias": vector(4, 250, -300, 8),
    "bias_bits": 10,
    "bias_fraction": 4,
    "relu": True,
}


# Counts


def counted(
    records: Iterable[Operation], work: Callable[[Operation], tuple[Counter[int], Counter[int]]] = challenge_work
) -> dict[str, tuple[Counter[int], Counter[int]]]:
    """Multiplications and additions of each step's records, by default under challenge rules."""
    steps: dict[str, tuple[Counter[int], Counter[int]]] = {}
    for record in records:
        if record.rules == "deck":
            continue
        name = record.name.removesuffix(".requantize").removesuffix(".maximum").removesuffix(f".{CHOICE}")
        sums = steps.setdefault(name, (Counter(), Counter()))
        for counter, more in zip(sums, work(record), strict=True):
            counter.update(more)
    return {name: sums for name, sums in steps.items() if any(map(Counter.total, sums))}


def check_witnessed(records: Iterable[Operation], witnessed: Iterable[Counts]) -> None:
    """Compares the counts of all steps, challenge and strict, with what the reference counted while computing."""
    done = list(witnessed)
    for work, prefix in ((challenge_work, ""), (strict_work, "strict_")):
        found: dict[str, tuple[Counter[int], Counter[int]]] = {}
        for each in done:
            pair = found.setdefault(each.name, (Counter(), Counter()))
            pair[0].update(getattr(each, f"{prefix}multiplications"))
            pair[1].update(getattr(each, f"{prefix}additions"))
        assert counted(records, work) == {name: pair for name, pair in found.items() if any(map(Counter.total, pair))}
