"""Which parameters decay, how large a batch is, and what an average of weights is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from micronet.compress.quantization import prepare
from micronet.compress.quantizers import LsqActivation, LsqWeight
from micronet.params import Quantize
from micronet.training.batch_size import find_batch_size
from micronet.training.moving_average import MovingAverage
from micronet.training.optimizers import parameter_groups
from tests.support.configs import MACHINE, train_config
from tests.support.models import new_model, same, weights


def test_weight_decay_spares_norms_and_biases():
    decayed, spared = parameter_groups(new_model(), 1e-3)
    assert decayed["weight_decay"] == 1e-3 and spared["weight_decay"] == 0
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in spared["params"])


def test_weight_decay_spares_the_steps_of_quantizers_also_where_every_channel_has_one():
    quantize = Quantize(weight_bits=4, activation_bits=4, per_channel=True, train=train_config())
    prepared = prepare(new_model(), quantize)
    decayed, spared = parameter_groups(prepared, 1e-3)
    steps = {id(module.step) for module in prepared.modules() if isinstance(module, LsqWeight | LsqActivation)}
    assert steps and steps < {id(parameter) for parameter in spared["params"]}
    layers = [module for module in prepared.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert {id(layer.weight) for layer in layers} == {id(parameter) for parameter in decayed["params"]}


def test_a_given_batch_size_and_its_rate_stay():
    assert find_batch_size(new_model(), train_config(batch_size=32), MACHINE, (500, 3, 32, 32)) == (32, 0.05)


def test_automatic_batch_size_is_128_on_cpu_at_the_given_rate():
    assert find_batch_size(new_model(), train_config(batch_size="auto"), MACHINE, (500, 3, 32, 32)) == (128, 0.05)


@pytest.mark.parametrize(
    ("asked", "images", "found"),
    [
        ({"batch_size": 256}, 100, 100),
        ({"batch_size": "auto"}, 100, 100),
        ({"batch_size": "auto", "max_batch_size": 32}, 500, 32),
    ],
)
def test_no_batch_is_larger_than_all_images_or_than_its_limit(asked, images, found):
    assert find_batch_size(new_model(), train_config(**asked), MACHINE, (images, 3, 32, 32)) == (found, 0.05)


def test_an_average_forgets_its_start_early_and_takes_counts_as_they_are():
    model = nn.BatchNorm2d(1)
    average = MovingAverage(model, decay=0.9)
    with torch.no_grad():
        model.weight.fill_(3.0)
    model.num_batches_tracked.fill_(7)
    average.update(model)
    decay = (1 + 1) / (10 + 1)  # not yet 0.9
    assert torch.allclose(average.model.weight, torch.tensor([decay * 1 + (1 - decay) * 3.0]))
    assert int(average.model.num_batches_tracked) == 7 and not average.model.weight.requires_grad


def test_an_average_that_is_loaded_goes_on_as_the_one_that_was_saved():
    one, two = (MovingAverage(new_model(seed=seed), decay=0.5) for seed in (1, 2))
    one.update(new_model(seed=3))
    two.load(one.state())
    for average in (one, two):
        average.update(new_model(seed=4))
    assert one.steps == two.steps == 2 and same(weights(one.model), weights(two.model))


def test_the_average_of_a_tensor_with_two_names_moves_once_a_step():
    tied, plain = (nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(2))
    tied[1].weight = tied[0].weight
    plain.load_state_dict(tied.state_dict())
    averages = [MovingAverage(model, 0.9) for model in (tied, plain)]
    with torch.no_grad():
        for layer in (tied[0], plain[0], plain[1]):
            layer.weight += 1
    for average, model in zip(averages, (tied, plain), strict=True):
        average.update(model)
    assert same(weights(averages[0].model), weights(averages[1].model))
