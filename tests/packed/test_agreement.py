"""What is packed computes what the network does, whatever it is spelled with; a step that does not is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from micronet.compress.errors import QuantizationError
from micronet.compress.quantization import prepare
from micronet.packed import packing
from micronet.packed.errors import PackError
from micronet.packed.packing import pack
from micronet.packed.steps import Affine, Conv, Linear, Pool
from tests.support.configs import quantize_config
from tests.support.images import random_images
from tests.support.models import calibrated
from tests.support.networks import Net, settled
from tests.support.packed import packed_and_compared
from tests.support.thinning import thinned

IMAGES = random_images(8)
METHODS = {
    "half": quantize_config(method="half"),
    "lsq": quantize_config(multiplier_bits=14),
    "few bits": quantize_config(weight_bits=3, activation_bits=2, multiplier_bits=6),
    "fx_int8": quantize_config(method="fx_int8"),
}


def in_place(net, x):
    x = net.a(x)
    shortcut = x
    return F.relu(net.b(net.act(x)) + shortcut)


def written_twice(net, x):
    y = net.a(x)
    y += x
    y.mul_(0.5)
    return F.relu_(y) + x


BODIES = {
    "plain": Net(lambda net, x: F.relu(net.b(F.relu(net.a(x))))),
    "alpha": Net(lambda net, x: F.relu(torch.add(net.a(x), x, alpha=3))),
    "negative alpha": Net(lambda net, x: F.relu(torch.sub(net.a(x), x, alpha=0.5))),
    "factor of a sum": Net(lambda net, x: F.relu((net.a(x) * 0.25 + x) / 2)),
    "factor of codes": Net(lambda net, x: F.relu(net.b(F.relu(net.a(x)) * 3))),
    "negative factor of codes": Net(lambda net, x: F.relu(net.b(F.relu(net.a(x)) * -3))),
    "added to itself": Net(lambda net, x: F.relu(net.b(x + x))),
    "divisor": Net(lambda net, x: F.relu(net.b(F.avg_pool2d(F.relu(net.a(x)), 2, divisor_override=1)))),
    "divisor of a module": Net(lambda net, x: F.relu(net.a(net.p(x))), p=nn.AvgPool2d(4, divisor_override=3)),
    "in place before a shortcut": Net(in_place, act=nn.ReLU(inplace=True)),
    "written twice": Net(written_twice),
    "identity and dropout": Net(lambda net, x: F.relu(net.d(net.b(net.i(net.a(x))))), d=nn.Dropout(), i=nn.Identity()),
    "dropout before a maximum": Net(lambda net, x: F.relu(F.max_pool2d(net.d(net.a(x)), 2)), d=nn.Dropout()),
    "negative dimension": Net(lambda net, x: F.relu(torch.cat([net.a(x), x], -3)), width=32),
    "one value twice": Net(lambda net, x: torch.cat(tensors=[x, x], dim=1), width=32),
    "a maximum of negative norms": Net(lambda net, x: F.relu(F.max_pool2d(net.a(x) * -1, 2))),
}


PRODUCTS = [
    body for body in BODIES if "alpha" in body or "factor" in body or body in ("added to itself", "written twice")
]
PRODUCTS += ["a maximum of negative norms"]


@pytest.mark.parametrize(
    ("body", "method"),
    thinned(
        ((body, method) for body in BODIES for method in METHODS if method != "fx_int8" or body not in PRODUCTS),
        every=7,
    ),
)
def test_the_packed_network_computes_what_the_network_does(body, method, tmp_path):
    _, _, apart = packed_and_compared(settled(BODIES[body], IMAGES), METHODS[method], IMAGES, tmp_path / "m")
    # Of few bits not much is left of a network that was not trained with them; packing itself compares it step by step.
    assert apart < {"half": 0.02, "lsq": 0.3, "few bits": 10, "fx_int8": 0.5}[method]


@pytest.mark.parametrize("body", PRODUCTS)
def test_fx_graph_mode_takes_no_product_whose_range_it_would_not_observe(body):
    with pytest.raises(QuantizationError, match="FX graph mode does not observe the range of a product, lsq would"):
        prepare(BODIES[body], METHODS["fx_int8"])


def wrong(step):
    """A step that computes something else."""
    if isinstance(step, Linear):
        return replace(step, weights=replace(step.weights, codes=-step.weights.codes))
    return replace(step, scaling=replace(step.scaling, multiplier=-step.scaling.multiplier))


@pytest.mark.parametrize("place", ["stem.0", "a.0", "fc"])
def test_the_first_step_that_computes_something_else_is_named(place, tmp_path, monkeypatch):
    model = settled(Net(lambda net, x: F.relu(net.b(F.relu(net.a(x))))), IMAGES)
    prepared = calibrated(model, METHODS["lsq"], IMAGES).eval()
    encode = packing.encode

    def encode_wrong(steps, *rest, **named):
        return encode([wrong(step) if step.name == place else step for step in steps], *rest, **named)

    monkeypatch.setattr(packing, "encode", encode_wrong)
    with pytest.raises(PackError, match=f"^{place}: the packed model computes something else than the network"):
        pack(prepared, tmp_path / "m", quantize=METHODS["lsq"], seen=IMAGES)
    assert not (tmp_path / "m").exists()


def test_packing_leaves_a_network_in_training_in_its_mode(tmp_path):
    prepared = prepare(Net(lambda net, x: net.d(x), d=nn.Dropout()).train(), METHODS["lsq"])
    prepared.get_submodule("stem.1").eval()
    before = {key: value.clone() for key, value in prepared.state_dict().items()}
    pack(prepared, tmp_path / "m", quantize=METHODS["lsq"])
    assert prepared.training and not prepared.get_submodule("stem.1").training
    assert all(torch.equal(value, before[key]) for key, value in prepared.state_dict().items())


def test_the_bodies_have_the_steps_that_they_stand_for(tmp_path):
    def steps(body: str) -> list[type]:
        model = settled(BODIES[body], IMAGES)
        packed = pack(prepare(model, METHODS["lsq"]).eval(), tmp_path / "m", quantize=METHODS["lsq"])
        return [type(step) for step in packed.steps[1:]]

    plain = [Conv, Conv, Conv, Pool, Linear]
    for body in ("plain", "factor of codes", "identity and dropout"):
        assert steps(body) == plain, f"{body} costs no step"
    assert steps("negative factor of codes") == [Conv, Conv, Affine, Conv, Pool, Linear]
    assert steps("alpha") == [Conv, Conv, Pool, Linear]
