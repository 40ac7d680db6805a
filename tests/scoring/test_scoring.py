"""Deck and challenge rules: the deck's own numbers, and each kind of operation counted by hand."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

import models
from micronet.scoring import counting
from micronet.scoring.__main__ import main
from micronet.scoring.challenge import challenge_ops, challenge_score
from micronet.scoring.counting import cross_check_macs, operations
from micronet.scoring.deck import deck_score
from micronet.scoring.records import (
    REFERENCE_OPERATIONS,
    REFERENCE_PARAMETERS,
    Operation,
    ScoreError,
    macs,
    nonzero_macs,
)
from micronet.scoring.tables import layer_table, score_table
from tests.support.models import RESNET, meta
from tests.support.thinning import thinned

# name: flops, params, score, MACs (facts: the deck's table)
DECK = {
    "densenet_cifar": (192_701_558, 500_309, 0.3205, 125_341_440),
    "densenet_small": (109_461_590, 284_783, 0.1822, 70_629_696),
    "densenet_tiny": (49_598_006, 129_557, 0.0826, 31_502_208),
    "densenet_nano": (22_675_830, 59_573, 0.0378, 14_075_136),
}
SMALL_DENSENET = {"name": "densenet", "blocks": [2, 1], "growth_rate": 4}


class Net(nn.Module):
    """A module made of the given layers and a forward that is a plain function of (self, x)."""

    def __init__(self, forward, **layers: nn.Module):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def conv_net(nonzeros: list[int], **settings) -> nn.Module:
    """One 3x3 convolution of the image, with this many ones in each output channel's weights."""
    conv = nn.Conv2d(3, len(nonzeros), 3, padding=1, **settings)
    with torch.no_grad():
        conv.weight.zero_()
        for row, count in zip(conv.weight, nonzeros, strict=True):
            row.view(-1)[:count] = 1
    return Net(lambda net, x: net.conv(x), conv=conv)


def by_name(model: nn.Module, **widths) -> dict[str, Operation]:
    return {op.name: op for op in operations(model, **widths)}


# Deck rules


@pytest.mark.parametrize("name", thinned(DECK, 4))
def test_the_deck_table_comes_out_exactly(name):
    ops = operations(meta(name))
    deck = deck_score(ops)
    assert (deck.flops, deck.params, round(deck.score, 4), macs(ops)) == DECK[name]


def test_the_deck_pruned_nano_scores_0_0357():
    torch.manual_seed(0)
    model = models.build("densenet_nano")
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    count = sum(weight.numel() for weight in weights)
    magnitudes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    threshold = magnitudes.kthvalue(round(0.197 * count)).values
    with torch.no_grad():
        for weight in weights:
            weight[weight.abs() <= threshold] = 0
    ops = operations(model)
    deck = deck_score(ops)
    assert (deck.flops, deck.params, round(deck.score, 4)) == (22_675_830, 47_837, 0.0357)
    assert sum(op.nonzeros for op in ops) == count - round(0.197 * count)


def test_the_reference_network_scores_itself_at_2():
    """The original program sums in float32, where numbers of this size step by 64: 834,362,870 becomes 834,362,880."""
    deck = deck_score(operations(meta("resnet18")))
    assert deck.flops == 834_362_870 and deck.params == REFERENCE_PARAMETERS == 5_586_981
    assert torch.tensor(deck.flops, dtype=torch.float32).item() == REFERENCE_OPERATIONS
    assert deck.score == pytest.approx(2, abs=1e-7)


@pytest.mark.parametrize(
    ("op", "flops"),
    [
        # 3 * 3 * 4 = 36 inputs an output: 36 * 16/32 + 35 = 53, for 8 * 5 * 5 outputs
        (Operation("c", "conv", (8, 5, 5), (4, 5, 5), kernel=(3, 3), weight_bits=16), 200 * 53),
        (Operation("c", "conv", (8, 5, 5), (4, 5, 5), kernel=(3, 3), weight_bits=16, bias=True), 200 * 54),
        # 53 / 2 = 26.5 an output, the bias undivided
        (Operation("c", "conv", (8, 5, 5), (4, 5, 5), kernel=(3, 3), groups=2, weight_bits=16, bias=True), 5500),
        # 5 * 1/32 + 4 = 4.15625 for 3 outputs: 12.47 is cut
        (Operation("c", "conv", (3, 1, 1), (5, 1, 1), weight_bits=1), 12),
        (Operation("l", "linear", (10,), (64,), weight_bits=8, bias=True), 10 * (16 + 63)),
        (Operation("n", "batch_norm", (8, 5, 5), (8, 5, 5)), 600),
        (Operation("n", "batch_norm", (8, 5, 5), (8, 5, 5), rules="deck"), 600),
        (Operation("r", "relu", (8, 5, 5), (8, 5, 5)), 0),
        (Operation("a", "add", (8, 5, 5), (8, 5, 5)), 0),
        (Operation("p", "pool", (8, 1, 1), (8, 5, 5)), 0),
        (Operation("q", "requantize", (8, 5, 5), (8, 5, 5), rules="challenge"), 0),
    ],
)
def test_deck_flops_by_hand(op, flops):
    assert deck_score([op]).flops == flops


