"""Which weights a network has: only plain ones, which are what the network computes with, are worked on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from micronet.training.weights import WeightsError, count_nonzero, count_zeros, plain_weights, positions, prunable


class HalfKept(prune.BasePruningMethod):
    """A pruning method of a user's own."""

    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        return default_mask * (torch.arange(t.numel()).reshape(t.shape) % 2)


class Computed(nn.Conv2d):
    """A convolution whose weight is a tensor that it computes."""

    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        self.source = nn.Parameter(self.weight.detach() / 2)
        del self.weight
        self.weight = self.source * 2


PRUNED = "torch.nn.utils.prune is still on its weight; torch.nn.utils.prune.remove makes it plain"
PARAMETRIZED = (
    "torch.nn.utils.parametrize is still on its weight; "
    "torch.nn.utils.parametrize.remove_parametrizations makes it plain"
)
DISGUISES = {
    "prune": (lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5), PRUNED),
    "prune, a structured method": (lambda layer: prune.ln_structured(layer, "weight", 0.5, n=1, dim=0), PRUNED),
    "prune, twice": (lambda layer: [prune.random_unstructured(layer, "weight", 0.2) for _ in range(2)], PRUNED),
    "prune, a method of one's own": (lambda layer: HalfKept.apply(layer, "weight"), PRUNED),
    "weight_norm": (parametrizations.weight_norm, PARAMETRIZED),
    "spectral_norm": (parametrizations.spectral_norm, PARAMETRIZED),
    "orthogonal": (parametrizations.orthogonal, PARAMETRIZED),
    "a parametrization of one's own": (
        lambda layer: parametrize.register_parametrization(layer, "weight", nn.Identity()),
        PARAMETRIZED,
    ),
    "the older weight_norm": (
        nn.utils.weight_norm,
        "torch.nn.utils.weight_norm is still on its weight; torch.nn.utils.remove_weight_norm makes it plain",
    ),
    "the older spectral_norm": (
        nn.utils.spectral_norm,
        "torch.nn.utils.spectral_norm is still on its weight; torch.nn.utils.remove_spectral_norm makes it plain",
    ),
}


def network(layer: nn.Module | None = None) -> nn.Sequential:
    first = nn.Conv2d(3, 4, 3) if layer is None else layer
    return nn.Sequential(nn.Sequential(first, nn.BatchNorm2d(4)), nn.Flatten(), nn.Linear(3600, 10))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_weight_that_is_made_of_others_is_refused_with_what_takes_that_off(disguise):
    put_on, line = DISGUISES[disguise]
    model = network()
    put_on(model[0][0])
    for work in (plain_weights, prunable, count_zeros, count_nonzero, positions):
        with pytest.raises(WeightsError) as caught:
            work(model)
        assert str(caught.value) == f"0.0: {line}"


def test_the_way_out_of_the_line_works():
    model = network()
    prune.l1_unstructured(model[0][0], "weight", amount=0.5)
    parametrizations.weight_norm(model[2])
    with pytest.raises(WeightsError, match=r"^0\.0: .*\(modules at fault: 2\)$"):
        plain_weights(model)
    prune.remove(model[0][0], "weight")
    parametrize.remove_parametrizations(model[2], "weight")
    plain_weights(model)
    assert count_zeros(model) == (54, 108 + 36000)


def test_what_is_on_a_bias_or_a_norm_is_refused_too():
    model = network()
    prune.l1_unstructured(model[0][1], "bias", amount=1)
    with pytest.raises(WeightsError, match=r"^0\.1: torch.nn.utils.prune is still on its bias"):
        plain_weights(model)
    assert len(prunable(model)) == 2  # whose weights are plain


def test_a_lazy_layer_is_refused_until_it_has_seen_a_batch():
    model = network(nn.LazyConv2d(4, 3))
    for work in (plain_weights, prunable):
        with pytest.raises(WeightsError, match=r"^0\.0: is lazy .*; run a batch of images through the network first$"):
            work(model)
    model(torch.zeros(2, 3, 32, 32))
    plain_weights(model)
    assert [name for name, _ in prunable(model)] == ["0.0", "2"]


def test_a_weight_that_a_layer_computes_for_itself_is_refused():
    with pytest.raises(WeightsError, match=r"^0\.0: its weight is no parameter of its own"):
        prunable(network(Computed()))


def test_the_network_itself_is_named_by_its_type():
    layer = nn.Linear(3, 2)
    prune.l1_unstructured(layer, "weight", amount=1)
    with pytest.raises(WeightsError, match=r"^Linear: torch.nn.utils.prune"):
        plain_weights(layer)


def test_hooks_of_other_kinds_do_not_matter():
    model = network()
    model[0][0].register_forward_pre_hook(lambda module, inputs: None)
    model[2].register_full_backward_hook(lambda module, gradients, results: None)
    plain_weights(model)
    assert len(prunable(model)) == 2


# --- weights with two names ---


def shared() -> nn.Sequential:
    """Three convolutions, of which the last two have one weight: 108 + 144 weights."""
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    layers[2].weight = layers[1].weight
    return nn.Sequential(*layers)


def test_a_weight_that_two_layers_share_counts_once_and_is_used_by_both():
    model = shared()
    assert [name for name, _ in prunable(model)] == ["0", "1"]
    assert count_zeros(model) == (0, 252)
    assert positions(model) == {"0": 1024, "1": 512}  # of two maps of 16 x 16


def test_a_layer_that_is_called_twice_uses_its_weights_twice():
    layer = nn.Conv2d(3, 3, 3, padding=1)
    assert positions(nn.Sequential(layer, layer)) == {"0": 2048}
