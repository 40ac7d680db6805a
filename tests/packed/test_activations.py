"""Activation functions, clamps and products: what is packed computes what the network does, and is charged for it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet.compress.calibration import calibrate
from micronet.compress.errors import QuantizationError
from micronet.compress.functions import FUNCTIONS, Ends, Function
from micronet.compress.pointwise import TORCH, computed
from micronet.compress.quantization import prepare
from micronet.compress.quantizers import LsqActivation
from micronet.data.images import normalise
from micronet.packed.errors import PackedFileError
from micronet.packed.file import decode, encode
from micronet.packed.module import PackedModule, load_packed
from micronet.packed.packing import pack
from micronet.packed.reference import InferenceError, predict, run, witness
from micronet.packed.steps import Affine, Conv, Input, Linear, Pool, Product, Table
from micronet.packed.steps.table import Applied
from micronet.packed.unpacking import UnpackError, _check_activations
from micronet.scoring.counting import operations
from micronet.scoring.packed_counts import packed_operations
from tests.support.configs import quantize_config
from tests.support.hostile import opened, resigned
from tests.support.images import random_images
from tests.support.networks import Net, conv_norm, settled
from tests.support.packed import conv, counted, gated_file, hand_made, linear, pool, vector

IMAGES = random_images(8)
METHODS = {
    "lsq": quantize_config(multiplier_bits=14),
    "few bits": quantize_config(weight_bits=3, activation_bits=3, multiplier_bits=6),
    "binary_connect": quantize_config(method="binary_connect", weight_bits=1, activation_bits=4),
    "half": quantize_config(method="half"),
    "fx_int8": quantize_config(method="fx_int8"),
}


class SqueezeExcite(nn.Module):
    """Of 16 channels; of convolutions or of linear layers."""

    def __init__(self, linears: bool = False, gate=torch.sigmoid):
        super().__init__()
        self.gate = gate
        layers = nn.Linear(16, 4), nn.Linear(4, 16)
        self.layers = nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1])
        if not linears:
            self.layers = nn.Sequential(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.layers(x.mean((2, 3), keepdim=True))).view(-1, 16, 1, 1)


def small(body, **parts) -> Net:
    """A network of maps of 8 x 8."""
    return Net(body, stem=nn.Sequential(nn.AvgPool2d(4), *conv_norm(3, 16)), **parts)


def after(function) -> Net:
    """Two convolutions with their norms, and a function between them."""
    return small(
        lambda net, x: net.b(function(net.a(x))), **({"f": function} if isinstance(function, nn.Module) else {})
    )


def module(layer: nn.Module) -> Net:
    return small(lambda net, x: net.f(net.a(x)), f=layer)


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


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("method", ["lsq", "half"])
def test_the_packed_network_computes_what_the_network_does(body, method, tmp_path):
    quantize, model = METHODS[method], settled(BODIES[body], IMAGES)
    with torch.no_grad():
        wanted = model(normalise(IMAGES)).double()
        prepared = prepare(model, quantize).eval()
        calibrate(prepared, IMAGES)
        packed = pack(prepared, tmp_path / "m", quantize=quantize, seen=IMAGES)
        got = load_packed(tmp_path / "m")(normalise(IMAGES)).double()
    if method != "half":
        assert np.array_equal(predict(packed, IMAGES.numpy()), got.numpy())
        done = {each.name: each for each in witness(packed, IMAGES[:1].numpy())[1]}
        counts = counted(packed_operations(packed))
        assert counts == {name: (done[name].multiplications, done[name].additions) for name in counts}
    stored = sum(record.storage_bits for record in operations(packed) if record.rules != "deck")
    assert stored == packed.payload_bits
    got = got * (got * wanted).sum() / got.square().sum()
    assert float((got - wanted).norm() / (wanted - wanted.mean(0)).norm()) < {"half": 0.03, "lsq": 0.5}[method]


@pytest.mark.parametrize(("method", "body"), [("binary_connect", "squeeze and excite"), ("few bits", "hard-swish")])
def test_the_integers_of_every_method_are_compared_when_packed(method, body, tmp_path):
    prepared = prepare(settled(BODIES[body], IMAGES), METHODS[method]).eval()
    calibrate(prepared, IMAGES)
    packed = pack(prepared, tmp_path / "m", quantize=METHODS[method], seen=IMAGES)
    found = PackedModule(packed)(normalise(IMAGES)).numpy()
    assert np.array_equal(predict(packed, IMAGES.numpy()), found)
    assert len(np.unique(found)) > 10


def steps_of(model: nn.Module, tmp_path, method: str = "lsq") -> list:
    prepared = prepare(settled(model, IMAGES), METHODS[method]).eval()
    calibrate(prepared, IMAGES)
    packed = pack(prepared, tmp_path / "m", quantize=METHODS[method], seen=IMAGES)
    return list(packed.steps[2:])  # behind the image and its pool


HARD_SWISH = [
    lambda x: F.hardswish(x),
    lambda x: x * F.relu6(x + 3) / 6,
    lambda x: x * (F.relu6(3 + x, inplace=True) / 6),
    lambda x: F.hardtanh(x + 3, 0.0, 6.0).mul_(x) * (1 / 6),
    lambda x: torch.clamp(x + 3, 0, 6) * x / 6,
    lambda x: F.hardsigmoid(x) * x,
]


@pytest.mark.parametrize("spelled", HARD_SWISH)
def test_every_spelling_of_a_function_of_one_value_is_one_table_with_the_same_entries(spelled, tmp_path):
    made, wanted = (steps_of(after(each), tmp_path) for each in (spelled, nn.Hardswish()))
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
    prepared = prepare(settled(module(nn.Mish()), IMAGES), METHODS["lsq"]).eval()
    calibrate(prepared, IMAGES)
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


@pytest.mark.parametrize("method", ["lsq", "binary_connect", "half", "fx_int8"])
def test_training_through_functions_and_products_learns(method):
    body = "squeeze and excite" if method != "fx_int8" else "hard-swish"
    model = settled(BODIES[body], IMAGES)
    prepared = prepare(model, METHODS[method]).train()
    calibrate(prepared, IMAGES)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1, momentum=0.9)
    images, labels, losses = normalise(IMAGES), torch.arange(8), []
    for _ in range(15):
        loss = F.cross_entropy(prepared(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_the_slopes_of_a_prelu_are_trained_under_their_plain_name_and_packed(tmp_path):
    for layer in (nn.PReLU(), nn.PReLU(16)):
        model = settled(module(layer), IMAGES)
        prepared = prepare(model, METHODS["lsq"])
        calibrate(prepared, IMAGES)
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
    functions = [step for step in steps_of(after(nn.SiLU()), tmp_path, "half") if isinstance(step, Applied)]
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


# Counted by hand

POOLED = np.zeros(2), np.full(2, 15 * 1024)


def test_a_table_counts_a_lookup_a_value_and_stores_its_entries():
    first = conv([[1, 0, 0], [0, 1, 0]])
    table = Table.over(first, 1, np.arange(16) ** 2 // 15, "table")
    model = hand_made(first, table, pool(2, 2), linear([[1, 2]], [0], 3, POOLED))
    logits, counts = witness(model, IMAGES[:1].numpy())
    assert counts[2].additions == Counter({32: 2 * 1024}) and not counts[2].multiplications
    (record,) = (record for record in packed_operations(model) if record.name == "table")
    assert (record.storage_bits, record.rules, record.kind) == (16 * 4, "challenge", "function")
    assert record.additions == ((32, 2 * 1024),)
    codes = np.clip(IMAGES[0, :2].numpy().astype(int) - 128, 0, 15)
    assert logits[0, 0] == (np.array([1, 2]) @ (codes**2 // 15).sum((1, 2)))


def test_a_product_counts_a_multiplication_of_the_wider_factor_and_a_requantization():
    codes = np.zeros(2), np.full(2, 15)
    first = conv([[1, 0, 0], [0, 1, 0]])
    summed = pool(1, 2)
    product = Product(
        name="product",
        inputs=(1, 2),
        shape=(2, 32, 32),
        low=codes[0].astype(np.int32),
        high=codes[1].astype(np.int32),
        scaling=replace(first.scaling, shift=vector(14, 14)),
    )
    model = hand_made(first, summed, product, pool(3, 2), linear([[1, 2]], [0], 4, POOLED))
    logits, counts = witness(model, IMAGES[:1].numpy())
    # Codes have 4 bits, sums 14; their product is at most 15 * 15360, 18 bits and a sign.
    assert counts[3].multiplications == Counter({14: 2048, 19: 2048})
    assert counts[3].additions == Counter({19: 2048})
    assert counted(packed_operations(model))["product"] == (counts[3].multiplications, counts[3].additions)
    x = np.clip(IMAGES[0, :2].numpy().astype(np.int64) - 128, 0, 15)
    made = np.clip(x * x.sum((1, 2), keepdims=True) >> 14, 0, 15).sum((1, 2))
    assert logits.tolist() == run(model, IMAGES[:1].numpy()).tolist() == [[made[0] + 2 * made[1]]]


@pytest.mark.parametrize(
    ("spelled", "price"),
    [
        (lambda x: torch.sigmoid(x), 3),
        (lambda x: F.silu(x), 4),
        (lambda x: x * torch.sigmoid(x), 4),
        (lambda x: F.hardswish(x), 4),
        (lambda x: F.relu6(x), 1),
        (lambda x: F.leaky_relu(x), 2),
    ],
)
def test_before_training_a_function_has_the_challenges_price_in_floats_and_a_table_in_codes(spelled, price):
    values = 16 * 32 * 32
    plain, model = Net(lambda net, x: x), Net(lambda net, x: spelled(x))

    def cost(each: nn.Module, **widths: int) -> tuple[float, int]:
        ops = operations(each, **widths)
        weighed = sum(bits * n for op in ops for bits, n in (*op.multiplications, *op.additions)) / 32
        return weighed, sum(op.storage_bits for op in ops)

    floats, before = cost(model, activation_bits=32), cost(plain, activation_bits=32)
    assert (floats[0] - before[0], floats[1] - before[1]) == (price * values, 0)
    codes, before = (cost(each, weight_bits=4, activation_bits=4) for each in (model, plain))
    entries = 0 if price == 1 else 63 * 4
    assert (codes[0] - before[0], codes[1] - before[1]) == (values, entries)


def test_every_parameter_of_a_prelu_belongs_to_an_operation():
    for layer in (nn.PReLU(), nn.PReLU(16)):
        for widths in ({}, {"weight_bits": 4, "activation_bits": 4}):
            assert any(op.norm_parameters == layer.num_parameters for op in operations(module(layer), **widths))


# Refusals


def refused(change, match: str, data: bytes | None = None) -> None:
    with pytest.raises(PackedFileError, match=match) as caught:
        decode(resigned(data or gated_file(), change))
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    ("place", "changes", "match"),
    [
        (2, {"entries": [-3, 10]}, r"step 2 \('gate'\): a table of \[-3, 10\], its input's codes ask for \[-3, 11\]"),
        (2, {"entries": [-2, 11]}, r"a table of \[-2, 11\]"),
        (2, {"entries": [-3, 11.0]}, "a table of"),
        (2, {"entries": 11}, "entries: must be two numbers"),
        (2, {"out": [9, 0]}, "out: must be a whole number from 1 to 8"),
        (2, {"from": [1, 1]}, "table takes one value"),
        (6, {"from": [4], "op": "table"}, "a kernel of|256 entries are the most"),
        (3, {"from": [1]}, "a product of 1 maps"),
        (5, {"from": [4, 2]}, r"a product of 2 maps of \[2, 1, 1, 2, 4, 4\]"),
        (3, {"from": [1, 0]}, "a product of 2 maps"),
        (3, {"shape": [3]}, r"vectors of shape \[3\] on 2 channels"),
        (1, {"out": [4, 1, -8, 7]}, "out: must be a whole number from -7 to 0"),
        (1, {"out": [4, 1, 1, 7]}, "out: must be a whole number from -7 to 0"),
        (1, {"out": [4, 0, -1, 7]}, "out: must be a whole number from 0 to 0"),
    ],
)
def test_a_table_a_product_or_a_range_that_does_not_fit_is_refused(place, changes, match):
    refused(lambda header, table, payload: table["steps"][place].update(changes), match)


def test_what_is_of_version_5_is_refused_in_a_file_that_says_3():
    _, ended, gate, gated, *_ = decode(gated_file()).steps
    high = np.full(2, 7, np.int32)
    plain = replace(ended, scaling=replace(ended.scaling, ends=None), low=-high, high=high)
    table = Table.over(plain, 1, np.arange(15), "gate")
    product = replace(gated, inputs=(1, 1), scaling=replace(gated.scaling, residual=None))
    for more, since in (([ended], 5), ([plain, table], 5), ([plain, product], 5), ([plain], 3)):
        summed = Pool.over(more[-1], len(more), pool(0, 2, kernel=4).geometry, "pool")
        last = linear([[1, 2], [0, 1]], [0, 0], len(more) + 1, (summed.low, summed.high))
        data = encode([Input.of(8), *more, summed, last], None, "integer", {})
        assert decode(data).classes == 2 and opened(data)[0]["version"] == since
        if since == 5:
            refused(lambda header, table, payload: header.update(version=3), "is of version 5 of the format", data)


def test_a_product_beyond_32_bits_is_refused():
    image = Pool.over(Input.of(8), 0, pool(0, 3).geometry, "sum")  # 18 bits
    for kernel, fits in ((8, True), (32, False)):
        image = Pool.over(Input.of(8), 0, pool(0, 3, kernel=kernel).geometry, "sum")
        three, zeros = (np.zeros(3, np.int32), np.full(3, 15, np.int32)), vector(0, 0, 0)
        scaling = replace(conv([[1, 0, 0]] * 3).scaling, shift=zeros + 20, bias=zeros)
        product = Product(name="huge", inputs=(1, 1), shape=image.shape, low=three[0], high=three[1], scaling=scaling)
        last = Pool.over(product, 2, pool(0, 3, kernel=32 // kernel).geometry, "last")
        data = [Input.of(8), image, product, last, linear([[1, 2, 3]], [0], 3, (last.low, last.high))]
        if fits:
            assert decode(encode(data, None, "integer", {}))
            continue
        with pytest.raises(PackedFileError, match=r"step 2 \('huge'\): a product needs more than 32 bits"):
            decode(encode(data, None, "integer", {}))


def test_functions_of_floats_are_checked(tmp_path):
    steps_of(module(nn.LeakyReLU(0.25)), tmp_path, "half")
    data = (tmp_path / "m").read_bytes()
    place = next(i for i, row in enumerate(opened(data)[1]["steps"]) if row["op"] == "function")

    def changed(**changes):
        return lambda header, table, payload: table["steps"][place].update(changes)

    refused(changed(function="softsign"), "there is no function 'softsign'", data)
    refused(changed(function=["silu"]), "there is no function", data)
    refused(changed(function="silu"), "constants: must be a whole number from 0 to 0", data)
    refused(changed(constants=0), "constants: must be a whole number from 1 to 1", data)
    refused(changed(function="power"), "power is not defined with its constants", data)
    refused(changed(op="table"), "a table of codes in a file of 16-bit floats", data)
    gated = resigned(gated_file(), lambda header, table, payload: table["steps"][2].update(op="function"))
    with pytest.raises(PackedFileError, match="a function by its name in a file of integers"):
        decode(gated)


def test_a_code_without_an_entry_is_noticed_by_the_reference():
    model = decode(gated_file())
    short = replace(model.steps[2], entries=model.steps[2].entries[:-1])
    with pytest.raises(InferenceError, match="gate: a code has no entry in the table"):
        run(replace(model, steps=(*model.steps[:2], short, *model.steps[3:])), IMAGES.numpy())


@pytest.mark.parametrize("body", ["relu6", "hard-swish", "gate and shortcut", "prelu", "a number added"])
def test_what_codes_do_not_show_is_not_unpacked(body):
    with pytest.raises(UnpackError, match="cannot be unpacked; ReLUs behind batch norms can"):
        _check_activations(BODIES[body], hand_made(conv([[1, 0, 0]]), pool(1, 1), linear([[1]], [0], 2, ONE)))


ONE = np.zeros(1), np.full(1, 15 * 1024)


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


@pytest.mark.parametrize("method", ["lsq", "half"])
def test_a_network_like_mobilenet_v3_is_trained_pruned_quantized_packed_and_verified(method, tmp_path):
    model = settled(MobileNetV3(), IMAGES)
    quantize = METHODS[method]
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d) and layer.groups == 1:
                layer.weight[layer.weight.abs() < layer.weight.abs().median()] = 0
    prepared = prepare(model, quantize)
    calibrate(prepared, IMAGES)
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
