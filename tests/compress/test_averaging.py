"""Means of networks: the weights are means, the norms' statistics are measured anew."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import prune

from micronet.compress.averaging import AverageError, average
from micronet.compress.errors import QuantizationError
from micronet.data.images import normalise
from micronet.training.weights import WeightsError
from tests.support.images import random_images
from tests.support.models import new_model

IMAGES = random_images(60, 3)
BATCHES = [normalise(part) for part in IMAGES.split(20)]


def new(seed: int, width: int = 8) -> torch.nn.Module:
    return new_model({"name": "mobilenet", "blocks": [1, 1], "widths": [8, width]}, seed)


def test_weights_are_means_and_statistics_are_those_of_the_mean():
    networks = [new(seed) for seed in (1, 2, 3)]
    before = [{name: value.clone() for name, value in network.state_dict().items()} for network in networks]
    mean = average(networks, iter(BATCHES))
    assert not mean.training and mean.spec == networks[0].spec
    for name, value in mean.named_parameters():
        expected = sum(network[name].double() for network in before) / 3
        assert torch.allclose(value.double(), expected, atol=1e-7), name
    seen: list[torch.Tensor] = []
    mean.stem.register_forward_hook(lambda _layer, _inputs, output: seen.append(output.mean((0, 2, 3))))
    with torch.no_grad():
        for batch in BATCHES:
            mean(batch)
    assert torch.allclose(mean.stem_norm.running_mean, torch.stack(seen).mean(0), atol=1e-5)
    for network, state in zip(networks, before, strict=True):
        assert all((network.state_dict()[name] == value).all() for name, value in state.items()), (
            "they stay as they are"
        )


def test_the_mean_of_a_network_and_itself_is_that_network():
    network = new(1)
    network = average([network, network], BATCHES)
    again = average([network, network], BATCHES)
    for name, value in again.state_dict().items():
        assert torch.allclose(value.float(), network.state_dict()[name].float(), atol=1e-6), name


def test_what_has_no_mean_is_refused():
    with pytest.raises(AverageError, match="two checkpoints or more"):
        average([new(1)], BATCHES)
    with pytest.raises(AverageError, match="several architectures"):
        average([new(1), new(1, width=12)], BATCHES)


def test_networks_whose_weights_are_not_plain_or_not_finite_have_no_mean():
    pruned, diverged = new_model(), new_model()
    prune.l1_unstructured(pruned.stem.conv, "weight", amount=0.5)
    with torch.no_grad():
        diverged.stem.conv.weight[0] = torch.nan
    images = [normalise(random_images(4))]
    with pytest.raises(AverageError, match="differ in names or shapes"):
        average([new_model(), pruned], images)
    with pytest.raises(WeightsError, match=r"^stem\.conv: torch.nn.utils.prune is still on its weight"):
        average([pruned, pruned], images)
    with pytest.raises(AverageError, match="not finite"):
        average([new_model(), diverged], images)


def test_a_mean_is_not_measured_without_images():
    with pytest.raises(QuantizationError, match="cannot be estimated without images"):
        average([new_model(), new_model(seed=1)], [])