def test_deck_params_count_every_entry_at_its_own_width_and_sparsity_off_all_of_them():
    ops = [
        Operation("a", "conv", (8, 1, 1), (4, 1, 1), weights=320, nonzeros=240, weight_bits=4),
        Operation("b", "conv", (8, 1, 1), (4, 1, 1), weights=320, nonzeros=80, weight_bits=8),
        Operation("n", "batch_norm", (8, 1, 1), (8, 1, 1), norm_parameters=32, vector_bits=16, rules="deck"),
    ]
    assert deck_score(ops).params == (320 * 4 + 320 * 8 + 32 * 16) // 32 // 2


def test_assumed_weight_bits_scale_every_deck_parameter():
    model = meta(SMALL_DENSENET)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert deck_score(operations(model, weight_bits=8)).params == parameters // 4 > 0


def test_deck_counts_a_folded_batch_norm_and_no_bias_for_it():
    conv = by_name(meta(RESNET))["stem.conv"]
    assert deck_score([conv]).flops == 4 * 1024 * 79 // 2  # 27 * 16/32 + 26 = 39.5 an output
    assert deck_score([by_name(meta(RESNET))["stem.norm"]]).flops == 3 * 4 * 1024


# Challenge rules


def test_n_nonzeros_take_n_multiplications_and_n_minus_1_additions_and_none_take_nothing():
    (op,) = operations(conv_net([5, 0, 1], bias=False))
    assert op.multiplications == ((16, 6 * 1024),) and op.additions == ((32, 4 * 1024),)
    assert (op.weights, op.nonzeros, op.bias) == (81, 6, False)


def test_a_bias_is_one_addition_more_except_where_nothing_is_summed():
    (op,) = operations(conv_net([5, 0, 1], bias=True))
    assert op.multiplications == ((16, 6 * 1024),) and op.additions == ((32, 6 * 1024),)


def test_a_sparse_weight_is_stored_as_nonzeros_and_a_mask():
    (op,) = operations(conv_net([5, 0, 1], bias=False))
    assert op.storage_bits == 6 * 16 + 81


def test_a_dense_weight_is_stored_without_a_mask_and_its_bias_beside_it():
    op = operations(conv_net([27, 27, 26], bias=True), weight_bits=4, vector_bits=16)[0]
    assert op.storage_bits == 81 * 4 + 3 * 16


@pytest.mark.parametrize(
    ("widths", "bits"),
    [
        ({}, 16),  # the freebie
        ({"weight_bits": 32}, 32),
        ({"weight_bits": 8}, 32),  # quantized weights, float activations: no freebie
        ({"weight_bits": 8, "activation_bits": 8}, 8),
        ({"weight_bits": 2, "activation_bits": 4}, 4),
        ({"weight_bits": 8, "activation_bits": 4}, 8),
    ],
)
def test_a_multiplication_costs_its_wider_factor(widths, bits):
    assert operations(conv_net([27]), **widths)[0].multiplications == ((bits, 27 * 1024),)


def test_additions_cost_the_claimed_accumulator():
    op = operations(conv_net([27], bias=False), weight_bits=4, activation_bits=4, accumulator_bits=14)[0]
    assert challenge_ops(op) == 1024 * (27 * 4 + 26 * 14) / 32


def test_a_grouped_convolution_has_a_group_s_inputs_only():
    conv = nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False)
    (op,) = operations(Net(lambda net, x: net.conv(x), conv=conv))
    assert op.multiplications == ((16, 6 * 9 * 1024),) and op.additions == ((32, 6 * 8 * 1024),)
    assert macs([op]) == 6 * 9 * 1024 and op.groups == 3


