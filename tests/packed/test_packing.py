"""The packer and the module: a packed network computes what the trained one does, or is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from micronet.compress.calibration import calibrate, recalibrate_batch_norm
from micronet.compress.errors import QuantizationError
from micronet.compress.quantization import prepare
from micronet.data.images import normalise
from micronet.errors import MicronetError
from micronet.packed.errors import PackError
from micronet.packed.module import load_packed
from micronet.packed.packing import pack, rehearse
from micronet.packed.reference import run
from micronet.packed.steps import Conv, Maximum
from tests.support.configs import quantize_config
from tests.support.images import random_images
from tests.support.models import CONVNET, GROUPED_DENSENET, RESNET, calibrated, quantized
from tests.support.packed import IMAGES, prepared_model
from tests.support.thinning import thinned


@pytest.mark.parametrize("spec", thinned([GROUPED_DENSENET, RESNET, CONVNET], 3))
def test_the_packed_module_follows_the_fake_quantized_model(spec, tmp_path):
    quantize = quantize_config(multiplier_bits=14)
    prepared = prepared_model(spec, quantize)
    pack(prepared, tmp_path / "m", quantize=quantize)
    with torch.no_grad():
        wanted, got = prepared(normalise(IMAGES)), load_packed(tmp_path / "m")(normalise(IMAGES))
    correlation = torch.corrcoef(torch.stack([wanted.flatten().double(), got.flatten()]))[0, 1]
    assert correlation > 0.999


def test_a_channel_that_was_constant_in_training_does_not_blur_the_others(tmp_path):
    prepared = prepared_model(RESNET, quantize_config(multiplier_bits=14))
    pack(prepared, tmp_path / "before", quantize=quantize_config(multiplier_bits=14))
    norm = prepared.get_submodule("stages.0.0.norm1")
    norm.running_var[1], norm.bias.data[1] = 0.0, -1e4  # a gain of 300, always below 0
    model = pack(prepared, tmp_path / "m", quantize=quantize_config(multiplier_bits=14))
    with torch.no_grad():
        wanted, got = prepared(normalise(IMAGES)), load_packed(tmp_path / "m")(normalise(IMAGES))
    assert torch.corrcoef(torch.stack([wanted.flatten().double(), got.flatten()]))[0, 1] > 0.999
    (step,) = [step for step in model.steps if step.name == "stages.0.0.conv1"]
    assert np.abs(step.scaling.multiplier).min() >= 2**12


def test_a_gain_beyond_the_multipliers_keeps_its_threshold(tmp_path):
    prepared = prepared_model(RESNET, quantize_config(activation_bits=2, multiplier_bits=6))
    with torch.no_grad():
        prepared.stem.norm.weight.fill_(1e5)
    pack(prepared, tmp_path / "m", quantize=quantize_config(multiplier_bits=6))
    module = load_packed(tmp_path / "m")
    with torch.no_grad():
        real = prepared.activations.relu(
            prepared.stem.norm(prepared.stem.conv(prepared.activations.image(normalise(IMAGES))))
        )
        codes = module.steps[1](module.steps[0](normalise(IMAGES)))
    assert (codes == real / prepared.activations.relu.step).float().mean() > 0.99


def test_a_half_model_computes_what_the_float_model_does(tmp_path):
    quantize = quantize_config(method="half")
    prepared = prepared_model(GROUPED_DENSENET, quantize)
    pack(prepared, tmp_path / "m", quantize=quantize)
    with torch.no_grad():
        wanted, got = prepared(normalise(IMAGES)), load_packed(tmp_path / "m")(normalise(IMAGES))
    assert torch.allclose(wanted, got, atol=2e-2 * float(wanted.std()) + 1e-3)


def test_logits_are_integers_whatever_autocast_says(small):
    module = load_packed(small)
    plain = module(normalise(IMAGES))
    assert torch.equal(plain, plain.round())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(normalise(IMAGES)), plain)


def test_logits_do_not_depend_on_batch_size_or_memory_format(small):
    module = load_packed(small)
    plain = module(normalise(IMAGES))
    single = torch.cat([module(normalise(IMAGES[index : index + 1])) for index in range(len(IMAGES))])
    assert torch.equal(plain, single)
    assert torch.equal(plain, module(normalise(IMAGES).to(memory_format=torch.channels_last)))


def test_an_interleaving_costs_no_step_and_no_bit(tmp_path):
    files = {}
    for interleave in (True, False):
        more = {"blocks": [2, 1], "interleave": {"bottleneck": interleave, "transition": interleave}}
        spec = GROUPED_DENSENET | more
        files[interleave] = pack(prepared_model(spec, quantize_config()), tmp_path / "m", quantize=quantize_config())
    assert [step.op for step in files[True].steps] == [step.op for step in files[False].steps]
    weights = [sum(step.stored("weight") for step in model.steps) for model in files.values()]
    assert weights[0] == weights[1]


def test_images_of_the_wrong_size_are_refused(small):
    with pytest.raises(MicronetError, match=r"takes images of \(N, 3, 32, 32\), got \(2, 3, 28, 28\)"):
        load_packed(small)(torch.zeros(2, 3, 28, 28))


# Refusals


class Odd(nn.Module):
    """conv -> norm -> relu -> something -> mean -> linear."""

    def __init__(self, between):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.between, self.classifier = between, nn.Linear(4, 10)

    def forward(self, x):
        return self.classifier(self.between(F.relu(self.norm(self.conv(x)))).mean((2, 3)))


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (nn.MaxPool2d(3, dilation=2), "between: a dilated pool cannot be packed, dilation 1 would work"),
        (nn.MaxPool2d(3, ceil_mode=True), "between: windows that the edge cuts cannot be packed, ceil_mode=False"),
        (nn.AvgPool2d(3, ceil_mode=True), "between: windows that the edge cuts cannot be packed, ceil_mode=False"),
        (nn.AvgPool2d((2, 3), ceil_mode=True), "between: windows that the edge cuts cannot be packed, ceil_mode=False"),
        (nn.LPPool2d(2, 2), "between: LPPool2d cannot be packed"),
        (nn.Conv2d(4, 4, (2, 3), padding="same"), "between: padding='same' of an even kernel pads one side more"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "between: padding_mode='reflect' cannot be packed"),
        (nn.BatchNorm2d(4, track_running_stats=False), "between: a batch norm cannot be packed without statistics"),
        (nn.Linear(32, 32), r"between: a linear layer packs on vectors, not on maps \(4, 32, 32\); a flatten before"),
    ],
)
def test_what_the_format_does_not_know_is_refused_before_anything_is_trained(between, message):
    with pytest.raises(QuantizationError, match=message) as error:
        prepare(Odd(between), quantize_config())
    assert "\n" not in str(error.value)


class NormBehindMaxima(nn.Module):
    """A batch norm with a negative gain behind maxima of what is no plain sum of a convolution."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.conv, self.other = kind, nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.norm, self.classifier = nn.BatchNorm2d(4), nn.Linear(4, 10)
        self.norm.weight.data[1:3] = -1.0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.conv(image)
        x = x * self.other(image) if self.kind == "product" else F.max_pool2d(x, 2) if self.kind == "twice" else x
        y = self.norm(F.max_pool2d(x, 2))
        y = F.relu(y + F.max_pool2d(self.other(image), 2)) if self.kind == "added" else y
        return self.classifier(F.adaptive_avg_pool2d(y, 1).flatten(1))


