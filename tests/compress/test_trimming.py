"""Trimming: prices of weights, rows and kernels, the cheapest first, gradients of the quantized weights."""

from __future__ import annotations

import copy
import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import models
from micronet.compress.quantization import prepare
from micronet.compress.trimming import (
    OPERATION_BIT,
    TRIMMED_AFTER,
    Trimming,
    TrimmingError,
    candidates,
    cheapest,
    layer_price,
    weight_prices,
)
from micronet.packed.bits import weight_fields, weight_storage
from micronet.params import Quantize
from micronet.scoring.records import REFERENCE_OPERATIONS, REFERENCE_PARAMETERS
from micronet.training import reporting
from micronet.training.state import ResumeState
from micronet.training.weights import positions, prunable
from tests.support.configs import train_config
from tests.support.failures import StopAt
from tests.support.images import bright_split
from tests.support.models import WIDER, calibrated, new_model, same, weights
from tests.support.thinning import thinned
from tests.support.training import STEPS, train


def section(share: float = 0.3, **changes) -> Quantize:
    config = train_config(**{"epochs": 3, "learning_rate": 0.02, "ema_decay": 0.0} | changes)
    return Quantize(weight_bits=3, activation_bits=4, per_channel=True, trim=share, train=config)


def wide_model(seed: int = 0) -> nn.Module:
    return new_model(WIDER, seed)


def prepared(model: nn.Module, settings: Quantize) -> nn.Module:
    return calibrated(model, settings, bright_split(32).images)


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: module.weight == 0 for name, module in prunable(model)}


# --- prices ---


def test_a_bit_of_an_operation_has_the_rule_books_price():
    assert math.isclose(OPERATION_BIT, REFERENCE_PARAMETERS / REFERENCE_OPERATIONS)


@given(seed=st.integers(0, 2**16), density=st.floats(0.0, 0.6), bits=st.integers(2, 8))
@settings(max_examples=50, deadline=None)
def test_the_price_of_storage_is_that_of_the_packed_file_with_masks_of_kernels_and_rows(seed, density, bits):
    random = np.random.default_rng(seed)
    codes = random.integers(1, 2 ** (bits - 1), (6, 5, 3, 3)) * (random.random((6, 5, 3, 3)) < density)
    stored = sum(len(values) for _, values in weight_fields(codes, bits, (3, 3)))
    assert layer_price(torch.from_numpy(codes != 0), bits) + 6 * 5 == stored  # a bit for each kernel is there anyway


def test_a_weights_price_is_its_code_and_an_addition_a_use():
    ready = prepare(wide_model(), section())
    prices = weight_prices(ready)
    assert math.isclose(prices["stages.0.0.conv1"], 3 + 32 * 32 * 5 * OPERATION_BIT)
    assert math.isclose(prices["classifier"], 3 + 5 * OPERATION_BIT)


@pytest.mark.parametrize("bits", thinned(range(2, 9), 3))
def test_a_code_has_the_bits_that_the_file_stores_it_in(bits):
    settings = section().model_copy(update={"layer_bits": {"classifier": bits}})
    prices = weight_prices(prepare(wide_model(), settings))
    high = 2 ** (bits - 1) - 1
    codes = np.where(np.arange(300) % 9 == 0, np.where(np.arange(300) % 2, -high, high), 0)
    stored, mask = weight_storage(codes)
    assert mask is not None and math.isclose(prices["classifier"], stored + 5 * OPERATION_BIT)


@pytest.mark.parametrize(
    ("changes", "stem", "expand", "project"), [({}, 9, 9, 5), ({"signed_bits": 6, "input_bits": 4}, 5, 7, 5)]
)
def test_a_use_costs_an_addition_as_wide_as_the_codes_that_the_layer_reads(changes, stem, expand, project):
    spec = {"name": "mobilenet", "blocks": [1, 2], "widths": [8, 8]}
    prices = weight_prices(prepare(new_model(spec), section().model_copy(update=changes)))
    widths = {"stem": stem, "stages.1.1.expand": expand, "stages.1.1.project": project}
    uses = positions(new_model(spec))
    for name, bits in widths.items():
        assert math.isclose(prices[name], 3 + uses[name] * bits * OPERATION_BIT), name


def test_weights_that_do_not_train_have_no_price():
    ready = prepare(models.build({"name": "convnet", "widths": [8]}), section())
    assert "whiten" not in weight_prices(ready) and "blocks.0.conv1" in weight_prices(ready)


# --- what goes first ---


def saving(alive: torch.Tensor, gone: torch.Tensor, each: float) -> float:
    return layer_price(alive, each) - layer_price(alive & ~gone, each)


