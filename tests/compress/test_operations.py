"""The table of operations: every spelling is known by its kind, what a kind demands is asked of every spelling."""

from __future__ import annotations

import operator
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from micronet.compress import methods
from micronet.compress.errors import QuantizationError
from micronet.compress.operations import OPERATIONS, packable
from micronet.compress.quantization import prepare
from micronet.compress.tracing import Tracer
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
    first, *found, last = (packable(node, modules).kind for node in graph.nodes)
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
        (through(nn.Conv2d(3, 4, (3, 5), (2, 1), "valid", (1, 2))), "conv"),
        (through(nn.Conv2d(3, 4, (2, 3), padding="same", dilation=2)), "conv"),
        (through(nn.BatchNorm1d(3, affine=False)), "norm"),
        (through(nn.MaxPool2d((3, 2), 2, padding=1)), "maximum"),
        (Calls(lambda _, x: F.avg_pool2d(x, 3, (2, 1), 1)), "average"),
        (through(nn.AdaptiveMaxPool2d(1)), "global_maximum"),
        (Calls(lambda _, x: x.amax((2, 3), keepdim=True)), "global_maximum"),
        (Calls(lambda _, x: torch.amax(x, dim=[-1, -2])), "global_maximum"),
        (Calls(lambda _, x: F.adaptive_max_pool2d(x, (1, 1))), "global_maximum"),
        (through(nn.Flatten()), "flatten"),
        (Calls(lambda _, x: torch.flatten(x, 1)), "flatten"),
        (Calls(lambda _, x: x.flatten(1)), "flatten"),
        (through(Interleave(3)), "interleave"),
        (through(nn.Identity()), "identity"),
        (through(nn.Dropout(0.1)), "identity"),
        (Calls(lambda _, x: x * 0.5), "scale"),
        (Calls(lambda _, x: torch.mul(x, 2)), "scale"),
        (Calls(lambda _, x: x.mul(2)), "scale"),
        (Calls(lambda _, x: 2 * x), "scale"),
        (Calls(lambda _, x: x / 2), "scale"),
        (Calls(lambda _, x: torch.div(x, 2)), "scale"),
        (Calls(lambda _, x: F.relu(x, inplace=True)), "relu"),
        (Calls(lambda _, x: F.relu_(x)), "relu"),
        (Calls(lambda _, x: F.max_pool2d(x, (2, 2), stride=[2], padding=(0, 0), dilation=(1, 1))), "maximum"),
        (Calls(lambda _, x: F.avg_pool2d(input=x, kernel_size=2, count_include_pad=False)), "average"),
        (Calls(lambda _, x: torch.mean(input=x, axis=(2, 3), keepdims=True)), "mean"),
        (Calls(lambda _, x: torch.cat(tensors=(x, x), axis=1)), "concat"),
        (Calls(lambda _, x: x.view(-1, 12)), "flatten"),
        (Calls(lambda _, x: x.reshape((2, 6))), "flatten"),
        (Calls(lambda _, x: F.dropout(x, 0.5, training=False)), "identity"),
        (Calls(lambda _, x: x.contiguous(memory_format=torch.channels_last)), "identity"),
        (Calls(lambda layer, x: layer(input=x), nn.Conv2d(3, 4, 3)), "conv"),
    ],
)
def test_every_spelling_of_an_operation_is_known(model, expected):
    assert kinds(model) == [expected]


