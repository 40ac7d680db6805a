"""Windows of any shape: what a step makes, costs and refuses, and the networks that are made of them."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies
from torch import nn

from micronet.compress.errors import QuantizationError
from micronet.compress.quantization import prepare
from micronet.data.datasets import CLASSES
from micronet.data.images import normalise
from micronet.packed.errors import PackedFileError
from micronet.packed.file import decode
from micronet.packed.model import PackedModel
from micronet.packed.module import load_packed
from micronet.packed.packing import pack
from micronet.packed.reference import predict, witness
from micronet.packed.runners import runner
from micronet.packed.steps import Affine, Conv, Input, Linear, Maximum, Pool
from micronet.packed.steps.geometry import Geometry
from micronet.scoring.counting import operations
from micronet.scoring.deck import deck_flops
from micronet.scoring.records import macs
from tests.support.configs import quantize_config
from tests.support.generated_shapes import compared
from tests.support.hostile import opened, resigned
from tests.support.images import random_images
from tests.support.models import calibrated
from tests.support.networks import settled
from tests.support.packed import general_file
from tests.support.thinning import thinned

LSQ = quantize_config(weight_bits=8, activation_bits=8, multiplier_bits=14)


def packed(model: nn.Module, path, image=(3, 32, 32), quantize=LSQ) -> PackedModel:
    """The network packed, after it was compared: torch with numpy, and both with what was prepared."""
    images = random_images(12, image=image)
    prepared = calibrated(settled(model, images), quantize, images, image).eval()
    found = pack(prepared, path, quantize=quantize, seen=images)
    logits = load_packed(path)(normalise(images)).double()
    assert torch.equal(torch.from_numpy(predict(found, images.numpy())), logits)
    with torch.no_grad():
        wanted = prepared(normalise(images)).double()
    assert found.logit_scale is None or (logits * found.logit_scale - wanted).norm() < 0.15 * wanted.norm() + 0.02
    assert torch.corrcoef(torch.stack([logits.flatten(), wanted.flatten()]))[0, 1] > 0.98
    return found


@settings(max_examples=60, deadline=None)
@given(
    kernel=strategies.tuples(*2 * [strategies.integers(1, 4)]),
    stride=strategies.tuples(*2 * [strategies.integers(1, 4)]),
    padding=strategies.tuples(*2 * [strategies.integers(0, 3)]),
    dilation=strategies.tuples(*2 * [strategies.integers(1, 3)]),
    sides=strategies.tuples(*2 * [strategies.integers(1, 9)]),
)
def test_sizes_and_held_values_of_windows_are_those_that_torch_and_counting_give(
    kernel, stride, padding, dilation, sides
):
    geometry, shape = Geometry(kernel, stride, padding, dilation), (1, *sides)
    if min(geometry.size(shape)) < 1:
        return
    ones = torch.ones(1, *shape)
    held = F.conv2d(ones, torch.ones(1, 1, *kernel), None, stride, padding, dilation)
    assert held.shape[2:] == geometry.size(shape)
    assert int(held.sum()) == geometry.held(shape)
    assert F.pad(ones, (padding[1], padding[1], padding[0], padding[0])).numel() == geometry.padded(shape)


def test_padding_never_wins_a_maximum_not_even_of_codes_that_are_all_below_0(tmp_path):
    class Low(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)
            self.conv.bias.data.fill_(-9.0)

        def forward(self, x):
            return self.fc(F.max_pool2d(self.conv(x), (3, 2), (2, 1), (1, 1)).mean((2, 3)))

    model = packed(Low(), tmp_path / "m", (3, 9, 8))
    (step,) = [step for step in model.steps if isinstance(step, Maximum)]
    codes = torch.full((1, *model.steps[step.inputs[0]].shape), -5.0)
    assert runner(step, False)(codes).eq(-5).all()


def test_padding_adds_0_to_a_sum_and_costs_nothing():
    source = Input.of(8, (1, 4, 5))
    step = Pool.over(source, 0, Geometry((3, 2), (2, 1), (1, 1)), "pool")
    assert (step.shape, step.low[0], step.high[0]) == ((1, 2, 6), -6 * 128, 6 * 127)
    codes = torch.randint(-128, 128, (2, 1, 4, 5)).float()
    wanted = F.avg_pool2d(codes, (3, 2), (2, 1), (1, 1), divisor_override=1)
    assert torch.equal(runner(step, False)(codes), wanted)
    # Rows -1..1 and 1..3 hold 2 and 3 of the map, columns 1, 2, 2, 2, 2, 1: 5 x 10 values in 12 windows.
    assert step.geometry.held(source.shape) == 50


class LeNet(nn.Module):
    """Convolutions of 5 x 5, pools, a flattened map and two hidden layers: LeCun et al. 1998."""

    def __init__(self, norm: bool):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 5), nn.ReLU(), nn.AvgPool2d(2)
        )
        norms = (nn.BatchNorm1d(20), nn.BatchNorm1d(12, affine=False)) if norm else (nn.Identity(), nn.Identity())
        self.hidden = nn.Sequential(
            *(nn.Linear(6 * 5 * 5, 20), norms[0], nn.ReLU(), nn.Dropout(0.5)),
            *(nn.Linear(20, 12), norms[1], nn.ReLU()),
        )
        self.fc = nn.Linear(12, 10)

    def forward(self, x):
        return self.fc(self.hidden(torch.flatten(self.features(x), 1)))


@pytest.mark.parametrize(
    ("method", "norm"),
    thinned([("lsq", False), ("lsq", True), ("half", True), ("binary_connect", True), ("fx_int8", True)], 2),
)
def test_lenet_packs_with_its_hidden_layers_as_convolutions_that_cover_their_map(method, norm, tmp_path):
    quantize = quantize_config(method=method, multiplier_bits=14, weight_bits=1 if method == "binary_connect" else 8)
    if method == "half":
        images, model = random_images(8, image=(1, 28, 28)), LeNet(norm)
        wanted = settled(model, images)(normalise(images)).detach()
        prepared = prepare(model, quantize, (1, 28, 28)).eval()
        made = pack(prepared, tmp_path / "m", quantize=quantize, seen=images)
        assert torch.allclose(load_packed(tmp_path / "m")(normalise(images)), wanted, atol=0.02)
    else:
        made = packed(LeNet(norm), tmp_path / "m", (1, 28, 28), quantize)
    shapes = {step.name: step.weights.codes.shape for step in made.steps if isinstance(step, Conv | Linear)}
    assert shapes["hidden.0"] == (20, 6, 5, 5) and shapes["hidden.4"] == (12, 20, 1, 1) and shapes["fc"] == (10, 12)
    assert made.steps[-1].shape == (10, 1, 1)


def test_a_last_layer_reads_a_whole_map_and_costs_what_it_was_designed_to(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, (3, 5), (2, 3), (1, 0), bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 4, 7)
    )
    made = packed(model, tmp_path / "m", (3, 12, 14))
    assert made.steps[-1].weights.codes.shape == (7, 4, 6, 4)
    designed, ops = operations(model, (3, 12, 14), weight_bits=8), operations(made)
    assert macs(ops) == macs(designed) == 4 * 24 * 45 + 7 * 96
    flops = [[deck_flops(op) for op in each if op.rules != "challenge"] for each in (ops, designed)]
    # 4 x 6 x 4 sums of 45 products of 8 bits and 44 additions of 32; 7 sums of 96 products
    assert flops == 2 * [[96 * (45 * 8 + 44 * 32) // 32, 7 * (96 * 8 + 95 * 32) // 32]]


def test_a_hidden_layer_has_a_step_an_output_and_the_last_one_a_single_step():
    prepared = prepare(LeNet(False), quantize_config(per_channel=True), (1, 28, 28))
    steps = {name: prepared.get_submodule(f"{name}.quantizer").step.numel() for name in ("hidden.0", "hidden.4", "fc")}
    assert steps == {"hidden.0": 20, "hidden.4": 12, "fc": 1}


class Fire(nn.Module):
    """Two ReLUs side by side before one convolution, as SqueezeNet has them, and two pools before one linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, (3, 1), padding="same")
        self.next, self.fc = nn.Conv2d(8, 6, (1, 3)), nn.Linear(12, 5)

    def forward(self, x):
        x = torch.cat([F.relu(self.one(x)), F.relu(9 * self.two(x))], 1)
        x = F.relu(self.next(x))
        return self.fc(torch.cat([F.adaptive_avg_pool2d(x, 1), x.amax((2, 3), keepdim=True)], 1).flatten(1))


