"""Networks read whole: one form for every spelling, nothing lost, what would be lost refused in a line."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.ao.nn.quantized import FloatFunctional
from torch.nn.utils import prune

from micronet.compress.errors import QuantizationError
from micronet.compress.graph import read
from micronet.scoring.counting import operations
from tests.support.networks import Net


def kinds(model: nn.Module) -> list[str]:
    return [call.kind for call in read(model).calls.values()]


def priced(model: nn.Module) -> list[tuple[Any, ...]]:
    return [(op.kind, op.output_shape, op.additions, op.multiplications, op.storage_bits) for op in operations(model)]


@cache
def looked_at(model: nn.Module) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Its kinds and its price; a twin has many spellings."""
    return kinds(model), priced(model)


PLAIN = Net(lambda net, x: F.relu(net.b(F.relu(net.a(x)))))


@pytest.mark.parametrize(
    ("model", "twin"),
    [
        (Net(lambda net, x: net.act(net.b(net.act(net.a(x)))), act=nn.ReLU()), PLAIN),
        (Net(lambda net, x: net.act(net.b(net.act(net.a(x)))), act=nn.ReLU(inplace=True)), PLAIN),
        (Net(lambda net, x: F.relu_(net.b(net.a(x).relu_()))), PLAIN),
        (Net(lambda net, x: F.relu(net.b(F.relu(net.a(input=x), inplace=True)))), PLAIN),
        (Net(lambda net, x: net.i(F.relu(net.i(net.b(F.relu(net.a(net.i(x))))))), i=nn.Identity()), PLAIN),
        (Net(lambda net, x: F.relu(net.d(net.b(net.d(F.relu(net.a(x)))))), d=nn.Dropout(0.5)), PLAIN),
        (Net(lambda net, x: F.dropout(F.relu(net.b(F.relu(net.a(x)))), training=net.training)), PLAIN),
        (Net(lambda net, x: F.relu(net.b(F.relu(net.a(x.clone().contiguous()))))), PLAIN),
        (
            Net(lambda net, x: F.relu(torch.add(net.a(x), x, alpha=3))),
            Net(lambda net, x: F.relu(net.a(x) + x * 3)),
        ),
        (Net(lambda net, x: F.relu(net.a(x).sub(x))), Net(lambda net, x: F.relu(net.a(x) + x * -1))),
        (Net(lambda net, x: F.relu(net.a(x)) / 4), Net(lambda net, x: 0.25 * F.relu(net.a(x)))),
        (Net(lambda net, x: F.relu(net.b(x + x))), Net(lambda net, x: F.relu(net.b(x * 2)))),
        (
            Net(lambda net, x: F.relu(net.skip.add(net.a(x), x)), skip=FloatFunctional()),
            Net(lambda net, x: F.relu(net.a(x) + x)),
        ),
        (
            Net(lambda net, x: net.m(net.p(x)), p=nn.AvgPool2d(2), m=nn.MaxPool2d(2, ceil_mode=True)),
            Net(lambda net, x: F.max_pool2d(F.avg_pool2d(x, (2, 2), stride=2), kernel_size=2)),
        ),
        (
            Net(lambda net, x: torch.cat(tensors=[net.a(x), x], dim=-3), width=32),
            Net(lambda net, x: torch.concat((net.a(x), x), 1), width=32),
        ),
    ],
)
def test_every_spelling_of_a_network_is_read_as_one_and_costs_the_same(model, twin):
    (ours, price), (theirs, price_of_twin) = looked_at(model), looked_at(twin)
    assert [op for op in ours if op != "identity"] == theirs
    assert price == price_of_twin


HEADS = [
    lambda net, x: net.fc(x.mean((2, 3))),
    lambda net, x: net.fc(torch.mean(x, dim=[-1, -2])),
    lambda net, x: net.fc(torch.flatten(x.mean((3, 2), keepdim=True), 1)),
    lambda net, x: net.fc(x.mean((2, 3), True).view(-1, 16)),
    lambda net, x: net.fc(x.mean((2, 3), True).view(x.size(0), x.shape[1])),
    lambda net, x: net.fc(F.adaptive_avg_pool2d(x, (1, 1)).reshape(x.size()[0], -1)),
    lambda net, x: net.fc(F.avg_pool2d(x, 32).squeeze()),
    lambda net, x: net.fc(F.avg_pool2d(x, x.size(2)).flatten(start_dim=1)),
    lambda net, x: net.fc(F.avg_pool2d(x, kernel_size=x.shape[-2:]).flatten(1)),
]