@given(seed=st.integers(0, 2**16), density=st.floats(0.1, 1.0), each=st.floats(2.0, 40.0))
@settings(max_examples=25, deadline=None)
def test_a_candidate_is_the_best_of_the_kernel_its_rows_and_its_weights(seed, density, each):
    generator = torch.Generator().manual_seed(seed)
    alive = torch.rand(2, 3, 3, 3, generator=generator) < density
    saliency = torch.rand(2, 3, 3, 3, generator=generator).double()
    ratio, bits, taken = candidates(saliency, alive, each)
    options = [torch.ones(3, 3, dtype=torch.bool)]
    for row in range(3):
        options.append(torch.arange(3)[:, None].expand(3, 3) == row)
    options += [(torch.arange(9) == cell).reshape(3, 3) for cell in range(9)]
    for index, (value, mask) in enumerate(zip(saliency.reshape(6, 3, 3), alive.reshape(6, 3, 3), strict=True)):
        if not mask.any():
            assert ratio[index] == math.inf
            continue
        gone = taken[index] & mask
        assert math.isclose(float(ratio[index]), float(value[gone].sum() / bits[index]), rel_tol=1e-9)
        # what is promised is saved, or more where the weight was the last one of its row
        assert bits[index] <= saving(mask[None, None], gone[None, None], each) + 1e-9
        best = min(
            float(value[mask & option].sum()) / saving(mask[None, None], (mask & option)[None, None], each)
            for option in options
            if (mask & option).any()
        )
        assert float(ratio[index]) <= best * (1 + 1e-9)


def test_the_last_weight_of_a_kernel_goes_before_an_equal_one_that_has_neighbours():
    alive = torch.zeros(1, 2, 3, 3, dtype=torch.bool)
    alive[0, 0, 0, 0] = True
    alive[0, 1] = True
    saliency = {"conv": torch.where(alive, 1.0, 0.0)}
    saliency["conv"][0, 1, 2, 2] = 5.0  # the layer keeps its most salient weight
    gone = cheapest(saliency, {"conv": alive}, {"conv": 3.0}, 9.0)["conv"]
    assert gone[0, 0, 0, 0] and not gone[0, 1].any()
    assert saving(alive, gone, 3.0) == 9.0  # the code, 3 bits for the rows, 3 for the row's weights


def test_a_weight_that_is_used_more_goes_first():
    alive = {name: torch.ones(1, 4, 1, 1, dtype=torch.bool) for name in ("early", "late")}
    saliency = {name: torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 4, 1, 1) for name in alive}
    gone = cheapest(saliency, alive, {"early": 30.0, "late": 3.0}, 60.0)
    assert gone["early"].flatten().tolist() == [True, True, False, False] and not gone["late"].any()


@given(seed=st.integers(0, 2**16), share=st.floats(0.0, 0.9))
@settings(max_examples=30, deadline=None)
def test_as_much_is_saved_as_was_asked_for_and_no_more_than_a_kernel_beyond(seed, share):
    generator = torch.Generator().manual_seed(seed)
    alive = {
        "conv": torch.rand(8, 8, 3, 3, generator=generator) < 0.3,
        "linear": torch.rand(10, 8, generator=generator) < 0.8,
    }
    before = {name: mask.clone() for name, mask in alive.items()}
    saliency = {name: torch.rand(mask.shape, generator=generator) for name, mask in alive.items()}
    prices = {"conv": 7.0, "linear": 8.0}
    total = sum(layer_price(mask, prices[name]) for name, mask in alive.items())
    gone = cheapest(saliency, alive, prices, share * total)
    assert all(torch.equal(mask, before[name]) for name, mask in alive.items())
    saved = sum(saving(alive[name], mask, prices[name]) for name, mask in gone.items())
    assert share * total <= saved + 1e-6 and saved <= share * total + 9 * 7.0 + 12
    assert all((mask & ~gone[name]).any() for name, mask in alive.items())


def test_every_layer_keeps_its_most_salient_weight_whatever_is_asked_for():
    generator = torch.Generator().manual_seed(0)
    alive = {"conv": torch.ones(4, 4, 3, 3, dtype=torch.bool), "linear": torch.ones(10, 4, dtype=torch.bool)}
    saliency = {name: torch.rand(mask.shape, generator=generator) for name, mask in alive.items()}
    gone = cheapest(saliency, alive, {"conv": 5.0, "linear": 4.0}, 1e9)
    for name, mask in gone.items():
        assert int((~mask).sum()) == 1 and not mask.flatten()[saliency[name].argmax()]