def test_a_strided_convolution_counts_its_outputs():
    (op,) = operations(conv_net([27], stride=2))
    assert op.output_shape == (1, 16, 16) and op.multiplications == ((16, 27 * 256),)


def test_a_linear_layer_by_hand():
    layer = nn.Linear(3, 10)
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.weight[0] = 0
    op = operations(Net(lambda net, x: net.linear(x.mean((2, 3))), linear=layer))[-1]
    assert (op.kind, op.input_shape, op.output_shape) == ("linear", (3,), (10,))
    assert op.multiplications == ((16, 27),) and op.additions == ((32, 27),)
    assert op.storage_bits == 27 * 16 + 30 + 10 * 16 and nonzero_macs([op]) == 27


def test_relu_add_and_pools_by_hand():
    def forward(net, x):
        halves = F.avg_pool2d(F.relu(x) + x, 2)
        return F.avg_pool2d(halves, kernel_size=(2, 2)).mean((2, 3))

    relu, add, pool, pool_again, mean = operations(Net(forward))
    assert [op.kind for op in (relu, add, pool, mean)] == ["relu", "add", "pool", "pool"]
    assert relu.additions == add.additions == ((32, 3 * 1024),) and not relu.multiplications + add.multiplications
    assert pool.multiplications == ((16, 3 * 256),) and pool.additions == ((32, 3 * 3 * 256),)
    assert pool_again.additions == ((32, 3 * 3 * 64),)
    assert mean.multiplications == ((16, 3),) and mean.additions == ((32, 3 * 63),)
    assert all(op.rules == "challenge" and op.storage_bits == 0 for op in (relu, add, pool, mean))


def test_a_batch_norm_behind_a_convolution_folds_into_its_bias():
    ops = by_name(meta(RESNET))
    conv, norm = ops["stem.conv"], ops["stem.norm"]
    assert conv.additions == ((32, 4 * 27 * 1024),) and conv.storage_bits == 4 * 27 * 16 + 4 * 16
    assert norm.rules == "deck" and norm.norm_parameters == 8
    assert challenge_score([norm]).score == 0


def test_a_batch_norm_behind_a_concatenation_is_a_multiply_add_an_element():
    norm = by_name(meta(SMALL_DENSENET))["blocks.0.1.norm1"]
    assert norm.rules == "both" and norm.output_shape == (12, 32, 32)
    assert norm.multiplications == ((16, 12 * 1024),) and norm.additions == ((32, 12 * 1024),)
    assert norm.storage_bits == 2 * 12 * 16


def test_a_batch_norm_does_not_fold_into_a_convolution_that_others_read_too():
    ops = by_name(meta(SMALL_DENSENET))
    assert ops["blocks.0.0.norm1"].rules == "both"  # the stem's output is concatenated as well
    assert ops["stem.conv"].additions == ((32, 8 * 26 * 1024),)
    assert ops["blocks.0.0.norm2"].rules == "deck"


def test_quantized_convolutions_are_requantized_and_the_logits_are_not():
    ops = by_name(meta(RESNET), weight_bits=4, activation_bits=4, accumulator_bits=20)
    scale = ops["stem.conv.requantize"]
    assert scale.multiplications == ((20, 4 * 1024),) and scale.storage_bits == 4 * 4 and scale.rules == "challenge"
    assert "classifier.requantize" not in ops
    assert not any(op.kind == "requantize" for op in operations(meta(RESNET)))


def test_interleaved_groups_cost_what_contiguous_ones_do():
    spec = SMALL_DENSENET | {"groups": {"bottleneck": 2, "transition": 2}}
    interleaved = spec | {"interleave": {"bottleneck": True, "transition": True}}
    assert operations(meta(interleaved)) == operations(meta(spec))


def test_the_challenge_score_weighs_counts_by_their_bits():
    ops = [
        Operation("a", "conv", (1, 1, 1), (1, 1, 1), multiplications=((4, 80), (8, 8)), additions=((14, 64),)),
        Operation("b", "affine", (1, 1, 1), (1, 1, 1), storage_bits=3200),
        Operation("n", "batch_norm", (1, 1, 1), (1, 1, 1), additions=((32, 5),), storage_bits=7, rules="deck"),
    ]
    score = challenge_score(ops)
    assert score.ops == 10 + 2 + 28 and score.params == 100
    assert score.score_ops == 40 / 834_362_880 and score.score_params == 100 / 5_586_981
    assert score.score == score.score_ops + score.score_params


