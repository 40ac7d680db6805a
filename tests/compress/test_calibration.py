"""Calibration: images as they are stored, samples from all over them, values that are finite."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from micronet.compress import quantizers
from micronet.compress.calibration import calibrate, recalibrate_batch_norm, training_batches
from micronet.compress.errors import QuantizationError
from micronet.compress.quantization import prepare
from micronet.compress.quantizers import LsqActivation, best_step, coprime_stride
from micronet.data.images import normalise
from micronet.params import Augment
from tests.support.configs import quantize_config
from tests.support.images import random_images
from tests.support.models import RESNET, TINY, new_model, same, weights

IMAGES = random_images(8)
DEEP = {"name": "resnet", "blocks": [1] * 6, "widths": [4] * 6}  # whose last map is 1 x 1


def prepared(spec=TINY, **changes) -> nn.Module:
    return prepare(new_model(spec).eval(), quantize_config(**{"weight_bits": 4} | changes)).eval()


def steps(network: nn.Module) -> list[float]:
    return [float(module.step.detach()) for module in network.modules() if isinstance(module, LsqActivation)]


def bordered(count: int) -> Tensor:
    """Images whose outer columns and rows are plain."""
    images = torch.full((count, 3, 32, 32), 128, dtype=torch.uint8)
    images[:, :, 4:28, 4:28] = random_images(count)[:, :, 4:28, 4:28]
    return images


# --- where samples come from ---


@given(count=st.integers(1, 10**8), wanted=st.integers(1, 10**5), period=st.integers(1, 10**6))
def test_a_stride_shares_no_factor_with_an_image_and_is_the_next_one_that_does_not(count, wanted, period):
    stride, plain = coprime_stride(count, wanted, period), max(1, count // wanted)
    assert math.gcd(stride, period) == 1 and stride >= plain
    assert all(math.gcd(other, period) > 1 for other in range(plain, stride))


@pytest.mark.parametrize("shape", [(32, 2, 4, 8), (31, 3, 5, 7), (64, 6, 4, 4), (40, 30, 1, 1), (16, 3, 2, 16)])
def test_an_activation_is_sampled_at_every_place_of_an_image_about_equally_often(monkeypatch, shape):
    monkeypatch.setattr(quantizers, "SAMPLES", math.prod(shape) // 4)
    quantizer, places = LsqActivation(4, signed=True), math.prod(shape[1:])
    quantizer.samples = []
    quantizer(torch.arange(places).reshape(1, *shape[1:]).expand(shape).float())
    met = torch.cat(quantizer.samples).long().bincount(minlength=places)
    assert met.min() >= 1 and met.max() - met.min() <= 1
    images = LsqActivation(4, signed=True)
    images.samples = []
    images(torch.arange(shape[0]).reshape(-1, 1, 1, 1).expand(shape).float())
    assert len(torch.cat(images.samples).unique()) == shape[0]


def test_bordered_images_give_the_same_step_whatever_their_number():
    # of 128 images in 16 channels every 32nd value is taken, the width: a single column, which is plain
    found = []
    for count in (127, 128):
        network = prepared(TINY | {"widths": [16]})
        calibrate(network, bordered(count))
        found.append(steps(network)[0])
    assert found[1] == pytest.approx(found[0], rel=0.1)


def test_what_many_batches_gave_is_thinned_to_all_places_too(monkeypatch):
    monkeypatch.setattr(quantizers, "SAMPLES", 64)
    quantizer, columns = LsqActivation(8, signed=True), torch.zeros(8)
    columns[1] = 100.0  # every eighth of 2048 values is another column's
    quantizer.samples = []
    for _ in range(32):
        quantizer(columns.expand(1, 1, 8, 8))
    assert len(torch.cat(quantizer.samples)) == 2048
    quantizer.calibrate()
    assert float(quantizer.step.detach()) == pytest.approx(100 / 127)


def test_a_stride_that_was_coprime_already_stays_as_it_is():
    assert coprime_stride(127 * 16 * 32 * 32, 1 << 16, 16 * 32 * 32) == 31
    assert coprime_stride(250 * 16 * 32 * 32, 1 << 16, 16 * 32 * 32) == 63  # 62 is even
    assert coprime_stride(250 * 24 * 32 * 32, 1 << 16, 24 * 32 * 32) == 95  # 93 is a multiple of 3, as 24 is


def test_calibration_draws_nothing_from_the_global_generator():
    network, before = prepared(), torch.get_rng_state()
    calibrate(network, IMAGES)
    assert torch.equal(torch.get_rng_state(), before)


# --- what are no images ---


@pytest.mark.parametrize("method", ["lsq", "half"])
@pytest.mark.parametrize(
    ("images", "said"),
    [
        (normalise(IMAGES), "torch.float32 of (8, 3, 32, 32)"),
        (IMAGES.int(), "torch.int32 of (8, 3, 32, 32)"),
        (IMAGES[0], "torch.uint8 of (3, 32, 32)"),
        (IMAGES[:0], "torch.uint8 of (0, 3, 32, 32)"),
        (IMAGES.numpy(), "ndarray"),
    ],
    ids=["normalised", "int32", "one image", "none", "numpy"],
)
def test_what_are_no_stored_images_is_refused_and_no_step_changes(networks, method, images, said):
    network = networks[method]
    before = weights(network)
    with pytest.raises(QuantizationError) as caught:
        calibrate(network, images)
    assert str(caught.value) == (
        f"calibration takes images (N, C, H, W) of torch.uint8, pixels that nobody has normalised (got {said})"
    )
    assert same(before, weights(network))


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    return {method: prepared(method=method) for method in ("lsq", "half")}


def test_images_that_do_not_fit_the_network_are_refused_in_a_line(networks):
    network = networks["lsq"]
    with pytest.raises(QuantizationError, match="does not take the images of the calibration: .*channels") as caught:
        calibrate(network, IMAGES[:, :1])
    assert "\n" not in str(caught.value)
    assert all(module.samples is None for module in network.modules() if isinstance(module, LsqActivation))


# --- values that are not finite ---


@pytest.mark.parametrize(("tensor", "value"), [("conv2.weight", math.nan), ("norm2.running_mean", math.inf)])
def test_the_first_layer_whose_results_are_not_finite_is_named(tensor, value):
    network = prepared(RESNET)
    with torch.no_grad():
        network.state_dict()[f"stages.0.0.{tensor}"][0] = value
    before = steps(network)
    with pytest.raises(QuantizationError, match=rf"^stages\.0\.0\.{tensor[:5]}\S*: gives values that are not finite"):
        calibrate(network, IMAGES)
    assert steps(network) == before and not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("size", [1, 9, 64, 577, 40_000])
def test_the_step_is_that_of_least_error_of_80_between_a_twentieth_and_all_of_the_range(size):
    values = torch.randn(size, generator=torch.Generator().manual_seed(size))
    for low, high in ((-3, 3), (-8, 7), (0, 15)):
        some = values.abs() if low == 0 else values
        widest = float(some.abs().max()) / min(high, -low or high)
        steps = [widest * (1 - 0.95 * index / 80) for index in range(80)]
        errors = [float((torch.clamp(some / step, low, high).round() * step - some).square().mean()) for step in steps]
        assert best_step(some, low, high) == max(steps[errors.index(min(errors))], 1e-6)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 1.0], [-math.inf]])
def test_values_without_a_step_are_refused(values):
    with pytest.raises(QuantizationError, match="a step needs values, all of them finite"):
        best_step(torch.tensor(values), -7, 7)


# --- batch norms ---


def test_a_batch_of_one_is_left_out_where_a_norm_would_see_one_value():
    images = normalise(random_images(5))
    one, two = new_model(DEEP).eval(), new_model(DEEP).eval()
    recalibrate_batch_norm(one, [images[:4], images[4:]])
    recalibrate_batch_norm(two, [images[:4]])
    assert same(weights(one), weights(two)) and not one.training


def test_a_batch_of_one_counts_where_every_norm_sees_several_values():
    images = normalise(random_images(5))
    one, two = new_model().eval(), new_model().eval()
    recalibrate_batch_norm(one, [images[:4], images[4:]])
    recalibrate_batch_norm(two, [images[:4]])
    assert not same(weights(one), weights(two))
    assert int(one.stem.norm.num_batches_tracked) == 2


@pytest.mark.parametrize("count", [0, 1])
def test_norms_without_images_to_estimate_them_from_are_refused(count):
    images = random_images(count)
    with pytest.raises(QuantizationError, match="cannot be estimated without images; two would do, or more"):
        recalibrate_batch_norm(new_model(DEEP), training_batches(images, Augment(), 0) if count else [])


def test_a_norm_that_sees_what_is_not_finite_is_named():
    model = new_model()
    with torch.no_grad():
        model.stem.conv.weight[0] = math.inf
    with pytest.raises(QuantizationError, match=r"^stem\.norm: sees values that are not finite"):
        recalibrate_batch_norm(model, [normalise(IMAGES)])


def test_norms_of_one_dimension_are_estimated_too():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4), nn.BatchNorm1d(4))
    recalibrate_batch_norm(model, [normalise(IMAGES)])
    expected = model[1](normalise(IMAGES).flatten(1)).mean(0)
    assert torch.allclose(model[2].running_mean, expected, atol=1e-5)
