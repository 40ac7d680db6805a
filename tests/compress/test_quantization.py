"""Quantizers: what values come out, what gradients go back, where they stand in a model."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from micronet.compress.calibration import calibrate, recalibrate_batch_norm, training_batches
from micronet.compress.errors import QuantizationError
from micronet.compress.quantization import prepare
from micronet.compress.quantizers import BinaryWeight, InputCodes, LsqActivation, LsqWeight, _Lsq
from micronet.data.images import normalise
from micronet.params import Augment
from tests.support.configs import quantize_config
from tests.support.images import random_images
from tests.support.models import DENSENET, RESNET, calibrated, new_model
from tests.support.thinning import thinned


@pytest.fixture
def images() -> torch.Tensor:
    return random_images(16)


@pytest.fixture
def resnet() -> nn.Module:
    return new_model(RESNET).eval()


@pytest.mark.parametrize("bits", range(2, 9))
def test_lsq_weights_lie_on_the_symmetric_grid_of_their_step(bits):
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(bits))
    quantizer = LsqWeight(weight, bits)
    codes = quantizer(weight) / quantizer.step
    assert torch.equal(codes.round(), quantizer.codes(weight)[0].float())
    assert codes.abs().max() <= 2 ** (bits - 1) - 1 + 1e-4
    assert torch.allclose(codes, codes.round(), atol=1e-4)


def test_lsq_keeps_pruned_zeros_at_code_zero():
    weight = torch.randn(8, 4, 3, 3) * (torch.rand(8, 4, 3, 3) > 0.7)
    codes, _ = LsqWeight(weight, 2).codes(weight)
    assert (codes[weight == 0] == 0).all()


@pytest.mark.parametrize(("low", "high"), [(-7, 7), (0, 15)])
def test_lsq_gradients_are_those_of_the_paper(low, high):
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    step = torch.tensor(0.1, requires_grad=True)
    weights = torch.randn(4, 3, 5, 5)
    (_Lsq.apply(x, step, low, high, 0.25) * weights).sum().backward()
    scaled = x.detach() / step.detach()
    inside = (scaled > low) & (scaled < high)
    by_step = torch.where(inside, scaled.round() - scaled, scaled.clamp(low, high))  # equation 3
    assert torch.equal(x.grad, weights * inside)
    assert step.grad == pytest.approx(float((weights * by_step).sum() * 0.25), rel=1e-4)


def test_a_step_a_channel_is_lsq_on_every_channel_alone():
    weight = torch.randn(6, 4, 3, 3) * torch.logspace(-2, 1, 6).reshape(-1, 1, 1, 1)  # sizes far apart
    quantizer, upstream = LsqWeight(weight, 4, per_channel=True), torch.randn(6, 4, 3, 3)
    together = weight.clone().requires_grad_()
    values = quantizer(together)
    (values * upstream).sum().backward()
    codes, scales = quantizer.codes(weight)
    assert quantizer.step.shape == (6, 1, 1, 1) and scales.shape == (6,)
    for channel in range(6):
        alone = LsqWeight(weight[channel : channel + 1], 4)
        part = weight[channel : channel + 1].clone().requires_grad_()
        (alone(part) * upstream[channel]).sum().backward()
        assert torch.equal(alone.codes(part)[0][0], codes[channel]) and alone.step == quantizer.step[channel]
        assert torch.equal(part.grad[0], together.grad[channel])
        assert float(quantizer.step.grad[channel]) == pytest.approx(float(alone.step.grad), rel=1e-3, abs=1e-5)
    one_step = LsqWeight(weight, 4)(weight)
    assert (one_step - weight)[0].norm() > 2 * (values.detach() - weight)[0].norm(), "the small channel gains"


def test_a_frozen_weights_step_stays_so_that_opposite_filters_keep_opposite_codes(images):
    model = new_model({"name": "convnet", "widths": [8]})
    models.fit(model, normalise(images))
    prepared = prepare(model, quantize_config(weight_bits=4, activation_bits=4, per_channel=True)).train()
    prepared(normalise(images)).sum().backward()
    learned = {name for name, parameter in prepared.named_parameters() if parameter.grad is not None}
    assert "whiten.quantizer.step" not in learned and "blocks.0.conv1.quantizer.step" in learned
    codes, scale = prepared.whiten.quantizer.codes(prepared.whiten.weight)
    assert torch.equal(codes[:12], -codes[12:]) and torch.equal(scale[:12], scale[12:])


def test_lsq_gradient_does_not_depend_on_the_memory_format():
    x, weights = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5)
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        step = torch.tensor(0.1, requires_grad=True)
        values = _Lsq.apply(x.to(memory_format=memory_format), step, 0, 15, 1.0)
        (values * weights).sum().backward()
        found.append(float(step.grad))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_quantizers_compute_in_float32_under_autocast():
    quantizer = LsqActivation(8, signed=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert quantizer(torch.randn(2, 3, 4, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_binary_weights_are_plus_or_minus_a_scale_per_channel():
    weight = torch.randn(4, 3, 3, 3)
    binary = BinaryWeight(weight).eval()(weight)
    for row, real in zip(binary, weight, strict=True):
        assert torch.allclose(row.abs(), real.abs().mean().expand_as(row))


def test_the_sign_of_zero_is_plus():
    weight = torch.tensor([[1.0, -1.0, 0.5]])
    quantizer = BinaryWeight(weight)
    with torch.no_grad():
        weight[0, 2] = 0.0
    assert quantizer.codes(weight)[0].tolist() == [[1, -1, 1]]


def test_binary_connect_keeps_pruned_weights_at_zero():
    weight = torch.tensor([[0.5, 0.0, -0.5]])
    quantizer = BinaryWeight(weight)
    assert quantizer(weight)[0, 1] == 0
    assert quantizer.codes(weight)[0].tolist() == [[1, 0, -1]]


def test_binary_connect_clips_the_real_weights_while_training():
    weight = nn.Parameter(torch.tensor([[3.0, -2.0, 0.5]]))
    BinaryWeight(weight).train()(weight)
    assert weight.tolist() == [[1.0, -1.0, 0.5]]


def test_evaluating_binary_connect_leaves_the_real_weights_alone(resnet, images):
    prepared = prepare(resnet, quantize_config(method="binary_connect", weight_bits=1)).eval()
    with torch.no_grad():
        prepared.stem.conv.weight[0, 0, 0, 0] = 5.0
    before = copy.deepcopy(prepared.state_dict())
    prepared(normalise(images))
    assert all(torch.equal(before[key], value) for key, value in prepared.state_dict().items())


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_input_codes_floor_the_pixel(bits):
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    quantizer = InputCodes(bits)
    codes = (quantizer(normalise(pixels)) / quantizer.step).long().flatten()
    assert codes.tolist() == [(pixel - 128) >> (8 - bits) for pixel in range(256)]


@pytest.mark.parametrize("spec", [RESNET, DENSENET])
def test_a_prepared_model_computes_what_the_model_did(spec, images):
    model = new_model(spec).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.copy_(module.weight.half())
    prepared = prepare(model, quantize_config(method="half"))
    assert torch.equal(prepared(normalise(images)), model(normalise(images)))


def test_quantizers_at_8_bits_change_logits_little(resnet, images):
    prepared = calibrated(resnet, quantize_config(), images)
    wanted, got = resnet(normalise(images)), prepared(normalise(images))
    assert (got - wanted).square().mean() < 1e-3 * wanted.var()


def test_calibration_brings_the_logits_nearer(resnet, images):
    prepared = prepare(resnet, quantize_config(activation_bits=4))
    wanted = resnet(normalise(images))
    before = (prepared(normalise(images)) - wanted).square().mean()
    calibrate(prepared, images)
    assert (prepared(normalise(images)) - wanted).square().mean() < 0.5 * before


def test_a_branch_is_requantized_once_after_the_addition(resnet):
    prepared = prepare(resnet, quantize_config())
    users = {node.target: next(iter(node.users)) for node in prepared.graph.nodes if node.users}
    assert users["stages.1.0.norm2"].name == "add_1"
    assert users["stages.1.0.shortcut.norm"].target.startswith("activations.")


@pytest.mark.parametrize(("changes", "bits"), [({}, 8), ({"signed_bits": 5}, 5)])
def test_results_without_relu_are_signed_with_bits_of_their_own(changes, bits):
    prepared = prepare(models.build(DENSENET), quantize_config(activation_bits=4, **changes))
    found = [module for module in prepared.modules() if isinstance(module, LsqActivation)]
    # stem, 4 bottlenecks, 1 transition go on without a ReLU
    assert [module.bits for module in found if module.signed] == [bits] * 6
    assert {module.bits for module in found if not module.signed} == {4}


def test_layer_bits_set_single_layers(resnet):
    prepared = prepare(resnet, quantize_config(weight_bits=4, layer_bits={"stem.conv": 8, "classifier": 6}))
    widths = {name: prepared.get_submodule(name).quantizer.bits for name in ("stem.conv", "classifier")}
    assert widths == {"stem.conv": 8, "classifier": 6}
    assert prepared.get_submodule("stages.0.0.conv1").quantizer.bits == 4


@pytest.mark.parametrize(("keep", "bits"), [(True, [8, 1, 8]), (False, [1, 1, 1])])
def test_binary_connect_keeps_first_and_last_layer_by_choice(resnet, keep, bits):
    prepared = prepare(resnet, quantize_config(method="binary_connect", weight_bits=1, keep_first_and_last=keep))
    layers = ("stem.conv", "stages.0.0.conv1", "classifier")
    assert [prepared.get_submodule(name).quantizer.bits for name in layers] == bits


def test_an_unknown_layer_in_layer_bits_is_refused_with_those_there_are(resnet):
    with pytest.raises(QuantizationError, match=r"there is no layer 'stem' in the student \(there are stem\.conv, "):
        prepare(resnet, quantize_config(layer_bits={"stem": 8}))


def test_an_operation_the_format_does_not_know_is_refused_by_name():
    class Net(nn.Module):
        def forward(self, x):
            return torch.exp(x)

    with pytest.raises(QuantizationError, match="exp cannot be packed"):
        prepare(Net(), quantize_config())


def test_a_prepared_model_keeps_plain_parameter_names_and_leaves_the_original_alone(resnet):
    before = copy.deepcopy(resnet.state_dict())
    prepared = prepare(resnet, quantize_config())
    assert set(before) <= set(prepared.state_dict())
    prepared.stem.conv.weight.data.fill_(1.0)
    assert torch.equal(resnet.state_dict()["stem.conv.weight"], before["stem.conv.weight"])


def test_a_copy_for_averaging_keeps_the_spec(resnet):
    assert copy.deepcopy(prepare(resnet, quantize_config())).meta["spec"] == resnet.spec


def test_statistics_are_taken_from_images_as_training_sees_them(images):
    plain = training_batches(images, Augment(crop_padding=0, flip=False), seed=1, batch_size=8)
    assert torch.equal(torch.cat(list(plain)), normalise(images))
    cropped = [torch.cat(list(training_batches(images, Augment(cutmix_alpha=1.0), seed, 8))) for seed in (1, 1, 2)]
    assert torch.equal(cropped[0], cropped[1]) and not torch.equal(cropped[0], cropped[2])
    assert cropped[0].shape == images.shape and not torch.equal(cropped[0], normalise(images))


def test_recalibration_gives_the_mean_statistics_of_the_batches(resnet, images):
    prepared = calibrated(resnet, quantize_config(), images)
    batches = [normalise(images[:8]), normalise(images[8:])]
    recalibrate_batch_norm(prepared, batches)
    with torch.no_grad():
        means = [prepared.stem.conv(prepared.activations.image(batch)).mean((0, 2, 3)) for batch in batches]
    assert torch.allclose(prepared.stem.norm.running_mean, sum(means) / 2, atol=1e-5)
    assert prepared.stem.norm.momentum == 0.1 and not prepared.stem.norm.training


@pytest.mark.parametrize(
    "changes", thinned([{"weight_bits": 2, "activation_bits": 2}, {"method": "binary_connect", "weight_bits": 1}], 2)
)
def test_training_through_the_quantizers_learns(resnet, images, changes):
    prepared = calibrated(resnet, quantize_config(**changes), images).train()
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.3, momentum=0.9)
    few, labels = normalise(images[:4]), torch.arange(4)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(prepared(few), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0]  # the bias of the classifier alone can bring it to log 4 / log 10