def test_a_hundred_classes_are_measured_against_the_wide_resnet():
    hundred = challenge_score(operations(meta(RESNET | {"classes": 100})))
    assert hundred.score_ops == hundred.ops / 10.49e9 and hundred.score_params == hundred.params / 36.5e6


# The module side


def test_counting_leaves_the_model_as_it_was():
    model = models.build(RESNET).train()
    model.stages[0].eval()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    operations(model)
    cross_check_macs(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_half_precision_model_counts_like_a_float_one():
    model = models.build(SMALL_DENSENET)
    assert operations(model.half()) == operations(meta(SMALL_DENSENET))


def test_a_maximum_costs_its_comparisons_and_a_constant_factor_a_multiplication():
    ops = {op.name: op for op in operations(meta({"name": "convnet", "widths": [4]}), weight_bits=8, activation_bits=8)}
    assert ops["blocks.0.conv1.max"].additions == ((8, 4 * 15 * 15 * 3),)
    assert ops["classifier.scale"].multiplications == ((32, 10),)
    assert deck_score([ops["blocks.0.conv1.max"], ops["classifier.scale"]]).flops == 0


@pytest.mark.parametrize(
    ("pool", "held"),
    [
        # Of 32 rows and columns: a last window that holds two rows; windows that begin in the padding.
        (lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True), (16, 15 * 3 + 2)),
        (lambda x: F.avg_pool2d(x, 3, 2), (15, 15 * 3)),
        (lambda x: F.avg_pool2d(x, 3, 2, padding=1), (16, 15 * 3 + 2)),
        (lambda x: F.max_pool2d(x, 2, 1, dilation=3), (29, 29 * 2)),
        (lambda x: F.max_pool2d(x, 3, 3, 1), (11, 10 * 3 + 2)),
    ],
)
def test_a_window_costs_what_it_holds(pool, held):
    places, values = held
    (op,) = (op for op in operations(Net(lambda net, x: pool(x))) if op.kind == "pool")
    assert sum(count for _, count in op.additions) == 3 * (values**2 - places**2)


def test_every_parameter_belongs_to_one_operation():
    for spec in (SMALL_DENSENET, RESNET, {"name": "convnet", "widths": [4, 8]}):
        model = meta(spec)
        ops = operations(model)
        counted = sum(op.weights + op.norm_parameters + op.bias_parameters for op in ops)
        assert counted == sum(parameter.numel() for parameter in model.parameters())
        assert len({op.name for op in ops}) == len(ops)


def test_zeros_leave_macs_and_lower_nonzero_macs():
    model = models.build(RESNET)
    with torch.no_grad():
        model.stem.conv.weight[:2] = 0
    ops = operations(model)
    assert macs(ops) - nonzero_macs(ops) == 2 * 27 * 1024 and macs(ops) == macs(operations(meta(RESNET)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Net(lambda net, x: F.softsign(x)), "softsign has no price"),
        (Net(lambda net, x: x / x), "truediv: divides by what is no number, or by 0"),
        (Net(lambda net, x: x.mean(1)), "mean: gives (N, 32, 32), maps (N, C, H, W) or vectors (N, C) would work"),
        (Net(lambda net, x: x.mean((2, 3)).mean(1, True)), "mean_1: only a mean over height and width is known"),
        (Net(lambda net, x: net.act(x), act=nn.Softsign()), "act: the operation Softsign has no price"),
        (Net(lambda net, x: x + x.relu() if x.sum() > 0 else x), "cannot be traced"),
        (Net(lambda net, x: x.relu(), spare=nn.Linear(2, 2)), "6 of 6 parameters belong to no operation"),
        (Net(lambda net, x: net.c(net.c(x)), c=nn.Conv2d(3, 3, 1)), "c: is used twice"),
        (Net(lambda net, x: net.l(x), l=nn.Linear(32, 3)), "l: a linear layer must see one vector an image"),
        ({"name": "densenet_nano"}, "a dict has no price"),
    ],
)
def test_what_has_no_price_is_refused_in_one_line(model, message):
    with pytest.raises(ScoreError) as error:
        operations(model)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("widths", [{"weight_bits": 9}, {"activation_bits": 0}, {"accumulator_bits": 33}])
