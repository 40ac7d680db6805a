"""Tables, products and ends of code ranges in a file: what they cost, and what is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from micronet.compress.quantization import prepare
from micronet.packed.errors import PackedFileError
from micronet.packed.file import decode, encode
from micronet.packed.packing import pack
from micronet.packed.reference import InferenceError, run, witness
from micronet.packed.steps import Input, Pool, Product, Table
from micronet.packed.unpacking import UnpackError, _check_activations
from micronet.scoring.counting import operations
from micronet.scoring.packed_counts import packed_operations
from tests.support.configs import quantize_config
from tests.support.hostile import opened, resigned
from tests.support.images import random_images
from tests.support.networks import Net, after, module
from tests.support.packed import conv, counted, gated_file, hand_made, linear, pool, vector

IMAGES = random_images(8)

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
    quantize = quantize_config(method="half")
    pack(prepare(module(nn.LeakyReLU(0.25)), quantize), tmp_path / "m", quantize=quantize, seen=IMAGES)
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


@pytest.mark.parametrize("function", [F.relu6, F.silu, lambda x: x * torch.sigmoid(x), nn.PReLU(16), lambda x: x + 1])
def test_what_codes_do_not_show_is_not_unpacked(function):
    model = module(function) if isinstance(function, nn.Module) else after(function)
    with pytest.raises(UnpackError, match="cannot be unpacked; ReLUs behind batch norms can"):
        _check_activations(model, hand_made(conv([[1, 0, 0]]), pool(1, 1), linear([[1]], [0], 2, ONE)))


ONE = np.zeros(1), np.full(1, 15 * 1024)
