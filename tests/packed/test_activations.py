"""Activation functions, clamps and products: what is packed computes what the network does, and is charged for it."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet.compress.errors import QuantizationError
from micronet.compress.functions import FUNCTIONS, Ends, Function
from micronet.compress.pointwise import TORCH, computed
from micronet.compress.quantization import prepare
from micronet.compress.quantizers import LsqActivation
from micronet.data.datasets import CLASSES
from micronet.data.images import normalise
from micronet.packed.module import PackedModule, load_packed
from micronet.packed.packing import pack
from micronet.packed.reference import predict, witness
from micronet.packed.steps import Affine, Conv, Linear, Pool, Product, Table
from micronet.packed.steps.table import Applied
from micronet.scoring.counting import operations
from micronet.scoring.packed_counts import packed_operations
from tests.support.configs import quantize_config
from tests.support.hostile import opened
from tests.support.images import random_images
from tests.support.models import calibrated
from tests.support.networks import SqueezeExcite, after, conv_norm, module, settled, small
from tests.support.packed import counted, packed_and_compared
from tests.support.thinning import thinned

IMAGES = random_images(8)
METHODS = {
    "lsq": quantize_config(multiplier_bits=14),
    "few bits": quantize_config(weight_bits=3, activation_bits=3, multiplier_bits=6),
    "binary_connect": quantize_config(method="binary_connect", weight_bits=1, activation_bits=4),
    "half": quantize_config(method="half"),
    "fx_int8": quantize_config(method="fx_int8"),
}


BODIES = {
    "relu6": module(nn.ReLU6(inplace=True)),
    "hard-swish": module(nn.Hardswish()),
    "gelu by its tanh": after(
        lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))
    ),
    "a range about 0": module(nn.Hardtanh(-0.7, 1.9)),
    "one end": after(lambda x: x.clamp(max=1.0)),
    "prelu": module(nn.PReLU(init=0.3)),
    "prelu of channels": module(nn.PReLU(16)),
    "a number added": after(lambda x: F.relu(1 - x * 0.5)),
    "behind a pool": small(lambda net, x: F.silu(F.avg_pool2d(x, 2))),
    "of scales of several maps": small(lambda net, x: F.elu(torch.cat([net.a(x), x], 1), 0.5), width=32),
    "squeeze and excite": small(lambda net, x: net.b(net.s(F.hardswish(net.a(x)))), s=SqueezeExcite()),
    "squeeze by linears": small(lambda net, x: net.s(x), s=SqueezeExcite(True, F.hardsigmoid)),
    "gate and shortcut": small(lambda net, x: F.relu(net.a(x) * torch.sigmoid(net.b(x)) + x)),
    "a norm of a product": small(lambda net, x: F.relu(net.n(net.a(x) * net.b(x))), n=nn.BatchNorm2d(16)),
}


COUNTED = ("behind a pool", "prelu of channels")  # number by number; others by hand, in test_tables


IN_FLOATS = ("relu6", "one end", "prelu", "a number added", "squeeze and excite", "gate and shortcut")


@pytest.mark.parametrize(
    ("method", "body"),
    [*thinned((("lsq", body) for body in BODIES), 3), *thinned((("half", body) for body in IN_FLOATS), 3)],
)
def test_packed_functions_and_products_compute_what_the_network_does(body, method, tmp_path):
    model = settled(BODIES[body], IMAGES)
    packed, got, apart = packed_and_compared(model, METHODS[method], IMAGES, tmp_path / "m")
    if method != "half":
        assert np.array_equal(predict(packed, IMAGES.numpy()), got.numpy())
    if method == "lsq" and body in COUNTED:
        done = {each.name: each for each in witness(packed, IMAGES[:1].numpy())[1]}
        counts = counted(packed_operations(packed))
        assert counts == {name: (done[name].multiplications, done[name].additions) for name in counts}
    stored = sum(record.storage_bits for record in operations(packed) if record.rules != "deck")
    assert stored == packed.payload_bits
    assert apart < {"half": 0.03, "lsq": 0.5}[method]


@pytest.mark.parametrize(("method", "body"), [("binary_connect", "squeeze and excite"), ("few bits", "hard-swish")])
def test_the_integers_of_every_method_are_compared_when_packed(method, body, tmp_path):
    prepared = calibrated(settled(BODIES[body], IMAGES), METHODS[method], IMAGES).eval()
    packed = pack(prepared, tmp_path / "m", quantize=METHODS[method], seen=IMAGES)
    found = PackedModule(packed)(normalise(IMAGES)).numpy()
    assert np.array_equal(predict(packed, IMAGES.numpy()), found)
    assert len(np.unique(found)) > 10


def steps_of(model: nn.Module, tmp_path, method: str = "lsq") -> list:
    torch.manual_seed(0)
    prepared = calibrated(settled(model, IMAGES), METHODS[method], IMAGES).eval()
    packed = pack(prepared, tmp_path / "m", quantize=METHODS[method], seen=IMAGES, class_names=CLASSES)
    return list(packed.steps[2:])  # behind the image and its pool


BACK = [
    lambda g: g.view(-1, 16, 1, 1),
    lambda g: g[:, :, None, None],
    lambda g: g[..., None, None],
    lambda g: g.unsqueeze(-1).unsqueeze(-1),
    lambda g: torch.unsqueeze(g.unsqueeze(2), dim=3),
]


@pytest.mark.parametrize("back", thinned(BACK, 2))
def test_a_vector_becomes_a_map_in_any_spelling(back, tmp_path):
    def body(net, x):
        y = net.a(x)
        y *= back(torch.sigmoid(net.l(x.mean((2, 3)))))
        return y

    steps = steps_of(small(body, l=nn.Linear(16, 16)), tmp_path)
    assert [type(step) for step in steps] == [Conv, Conv, Pool, Conv, Table, Product, Pool, Linear]


def test_a_flattened_map_that_becomes_another_map_is_refused():
    body = small(lambda net, x: net.c(x.flatten(1)[:, :, None, None]), c=nn.Conv2d(256, 16, 1))
    for method in ("lsq", "half"):
        with pytest.raises(QuantizationError, match=r"^getitem: makes \(256, 1, 1\) of a flattened \(16, 4, 4\)"):
            prepare(body, METHODS[method])


HARD_SWISH = [
    lambda x: F.hardswish(x),
    lambda x: x * F.relu6(x + 3) / 6,
    lambda x: x * (F.relu6(3 + x, inplace=True) / 6),
    lambda x: F.hardtanh(x + 3, 0.0, 6.0).mul_(x) * (1 / 6),
    lambda x: torch.clamp(x + 3, 0, 6) * x / 6,
    lambda x: F.hardsigmoid(x) * x,
]


@pytest.fixture(scope="module")
def hard_swish(tmp_path_factory) -> list:
    return steps_of(after(F.hardswish), tmp_path_factory.mktemp("packed"))


@pytest.mark.parametrize("spelled", thinned(HARD_SWISH, 2))
def test_every_spelling_of_a_function_of_one_value_is_one_table_with_the_same_entries(spelled, hard_swish, tmp_path):
    made, wanted = steps_of(after(spelled), tmp_path), hard_swish
    assert [type(step) for step in made] == [Conv, Conv, Table, Conv, Pool, Linear]
    assert np.abs(made[2].entries - wanted[2].entries).max() <= 1


def test_functions_behind_one_another_are_one_table(tmp_path):
    made = steps_of(after(lambda x: 2 * torch.tanh(F.softplus(1.5 * x)) - 1), tmp_path)
    assert [type(step) for step in made] == [Conv, Conv, Table, Conv, Pool, Linear]
    assert made[2].low.max() < 0 < made[2].high.min()


def test_clamps_are_ends_of_a_code_range_and_no_steps(tmp_path):
    for layer in (nn.ReLU6(), nn.Hardtanh(-2, 2), nn.Hardtanh(-0.5, 1.5)):
        assert [type(step) for step in steps_of(module(layer), tmp_path)] == [Conv, Conv, Pool, Linear]


def test_a_network_of_relu6_is_still_of_version_3_and_one_with_ends_of_its_own_or_a_table_of_5(tmp_path):
    versions = {}
    for name, layer in {"relu6": nn.ReLU6(), "about": nn.Hardtanh(-0.5, 1.5), "table": nn.SiLU()}.items():
        steps_of(module(layer), tmp_path)
        versions[name] = opened((tmp_path / "m").read_bytes())[0]["version"]
    assert versions == {"relu6": 3, "about": 5, "table": 5}


@pytest.mark.parametrize("ends", [(0.0, 6.0), (-1.0, 1.0), (-0.5, 2.0), (None, 1.0), (-0.3, None)])
def test_the_code_of_a_cut_value_is_its_code_cut_at_the_ends(ends):
    cut, x = LsqActivation(8, ends[0] != 0, relu=True, ends=Ends(*ends)), torch.linspace(-999, 999, 99901)
    for step in (0.004, 0.03, 0.11, 7.0):
        cut.step.data.fill_(step)
        codes = (torch.clamp(x, *ends) / cut.worth).round().clamp(cut.low, cut.high)
        assert torch.equal(cut.codes(x), codes.long())
        assert (int(codes.min()), int(codes.max())) == cut.edges
        assert torch.equal(cut.eval()(x[None]), (codes * cut.worth)[None])
        if None not in ends:  # no step leaves a code unused
            assert cut.high in (cut.edges[1], -cut.edges[0])


def test_a_packed_table_holds_the_codes_of_the_network_for_every_code_of_its_input(tmp_path):
    prepared = calibrated(settled(module(nn.Mish()), IMAGES), METHODS["lsq"], IMAGES).eval()
    table = next(
        step
        for step in pack(prepared, tmp_path / "m", quantize=METHODS["lsq"], seen=IMAGES).steps
        if isinstance(step, Table)
    )
    quantizers = dict(prepared.named_modules())
    given, result = (quantizers[f"activations.{name}"] for name in ("a_1", "activations_of_f"))
    codes = torch.arange(table.first, table.first + len(table.entries))
    assert len(codes) == 255
    assert torch.equal(torch.from_numpy(table.entries), result.codes(F.mish(codes * given.step.detach())))


def test_a_table_is_as_fine_as_its_output_needs(tmp_path):
    prepared = prepare(module(nn.SiLU()), quantize_config(activation_bits=4))
    assert [part.bits for part in prepared.modules() if isinstance(part, LsqActivation)] == [4, 6, 4]


def test_both_parts_of_a_prelu_per_channel_and_their_sum_have_the_bits_of_results_without_a_relu():
    prepared = prepare(module(nn.PReLU(16)), quantize_config(activation_bits=4, signed_bits=5))
    bits = {name: part.bits for name, part in prepared.named_modules() if isinstance(part, LsqActivation)}
    assert sorted(bits.values()) == [4, 5, 5, 6], bits


@pytest.mark.parametrize("method", thinned(["lsq", "binary_connect", "half", "fx_int8"], 2))
def test_training_through_functions_and_products_learns(method):
    body = "squeeze and excite" if method != "fx_int8" else "hard-swish"
    model = settled(BODIES[body], IMAGES)
    prepared = calibrated(model, METHODS[method], IMAGES).train()
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1, momentum=0.9)
    images, labels, losses = normalise(IMAGES[:4]), torch.arange(4), []
    for _ in range(10):
        loss = F.cross_entropy(prepared(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.96 * losses[0]


def test_the_slopes_of_a_prelu_are_trained_under_their_plain_name_and_packed(tmp_path):
    for layer in (nn.PReLU(), nn.PReLU(16)):
        model = settled(module(layer), IMAGES)
        prepared = calibrated(model, METHODS["lsq"], IMAGES)
        prepared.train()(normalise(IMAGES)).square().sum().backward()
        slopes = dict(prepared.named_parameters())["f.weight"]
        assert slopes.grad.abs().sum() > 0
        with torch.no_grad():
            slopes.fill_(-0.8)
        packed = pack(prepared.eval(), tmp_path / "m", quantize=METHODS["lsq"], seen=IMAGES)
        if layer.num_parameters == 1:
            (table,) = (step for step in packed.steps if isinstance(step, Table))
            assert (table.entries[:100] > 0).all()
        else:
            assert [type(step) for step in packed.steps[3:]] == [Conv, Affine, Affine, Pool, Linear]


@pytest.mark.parametrize("body", ["squeeze and excite", "gate and shortcut", "prelu", "a number added"])
def test_fx_graph_mode_refuses_what_it_does_not_observe(body):
    with pytest.raises(QuantizationError, match="FX graph mode .*, lsq would work"):
        prepare(BODIES[body], METHODS["fx_int8"])


def test_fx_graph_mode_takes_functions_that_it_observes(tmp_path):
    for layer in (nn.Hardswish(), nn.ReLU6()):
        assert len(steps_of(module(layer), tmp_path, "fx_int8")) > 3


def test_a_file_of_floats_stores_no_table_but_a_name_and_its_constants(tmp_path):
    functions = [step for step in steps_of(module(nn.LeakyReLU(0.25)), tmp_path, "half") if isinstance(step, Applied)]
    assert functions[0].function == Function("leaky_relu", (0.25,)) and functions[0].storage == (("constants", 16),)
    functions = [step for step in steps_of(after(F.silu), tmp_path, "half") if isinstance(step, Applied)]
    assert functions[0].function == Function("silu") and functions[0].stored("constants") == 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_what_the_document_says(name):
    x = torch.linspace(-6, 6, 241, dtype=torch.float64)
    relu6 = (x + 3).clamp(0, 6)
    below = {"leaky_relu": 0.7 * x, "elu": 0.7 * x.expm1(), "celu": 0.7 * (x / 0.7).expm1()}
    wanted = {
        "sigmoid": 1 / (1 + (-x).exp()),
        "tanh": x.tanh(),
        "silu": x / (1 + (-x).exp()),
        "gelu": x * (1 + torch.erf(x / math.sqrt(2))) / 2,
        "gelu_tanh": x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
        "mish": x * (1 + x.exp()).log().tanh(),
        "softplus": (1 + x.exp()).log(),
        "erf": torch.erf(x),
        "abs": x.abs(),
        "hard_sigmoid": relu6 / 6,
        "hard_swish": x * relu6 / 6,
        "selu": torch.where(x > 0, 1.0507009873554805 * x, 1.7580993408473766 * x.expm1()),
        "power": x**3,
        "clamp": x.clamp(-0.5, 2),
    } | {key: torch.where(x > 0, x, value) for key, value in below.items()}
    constants = {"power": (3.0,), "clamp": (-0.5, 2.0)}.get(name, (0.7,) * FUNCTIONS[name].constants)
    assert name in TORCH and torch.allclose(computed(Function(name, constants), x), wanted[name], atol=1e-6)


# A whole network


class Block(nn.Module):
    """An inverted residual of MobileNetV3 (Howard et al. 2019, arXiv:1905.02244)."""

    def __init__(self, width: int, hidden: int, stride: int, act: type[nn.Module]):
        super().__init__()
        self.expand = nn.Sequential(*conv_norm(width, hidden, 1), act(inplace=True))
        self.depthwise = nn.Sequential(*conv_norm(hidden, hidden, 5, groups=hidden, stride=stride), act(inplace=True))
        self.squeeze, self.excite = nn.Conv2d(hidden, 4, 1), nn.Conv2d(4, hidden, 1)
        self.project, self.adds = conv_norm(hidden, width, 1), stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))) * y
        y = self.project(y)
        return x + y if self.adds else y


class MobileNetV3(nn.Module):
    """A very small one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(*conv_norm(3, 8, stride=4), nn.Hardswish(inplace=True))
        self.blocks = nn.Sequential(
            Block(8, 16, 1, nn.ReLU), Block(8, 16, 2, nn.Hardswish), Block(8, 16, 1, nn.Hardswish)
        )
        self.head = nn.Sequential(nn.Linear(8, 16), nn.Hardswish(), nn.Dropout(0.1))
        self.classifier = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x)).mean((2, 3))
        return self.classifier(self.head(x))


