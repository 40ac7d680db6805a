"""The numpy reference: the packed module's logits, and the operations that the score charges."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies
from hypothesis import settings as hypothesis_settings
from torch import nn

import models
from micronet.data.images import normalise
from micronet.packed import file
from micronet.packed.arithmetic import earlier_products, earlier_rows, work
from micronet.packed.errors import InferenceError
from micronet.packed.model import PackedModel
from micronet.packed.module import load_packed
from micronet.packed.reference import margins, predict, run, witness
from micronet.packed.steps.linear import Choice
from micronet.packed.steps.scaling import Residual
from micronet.packed.sums import Counts, PartialSum, Witness
from micronet.scoring.challenge import challenge_ops, challenge_score
from micronet.scoring.counting import operations
from micronet.scoring.deck import deck_score
from micronet.scoring.packed_counts import packed_operations
from micronet.scoring.records import macs
from tests.support.configs import quantize_config
from tests.support.models import CONVNET, GROUPED_DENSENET, MOBILENET, RESNET
from tests.support.packed import check_witnessed, conv, counted, hand_made, linear, packed_network, pool, vector
from tests.support.thinning import thinned

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 3, 32, 32)).astype(np.uint8)
CASES = [
    (spec, changes, zeros)
    for spec in (RESNET, GROUPED_DENSENET, MOBILENET | {"widths": [8, 16]}, CONVNET | {"widths": [8, 12, 16]})
    for changes, zeros in (
        ({}, 0.0),
        ({"weight_bits": 4, "activation_bits": 4}, 0.8),
        ({"weight_bits": 4, "activation_bits": 4, "signed_bits": 5, "per_channel": True}, 0.8),
        ({"weight_bits": 2, "activation_bits": 3, "input_bits": 4, "factored_sums": False}, 0.5),
        ({"method": "binary_connect", "weight_bits": 1, "activation_bits": 2}, 0.0),
        ({"weight_bits": 3, "activation_bits": 5, "flip_share": 0.4}, 0.9),
    )
    if spec["name"] != "mobilenet"
    or zeros < 0.9  # its depthwise layers die first: every image gets the same answer then
]


def packed_model(spec, changes, zeros, path) -> PackedModel:
    return packed_network(spec, quantize_config(**changes), torch.from_numpy(IMAGES), path, zeros)


@pytest.fixture(scope="module", params=thinned(CASES, 11, lambda case: f"{case[0]['name']}-{case[1]}"))
def case(request, tmp_path_factory) -> Path:
    """The packed file of a case, made once for all tests."""
    path = tmp_path_factory.mktemp("packed") / "m"
    packed_model(*request.param, path)
    return path


@pytest.fixture(scope="module", params=[RESNET, GROUPED_DENSENET], ids=lambda spec: spec["name"])
def plain(request, tmp_path_factory) -> tuple[dict, Path]:
    """An architecture and its packed file with all settings as they are by themselves."""
    path = tmp_path_factory.mktemp("packed") / "m"
    packed_model(request.param, {}, 0.0, path)
    return request.param, path


POOLED = np.zeros(1), np.full(1, 15 * 1024)


def test_logits_equal_those_of_the_packed_module(case):
    model = file.read(case)
    wanted = load_packed(case)(normalise(torch.from_numpy(IMAGES[:12])))
    assert np.array_equal(predict(model, IMAGES[:12], batch_size=5), wanted.numpy())
    assert len(np.unique(wanted)) > 10


@pytest.fixture(scope="module")
def witnessed(case) -> tuple[np.ndarray, list[Counts]]:
    """A case's logits of two images, computed number by number, and what was counted while they were."""
    return witness(file.read(case), IMAGES[:2])


def test_number_by_number_the_logits_are_the_same(case, witnessed):
    assert np.array_equal(run(file.read(case), IMAGES[:2]), witnessed[0])


def test_the_records_equal_the_counters_operation_by_operation(case, witnessed):
    check_witnessed(packed_operations(file.read(case)), witnessed[1])


def stored_bits(model: PackedModel) -> int:
    return sum(record.storage_bits for record in packed_operations(model) if record.rules != "deck")