@pytest.mark.parametrize(
    ("kind", "method"), [("once", "half"), ("product", "lsq"), ("product", "half"), ("twice", "lsq")]
)
def test_no_sign_that_training_may_bring_stands_in_the_way_of_packing(kind, method, tmp_path):
    torch.manual_seed(0)
    quantize = quantize_config(method=method)
    prepared = quantized(NormBehindMaxima(kind), quantize, IMAGES)
    model = pack(prepared, tmp_path / "m", quantize=quantize, seen=IMAGES)
    assert model.classes == 10


class Pooled(nn.Module):
    """Maxima at any place around a norm that turns the order of one channel around."""

    def __init__(self, *between: str):
        super().__init__()
        self.first, self.norm, self.classifier = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 10)
        self.other = nn.Conv2d(3, 4, 4, stride=2)
        self.norm.weight.data[1] = -1.0
        self.between = between

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.first(image)
        other = F.relu(self.other(image))
        for layer in self.between:
            if layer == "add":
                x = x + other
            else:
                x = self.norm(x) if layer == "norm" else F.relu(x) if layer == "relu" else F.max_pool2d(x, 2)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.mark.parametrize(
    ("between", "windows", "steps"),
    [
        (("maximum", "norm", "relu"), 2, 0),
        (("norm", "maximum", "relu"), 1, 1),
        (("norm", "relu", "maximum"), 1, 1),
        (("maximum", "maximum", "norm", "relu"), 2, 1),
        (("maximum", "norm", "relu", "maximum"), 2, 1),
        (("maximum", "norm", "maximum", "relu"), 2, 1),
    ],
)
def test_the_greatest_sum_goes_on_where_its_code_is_the_greatest_too(between, windows, steps, tmp_path):
    torch.manual_seed(0)
    quantize = quantize_config(weight_bits=8, activation_bits=8)
    prepared = prepare(Pooled(*between), quantize)
    pixels = random_images(20)
    recalibrate_batch_norm(prepared, [normalise(pixels)])
    calibrate(prepared, pixels)
    model = pack(prepared.eval(), tmp_path / "m", quantize=quantize)
    assert next(step for step in model.steps if isinstance(step, Conv)).window == windows
    assert sum(isinstance(step, Maximum) for step in model.steps) == steps
    logits = run(model, pixels.numpy())
    assert torch.equal(load_packed(tmp_path / "m")(normalise(pixels)), torch.from_numpy(logits).double())
    expected = prepared(normalise(pixels)).detach()
    assert torch.corrcoef(torch.stack([expected.flatten(), torch.from_numpy(logits).flatten().float()]))[0, 1] > 0.99