def test_maps_of_different_scales_may_be_read_at_once(tmp_path):
    model = packed(Fire(), tmp_path / "m", (3, 11, 8))
    assert sum(isinstance(step, Affine) for step in model.steps) == 2


class Norms(nn.Module):
    """Batch norms wherever one can stand, with and without scales of their own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.pooled = nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)
        self.depthwise, self.behind = nn.Conv2d(3, 3, 3, groups=3), nn.BatchNorm2d(3)
        self.summed, self.joined, self.last = nn.BatchNorm2d(3), nn.BatchNorm2d(6, affine=False), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6 * 3 * 2, 4)

    def forward(self, x):
        x = self.pooled(F.avg_pool2d(self.first(x), 3, 2, 1))
        y = self.behind(self.depthwise(x))
        x = self.summed(F.max_pool2d(x, 3, 1))
        x = self.joined(torch.cat([x + y, y], 1))
        return self.fc(self.last(F.max_pool2d(x, 2)).flatten(1))


def test_batch_norms_may_stand_anywhere_on_a_map(tmp_path):
    model = packed(Norms(), tmp_path / "m", (3, 16, 12))
    assert sum(isinstance(step, Affine) for step in model.steps) >= 5


@pytest.mark.parametrize("method", ["lsq", "fx_int8"])
def test_the_bias_of_a_convolution_goes_through_the_norm_behind_it(method, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6)
    )
    model[0].bias.data.uniform_(-3, 3)
    images = random_images(12, image=(3, 9, 10))
    settled(model, images)
    quantize = quantize_config(method=method, multiplier_bits=14)
    prepared = calibrated(model, quantize, images, (3, 9, 10)).eval()
    made = pack(prepared, tmp_path / "m", quantize=quantize, seen=images)
    logits = load_packed(tmp_path / "m")(normalise(images)) * made.logit_scale
    wanted = model(normalise(images)).detach().double()
    assert (logits - wanted).abs().max() < 0.1 * wanted.abs().max()


@pytest.mark.parametrize(
    ("layer", "version"),
    [
        (nn.Conv2d(3, 4, 3, 2, 1), 3),
        (nn.MaxPool2d(3), 3),
        (nn.AvgPool2d(4), 3),
        (nn.Sequential(nn.Flatten(1), nn.Unflatten(1, (3, 32, 32))), None),
        (nn.AvgPool2d(3), 5),
        (nn.AvgPool2d(3, 1, 1), 5),
        (nn.MaxPool2d((2, 4)), 5),
        (nn.Conv2d(3, 4, 3, dilation=2), 5),
        (nn.Conv2d(3, 4, 1, padding=1), 5),
        (nn.Conv2d(3, 4, (1, 3)), 5),
    ],
)
def test_a_step_that_versions_3_and_4_can_say_is_said_as_before(layer, version, tmp_path):
    torch.manual_seed(0)
    width = 4 if isinstance(layer, nn.Conv2d) else 3
    model = nn.Sequential(layer, nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(model, nn.Linear(width, 10))
    if version is None:
        with pytest.raises(QuantizationError, match="Unflatten cannot be packed"):
            prepare(model, LSQ)
        return
    prepared = calibrated(model, LSQ, random_images(4)).eval()
    pack(prepared, tmp_path / "m", quantize=LSQ, class_names=CLASSES)
    assert opened((tmp_path / "m").read_bytes())[0]["version"] == version


class Flat(nn.Module):
    """Something done to flattened maps before the last layer."""

    def __init__(self, do, width, **parts):
        super().__init__()
        torch.manual_seed(0)
        self.do, self.conv = do, nn.Conv2d(3, 4, 3)
        for name, part in parts.items():
            setattr(self, name, part)
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        return self.fc(self.do(self, F.relu(self.conv(x))))


def test_what_is_done_value_by_value_may_be_done_to_a_flattened_map(tmp_path):
    def do(net, x):
        flat, other = x.flatten(1), F.max_pool2d(x, 3, 1, 1).flatten(1)
        return torch.cat([F.relu(flat + other), net.drop(flat) * 0.5], 1)

    packed(Flat(do, 2 * 4 * 6 * 5, drop=nn.Dropout(0.2)), tmp_path / "m", (3, 8, 7))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Flat(lambda net, x: net.norm(x.flatten(1)), 120, norm=nn.BatchNorm1d(120)),
            r"norm: a batch norm of a flattened map of 6 x 5 cannot be packed; one of the map's channels before",
        ),
        (
            Flat(lambda net, x: torch.cat([x.flatten(1), x.mean((2, 3))], 1), 124),
            r"cat: joins what \(4, 6, 5\) and \(4, 1, 1\) were flattened to, which cannot be packed",
        ),
        (
            Flat(lambda net, x: x.flatten(1) + F.relu(net.other(x)).flatten(1), 120, other=nn.Conv2d(4, 24, (6, 1))),
            r"add: joins what \(4, 6, 5\) and \(24, 1, 5\) were flattened to",
        ),
        (Flat(lambda net, x: net.more(x), 5, more=nn.Linear(5, 5)), r"more: a linear layer packs on vectors, not on"),
    ],
)
def test_what_a_flattened_map_cannot_be_given_is_refused_with_what_would_work(model, message):
    with pytest.raises(QuantizationError, match=f"^{message}") as caught:
        prepare(model, LSQ, (3, 8, 7))
    assert len(str(caught.value)) <= 300


def test_the_small_file_of_version_5_is_counted_as_its_witness_counts():
    model = decode(general_file())
    images = random_images(2, image=model.image).numpy()
    logits, counts = witness(model, images)
    assert np.array_equal(logits, predict(model, images)) and len(np.unique(logits)) > 3
    pooled, largest = counts[3], counts[2]
    # 6 x 12 codes, windows of 3 x 2 with a stride of 2 x 1 and a padding of 1: rows hold 2, 3, 3, columns 1, 2 x 11, 1
    assert largest.additions == Counter({4: 2 * (8 * 24 - 3 * 13)})
    # 3 x 13 codes, windows of 2 x 3 with a stride of 1 x 2 and a padding of 0 x 1: rows 2, 2, columns 2, 3 x 5, 2
    assert pooled.additions == Counter({7: 2 * (4 * 19 - 2 * 7)})


@pytest.mark.parametrize(
    ("index", "changed", "message"),
    [
        (1, {"stride": [2, 0]}, "stride: must be a whole number from 1 to 1024"),
        (1, {"stride": [2, 1, 1]}, "stride: must be two numbers"),
        (1, {"padding": [1, 1025]}, "padding: must be a whole number from 0 to 1024"),
        (1, {"dilation": 0}, "dilation: must be a whole number from 1 to 1024"),
        (1, {"dilation": [1, 9]}, "a kernel larger than its map"),
        (2, {"padding": 2}, r"a padding of \(2, 2\), half of the kernel \(3, 2\) is the most"),
        (2, {"kernel": [9, 1], "padding": 0}, r"a kernel of \(9, 1\) is larger than its map of \(6, 12\)"),
        (3, {"stride": [1.0, 2]}, "stride: must be a whole number"),
        (4, {"shape": [3, 42]}, "a weight of shape"),
    ],
)
def test_windows_that_are_none_are_refused(index, changed, message):
    with pytest.raises(PackedFileError, match=f"^step {index} .*{message}"):
        decode(resigned(general_file(), lambda header, table, payload: table["steps"][index].update(changed)))


@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(strategies.integers(0, 2**32))
def test_a_random_network_of_any_shape_is_the_same_in_numpy_in_torch_and_in_floats(seed):
    assert compared(random.Random(seed)) in ("packed in integers", "packed in floats", "refused")


@pytest.mark.slow
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(strategies.integers(0, 2**32))
def test_200_random_networks_of_any_shape_are_the_same_in_numpy_in_torch_and_in_floats(seed):
    assert compared(random.Random(seed), count=True) in ("packed in integers", "packed in floats", "refused")
