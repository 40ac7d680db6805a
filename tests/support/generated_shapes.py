"""Small networks for images and layers of any shape: rectangular, padded, dilated, strided, flattened.

`python -m tests.support.generated_shapes 1000` prepares, packs and compares so many of them.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet.data.images import normalise
from micronet.errors import LONGEST, MicronetError
from micronet.packed.module import load_packed
from micronet.packed.packing import pack
from micronet.packed.reference import predict, witness
from micronet.scoring.counting import operations
from micronet.scoring.records import macs
from tests.support.configs import quantize_config
from tests.support.images import random_images
from tests.support.models import calibrated
from tests.support.networks import settled
from tests.support.packed import check_witnessed
from tests.support.trying import outcomes

MOST_CHANNELS, MOST_FLAT = 8, 400
HALF_APART = 0.05  # as a share of the logits' spread: what 16-bit floats may change
METHODS = (
    quantize_config(weight_bits=8, activation_bits=8, multiplier_bits=14),
    quantize_config(weight_bits=4, activation_bits=4, per_channel=True, multiplier_bits=12),
    quantize_config(weight_bits=2, activation_bits=3, signed_bits=6, input_bits=5, multiplier_bits=8),
    quantize_config(method="binary_connect", weight_bits=1),
    quantize_config(method="half"),
    quantize_config(method="fx_int8", multiplier_bits=14),
)


class Branches(nn.Module):
    """The outputs of two branches, added or concatenated."""

    def __init__(self, one: nn.Module, two: nn.Module, added: bool):
        super().__init__()
        self.one, self.two, self.added = one, two, added

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.one(x), self.two(x)
        return one + two if self.added else torch.cat([one, two], 1)


class Head(nn.Module):
    """From a map to a vector, in one of the possible ways."""

    def __init__(self, way: str):
        super().__init__()
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        ways = {
            "mean": lambda: x.mean((2, 3)),
            "greatest": lambda: x.amax((2, 3)),
            "average": lambda: F.adaptive_avg_pool2d(x, 1).flatten(1),
            "maximum": lambda: F.adaptive_max_pool2d(x, 1).view(x.size(0), -1),
            "flatten": lambda: x.flatten(1),
            "reshape": lambda: x.reshape(x.shape[0], -1),
        }
        return ways[self.way]()


def _pairs(chance: random.Random, low: int, *most: int) -> tuple[int, int]:
    """Height and width, often different, each from `low` to its `most`."""
    height, width = (chance.randint(low, max(low, each)) for each in (most * 2)[:2])
    return height, width


def convolution(chance: random.Random, shape: tuple[int, int, int], out: int | None = None, same: bool = False) -> Any:
    """A convolution that fits a map (C, H, W), with or without bias, norm and ReLU; `same`: it keeps the size."""
    channels, sides = shape[0], shape[1:]
    groups = chance.choice([size for size in range(1, channels + 1) if channels % size == 0])
    out = out or chance.randint(1, MOST_CHANNELS // groups) * groups
    groups = groups if out % groups == 0 else 1
    kernel, dilation = _pairs(chance, 1, *(min(5, side) for side in sides)), _pairs(chance, 1, 2)
    if same:
        kernel = tuple(size - 1 + size % 2 for size in kernel)
        padding: Any = "same"
    else:
        fitting = zip(dilation, kernel, sides, strict=True)
        dilation = tuple(gap if gap * (size - 1) < side else 1 for gap, size, side in fitting)
        padding = chance.choice(["valid", 0, tuple(chance.randint(0, size - 1) for size in kernel)])
    stride = (1, 1) if same else _pairs(chance, 1, 3)
    conv = nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=chance.random() < 0.5)
    norm = [nn.BatchNorm2d(out, affine=chance.random() < 0.8)] if chance.random() < 0.6 else []
    return nn.Sequential(conv, *norm, *([nn.ReLU()] if chance.random() < 0.7 else []))


def pool(chance: random.Random, shape: tuple[int, int, int]) -> nn.Module:
    kernel = _pairs(chance, 1, *(min(4, side) for side in shape[1:]))
    stride = chance.choice([None, _pairs(chance, 1, 3)])
    padding = chance.choice([0, tuple(chance.randint(0, size // 2) for size in kernel)])
    if chance.random() < 0.5:
        return nn.MaxPool2d(kernel, stride, padding)
    return nn.AvgPool2d(kernel, stride, padding, divisor_override=chance.choice([None, None, 3]))


def branches(chance: random.Random, shape: tuple[int, int, int]) -> nn.Module:
    added = chance.random() < 0.6
    out = shape[0] if added else chance.randint(1, 4)
    way = nn.Identity() if added and chance.random() < 0.5 else convolution(chance, shape, out, same=True)
    return Branches(convolution(chance, shape, out, same=True), way, added)


def head(chance: random.Random, shape: tuple[int, int, int], classes: int) -> list[nn.Module]:
    """From a map to logits, with or without hidden layers."""
    flat = int(np.prod(shape)) <= MOST_FLAT
    ways = ["mean", "greatest", "average", "maximum", *(["flatten", "flatten", "reshape"] if flat else [])]
    parts: list[nn.Module] = [Head(chance.choice(ways))]
    whole = parts[0].way in ("flatten", "reshape")
    width = int(np.prod(shape)) if whole else shape[0]
    for _ in range(chance.choice((0, 0, 1, 2))):
        inner = chance.randint(1, 12)
        # Means of noise hardly differ between images, and a norm would amplify rounding.
        norm = [nn.BatchNorm1d(inner, affine=chance.random() < 0.8)] if whole and chance.random() < 0.5 else []
        last = chance.choice([[nn.ReLU()], [nn.ReLU(), nn.Dropout(0.2)], []])
        parts += [nn.Linear(width, inner, bias=chance.random() < 0.7), *norm, *last]
        width = inner
    return [*parts, nn.Linear(width, classes, bias=chance.random() < 0.8)]


def network(chance: random.Random) -> tuple[nn.Module, tuple[int, int, int]]:
    """A network, and its image shape."""
    torch.manual_seed(chance.randrange(2**31))
    image = chance.choice((1, 3)), chance.randint(8, 40), chance.randint(8, 40)
    classes, shape, layers = chance.randint(2, 20), image, list[nn.Module]()
    for _ in range(chance.randint(1, 6)):
        kind = chance.choice((convolution, convolution, pool, branches, "norm", "relu"))
        if kind == "norm":
            layers.append(nn.BatchNorm2d(shape[0], affine=chance.random() < 0.8))
        else:
            layers.append(nn.ReLU() if kind == "relu" else kind(chance, shape))
        with torch.no_grad():
            channels, height, width = layers[-1](torch.zeros(2, *shape)).shape[1:]
        shape = channels, height, width
    return nn.Sequential(*layers, *head(chance, shape, classes)), image


@torch.no_grad()
def compared(chance: random.Random, count: bool = False) -> str:
    """Packs a network and compares its outputs in numpy, in torch and in floats; returns the outcome.

    Args:
        count: also compare the counts number by number, which is slow.

    Raises:
        AssertionError: outputs differ, its two prices do, or it was refused without a line.
    """
    model, image = network(chance)
    images = random_images(8, image=image)
    model, method = settled(model, images), chance.choice(METHODS)
    wanted = model(normalise(images)).double()
    try:
        prepared = calibrated(model, method, images, image).eval()
        with tempfile.TemporaryDirectory() as folder:
            packed = pack(prepared, Path(folder) / "m", quantize=method, seen=images)
            module = load_packed(Path(folder) / "m")
    except MicronetError as error:
        text = str(error)
        assert text.isprintable() and len(text) <= LONGEST and "please report" not in text, text
        return "refused"
    designed, ops = operations(model, image), operations(packed)
    assert macs(ops) == macs(designed), "two counters, two answers"
    assert sum(op.storage_bits for op in ops if op.rules != "deck") == packed.payload_bits
    logits = module(normalise(images)).double()
    assert packed.image == image and packed.logit_scale is not None
    if method.method == "half":
        spread, rounded = (wanted - wanted.mean(0)).norm(), _rounded(model, images) - wanted
        explained = HALF_APART * spread + 1e-3 * wanted.norm() + 4 * rounded.norm()
        assert (logits - wanted).norm() <= explained, "floats of 16 bits differ"
        return "packed in floats"
    assert torch.equal(torch.from_numpy(predict(packed, images.numpy())), logits), "two readers, two answers"
    _close(logits * packed.logit_scale, prepared(normalise(images)).double(), wanted)
    if count:
        _count(packed, images[:1])
    return "packed in integers"


def _rounded(model: nn.Module, images: Tensor) -> Tensor:
    """The logits when every layer's values are off by half a unit in the last of 11 bits of the greatest one.

    Where a layer's terms cancel, that is more than a thousandth of the logits.
    """
    torch.manual_seed(0)

    def off(layer: nn.Module, inputs: Any, values: Tensor) -> Tensor:
        return values + values.abs().max() * 2.0**-11 * torch.randn_like(values).sign()

    hooks = [layer.register_forward_hook(off) for layer in model.modules() if hasattr(layer, "bias")]
    logits = model(normalise(images)).double()
    for hook in hooks:
        hook.remove()
    return logits


def _close(logits: Tensor, *wanted: Tensor) -> None:
    """Rounding that accumulates over a few layers must leave the result recognisable.

    Args:
        wanted: the logits of the prepared network and of the floats. FX graph mode rounds a pool's output to 8 bits
            where the packed model keeps the sum, so the floats may be the closer ones.
    """
    near = [bool((logits - each).norm() <= 0.3 * each.norm() + 0.1) for each in wanted]
    assert any(near), "the packed network computes something else"


def _count(packed: Any, image: Tensor) -> None:
    check_witnessed(operations(packed), witness(packed, image.numpy())[1])


def main(count: int, seed: int = 0) -> Counter[str]:
    """Tries so many networks; returns the outcomes."""
    return outcomes(range(count), lambda number: compared(random.Random(f"{seed} {number}"), number % 8 == 0))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(main(*map(int, sys.argv[1:])))
