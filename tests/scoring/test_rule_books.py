"""Strict and course rules, counted by hand; and that all four rule books are shown, from one list."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from micronet.packed.reference import witness
from micronet.packed.steps.linear import Choice
from micronet.scoring.__main__ import main
from micronet.scoring.books import BOOKS, COURSE
from micronet.scoring.challenge import challenge_bits, challenge_ops, challenge_score
from micronet.scoring.counting import operations
from micronet.scoring.course import course_score
from micronet.scoring.packed_counts import packed_operations
from micronet.scoring.records import Operation, tallied
from micronet.scoring.strict import described_bits, strict_bits, strict_ops, strict_score, strict_work
from micronet.scoring.tables import cost_table, layer_table, score_table
from tests.support.models import RESNET, meta
from tests.support.packed import IMAGES, check_witnessed, conv, hand_made, linear, pool, tiny_files
from tests.support.places import ROOT

PIXELS = IMAGES[:1].numpy()


def mask(*numbers: int) -> np.ndarray:
    return np.array(numbers, bool)


# Strict


@pytest.mark.parametrize(
    ("nonzero", "bits", "blocks", "wanted"),
    [
        # As stored: 12 codes of 3 bits; a bit for each of 12 and 3 codes of 4 bits.
        (mask(*[1] * 12), 3, None, 36),
        (mask(*[1, 0, 0, 0] * 3), 4, (), 12 + 3 * 4),
        # Blocks of 4: 3 bits, 4 in the one block that is not zero, a code of 4 bits: 11. A bit a weight: 12 + 4. A bit
        # for every 2, and both codes of the one pair that is not zero, is the least of those of one level.
        (mask(*[0] * 8, 1, 0, 0, 0), 4, (4,), 6 + 2 * 4),
        # A second level inside of blocks of 2 x 2 in the same way.
        (mask(*[0] * 8, 1, 0, 0, 0), 4, (2, 2), 6 + 2 * 4),
        # Two of 12 side by side, but in no pair of their own: blocks of 3 take 4 + 3 * 4, a bit a weight 12 + 2 * 4.
        (mask(0, 0, 0, 1, 1, *[0] * 7), 4, (3,), 4 + 3 * 4),
        # Of 12 weights of 2 bits 11 are not zero: without a mask they take 24 bits, fewer than 12 + 22.
        (mask(*[1] * 11, 0), 2, (4,), 3 + 12 + 22),
        # Where blocks are zero or without zeros one bit a block is described; the file takes 3 + 4 + 4 * 4.
        (mask(*[0] * 8, 1, 1, 1, 1), 4, (4,), 3 + 4 + 16),
        # So does a last block that the weight does not fill.
        (mask(*[0] * 8, 1, 1), 4, (4,), 3 + 4 + 8),
        # Three values, -1, 0 and 1, stored in 1 bit behind a mask take 2 without one.
        (mask(*[1] * 7, 0), 1, (2,), 4 + 8 + 7),
        # One of 16 at one bit: 16 + 1, or a bit for every 2, 3 or 4 and their codes, which hold a zero, of 2 bits.
        (mask(*[0] * 6, 1, *[0] * 9), 1, (4,), 8 + 2 * 2),
        (mask(*[0] * 15, 1), 1, (4,), 4 + 4 + 1),  # the file; a last block of one weight would take 4 + 1
    ],
)
def test_a_mask_of_several_levels_takes_a_bit_a_weight_and_never_less_than_the_file(nonzero, bits, blocks, wanted):
    assert described_bits(nonzero, bits, blocks) == wanted


def test_a_sum_that_serves_two_channels_counts_twice_and_a_bias_in_32_bits():
    # Codes 3 and 1 on 8-bit pixels, [-128, 127]; the second channel is the first's negative and shares its sum.
    # The first: the product 3 x takes 8 bits and lies in [-384, 381], so the addition of x takes 10; the sum lies in
    # [-512, 508], 10 bits. Alone the second takes two products of 8 bits, as -1 is one too, and an addition of 10.
    # The requantization multiplies by 1 in the sums' 10 and 11 bits, and adds the biases in as many.
    model = hand_made(
        conv([[3, 1, 0], [-3, -1, 0]], factored=True),
        pool(1, 2),
        linear([[1, 0], [0, 1]], [0, 0], 2, (np.zeros(2), np.full(2, 15 * 1024))),
    )
    ops = packed_operations(model)
    first, scaled, pooled, last = ops
    assert first.multiplications == ((8, 1024),) and first.additions == ((10, 1024),)
    assert strict_work(first) == ({8: 3 * 1024}, {10: 2 * 1024})
    assert scaled.multiplications == ((10, 1024),) and dict(scaled.additions) == {10: 1024, 11: 1024}
    assert +strict_work(scaled)[0] == {10: 1024, 11: 1024} and +strict_work(scaled)[1] == {32: 2 * 1024}
    # Sums of 1024 codes of 4 bits: 1023 additions a channel, in 14 bits, in 32 under strict rules.
    assert pooled.additions == ((14, 2 * 1023),) and +strict_work(pooled)[1] == {32: 2 * 1023}
    # The classifier's two biases, added to sums of 15 bits.
    assert last.additions == ((15, 2),) and +strict_work(last)[1] == {32: 2}
    extra = (2 * 8 + 10 + 11) * 1024 + (32 - 10 + 32 - 11) * 1024 + (32 - 14) * 2 * 1023 + (32 - 15) * 2
    assert sum(map(strict_ops, ops)) - sum(map(challenge_ops, ops)) == extra / 32
    check_witnessed(ops, witness(model, PIXELS)[1])


def test_the_mirroring_of_an_image_moves_each_value_by_one_operation_of_one_bit():
    both = np.zeros(2), np.full(2, 15 * 1024)
    last = linear([[1, 0], [0, 1]], [0, 0], 2, both)
    steps = conv([[1, 0, 0], [0, 1, 0]]), pool(1, 2)
    once, twice = (hand_made(*steps, end) for end in (last, replace(last, choice=Choice(margin=9, bits=4))))
    costs = [sum(map(strict_ops, packed_operations(each))) for each in (once, twice)]
    charged = [sum(map(challenge_ops, packed_operations(each))) for each in (once, twice)]
    assert (costs[1] - costs[0]) - (charged[1] - charged[0]) == 3 * 32 * 32 / 32 == 96
    check_witnessed(packed_operations(twice), witness(twice, PIXELS)[1])


def test_strict_rules_charge_more_than_nothing_for_what_is_counted_wider_than_32_bits():
    wide = ((40, 10),)
    op = Operation("a", "requantize", (1, 1, 1), (1, 1, 1), additions=wide, bias_and_pool_additions=wide)
    assert strict_ops(op) == challenge_ops(op) == 40 * 10 / 32
    assert tallied(((32, 5), (32, 7))) == {32: 12}


def test_functions_biases_and_average_pools_of_a_module_are_charged_in_full():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.slopes = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.PReLU(2)
            self.linear = nn.Linear(2, 3)

        def forward(self, x):
            return self.linear(torch.sigmoid(self.slopes(self.norm(torch.relu(self.conv(x))))).mean((2, 3)))

    ops = operations(Net().to("meta"), weight_bits=4, activation_bits=4, accumulator_bits=12)
    extra = {op.name: 32 * (strict_ops(op) - challenge_ops(op)) for op in ops}
    assert {name: bits for name, bits in extra.items() if bits} == {
        "conv": (32 - 12) * 2 * 1024,  # of its three additions an output the bias
        "norm": (32 - 12) * 2 * 1024,  # its shift
        "sigmoid": 3 * 32 * 2 * 1024,  # a lookup counts 1; 4 is the most that the text names for a function
        "sigmoid.pool": (32 - 12) * 2 * 1023,
        "linear": (32 - 12) * 3,
    }
    assert strict_score(ops).params == challenge_score(ops).params


@pytest.mark.parametrize("data", tiny_files(), ids=["one", "mirrored", "cascade", "general", "gated"])
def test_no_file_costs_less_under_strict_rules_than_under_the_challenges(data):
    from micronet.packed.file import decode

    model = decode(data)
    for op in packed_operations(model):
        assert strict_ops(op) >= challenge_ops(op) and strict_bits(op) >= challenge_bits(op)


# Course


def test_the_course_counts_weights_that_are_not_zero_and_all_multiply_accumulates():
    layer = Operation("c", "conv", (4, 10, 10), (3, 10, 10), weights=108, nonzeros=50, weight_bits=3, activation_bits=4)
    folded = Operation("n", "batch_norm", (4, 10, 10), (4, 10, 10), norm_parameters=8, bias_parameters=4)
    # 50 weights of 3 bits; 108 * 100 multiply-accumulates of max(3, 4) bits
    price = course_score([layer, folded])
    assert (price.params, price.ops) == (50 * 3 / 32, 108 * 100 * 4 / 32)
    assert price.score_params == 50 * 3 / 32 / 5.6e6 and price.score_ops == 10_800 * 4 / 32 / 2.8e8
    assert price.score == price.score_params + price.score_ops
    later = replace(layer, network=1, weight_bits=8)
    # of a cascade each network's share of the images: 10,800 * 4 / 32 + a quarter of 10,800 * 8 / 32
    assert course_score([layer, later], (1.0, 0.25)).ops == 1350 + 0.25 * 2700


def test_the_courses_reference_network_is_one_in_each_part_in_round_numbers():
    price = course_score(operations(meta("resnet18")))
    # 555,422,720 multiply-accumulates and 11,164,352 weights, each of 16 of 32 bits
    assert (price.ops, price.params) == (555_422_720 / 2, 11_164_352 / 2)
    assert price.score_ops == pytest.approx(1, abs=0.01) and price.score_params == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("name", "score"), [("refined", 0.0053), ("glance", 0.0013)])
def test_released_files_have_the_known_course_score_in_one_pass(name, score, capsys):
    assert main([str(ROOT / f"release/{name}.safetensors"), "--json"]) == 0
    assert round(json.loads(capsys.readouterr().out)["course"]["score"], 4) == score


# All four


def test_every_table_has_a_column_for_each_rule_book():
    names = [book.name for book in BOOKS]
    assert names == ["deck", "challenge", "strict", "course"]
    ops = operations(meta(RESNET), weight_bits=4, activation_bits=4)
    row = {"network": "x", "parameters": 5, "bits": "4/4", "bytes": 7, "macs": 9}
    from micronet.scoring.references import OF_CIFAR10

    for table, form in (
        (score_table([]), "{}"),
        (cost_table([row], OF_CIFAR10), "{}"),
        (layer_table(ops, "x"), "{} %"),
    ):
        assert [str(column.header) for column in table.columns][-4:] == [form.format(name) for name in names]


def test_the_command_prices_a_packed_file_in_one_pass_of_each_network_by_every_rule_book(capsys, tmp_path):
    path = tmp_path / "joined.safetensors"
    path.write_bytes(tiny_files()[2])
    assert main([str(path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    from micronet.packed.file import read

    ops = operations(read(path))
    for book in BOOKS:
        price = book.score(ops, (1.0, 1.0))
        assert printed[book.name]["score"] == price.score and printed[book.name][book.counts] == price.operations
    assert printed["course"]["score"] == COURSE.score(ops, (1.0, 1.0)).score
    assert main([str(path)]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{book.name}: operations " in text for book in BOOKS)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.safetensors"], 1, "nowhere.safetensors: there is no such file"),
        (["damaged"], 1, "damaged: is truncated, or no safetensors file"),
        (["damaged", "--weight-bits", "4"], 2, "--weight-bits: is of an architecture"),
        (["x" * 5000], 2, "densenet_nano"),
    ],
)
def test_a_packed_file_that_has_no_price_is_one_line(arguments, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    assert main(arguments) == code
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