def test_a_width_that_does_not_exist_is_refused(widths):
    with pytest.raises(ScoreError, match=f"{next(iter(widths))}: must be"):
        operations(conv_net([1]), **widths)


@pytest.mark.parametrize("spec", [RESNET, SMALL_DENSENET, pytest.param("densenet_nano", marks=pytest.mark.slow)])
def test_ptflops_counts_the_same_macs(spec):
    model = models.build(spec)
    assert cross_check_macs(model) == macs(operations(model))


def test_a_difference_to_ptflops_is_an_error(monkeypatch):
    count = macs(operations(meta(RESNET)))
    monkeypatch.setattr(counting, "macs", lambda ops: count + 1)
    with pytest.raises(ScoreError, match=f"ptflops counts {count:,}"):
        cross_check_macs(models.build(RESNET))


# Printed


def test_the_command_prints_all_scores_as_json(capsys):
    assert main(["resnet18", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"deck", "challenge", "strict", "course", "macs"} and printed["macs"] == 555_422_720
    assert set(printed["deck"]) == {"flops", "params", "score_flops", "score_params", "score"}
    assert set(printed["challenge"]) == {"ops", "params", "score_ops", "score_params", "score"}
    assert (printed["deck"]["flops"], printed["deck"]["params"]) == (834_362_870, 5_586_981)


def test_the_command_takes_a_spec_and_widths(capsys):
    arguments = ["--spec", json.dumps(RESNET), "--weight-bits", "4", "--activation-bits", "4", "--json"]
    assert main(arguments) == 0
    ops = operations(meta(RESNET), weight_bits=4, activation_bits=4)
    assert json.loads(capsys.readouterr().out)["challenge"]["score"] == challenge_score(ops).score


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["densenet_pico"], "densenet_nano"),
        ([], "give a name or --spec"),
        (["densenet_nano", "--weight-bits", "9"], "weight_bits: must be 1 to 8, 16 or 32 (got 9)"),
        (["--spec", "{"], "--spec: not JSON"),
        (["--spec", '{"name": "resnet"}'], "blocks: is missing"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def rendered(table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def test_a_spec_that_is_a_name_as_json_is_priced_like_the_name(capsys):
    assert main(["resnet18", "--image", "3", "8", "8"]) == 0
    plain = capsys.readouterr().out
    assert main(["--spec", '"resnet18"', "--image", "3", "8", "8"]) == 0
    assert capsys.readouterr().out == plain


@pytest.mark.parametrize("spec", ["[" * 100_000, '{"name": "\\u001b[2J[/a]"}', '"' + "x" * 100_000 + '"'])
def test_a_hostile_spec_is_one_line_and_exit_code_2(spec, capsys):
    assert main(["--spec", spec]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.strip().isprintable() and len(said) <= 320


def test_names_and_titles_of_the_tables_are_text_and_no_markup():
    (op, *_) = operations(meta(RESNET))
    row = {"stage": "[/b]:star:\x1b"}
    out = io.StringIO()
    console = Console(file=out, width=200)
    console.print(layer_table([replace(op, name="[/a][red]x:star:")], "[/c]\x1b[2J"))
    console.print(score_table([row]))
    for text in ("[/a][red]x:star:", "[/b]:star:\\x1b", "[/c]\\x1b[2J"):
        assert text in out.getvalue()


def test_the_layer_table_has_a_row_an_operation_and_its_shares_make_the_whole():
    ops = operations(meta(RESNET), weight_bits=4, activation_bits=4)
    table = layer_table(ops, "small")
    assert table.row_count == len(ops)
    for column in table.columns[-4:]:
        shares = [float(cell) for cell in column.cells if cell]
        assert math.fsum(shares) == pytest.approx(100, abs=0.005 * len(shares))
    text = rendered(table)
    assert "stages.1.0.shortcut.conv" in text and "4/4/32" in text and "4x32x32" in text


def test_the_score_table_shows_a_stage_a_row():
    row = {"stage": "quantize", "test_accuracy_percent": 90.125, "parameters": 1234567, "nonzero_parameters": 234567}
    row |= {"deck_score": 0.03571, "challenge_score": None, "macs": 14_075_136}
    text = rendered(score_table([row, {"stage": "prune"}]))
    line = next(line for line in text.splitlines() if "quantize" in line)
    for cell in ("90.12 %", "1,234,567", "234,567", "14.08 M", "0.0357"):
        assert cell in line
    assert sum("prune" in line for line in text.splitlines()) == 1
