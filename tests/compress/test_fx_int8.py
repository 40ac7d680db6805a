"""FX graph mode's 8-bit quantization, brought into the packed file."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from micronet.compress.calibration import calibrate, recalibrate_batch_norm
from micronet.compress.errors import QuantizationError
from micronet.compress.quantization import finish, prepare
from micronet.data.images import normalise
from micronet.packed.module import load_packed
from micronet.packed.packing import pack
from tests.support.configs import quantize_config
from tests.support.images import random_images
from tests.support.models import DENSENET, RESNET, calibrated, random_model
from tests.support.thinning import thinned

MIXED_DENSENET = DENSENET | {"blocks": [2, 1], "groups": {"bottleneck": 2}, "interleave": {"bottleneck": True}}
INT8 = quantize_config(method="fx_int8")
IMAGES = random_images(16)


def float_model(spec) -> nn.Module:
    model = random_model(spec)
    recalibrate_batch_norm(model, [normalise(IMAGES)])
    return model.eval()


@pytest.fixture(scope="module")
def original() -> nn.Module:
    """What FX graph mode makes of a network, calibrated."""
    return calibrated(float_model(RESNET), INT8, IMAGES)


@pytest.fixture
def copied(original) -> nn.Module:
    """A copy of it that a test may change."""
    return copy.deepcopy(original)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


@pytest.mark.parametrize("spec", thinned([RESNET, MIXED_DENSENET], 2))
def test_calibrated_alone_the_packed_file_follows_the_float_model(spec, tmp_path):
    model = float_model(spec)
    prepared = calibrated(model, INT8, IMAGES)
    pack(prepared, tmp_path / "m", quantize=INT8)
    with torch.no_grad():
        assert correlation(model(normalise(IMAGES)), load_packed(tmp_path / "m")(normalise(IMAGES))) > 0.99


def test_trained_the_packed_file_follows_the_fake_quantized_model(copied, tmp_path):
    prepared = copied.train()
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05, momentum=0.9)
    for _ in range(10):
        loss = F.cross_entropy(prepared(normalise(IMAGES)), torch.arange(16) % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pack(prepared.eval(), tmp_path / "m", quantize=INT8)
    with torch.no_grad():
        assert correlation(prepared(normalise(IMAGES)), load_packed(tmp_path / "m")(normalise(IMAGES))) > 0.99


def test_evaluating_leaves_the_observers_alone(copied):
    before = copy.deepcopy(copied.state_dict())
    copied.eval()(normalise(IMAGES) * 3)
    # The switches of the observers are turned by train() and eval().
    changed = [key for key, value in copied.state_dict().items() if not torch.equal(before[key], value)]
    assert not changed


def test_images_that_are_normalised_already_and_layers_that_are_not_finite_are_refused(copied):
    with pytest.raises(QuantizationError, match="pixels that nobody has normalised"):
        calibrate(copied, normalise(IMAGES))
    with torch.no_grad():
        copied.get_submodule("stages.0.0.conv2").weight[0, 0, 0, 0] = torch.inf
    with pytest.raises(QuantizationError, match=r"^stages\.0\.0\.conv2\S*: gives values that are not finite"):
        calibrate(copied, IMAGES)


def test_pruned_weights_stay_zero_in_the_packed_file(tmp_path):
    model = float_model(RESNET)
    weight = model.get_submodule("stages.1.0.conv1").weight
    with torch.no_grad():
        weight[:, 1:] = 0
    prepared = calibrated(model, INT8, IMAGES)
    (step,) = [s for s in pack(prepared, tmp_path / "m", quantize=INT8).steps if s.name == "stages.1.0.conv1"]
    assert not step.weights.codes[:, 1:].any() and step.weights.mask is not None


def test_a_copy_for_averaging_can_be_packed(original, copied, tmp_path):
    first = pack(original, tmp_path / "a", quantize=INT8)
    assert pack(copied, tmp_path / "b", quantize=INT8).digest == first.digest


def test_plain_weight_names_are_kept_so_that_a_mask_finds_them():
    model = float_model(MIXED_DENSENET)
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    prepared = prepare(model, INT8)
    found = {name for name, module in prepared.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    assert layers == found


def test_its_warnings_stay_inside():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared = calibrated(float_model(RESNET), INT8, IMAGES)
        finish(prepared)