def test_the_storage_of_all_records_is_the_payload(case):
    model = file.read(case)
    assert stored_bits(model) == model.payload_bits == 8 * (len(case.read_bytes()) - header_bytes(case))


def test_the_storage_of_all_records_of_16_bit_floats_is_the_payload(tmp_path):
    model = packed_model(RESNET, {"method": "half"}, 0.3, tmp_path / "m")
    assert (
        stored_bits(model)
        == model.payload_bits
        == 8 * (len((tmp_path / "m").read_bytes()) - header_bytes(tmp_path / "m"))
    )


def header_bytes(path) -> int:
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_under_deck_rules_the_records_are_the_model_as_designed(plain):
    spec, path = plain
    network = models.build(spec)
    records = [record for record in packed_operations(file.read(path)) if record.rules != "challenge"]
    parameters = sum(record.weights + record.norm_parameters + record.bias_parameters for record in records)
    assert parameters == sum(parameter.numel() for parameter in network.parameters())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert sum(record.kind == "batch_norm" for record in records) == norms


def test_factored_sums_cost_less_and_give_the_same_logits(tmp_path):
    changes = {"weight_bits": 4, "activation_bits": 4}
    costs, logits = [], []
    for factored in (True, False):
        model = packed_model(RESNET, changes | {"factored_sums": factored}, 0.5, tmp_path / "m")
        costs.append(sum(challenge_ops(op) for op in operations(load_packed(tmp_path / "m"))))
        logits.append(predict(model, IMAGES[:4]))
    assert costs[0] < 0.7 * costs[1]
    assert np.array_equal(*logits)


def test_only_images_below_the_margin_are_seen_mirrored_too(tmp_path):
    changes = {"weight_bits": 4, "activation_bits": 4}
    plain = packed_model(CONVNET, changes, 0.5, tmp_path / "plain")
    model = packed_model(CONVNET, changes | {"flip_share": 0.25}, 0.5, tmp_path / "m")
    once, mirrored = (predict(plain, images) for images in (IMAGES, np.ascontiguousarray(IMAGES[..., ::-1])))
    again = margins(once) < model.flip_margin
    assert 6 <= again.sum() < 12  # a quarter of these 24 images set the margin, and some tie
    assert np.array_equal(predict(model, IMAGES), once + again[:, None] * mirrored)
    assert not np.array_equal(once, mirrored)


# Counted by hand


def test_a_convolution_counts_its_non_zero_codes():
    # 3, 0, -2 on 8-bit pixels: sums in [-3 * 128 - 2 * 127, 3 * 127 + 2 * 128]: 11 bits
    model = hand_made(conv([[3, 0, -2]]), pool(1, 1), linear([[1]], [0], 2, POOLED))
    _, counts = witness(model, IMAGES[:1])
    # 1024 positions: 2 products of 8 bits, 1 addition of 11; requantize: 1 product of 11, 1 bias addition of 11
    assert counts[1].multiplications == {8: 2048, 11: 1024}
    assert counts[1].additions == {11: 1024 + 1024}


def test_a_window_counts_the_comparisons_of_its_sums_and_one_requantization():
    rows = conv([[3, 0, -2], [0, 0, 0]], window=2, relu=True)
    both = np.zeros(2), np.full(2, 15 * 256)
    model = hand_made(rows, pool(1, 2, kernel=16), linear([[1, 0]], [0], 2, both))
    logits, counts = witness(model, IMAGES[:1])
    # 1024 sums of 11 bits, of each 4 of which 3 comparisons find the greatest; the second row has nothing to compare
    assert counts[1].multiplications == {8: 2 * 1024, 11: 256}
    assert counts[1].additions == {11: 1024 + 3 * 256 + 256, 32: 2 * 256}
    assert counted(packed_operations(model))["conv"] == (counts[1].multiplications, counts[1].additions)
    pixels = IMAGES[0].astype(int) - 128
    greatest = (3 * pixels[0] - 2 * pixels[2]).reshape(16, 2, 16, 2).max(axis=(1, 3))
    assert logits.tolist() == [[np.clip(greatest, 0, 15).sum()]]


