"""Networks as users may write them: random bodies of random operations, each in a random spelling.

`python -m tests.support.generated_networks 1000` reads, prices, prepares, packs and compares so many of them.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet.data.images import normalise
from micronet.errors import LONGEST, MicronetError
from micronet.packed.module import load_packed
from micronet.packed.packing import pack
from micronet.packed.reference import predict
from micronet.params import Quantize
from micronet.scoring.counting import operations
from tests.support.configs import quantize_config
from tests.support.images import random_images
from tests.support.models import calibrated
from tests.support.networks import conv_norm, settled
from tests.support.trying import outcomes

IMAGES = random_images(8)
CHANNELS, SIDE = 6, 8  # of the maps between stem and classifier
HALF_APART = 0.05  # as a share of the logits' spread: what 16-bit floats may change


class Recipe(nn.Module):
    """Stem, a list of operations, classifier. An operation reads the previous value, and perhaps an earlier one."""

    def __init__(self, chance: random.Random):
        super().__init__()
        torch.manual_seed(chance.randrange(2**31))
        self.stem = nn.Sequential(nn.AvgPool2d(4), *conv_norm(3, CHANNELS))
        self.layers, self.ways = nn.ModuleList(), []
        channels, shapes = CHANNELS, [torch.Size((2, CHANNELS, SIDE, SIDE))]
        for _ in range(chance.randint(1, 8)):
            way, layer, channels = chance.choice(KINDS)(chance, channels)
            if layer is not None:
                self.layers.append(layer)
            other = chance.choice([place for place, shape in enumerate(shapes) if shape == shapes[-1]])
            self.ways.append((way, None if layer is None else len(self.layers) - 1, other))
            values = [torch.zeros(shape) for shape in (shapes[-1], shapes[other])]
            shapes.append(way(layer, *values).shape)
        self.head = chance.choice(HEADS)
        self.classifier = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        values = [F.relu(self.stem(x))]
        for way, place, other in self.ways:
            layer = None if place is None else self.layers[place]
            values.append(way(layer, values[-1], values[other]))
        return self.classifier(self.head(values[-1]))


def _pick(chance: random.Random, *ways: Any) -> Any:
    return chance.choice(ways)


def _convolution(chance: random.Random, channels: int) -> tuple[Any, nn.Module | None, int]:
    out, groups = chance.choice((channels, CHANNELS)), chance.choice((1, 1, channels))
    out = channels if groups > 1 else out
    layer = conv_norm(channels, out, chance.choice((1, 3)), groups=groups)
    between = chance.choice((nn.Identity(), nn.Dropout(0.1), None))
    if between is not None:
        layer.insert(1, between)
    way = _pick(chance, lambda net, x, _: net(x), lambda net, x, _: net(input=x), lambda net, x, _: F.relu(net(x)))
    return way, layer, out


def _bare_convolution(chance: random.Random, channels: int) -> tuple[Any, nn.Module | None, int]:
    layer = nn.Conv2d(channels, CHANNELS, 3, padding=1, bias=chance.random() < 0.5)
    return (lambda net, x, _: F.relu(net(x))), layer, CHANNELS


def _norm(chance: random.Random, channels: int) -> tuple[Any, nn.Module | None, int]:
    return (lambda net, x, _: F.relu(net(x))), nn.BatchNorm2d(channels), channels


def _relu(chance: random.Random, channels: int) -> tuple[Any, nn.Module | None, int]:
    ways = (
        *((lambda net, x, _: net(x), nn.ReLU()), (lambda net, x, _: net(x), nn.ReLU(inplace=True))),
        *((lambda net, x, _: F.relu(x), None), (lambda net, x, _: F.relu(x, inplace=True), None)),
        *((lambda net, x, _: x.relu_(), None), (lambda net, x, _: torch.relu(x), None)),
    )
    return (*chance.choice(ways), channels)


def _addition(chance: random.Random, channels: int) -> tuple[Any, nn.Module | None, int]:
    way = _pick(
        chance,
        lambda net, x, y: x + y,
        lambda net, x, y: x - y,
        lambda net, x, y: torch.add(x, y, alpha=2),
        lambda net, x, y: torch.add(input=y, other=x),
        lambda net, x, y: x.add_(y),
        lambda net, x, y: x.sub(y, alpha=0.5),
        _in_place,
    )
    return way, None, channels


def _in_place(net: Any, x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


def _product(chance: random.Random, channels: int) -> tuple[Any, nn.Module | None, int]:
    factor = chance.choice((0.5, 2, 3, -1, -0.25, 1.0))
    way = _pick(
        chance,
        lambda net, x, _: x * factor,
        lambda net, x, _: factor * x,
        lambda net, x, _: x / factor,
        lambda net, x, _: torch.mul(x, factor),
        lambda net, x, _: x.mul_(factor),
        lambda net, x, _: torch.div(x, factor),
    )
    return way, None, channels


def _nothing(chance: random.Random, channels: int) -> tuple[Any, nn.Module | None, int]:
    ways = (
        *((lambda net, x, _: net(x), nn.Identity()), (lambda net, x, _: net(x), nn.Dropout(0.3, inplace=True))),
        *((lambda net, x, _: x.contiguous(), None), (lambda net, x, _: x.clone(), None)),
        (lambda net, x, _: F.dropout(x, 0.2, training=False), None),
        (lambda net, x, _: x.view(x.size(0), x.shape[1], *x.shape[2:]), None),
    )
    return (*chance.choice(ways), channels)


def _concatenation(chance: random.Random, channels: int) -> tuple[Any, nn.Module | None, int]:
    if channels > 4 * CHANNELS:
        return _relu(chance, channels)
    way = _pick(
        chance,
        lambda net, x, y: torch.cat([x, y], 1),
        lambda net, x, y: torch.cat(tensors=(y, x), dim=-3),
        lambda net, x, y: torch.concat([x, x], dim=1),
    )
    return way, None, 2 * channels


def _pool(chance: random.Random, channels: int) -> tuple[Any, nn.Module | None, int]:
    ways = (
        (lambda net, x, _: F.max_pool2d(x, min(2, x.shape[-1])), None),
        (lambda net, x, _: F.avg_pool2d(x, min(2, x.size(2)), divisor_override=3), None),
        (lambda net, x, _: F.avg_pool2d(x, kernel_size=(1, 1)), None),
        (lambda net, x, _: F.relu(F.max_pool2d(x, kernel_size=1, ceil_mode=True)), None),
    )
    return (*chance.choice(ways), channels)


def _activation(chance: random.Random, channels: int) -> tuple[Any, nn.Module | None, int]:
    layer = chance.choice(
        (
            *(nn.Hardswish(), nn.SiLU(inplace=True), nn.GELU(), nn.GELU("tanh"), nn.Mish(), nn.Hardsigmoid()),
            *(nn.LeakyReLU(0.1, inplace=True), nn.ELU(0.5), nn.ReLU6(), nn.Hardtanh(-0.7, 0.7), nn.Hardtanh(-0.5, 2)),
            *(nn.PReLU(), nn.PReLU(channels), nn.Tanh(), nn.Sigmoid(), nn.SELU(), None),
        )
    )
    if layer is not None:
        return (lambda net, x, _: net(x)), layer, channels
    way = _pick(
        chance,
        lambda net, x, _: x * torch.sigmoid(x),
        lambda net, x, _: F.relu6(x + 3).mul(x) / 6,
        lambda net, x, _: F.hardswish(x, inplace=True),
        lambda net, x, _: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * x**3))),
        lambda net, x, _: F.leaky_relu(x, 0.3, True),
        lambda net, x, _: x.clamp_(-1, 1.5),
        lambda net, x, _: torch.clip(x, max=2.0),
        lambda net, x, _: 1 - x.sigmoid_(),
        lambda net, x, _: x.tanh() + 0.5,
        lambda net, x, _: x.tanh() * x.abs(),
    )
    return way, None, channels


def _gate(chance: random.Random, channels: int) -> tuple[Any, nn.Module | None, int]:
    way = _pick(
        chance,
        lambda net, x, y: x * torch.sigmoid(y),
        lambda net, x, y: x.mul(F.hardsigmoid(y)),
        lambda net, x, y: torch.mul(input=y.tanh(), other=x),
        lambda net, x, y: F.relu(x) * F.relu6(y),
        lambda net, x, y: x * torch.sigmoid(y.mean((2, 3), keepdim=True)),
        lambda net, x, y: F.hardtanh(x) * y + y,
    )
    return way, None, channels


def _squeeze(chance: random.Random, channels: int) -> tuple[Any, nn.Module | None, int]:
    """A squeeze-and-excite block."""
    between = nn.Sequential(nn.Conv2d(channels, 2, 1), nn.ReLU(), nn.Conv2d(2, channels, 1))
    if chance.random() < 0.5:
        between = nn.Sequential(nn.Flatten(), nn.Linear(channels, 2), nn.SiLU(), nn.Linear(2, channels))
    way = _pick(
        chance,
        lambda net, x, _: x * torch.sigmoid(net(F.adaptive_avg_pool2d(x, 1)).view(-1, x.size(1), 1, 1)),
        lambda net, x, _: F.hardsigmoid(net(x.mean((2, 3), keepdim=True)).reshape(-1, x.shape[1], 1, 1)) * x,
    )
    return way, between, channels


KINDS = (
    *(_convolution, _convolution, _convolution, _bare_convolution, _norm, _relu, _relu),
    *(_addition, _addition, _product, _nothing, _concatenation, _pool),
    *(_activation, _activation, _activation, _gate, _squeeze),
)
HEADS = (
    lambda x: x.mean((2, 3)),
    lambda x: torch.mean(x, dim=[-2, -1]),
    lambda x: x.mean(axis=(2, 3), keepdims=True).flatten(1),
    lambda x: F.adaptive_avg_pool2d(x, 1).view(-1, x.size(1)),
    lambda x: F.avg_pool2d(x, x.size(-1)).squeeze(),
    lambda x: F.avg_pool2d(x, x.shape[2:]).reshape(x.size(0), -1),
)
METHODS: tuple[Quantize, ...] = (
    quantize_config(method="half"),
    quantize_config(multiplier_bits=14),
    quantize_config(weight_bits=3, activation_bits=2, signed_bits=5, multiplier_bits=6, per_channel=True),
    quantize_config(method="binary_connect", weight_bits=1),
    quantize_config(method="fx_int8"),
)


@torch.no_grad()
def tried(number: int, seed: int = 0) -> str:
    """Reads, prices, prepares and packs the network of a number; returns the outcome.

    Raises:
        AssertionError: it was packed but computes something else, costs nothing, or was refused without a line.
    """
    chance = random.Random(f"{seed} {number}")
    model, method = settled(Recipe(chance), IMAGES), chance.choice(METHODS)
    wanted = model(normalise(IMAGES)).double()
    try:
        prepared = calibrated(model, method, IMAGES).eval()
        with tempfile.TemporaryDirectory() as folder:
            packed = pack(prepared, Path(folder) / "m", quantize=method, seen=IMAGES)
            module = load_packed(Path(folder) / "m")
    except MicronetError as error:
        text = str(error)
        assert text.isprintable() and len(text) <= LONGEST, text
        assert "please report" not in text, text
        return "refused"
    assert operations(model), "what packs has a price"
    got = module(normalise(IMAGES)).double()
    if method.method != "half":
        assert torch.equal(torch.from_numpy(predict(packed, IMAGES.numpy())), got), "two readers, two answers"
        return "packed in integers"
    spread = (wanted - wanted.mean(0)).norm()
    assert (got - wanted).norm() <= HALF_APART * spread + 1e-3 * wanted.norm(), "16-bit floats change what is computed"
    return "packed in floats"


def main(count: int, seed: int = 0) -> Counter[str]:
    """Tries so many networks; returns the outcomes."""
    return outcomes(range(count), lambda number: tried(number, seed))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(main(*map(int, sys.argv[1:])))
