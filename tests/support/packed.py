"""Packed models for tests: small networks with random weights, and models whose steps are made by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

import models
from micronet.compress.calibration import calibrate, recalibrate_batch_norm
from micronet.compress.quantization import prepare
from micronet.data.images import normalise
from micronet.packed.bits import weight_storage
from micronet.packed.file import decode, encode
from micronet.packed.model import PackedModel
from micronet.packed.packing import pack
from micronet.packed.steps import Conv, Input, Linear, Pool, Step
from micronet.packed.steps.linear import Choice
from micronet.packed.steps.scaling import Requantization, Residual
from micronet.packed.steps.weights import Weights
from micronet.packed.widths import signed_width
from micronet.params import Quantize, Train
from micronet.scoring.packed_counts import CHOICE
from micronet.scoring.records import Operation

RESNET = {"name": "resnet", "blocks": [1, 1], "widths": [4, 8]}
MOBILENET = {"name": "mobilenet", "blocks": [2, 1], "widths": [4, 8], "expansion": 2}
CONVNET = {"name": "convnet", "widths": [4, 8, 6]}
DENSENET = {
    "name": "densenet",
    "blocks": [2, 2],
    "growth_rate": 4,
    "groups": {"bottleneck": 2, "transition": 4},
    "interleave": {"bottleneck": True, "transition": True},
}
IMAGES = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PIXEL_RANGE = np.full(3, -128), np.full(3, 127)


def settings(**changes: Any) -> Quantize:
    """The section `quantize` with these changes."""
    return Quantize(train=Train(epochs=1, learning_rate=0.1), **changes)


def random_network(spec: dict[str, Any], zeros: float = 0.0, gains: tuple[float, float] = (0.5, 1.5)) -> nn.Module:
    """A network with random weights, a share of them zero, and random norms. Draws from the global generator."""
    model = models.build(spec)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(*gains)
                module.bias.normal_(0, 0.3)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                if spec["name"] == "convnet":  # begins as the identity, with hardly any weight that is not zero
                    nn.init.kaiming_normal_(module.weight)
                module.weight.mul_(torch.rand_like(module.weight) >= zeros)
    return model


def prepared_network(model: nn.Module, quantize: Quantize, images: Tensor) -> fx.GraphModule:
    """The network quantized and calibrated on images (N, 3, 32, 32) uint8, in eval mode."""
    prepared = prepare(model, quantize)
    calibrate(prepared, images)
    recalibrate_batch_norm(prepared, [normalise(images)])
    return prepared.eval()


def prepared_model(spec: dict[str, Any], quantize: Quantize, zeros: float = 0.0) -> fx.GraphModule:
    """A network with random weights and norms, pruned, quantized, calibrated on `IMAGES`."""
    torch.manual_seed(1)
    return prepared_network(random_network(spec, zeros), quantize, IMAGES)


def packed_network(
    spec: dict[str, Any], quantize: Quantize, images: Tensor, path: Path, zeros: float = 0.0
) -> PackedModel:
    """A packed network with norms of both signs, as if trained: else the first steps cut nearly all codes off."""
    torch.manual_seed(2)
    model = random_network(spec, zeros, gains=(-0.5, 1.5))
    recalibrate_batch_norm(model, [normalise(images)])
    return pack(prepared_network(model, quantize, images), path, quantize=quantize, images=images)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, fields of dataclasses and entries of arrays too."""
    if is_dataclass(one):
        names = [item.name for item in fields(one)]
        return type(one) is type(other) and all(same(getattr(one, name), getattr(other, name)) for name in names)
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


# Steps made by hand


def hand_made(*steps: Step) -> PackedModel:
    """A model of hand-made steps behind an 8-bit image, written and read back."""
    return decode(encode([Input.of(8), *steps], None, "integer", {}))


def vector(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def weights(codes: np.ndarray, input_range: tuple[np.ndarray, np.ndarray], factored: bool = False) -> Weights:
    """Codes with the widths that a file must state, on inputs of this range."""
    source = Input.of(8)
    bits, mask = weight_storage(codes)
    found = Weights(codes=codes, bits=bits, mask=mask, factored=factored)
    low, high = (np.asarray(side, np.int64) for side in input_range)
    reading = Pool(name="", inputs=(0,), shape=source.shape, low=low, high=high, kernel=1)
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
    """A 1x1 convolution to 4-bit codes with multiplier 1, bias 0 unless given; widths as they must be stated."""
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
    """A linear step; widths as they must be stated."""
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
    return Pool(name="pool", inputs=(source,), shape=shape, low=edges[0], high=edges[1], kernel=kernel)


# Counts


def counted(records: Iterable[Operation]) -> dict[str, tuple[Counter[int], Counter[int]]]:
    """Multiplications and additions of the records of each step, challenge rules."""
    steps: dict[str, tuple[Counter[int], Counter[int]]] = {}
    for record in records:
        if record.rules == "deck":
            continue
        name = record.name.removesuffix(".requantize").removesuffix(".maximum").removesuffix(f".{CHOICE}")
        sums = steps.setdefault(name, (Counter(), Counter()))
        sums[0].update(dict(record.multiplications))
        sums[1].update(dict(record.additions))
    return {name: sums for name, sums in steps.items() if any(sums)}