def test_a_channel_without_weights_is_a_constant_and_counts_nothing():
    model = hand_made(conv([[0, 0, 0]], bias=vector(1), bias_bits=2), pool(1, 1), linear([[1]], [0], 2, POOLED))
    logits, counts = witness(model, IMAGES[:1])
    assert not counts[1].multiplications and not counts[1].additions
    assert logits.tolist() == [[1024]]


def test_a_relu_counts_one_an_element():
    plain, with_relu = (
        witness(hand_made(conv([[1, 1, 1]], relu=relu), pool(1, 1), linear([[1]], [0], 2, POOLED)), IMAGES[:1])[1]
        for relu in (False, True)
    )
    assert with_relu[1].additions - plain[1].additions == Counter({32: 1024})


def test_a_factored_sum_multiplies_once_for_equal_weights_and_adds_in_the_width_of_its_inputs():
    # Codes 3, 1, 1, -3 on 0 .. 15: 1 and 1 make 0 .. 30 (5 bits) in an addition of 4 bits; 3 and -3 make -15 .. 15 (5
    # bits) in another, times 3 in 5 bits -45 .. 45 (7 bits); so the last addition has 7 bits.
    low, high = np.zeros(4), np.full(4, 15)
    weight = np.array([[[[3]], [[1]], [[1]], [[-3]]]], np.int8)
    assert work(weight, 1, low, high, 3, factored=True) == ({5: 1}, {4: 2, 7: 1})
    # One by one: four products of 4 bits, sums in -45 .. 75, 8 bits.
    assert work(weight, 1, low, high, 3, factored=False) == ({4: 4}, {8: 3})
    first = conv([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    second = conv([[3, 1, 1, -3]], source=1, name="second", input_range=(low, high), factored=True)
    model = hand_made(first, second, pool(2, 1), linear([[1]], [0], 3, POOLED))
    logits, counts = witness(model, IMAGES[:1])
    assert counts[2].multiplications == {5: 1024, 8: 1024}  # the second is the requantization
    assert counts[2].additions == {4: 2048, 7: 1024, 8: 1024}  # the last is the bias
    one, two, three = (np.clip(IMAGES[0, channel].astype(int) - 128, 0, 15) for channel in range(3))
    four = np.clip(IMAGES[0, 0].astype(int) + IMAGES[0, 1] - 256, 0, 15)
    assert logits[0, 0] == np.clip(3 * one + two + three - 3 * four, 0, 15).sum()


def test_a_lonely_negative_magnitude_takes_a_multiplication_for_its_sign():
    low, high = np.zeros(2), np.full(2, 15)
    assert work(np.array([[-1, -1]], np.int8), 1, low, high, 2, factored=True) == ({5: 1}, {4: 1})
    assert work(np.array([[1, 1]], np.int8), 1, low, high, 2, factored=True) == ({}, {4: 1})
    assert work(np.array([[0, 0]], np.int8), 1, low, high, 2, factored=True) == ({}, {})


def test_a_channel_with_an_earlier_ones_codes_or_their_negatives_is_not_summed_again():
    low, high = np.full(3, -128), np.full(3, 127)
    rows = [[3, 1, 0], [-3, -1, 0], [0, 0, 0], [3, 1, 0], [3, -1, 0]]
    weight = np.array(rows, np.int8)[:, :, None, None]
    assert earlier_rows(weight, 1).tolist() == [0, 0, 2, 0, 4]
    assert earlier_rows(np.array([[2], [2], [-2]], np.int8), 3).tolist() == [0, 1, 2]  # of other groups
    once = work(weight[[0, 4]], 1, low, high, 3, factored=True)
    assert work(weight, 1, low, high, 3, factored=True) == once
    wide = np.zeros(5), np.full(5, 15 * 1024)
    model = hand_made(
        conv(rows, factored=True), pool(1, 5), linear([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]], [0, 0], 2, wide)
    )
    logits, counts = witness(model, IMAGES[:2])
    assert counted(packed_operations(model))["conv"] == (counts[1].multiplications, counts[1].additions)
    pixels = IMAGES[:2].astype(int) - 128
    sums = 3 * pixels[:, 0] + pixels[:, 1]
    assert logits.tolist() == np.stack([np.clip(sign * sums, 0, 15).sum((1, 2)) for sign in (1, -1)], 1).tolist()
    assert np.array_equal(run(model, IMAGES[:2]), logits)


def test_a_second_pass_counts_its_choice_and_its_sum_in_every_pass():
    both = np.zeros(2), np.full(2, 15 * 1024)
    last = linear([[1, 0], [0, 1]], [0, 0], 2, both)
    steps = conv([[1, 0, 0], [0, 1, 0]]), pool(1, 2)
    plain = hand_made(*steps, last)
    model = hand_made(*steps, replace(last, choice=Choice(margin=9, bits=4)))
    (_, before), (_, after) = (witness(each, IMAGES[:1]) for each in (plain, model))
    assert after[3].additions - before[3].additions == Counter({16: 5})  # 3 C - 1; logits of 15 bits, 16 for two
    assert ("margin", 4) in model.steps[-1].storage
    assert counted(packed_operations(model))["linear"] == (after[3].multiplications, after[3].additions)


def test_a_pool_counts_additions_of_its_sums_width():
    model = hand_made(conv([[1, 1, 1]]), pool(1, 1), linear([[1]], [0], 2, POOLED))
    _, counts = witness(model, IMAGES[:1])
    assert counts[2].additions == {14: 1023} and not counts[2].multiplications  # 15 * 1024 has 14 bits


def test_a_linear_layer_counts_products_sums_and_biases():
    # Inputs have 14 bits, codes -2 and 3: sums in [-2 * 15360, 3 * 15360] fit 17 bits.
    both = np.zeros(2), np.full(2, 15 * 1024)
    model = hand_made(conv([[1, 1, 1], [1, 0, 0]]), pool(1, 2), linear([[-2, 3], [0, 0]], [5, 6], 2, both))
    logits, counts = witness(model, IMAGES[:1])
    assert counts[3].multiplications == {14: 2}
    assert counts[3].additions == {17: 2}  # one sum, one bias; the second logit is a constant
    assert logits[0, 1] == 6


def test_a_residual_counts_a_multiplication_and_an_addition():
    first = conv([[1, 0, 0]])
    codes = np.zeros(1), np.full(1, 15)
    second = conv(
        [[1]],
        source=1,
        name="second",
        input_range=codes,
        residual=Residual(value=1, multiplier=3, bits=3),
        shift=vector(1),
    )
    model = hand_made(first, second, pool(2, 1), linear([[1]], [0], 3, POOLED))
    logits, counts = witness(model, IMAGES[:1])
    # Convolution: one 4-bit product; requantize: 5 bits (sum [0, 15]), bias 5; residual: 4 x 3 bits, 6 * 15 has 8 bits
    assert counts[2].multiplications == {4: 1024 + 1024, 5: 1024}
    assert counts[2].additions == {5: 1024, 8: 1024}
    codes = np.clip(IMAGES[0, 0].astype(int) - 128, 0, 15)
    assert logits[0, 0] == np.clip((codes + 6 * codes) >> 1, 0, 15).sum()


def test_requantizing_floors_after_the_bias():
    multiplied = conv(
        [[1, 0, 0]],
        multiplier=vector(5),
        multiplier_bits=4,
        bias=vector(3),
        bias_bits=3,
        shift=vector(4),
        bias_fraction=3,
    )
    logits = run(hand_made(multiplied, pool(1, 1), linear([[1]], [0], 2, POOLED)), IMAGES[:1])
    pixels = IMAGES[0, 0].astype(int) - 128
    assert logits[0, 0] == np.clip(np.floor((pixels * 5 + 6) / 16), 0, 15).sum()


@given(
    codes=strategies.lists(strategies.integers(-127, 127), min_size=1, max_size=30),
    few=strategies.booleans(),
    seed=strategies.integers(0, 2**32 - 1),
)
@hypothesis_settings(deadline=None, max_examples=80)
def test_a_factored_sum_is_the_dot_product_and_its_work_is_counted(codes, few, seed):
    row, generator = np.array(codes, np.int64), np.random.default_rng(seed)
    row = np.sign(row) * (np.abs(row) % 4) if few else row
    ends = np.sort(np.stack([generator.integers(-128, 1, len(row)), generator.integers(0, 128, len(row))]), axis=0)
    inputs = generator.integers(ends[0], ends[1] + 1)[:, None]
    taps = np.flatnonzero(row)
    if not len(taps):
        return
    one = Witness(1, "conv")
    read = [PartialSum(inputs[tap], int(ends[0, tap]), int(ends[1, tap])) for tap in taps]
    assert one.factored(row[taps], read, 3) == [row @ inputs]
    assert (one.counts.multiplications, one.counts.additions) == work(row[None].astype(np.int8), 1, *ends, 3, True)
    assert one.counts.additions.total() == len(taps) - 1
    assert one.counts.multiplications.total() <= len(np.unique(np.abs(row[taps])))


# Refusals


def test_a_sum_that_leaves_its_proven_width_is_noticed():
    with pytest.raises(InferenceError, match="does not fit the 3 bits"):
        Witness(1, "conv").running(np.array([[3], [1]]), 3)
    parts = [PartialSum(np.array([value]), 0, high) for value, high in ((3, 3), (2, 1))]
    with pytest.raises(InferenceError, match=r"lies outside of \[0, 4\]"):
        Witness(1, "conv").tree(parts)


def test_a_half_model_is_refused(tmp_path):
    model = packed_model(RESNET, {"method": "half"}, 0.0, tmp_path / "m")
    with pytest.raises(InferenceError, match="use load_packed"):
        run(model, IMAGES)


def test_images_that_are_not_pixels_are_refused():
    model = hand_made(conv([[1, 1, 1]]), pool(1, 1), linear([[1]], [0], 2, POOLED))
    with pytest.raises(InferenceError, match=r"must be \(N, 3, 32, 32\) uint8"):
        run(model, IMAGES.astype(np.float32))


def test_the_reference_does_not_import_torch():
    code = "import sys, micronet.packed.reference; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_packed_model_has_the_macs_and_deck_flops_of_its_architecture(plain):
    spec, path = plain
    ops = operations(load_packed(path))
    designed = operations(models.build(spec), weight_bits=8)
    assert macs(ops) == macs(designed)
    # 8-bit codes use all their bits, so the deck's operations are the same; parameters differ in the norms' width.
    assert deck_score(ops).flops == deck_score(designed).flops
    assert challenge_score(ops).params == file.read(path).payload_bits / 32


def test_a_product_that_an_earlier_channel_has_is_not_multiplied_again():
    rows = [[3, 1, 0], [-3, -1, 0], [0, 0, 0], [3, 1, 0], [3, 1, 0], [3, -1, 0]]
    multiplier = vector(5, 5, 5, -5, 4, 5)
    factored = conv(rows, factored=True, multiplier=multiplier, multiplier_bits=4, shift=vector(3, 3, 3, 3, 3, 3))
    first, sign = earlier_products(factored)
    assert first.tolist() == [0, 0, 2, 0, 4, 5] and sign.tolist() == [1, -1, 1, -1, 1, 1]
    plain = replace(factored, weights=replace(factored.weights, factored=False))
    for other in (plain, replace(factored, window=2, shape=(6, 16, 16))):  # a window's maxima have no sign
        assert earlier_products(other)[0].tolist() == list(range(6))
    wide = np.zeros(6), np.full(6, 15 * 1024)
    model = hand_made(factored, pool(1, 6), linear([[1, 2, 0, 1, 1, 1], [0, 1, 0, 2, 0, 1]], [0, 0], 2, wide))
    logits, counts = witness(model, IMAGES[:2])
    # sums lie in -512 .. 508, 10 bits, and three of five have a product of their own; a channel of zeros has none
    assert counts[1].multiplications[10] == 3 * 1024
    assert counted(packed_operations(model))["conv"] == (counts[1].multiplications, counts[1].additions)
    pixels = IMAGES[:2].astype(int) - 128
    sums = np.stack([sum(code * pixels[:, at] for at, code in enumerate(row)) for row in rows], 1)
    codes = np.clip((sums * multiplier[:, None, None]) >> 3, 0, 15).sum((2, 3))
    assert logits.tolist() == (codes @ np.array([[1, 2, 0, 1, 1, 1], [0, 1, 0, 2, 0, 1]]).T).tolist()