# --- in training ---


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_training_ends_with_the_share_saved_and_zeros_that_hold(ema_decay):
    quantize, model = section(0.3, epochs=2, ema_decay=ema_decay), wide_model()
    with torch.no_grad():
        model.stages[0][0].conv1.weight[0].zero_()
    before, ready = zeros(model), prepared(model, quantize)
    trimming = Trimming(model, ready, quantize)
    codes = {name: module.quantizer.codes(module.weight)[0] for name, module in prunable(ready)}
    start = sum(layer_price(codes[name] != 0, each) for name, each in trimming.prices.items())
    train(ready, quantize.train, constraint=trimming)
    assert 0.69 * start < trimming.price() <= 0.7 * start
    after = zeros(ready)
    assert all(bool((after[name] | ~before[name]).all()) for name in before)
    assert all(bool((after[name] | trimming.masks[name]).all()) for name in before)


def test_the_share_rises_over_the_first_half_and_then_stays():
    quantize, model = section(0.3), wide_model()
    ready = prepared(model, quantize)
    trimming = Trimming(model, ready, quantize)
    prices = []

    class Watch(reporting.Reporter):
        def step(self, **_) -> None:
            prices.append(trimming.price())

    train(ready, quantize.train, constraint=trimming, reporter=Watch())
    done = int(TRIMMED_AFTER * 3 * STEPS)
    assert all(one > other for one, other in itertools.pairwise(prices[:done]))
    assert len(set(prices[done - 1 :])) == 1
    # cubic: after half of the time seven eighths
    assert prices[done // 2 - 1] == pytest.approx(trimming.total * (1 - 0.3 * 7 / 8), rel=0.01)


def test_a_saturated_weight_has_a_squared_gradient_though_it_is_not_moved():
    quantize, model = section(), wide_model()
    ready = prepared(model, quantize).train()
    layer = ready.get_submodule("stages.0.0.conv1")
    with torch.no_grad():
        layer.weight[0, 0, 1, 1] = 50 * layer.quantizer.step[0, 0, 0, 0]
    trimming = Trimming(model, ready, quantize)
    ready(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    assert layer.weight.grad[0, 0, 1, 1] == 0
    assert trimming.squares["stages.0.0.conv1"][0, 0, 1, 1] > 0


def test_a_copys_gradients_do_not_count():
    quantize, model = section(), wide_model()
    ready = prepared(model, quantize).train()
    trimming = Trimming(model, ready, quantize)
    copy.deepcopy(ready)(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert not any(squares.any() for squares in trimming.squares.values())


def test_masks_follow_a_model_that_was_moved_to_another_device():
    quantize, model = section(), wide_model()
    ready = prepared(model, quantize)
    trimming = Trimming(model, ready, quantize)
    trimming.after_step(ready.to("meta"), 1, 1000)
    assert {mask.device.type for mask in trimming.masks.values()} == {"meta"}


def test_weights_are_not_trimmed_when_no_gradient_was_seen():
    quantize, model = section(), wide_model()
    ready = prepared(model, quantize)
    with pytest.raises(TrimmingError, match="no gradient"):
        Trimming(model, ready, quantize).after_step(ready, 10, 100)


def run(ema_decay: float, **more) -> nn.Module:
    quantize, model = section(0.3, epochs=2, ema_decay=ema_decay), wide_model()
    ready = prepared(model, quantize)
    train(ready, quantize.train, constraint=Trimming(model, ready, quantize), **more)
    return ready


@functools.cache
def weights_of_run(ema_decay: float) -> dict[str, torch.Tensor]:
    return weights(run(ema_decay))


@pytest.mark.parametrize(
    ("ema_decay", "where"), thinned([(0.9, (1, 48)), (0.0, (1, 48)), (0.0, (2, 32)), (0.9, (2, 32))], 4)
)
def test_a_trimmed_run_that_was_cut_off_goes_on_as_if_it_had_not(tmp_path, ema_decay, where):
    whole = weights_of_run(ema_decay)
    with ResumeState(tmp_path, "x") as state, pytest.raises(ProcessLookupError):
        run(ema_decay, state=state, reporter=StopAt(*where), save_every_seconds=0.0)
    with ResumeState(tmp_path, "x") as state:
        parts = run(ema_decay, state=state)
    assert same(whole, weights(parts))


def test_what_the_loss_does_not_need_goes_first():
    """A layer's outputs that nothing reads are trimmed before any that are read."""
    quantize, model = section(0.2), wide_model()
    with torch.no_grad():
        model.stages[0][0].conv2.weight[:, :4].zero_()  # half of conv1's channels are not read
    ready = prepared(model, quantize)
    train(ready, quantize.train, constraint=Trimming(model, ready, quantize))
    alive = ~zeros(ready)["stages.0.0.conv1"]
    assert alive[:4].float().mean() < 0.5 * alive[4:].float().mean()