@cache
def price_of_a_plain_head() -> list[tuple[Any, ...]]:
    return without_shapes(priced(Net()))


def without_shapes(price: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [(kind, *rest) for kind, _, *rest in price]


@pytest.mark.parametrize("head", HEADS)
def test_every_way_from_a_map_to_logits_costs_the_same(head):
    class Headed(Net):
        def forward(self, x):
            return head(self, F.relu(self.stem(x)))

    assert without_shapes(priced(Headed(lambda net, x: x))) == price_of_a_plain_head()


def test_who_reads_a_value_after_it_was_written_reads_what_was_written():
    def body(net, x):
        x = net.a(x)
        shortcut = x
        y = net.act(x)
        y += net.b(y)
        return y + shortcut  # which was rectified, then added to

    model = Net(body, act=nn.ReLU(inplace=True)).eval()
    images = torch.randn(3, 3, 32, 32)
    wanted = model(images)
    network = read(model)
    assert torch.equal(network.module(images), wanted)
    relu, *_ = (node for node, call in network.calls.items() if call.place == "act")
    written = next(node for node, call in network.calls.items() if call.kind == "add")
    assert relu in written.all_input_nodes
    assert [call.kind for call in network.calls.values()].count("add") == 1, "the second adds the value to itself"
    assert model.act.inplace, "the network stays as it is"


def test_reading_leaves_the_network_and_torchs_random_numbers_alone():
    model = Net(lambda net, x: net.d(net.a(x)), d=nn.Dropout(0.5, inplace=True)).train()
    before, state = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
    network = read(model)
    assert network.module.training and network.module.get_submodule("d").training and model.d.inplace
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_f_dropout_leaves_out_is_left_out_while_the_quantizers_are_trained():
    def body(net, x):
        x = F.dropout2d(net.a(x), 0.25, net.training, inplace=True)
        return F.dropout(x, p=0.5, training=net.training)

    network = read(Net(body).train())
    kept = [part for part in network.module.modules() if isinstance(part, nn.Dropout | nn.Dropout2d)]
    assert [(type(part), part.p, part.training) for part in kept] == [
        (nn.Dropout2d, 0.25, True),
        (nn.Dropout, 0.5, True),
    ]
    assert not network.asks_mode
    assert not any(isinstance(part, nn.Dropout) for part in read(Net(body), shapes_alone=True).module.modules())
    never = read(Net(lambda net, x: F.dropout(net.a(x), 0.5, False)).train())
    assert not any(isinstance(part, nn.Dropout) for part in never.module.modules())


def test_a_forward_that_asks_whether_it_trains_is_known_to_ask():
    network = read(Net(lambda net, x: net.a(x) if net.training else net.a(x).relu()).train())
    assert network.asks_mode and network.module.training
    assert [call.kind for call in network.calls.values()].count("relu") == 2, "that of inference"


def test_arguments_that_have_defaults_are_what_a_call_with_images_leaves_out():
    class Features(Net):
        def forward(self, x, features=False, *more, scale: float = 0.5):
            found = super().forward(x)
            return (found, more) if features else found * scale

    assert kinds(Features()) == [*kinds(Net())[:-1], "scale", "output"]


class Stateful(nn.Module):
    """Gives another result every time."""

    def forward(self, x):
        return x + torch.rand(1)


class Standardised(nn.Conv2d):
    """A convolution of its own arithmetic, under a known class."""

    def forward(self, input):
        return F.conv2d(input, self.weight * 2, self.bias, padding=1)


def with_hook() -> nn.Module:
    model = Net(lambda net, x: net.a(x))
    model.a.register_forward_hook(lambda module, given, result: result * 2)
    return model


def with_forward_of_its_own() -> nn.Module:
    model = Net(lambda net, x: net.a(x))
    model.a.forward = lambda x: x * 2
    return model


def tied() -> nn.Module:
    model = Net(lambda net, x: net.b(net.a(x)))
    model.b[0].weight = model.a[0].weight
    return model


def pruned() -> nn.Module:
    model = Net()
    prune.l1_unstructured(model.stem[0], "weight", amount=0.5)
    return model


def written_by_another_name(net, x):
    flat = x.view(-1, 16 * 32 * 32)
    flat.relu_()
    return net.a(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.DataParallel(Net()), r"^a DataParallel cannot be read, the network in it \(.module\) would work"),
        (with_hook(), "^a: has a forward hook, which may change what it gives"),
        (with_forward_of_its_own(), "^a: its forward was replaced on the object"),
        (tied(), "^b.0.weight: is the parameter a.0.weight too, one for each place would work"),
        (pruned(), "^stem.0: torch.nn.utils.prune is still on its weight; torch.nn.utils.prune.remove"),
        (Net(lambda net, x: net.a(net.a(x))), "^a.0: is used twice, a layer for each place would work"),
        (Net(written_by_another_name), "^relu_: writes into memory that a.0 reads later by another name"),
        (Net(lambda net, x: net.s(x), s=Stateful()), "cannot be traced|computes something else|is not|constant"),
        (Net(lambda net, x: net.s(x), s=Standardised(16, 16, 3)), "^s.weight: a buffer or parameter that is read by"),
        (Net(lambda net, x: x if x.sum() > 0 else -x), "^Net: cannot be traced, its forward fails, or depends on"),
        (Net(lambda net, x: (x - net.mean) / 2, mean=nn.Buffer(torch.zeros(1))), "^mean: a buffer or parameter"),
        (Net(lambda net, x: x * x.size(0)), "^mul: computes with size, a number of images; another number would work"),
        (Net(lambda net, x: x.size(0) + x), "^add: computes with size, a number of images; another number would work"),
        (Net(lambda net, x: x * x.mean(1, True)), "only a mean over height and width is known"),
        (Net(lambda net, x: x * F.avg_pool2d(x, 2)), r"^mul: cannot take what comes to it"),
        (Net(lambda net, x: x + net.b(x.mean((2, 3), keepdim=True))), r"^add: adds \(16, 32, 32\) and \(16, 1, 1\)"),
        (Net(lambda net, x: x.view(-1, 8, 32, 64), width=8), r"^view: makes \(8, 32, 64\) of \(16, 32, 32\)"),
        (
            Net(lambda net, x: x + x.mean((2, 3)).unsqueeze(2).relu().unsqueeze(3)),
            r"^relu_1: gives \(N, 16, 1\), maps",
        ),
        (Net(lambda net, x: torch.cat([x, x], 2)), "^cat: concatenates along another dimension than the channels"),
        (Net(lambda net, x: net.c(x), c=nn.Conv2d(16, 16, 64)), r"^c: cannot take what comes to it, \(16, 32, 32\)"),
        (Net(stem=nn.Conv2d(1, 16, 3)), r"^stem: cannot take what comes to it, \(3, 32, 32\)"),
        (Net().double(), "^Net: its weights are torch.float64, those of model.float\\(\\) would work"),
        (Net(code=nn.Identity()), "^code: this name of a part is taken here"),
        (Net(activations=nn.Identity()), "^activations: this name of a part is taken here"),
    ],
)
def test_what_would_be_read_wrong_is_refused_in_one_line(model, message):
    with pytest.raises(QuantizationError, match=message) as error:
        read(model)
    assert "\n" not in str(error.value) and len(str(error.value)) <= 300


def test_a_network_of_several_results_or_inputs_is_refused():
    class Two(Net):
        def forward(self, x):
            return x, super().forward(x)

    class Both(Net):
        def forward(self, x, y):
            return super().forward(x + y)

    with pytest.raises(QuantizationError, match="gives a tuple, logits"):
        read(Two())
    with pytest.raises(QuantizationError, match="^Both: the model takes more than one input"):
        read(Both())


def test_a_network_that_is_random_is_refused():
    class Noisy(Net):
        def forward(self, x):
            return super().forward(x) * self.factor()

        def factor(self) -> float:
            self.calls = getattr(self, "calls", 0) + 1
            return float(self.calls)

    with pytest.raises(QuantizationError, match="^Noisy: its graph computes something else than the network itself"):
        read(Noisy())