@pytest.mark.parametrize("method", thinned(["lsq", "half"], 2))
def test_a_network_like_mobilenet_v3_is_trained_pruned_quantized_packed_and_verified(method, tmp_path):
    model = settled(MobileNetV3(), IMAGES)
    quantize = METHODS[method]
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d) and layer.groups == 1:
                layer.weight[layer.weight.abs() < layer.weight.abs().median()] = 0
    prepared = calibrated(model, quantize, IMAGES)
    optimizer = torch.optim.SGD(prepared.train().parameters(), lr=0.01)
    for _ in range(2):
        loss = F.cross_entropy(prepared(normalise(IMAGES)), torch.arange(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    packed = pack(prepared.eval(), tmp_path / "m", quantize=quantize, seen=IMAGES)
    kinds = Counter(type(step) for step in packed.steps)
    assert kinds[Product] == 3 and kinds[Table if method == "lsq" else Applied] == 9
    with torch.no_grad():
        wanted = prepared(normalise(IMAGES)).double()
    got = load_packed(tmp_path / "m")(normalise(IMAGES)).double()
    if method == "lsq":
        assert np.array_equal(predict(packed, IMAGES.numpy()), got.numpy())
        got = got * (packed.logit_scale or 1)
    assert float((got - wanted).norm() / wanted.norm()) < 0.1
    assert operations(model) and operations(model, weight_bits=8, activation_bits=8)
