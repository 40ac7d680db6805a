"""The table of operations: every spelling is known by its kind, what a kind demands is asked of every spelling."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from micronet.compress import methods
from micronet.compress.errors import QuantizationError
from micronet.compress.operations import OPERATIONS, Tracer, kind
from micronet.compress.quantization import prepare
from micronet.params import Quantize
from models.layers import Interleave
from tests.support.configs import quantize_config


class Calls(nn.Module):
    """A network of one call of (its layer, the image)."""

    def __init__(self, call, layer: nn.Module | None = None):
        super().__init__()
        self.call, self.layer = call, layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(self.layer, x)


def through(layer: nn.Module) -> Calls:
    return Calls(lambda layer, x: layer(x), layer)


def kinds(model: nn.Module) -> list[str]:
    """Of its operations, in order, without input and output."""
    graph, modules = Tracer().trace(model), dict(model.named_modules())
    first, *found, last = (kind(node, modules) for node in graph.nodes)
    assert (first, last) == ("input", "output")
    return found


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (through(nn.Conv2d(3, 4, 3)), "conv"),
        (through(nn.Linear(3, 4)), "linear"),
        (through(nn.BatchNorm2d(3)), "norm"),
        (through(nn.ReLU()), "relu"),
        (Calls(lambda _, x: F.relu(x)), "relu"),
        (Calls(lambda _, x: torch.relu(x)), "relu"),
        (Calls(lambda _, x: x.relu()), "relu"),
        (Calls(lambda _, x: x.relu_()), "relu"),
        (Calls(lambda _, x: torch.cat([x, x], 1)), "concat"),
        (Calls(lambda _, x: torch.concat([x, x], 1)), "concat"),
        (through(nn.AvgPool2d(2)), "average"),
        (Calls(lambda _, x: F.avg_pool2d(x, 2)), "average"),
        (through(nn.MaxPool2d(2)), "maximum"),
        (Calls(lambda _, x: F.max_pool2d(x, 2)), "maximum"),
        (through(nn.AdaptiveAvgPool2d(1)), "mean"),
        (Calls(lambda _, x: F.adaptive_avg_pool2d(x, 1)), "mean"),
        (Calls(lambda _, x: torch.mean(x, (2, 3))), "mean"),
        (Calls(lambda _, x: x.mean((2, 3))), "mean"),
        (through(nn.Flatten()), "flatten"),
        (Calls(lambda _, x: torch.flatten(x, 1)), "flatten"),
        (Calls(lambda _, x: x.flatten(1)), "flatten"),
        (through(Interleave(3)), "interleave"),
        (through(nn.Identity()), "identity"),
        (through(nn.Dropout(0.1)), "identity"),
        (Calls(lambda _, x: x * 0.5), "scale"),
        (Calls(lambda _, x: torch.mul(x, 2)), "scale"),
        (Calls(lambda _, x: x.mul(2)), "scale"),
    ],
)
def test_every_spelling_of_an_operation_is_known(model, expected):
    assert kinds(model) == [expected]


@pytest.mark.parametrize(
    "add",
    [lambda x, y: x + y, lambda x, y: torch.add(x, y), lambda x, y: x.add(y), lambda x, y: x.add_(y)],
)
def test_two_different_values_may_be_added_in_any_spelling(add):
    assert kinds(Calls(lambda _, x: add(F.relu(x), x))) == ["relu", "add"]


def test_kinds_have_one_entry_each_and_only_kinds_follow():
    names = [known.kind for known in OPERATIONS]
    assert len(set(names)) == len(names)
    assert {follower for known in OPERATIONS for follower in known.followers} <= set(names)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (through(nn.Conv2d(3, 4, 3, padding="same")), "layer: this padding cannot be packed, a number of zeros"),
        (through(nn.Conv2d(3, 4, 3, padding_mode="reflect")), "layer: this padding cannot be packed"),
        (through(nn.Conv2d(3, 4, 3, dilation=2)), "layer: a dilated convolution cannot be packed, dilation 1"),
        (through(nn.BatchNorm2d(3, affine=False)), "layer: a batch norm cannot be packed without"),
        (through(nn.BatchNorm2d(3, track_running_stats=False)), "layer: a batch norm cannot be packed without"),
        (Calls(lambda _, x: x + 1), "add: adds a constant or one value to itself, two different values would work"),
        (Calls(lambda _, x: x.add(x)), "add: adds a constant or one value to itself"),
        (Calls(lambda _, x: F.relu(x * 0.5)), "mul: a product cannot be packed"),
        (Calls(lambda _, x: x * -1), "mul: a product cannot be packed, one of all logits and a positive number"),
        (through(nn.Tanh()), r"layer: Tanh cannot be packed \(conv2d, "),
        (Calls(lambda _, x: x.tanh()), r"tanh: tanh cannot be packed \(conv2d, "),
        (Calls(lambda _, x: torch.tanh(x)), r"tanh: tanh cannot be packed \(conv2d, "),
    ],
)
def test_what_cannot_be_packed_is_refused_by_name_with_what_would_work(model, message):
    with pytest.raises(QuantizationError, match=f"^{message}") as error:
        kinds(model)
    assert "\n" not in str(error.value)


def test_a_parameter_with_the_name_of_a_method_is_no_call_of_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.cat([x, self.mean])

    with pytest.raises(QuantizationError, match="mean: mean cannot be packed"):
        kinds(Net())


def test_a_model_of_two_inputs_is_refused():
    class Net(nn.Module):
        def forward(self, x, y):
            return torch.cat([x, y], 1)

    with pytest.raises(QuantizationError, match="takes more than one input, a model of images alone would work"):
        prepare(Net(), quantize_config())


def test_a_layer_that_is_used_twice_is_refused():
    layer = nn.Conv2d(3, 3, 1)
    with pytest.raises(QuantizationError, match="^layer: is used twice, a layer for each place would work"):
        prepare(Calls(lambda layer, x: layer(layer(x)), layer), quantize_config())


def test_every_method_of_the_params_has_its_quantizers():
    assert set(methods.METHODS) == set(get_args(Quantize.model_fields["method"].annotation))