def test_what_is_added_to_the_greatest_sums_is_added_to_one_of_each_window(tmp_path):
    torch.manual_seed(0)
    quantize = quantize_config(weight_bits=8, activation_bits=8)
    pixels = random_images(20)
    prepared = calibrated(Pooled("maximum", "norm", "add", "relu"), quantize, pixels)
    model = pack(prepared.eval(), tmp_path / "m", quantize=quantize)
    last = [step for step in model.steps if isinstance(step, Conv)][-1]
    assert (last.window, last.shape) == (2, (4, 15, 15)) and last.scaling.residual is not None
    logits = run(model, pixels.numpy())
    assert torch.equal(load_packed(tmp_path / "m")(normalise(pixels)), torch.from_numpy(logits).double())


@pytest.mark.parametrize("factor", [0, -1])
def test_a_factor_that_turns_the_order_of_logits_is_refused(factor):
    class Turned(Odd):
        def forward(self, x):
            return super().forward(x) * 2 * factor

    with pytest.raises(QuantizationError, match="^mul_1: turns the order of the logits, a positive factor would work"):
        prepare(Turned(nn.Identity()), quantize_config())


def test_a_model_without_quantizers_is_refused(tmp_path):
    with pytest.raises(PackError, match="a ResNet is not quantized; compress.prepare makes"):
        pack(models.build(RESNET), tmp_path / "m", quantize=quantize_config())


def test_a_model_that_diverged_is_refused(tmp_path):
    prepared = prepared_model(RESNET, quantize_config())
    prepared.stem.norm.weight.data.fill_(float("nan"))
    with pytest.raises(PackError, match="not finite"):
        pack(prepared, tmp_path / "m", quantize=quantize_config())


def test_a_share_without_images_is_refused(tmp_path):
    quantize = quantize_config(flip_share=0.3)
    with pytest.raises(PackError, match="flip_share: the images that set the margin are missing"):
        pack(prepared_model(RESNET, quantize), tmp_path / "m", quantize=quantize)
    assert not (tmp_path / "m").exists()


def test_what_no_file_can_hold_is_refused_before_the_training_as_after_it(tmp_path):
    quantize = quantize_config()
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 40_000))
    prepared = quantized(model, quantize, IMAGES)
    for refuse in (lambda: rehearse(prepared, quantize), lambda: pack(prepared, tmp_path / "m", quantize=quantize)):
        with pytest.raises(PackError, match=r"'4'\): has 40000 classes, 32768 are the most"):
            refuse()
    assert not (tmp_path / "m").exists()