@pytest.mark.parametrize(
    "add",
    [
        lambda x, y: x + y,
        lambda x, y: torch.add(x, y),
        lambda x, y: torch.add(input=x, other=y, alpha=2),
        lambda x, y: x.add(y),
        lambda x, y: x.add_(other=y),
        lambda x, y: operator.iadd(x, y),
        lambda x, y: x - y,
        lambda x, y: torch.sub(x, y),
    ],
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
        (through(nn.Conv2d(3, 4, (3, 4), padding="same")), "layer: padding='same' of an even kernel pads one side"),
        (
            through(nn.Conv2d(3, 4, 3, padding_mode="reflect")),
            "layer: padding_mode='reflect' cannot be packed",
        ),
        (Calls(lambda _, x: x.mean(())), r"mean: mean: dim=\(\) is not known"),
        (Calls(lambda _, x: x.amax()), r"amax: amax: dim=None is not known"),
        (through(nn.AdaptiveMaxPool2d(2)), "layer: AdaptiveMaxPool2d: output_size=2 is not known, 1 would work"),
        (through(nn.AdaptiveMaxPool2d(1, True)), "layer: AdaptiveMaxPool2d: return_indices=True is not known"),
        (through(nn.BatchNorm2d(3, track_running_stats=False)), "layer: a batch norm cannot be packed without"),
        (Calls(lambda _, x: x + float("inf")), "add: add: what is added is no finite number"),
        (Calls(lambda _, x: x - "1"), "sub: sub: what is added is no finite number"),
        (Calls(lambda _, x: x**-1), "pow_1: pow: the exponent is no whole number from 2 to 8, one of these would"),
        (Calls(lambda _, x: 2**x), "pow_1: pow: input is a constant, a value of the network would work"),
        (Calls(lambda _, x: F.softplus(x, beta=2)), "softplus: softplus: beta=2, threshold=20 are not known, 1 and 20"),
        (Calls(lambda _, x: x.clamp(1, 0)), "clamp: clamp: its ends 1 and 0 are no range, a lower end below the upper"),
        (Calls(lambda _, x: x.clamp(1, 2)), "clamp: a range from 1.0 to 2.0 cannot be packed, one that holds 0 and"),
        (Calls(lambda _, x: x.clamp(x, 2)), "clamp: clamp: an end is no finite number"),
        (Calls(lambda _, x: x * float("nan")), "mul: mul: the factor is no finite number"),
        (Calls(lambda _, x: x / 0), "truediv: truediv: divides by what is no number, or by 0"),
        (Calls(lambda _, x: 1 / x), "truediv: truediv: divides by what is no number"),
        (Calls(lambda _, x: torch.div(x, 2, rounding_mode="floor")), "div: div: rounding_mode='floor' is not known"),
        (Calls(lambda _, x: F.max_pool2d(x, 2, dilation=2)), "max_pool2d: a dilated pool cannot be packed, dilation 1"),
        (
            Calls(lambda _, x: F.avg_pool2d(x, 2, padding=1, count_include_pad=False)),
            "avg_pool2d: avg_pool2d: count_include_pad=False is not known where there is a padding",
        ),
        (Calls(lambda _, x: F.avg_pool2d(x, 2, divisor_override=0)), "avg_pool2d: avg_pool2d: divisor_override=0 is"),
        (through(nn.MaxPool2d(2, return_indices=True)), "layer: MaxPool2d: return_indices=True is not known"),
        (Calls(lambda _, x: x.mean()), "mean: mean: dim=None is not known"),
        (Calls(lambda _, x: x.mean((2, 3), dtype=torch.float64)), "mean: mean: dtype=torch.float64 is not known"),
        (through(nn.AdaptiveAvgPool2d(2)), "layer: AdaptiveAvgPool2d: output_size=2 is not known, 1 would work"),
        (Calls(lambda _, x: F.dropout(x, 0.5)), "dropout: dropout: drops at inference too; nn.Dropout, or"),
        (Calls(lambda _, x: torch.add(x, x, out=x)), "add: add cannot be read here: got an unexpected keyword .*'out'"),
        (through(nn.Softsign()), r"layer: Softsign cannot be packed \(conv2d, "),
        (Calls(lambda _, x: x.exp()), r"exp: exp cannot be packed \(conv2d, "),
        (Calls(lambda _, x: torch.exp(x)), r"exp: exp cannot be packed \(conv2d, "),
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
            self.mean = nn.Parameter(torch.zeros(7, 3, 32, 32))

        def forward(self, x):
            return torch.cat([x, self.mean], 1)

    with pytest.raises(QuantizationError, match="^mean: a buffer or parameter that is read by itself cannot be packed"):
        prepare(Net(), quantize_config())


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
