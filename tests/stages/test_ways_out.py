"""What the check says of networks that people bring: each line names the layer and what would work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from micronet import params
from micronet.packed.agreement import made_up_images
from micronet.packed.packing import pack
from micronet.scoring.counting import operations
from models import own
from tests.support.configs import demo, quantize_config
from tests.support.models import calibrated
from tests.support.places import ROOT

sys.path.insert(0, str(ROOT / "stages"))

import consistency  # noqa: E402 - it stands among the stage scripts

NETWORKS = """
from typing import Optional

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=10, dropout: Optional[float] = None):
        super().__init__()
        self.c, self.a, self.d = nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2)
        self.f = nn.Linear(4, classes)

    def body(self, x):
        return self.a(self.d(self.a(self.c(x)))).mean((2, 3))

    def forward(self, x):
        return self.f(self.body(x))


class Shared(Net):
    def __init__(self, classes=10, slopes: int = 1):
        super().__init__(classes)
        self.a = nn.PReLU(slopes)


class Spelled(Net):
    def __init__(self, num_classes=4):
        super().__init__(num_classes)


class Unspelled(Net):
    def __init__(self, outputs=4):
        super().__init__(outputs)


class Unused(Net):
    def __init__(self, classes=10):
        super().__init__(classes)
        self.aux = nn.Linear(8, 3)


class Lazy(Net):
    def __init__(self, classes=10):
        super().__init__(classes)
        self.f = nn.LazyLinear(classes)


class Fixed(Net):
    def forward(self, x):
        return self.f(self.d(self.a(self.c(x))).flatten(1))


class Grey(Net):
    def __init__(self, classes=10):
        super().__init__(classes)
        self.c = nn.Conv2d(1, 4, 3, 2)


class Soft(Net):
    def forward(self, x):
        return super().forward(x).log_softmax(1)


class Group(Net):
    def __init__(self, classes=10):
        super().__init__(classes)
        self.d = nn.Sequential(self.d, nn.GroupNorm(2, 4))


class Branch(Net):
    def forward(self, x):
        if x.mean() > 0:
            x = self.a(x)
        return super().forward(x)


class Two(Net):
    def forward(self, x):
        return super().forward(x), x
"""


@pytest.fixture(autouse=True)
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets.py").write_text(NETWORKS)
    monkeypatch.setattr(own, "NETWORKS", tmp_path)


def spec(kind: str, **settings: Any) -> dict[str, Any]:
    return {"file": "nets.py", "class": kind, "settings": settings}


def found(kind: str) -> list[str]:
    """What the check says of a student, on 32 x 32 images of ten classes."""
    small = {"name": "resnet", "blocks": [1], "widths": [4]}
    changes = (("teacher.model", small), ("student.model", spec(kind)), ("engine.device", "cpu"))
    lines = consistency.inconsistencies(params.parse(demo(*changes)))
    assert all(len(line) <= 300 and line.isprintable() for line in lines)
    return lines


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("Unspelled", "gives (1, 4) for an image, (1, 10) would work; an argument `classes` of its constructor"),
        ("Unused", "27 of 337 parameters belong to no operation, those of aux; a network without what"),
        ("Lazy", "its layer f is a LazyLinear, which has no weights before it sees an image; Linear with its"),
        ("Fixed", "the layer f has in_features=4, and 196 come to it for such images; in_features=196 would work"),
        ("Grey", "the layer c has in_channels=1, and 3 come to it for such images; in_channels=3 would work"),
        ("Soft", "log_softmax: the operation log_softmax has no price here (leave it off: logits go out"),
        ("Group", "d.1: the operation GroupNorm has no price here (a batch norm would work"),
        ("Branch", "/nets.py: line 73: TraceError: "),
        ("Two", "gives a tuple for an image, (1, 10) would work; the logits alone go out"),
    ],
)  # fmt: skip
def test_what_does_not_work_is_one_line_that_names_the_layer_and_the_way_out(kind, said):
    lines = found(kind)
    assert len(lines) == 1 and said in lines[0], lines


@pytest.mark.parametrize("name", ["Net", "Spelled"])
def test_the_number_of_classes_is_told_to_the_usual_spellings_of_it(name):
    assert found(name) == []
    full = models.suited(spec("Spelled"), classes=7)
    assert full["settings"] == {"num_classes": 7} and models.build(full).f.out_features == 7
    with pytest.raises(models.SpecError, match=r"^settings\.num_classes: must be 7, that of the data \(got 5\)"):
        models.suited(spec("Spelled", num_classes=5), classes=7)


def test_a_fault_of_a_setting_that_may_be_none_offers_null():
    with pytest.raises(models.SpecError, match=r"^settings\.dropout: must be a number or null \(got 'x'\)$"):
        models.normalise(spec("Net", dropout="x"))


@pytest.mark.parametrize("slopes", [1, 4])
def test_slopes_that_two_places_share_are_stored_once_and_packed_as_the_network_computes(slopes, tmp_path):
    network = models.build(spec("Shared", slopes=slopes)).eval()
    with torch.no_grad():
        network.a.weight.copy_(torch.linspace(0.1, 0.4, slopes))
    floats = [op for op in operations(network) if op.kind == "function"]
    assert sum(op.norm_parameters for op in floats) == slopes
    quantized = [op for op in operations(network, weight_bits=8, activation_bits=8) if op.storage_bits]
    assert len({op.name for op in quantized if op.kind == "function"}) == 1
    prepared = calibrated(network, quantize_config(), made_up_images((3, 32, 32)))
    pack(prepared, tmp_path / "packed", quantize=quantize_config())  # which compares the two
