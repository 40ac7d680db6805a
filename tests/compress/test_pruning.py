"""Pruning: schedules as pure functions, exact counts, masks that hold through training."""

from __future__ import annotations

import functools
import itertools
import math
from typing import get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import models
from micronet.compress import pruning
from micronet.compress.pruning import (
    FEEDBACK_STEPS,
    STORAGE_IN_USES,
    FixedMask,
    PruningError,
    PruningSchedule,
    amount_at,
    apply_masks,
    global_masks,
    zeros_wanted,
)
from micronet.params import Prune, Train
from micronet.scoring.counting import operations
from micronet.scoring.records import REFERENCE_OPERATIONS, REFERENCE_PARAMETERS, macs
from micronet.training.reporting import EpochRow, Reporter
from micronet.training.state import ResumeState
from micronet.training.weights import count_zeros, positions, prunable
from tests.support.configs import train_config
from tests.support.failures import StopAt
from tests.support.models import DENSENET, MOBILENET, RESNET, new_model, same, weights
from tests.support.thinning import thinned
from tests.support.training import STEPS, train

METHODS = ("one_shot", "iterative", "gradual", "soft", "feedback")
AMOUNT = 0.37  # of the 448 prunable weights that is 165.76: not a whole number
EPOCHS = 2

amounts = st.floats(0, 1, exclude_max=True)


def config(**changes) -> Train:
    return train_config(**{"epochs": EPOCHS, "learning_rate": 0.1, "weight_decay": 1e-2} | changes)


def section(method: str, **changes) -> Prune:
    train = config(**changes)
    return Prune(method=method, amount=AMOUNT, rounds=2, layer_floor=0.1, train=train)


def wanted(model: nn.Module) -> int:
    return zeros_wanted(AMOUNT, count_zeros(model)[1])


def layers(*sizes: int, seed: int = 0) -> nn.Module:
    """Linear layers of so many weights each."""
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(size, 1) for size in sizes))


# --- schedules ---


@given(
    method=st.sampled_from(METHODS),
    amount=amounts,
    steps=st.integers(1, 60),
    rounds=st.integers(1, 12),
)
@example(method="iterative", amount=0.1, steps=4, rounds=3)
def test_a_schedule_never_falls_and_ends_exactly_at_the_amount(method, amount, steps, rounds):
    shares = [amount_at(method, step, steps, amount=amount, rounds=rounds) for step in range(steps + 1)]
    assert shares == sorted(shares)
    assert 0 <= shares[0] and shares[-1] == amount


def test_every_method_of_the_params_has_a_schedule():
    assert tuple(pruning.METHODS) == METHODS == get_args(Prune.model_fields["method"].annotation)


@pytest.mark.parametrize("method", METHODS)
def test_without_steps_the_whole_amount_is_pruned_at_once(method):
    assert amount_at(method, 0, 0, amount=0.6) == 0.6


@pytest.mark.parametrize("method", ["one_shot", "soft"])
def test_one_shot_and_soft_ask_for_everything_from_the_start(method):
    assert {amount_at(method, step, 10, amount=0.6) for step in range(11)} == {0.6}


def test_iterative_rises_in_equal_rounds_and_the_first_is_at_the_start():
    shares = [amount_at("iterative", step, 8, amount=0.8, rounds=4) for step in range(9)]
    assert shares == pytest.approx([0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8, 0.8])


def test_gradual_is_the_cubic_of_zhu_and_gupta_over_the_first_80_percent():
    shares = [amount_at("gradual", step, 100, amount=0.5) for step in (0, 20, 40, 60, 80, 100)]
    assert shares == pytest.approx([0.5 * (1 - (1 - t) ** 3) for t in (0, 0.25, 0.5, 0.75, 1, 1)])


# --- masks ---


@given(amount=amounts, weights=st.integers(0, 10**7))
def test_zeros_are_the_nearest_whole_number(amount, weights):
    zeros = zeros_wanted(amount, weights)
    assert 0 <= zeros <= weights and abs(zeros - amount * weights) <= 0.5 + 1e-6


@given(amount=amounts, sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5), seed=st.integers(0, 9))
@settings(max_examples=50)
def test_a_mask_has_exactly_the_zeros_wanted_or_says_that_it_cannot(amount, sizes, seed):
    model, total = layers(*sizes, seed=seed), sum(sizes)
    zeros = zeros_wanted(amount, total)
    try:
        masks = global_masks(model, amount)
    except PruningError as error:
        assert zeros > total - len(sizes), "every layer keeps one weight, the rest is free"
        assert f"asks for {zeros} zeros" in str(error) and "\n" not in str(error)
        return
    assert sum(int((~mask).sum()) for mask in masks.values()) == zeros
    assert all(mask.shape == module.weight.shape for module, mask in zip(model, masks.values(), strict=True))


@given(amount=amounts, floor=st.floats(0, 1), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4))
@settings(max_examples=50)
def test_every_layer_keeps_its_floor_and_at_least_one_weight(amount, floor, sizes):
    model = layers(*sizes)
    with torch.no_grad():
        model[0].weight.mul_(1e-3)  # the layer that global pruning would empty first
    try:
        masks = global_masks(model, amount, layer_floor=floor)
    except PruningError:
        assert zeros_wanted(amount, sum(sizes)) > sum(size - max(1, math.ceil(floor * size)) for size in sizes)
        return
    for size, mask in zip(sizes, masks.values(), strict=True):
        assert int(mask.sum()) >= max(1, math.ceil(floor * size))


@given(amount=st.floats(0, 0.9), seed=st.integers(0, 20))
@settings(max_examples=50)
def test_the_smallest_weights_of_the_whole_network_go(amount, seed):
    model = layers(20, 30, seed=seed)
    masks = global_masks(model, amount)
    with torch.no_grad():
        sizes = {name: module.weight.abs() for name, module in prunable(model)}
    gone = torch.cat([size[~masks[name]] for name, size in sizes.items()])
    # Each layer keeps its largest weight, however small it is among the others'.
    free = torch.cat([size[masks[name] & (size < size.max())] for name, size in sizes.items()])
    assert not len(gone) or not len(free) or float(gone.max()) <= float(free.min())


def test_pruning_ranks_across_layers_and_not_within_each():
    model = layers(10, 10)
    with torch.no_grad():
        model[0].weight.copy_(torch.linspace(1, 2, 10))
        model[1].weight.copy_(-torch.linspace(3, 4, 10))
    masks = global_masks(model, 0.4)
    assert int((~masks["0"]).sum()) == 8 and masks["1"].all()


def test_equal_weights_are_pruned_by_position_and_still_exactly():
    model = layers(10)
    nn.init.ones_(model[0].weight)
    mask = global_masks(model, 0.5)["0"].flatten()
    assert int(mask.sum()) == 5
    assert torch.equal(mask, global_masks(model, 0.5)["0"].flatten())
    gone = (~mask).nonzero().flatten().tolist()
    assert gone == list(range(gone[0], gone[0] + 5))


def test_a_cost_exponent_takes_more_from_layers_whose_weights_are_used_more_often():
    model, kept = new_model(RESNET), []
    uses = positions(model)
    for exponent in (0.0, 0.25, 0.5):
        masks = global_masks(model, 0.5, cost_exponent=exponent)
        assert sum(int((~mask).sum()) for mask in masks.values()) == zeros_wanted(0.5, count_zeros(model)[1])
        kept.append(sum(uses[name] * int(mask.sum()) for name, mask in masks.items()))
    assert kept == sorted(kept, reverse=True) and kept[2] < 0.9 * kept[0]


def test_within_a_layer_a_cost_exponent_changes_no_order():
    model = new_model(RESNET)
    with torch.no_grad():
        for name, mask in global_masks(model, 0.5, cost_exponent=0.5).items():
            size = model.get_submodule(name).weight.abs()
            assert mask.all() or size[~mask].max() <= size[mask].min()


def test_the_cost_of_storage_is_the_rule_books():
    stored = 4 / 32 / REFERENCE_PARAMETERS
    used = (4 + 14) / 32 / REFERENCE_OPERATIONS
    assert stored / used == pytest.approx(STORAGE_IN_USES, abs=0.5)


@pytest.mark.parametrize("spec", [DENSENET, MOBILENET, pytest.param("densenet_nano", marks=pytest.mark.slow)])
def test_uses_times_weights_are_the_macs(spec):
    model = models.build(spec)
    uses = positions(model)
    assert sum(uses[name] * module.weight.numel() for name, module in prunable(model)) == macs(operations(model))


def test_a_pruned_network_pruned_again_at_the_same_amount_stays_as_it_is():
    model = new_model()
    apply_masks(model, global_masks(model, 0.5))
    before = [module.weight.clone() for _, module in prunable(model)]
    apply_masks(model, global_masks(model, 0.5))
    assert all(torch.equal(module.weight, old) for (_, module), old in zip(prunable(model), before, strict=True))


def test_norms_and_biases_are_left_alone():
    model = new_model()
    before = weights(model)
    names = {f"{name}.weight" for name, _ in prunable(model)}
    apply_masks(model, global_masks(model, 0.9))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed <= names and len(changed) > 1


# --- through training ---


@pytest.mark.parametrize(("ema_decay", "method"), thinned(itertools.product((0.0, 0.9), METHODS), 3))
def test_every_method_ends_exact_to_one_weight_and_stays_so_through_a_retrain(ema_decay, method):
    model = new_model()
    prune = section(method, ema_decay=ema_decay)
    train(model, prune.train, constraint=PruningSchedule(prune, model))
    assert count_zeros(model)[0] == wanted(model)
    mask = FixedMask(model)
    before = {name: module.weight.clone() for name, module in prunable(model)}
    train(model, config(ema_decay=ema_decay), constraint=mask)
    assert count_zeros(model)[0] == wanted(model)
    for name, module in prunable(model):
        assert torch.equal(module.weight != 0, before[name] != 0)
        assert not torch.equal(module.weight, before[name])


def test_one_shot_without_epochs_prunes_and_trains_nothing():
    model, untouched = new_model(), new_model()
    prune = section("one_shot", epochs=0)
    train(model, prune.train, constraint=PruningSchedule(prune, model))
    assert count_zeros(model)[0] == wanted(model)
    for (_, module), (_, old) in zip(prunable(model), prunable(untouched), strict=True):
        assert torch.equal(module.weight, torch.where(module.weight != 0, old.weight, 0))


@pytest.mark.parametrize("method", METHODS)
def test_an_amount_of_0_prunes_nothing_even_without_epochs(method):
    model = new_model()
    prune = Prune(method=method, amount=0.0, train=config(epochs=0))
    train(model, prune.train, constraint=PruningSchedule(prune, model))
    assert count_zeros(model)[0] == 0


class Watch(Reporter):
    """Notes the zeros after every step and where they are at every epoch's end."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.zeros: list[int] = []
        self.masks: list[torch.Tensor] = []

    def step(self, *, epoch: int, images: int, loss: float) -> None:
        self.zeros.append(count_zeros(self.model)[0])

    def epoch(self, row: EpochRow, seconds: float) -> None:
        self.masks.append(torch.cat([(module.weight != 0).flatten() for _, module in prunable(self.model)]))


@functools.cache
def watched(method: str, epochs: int = EPOCHS) -> tuple[nn.Module, Watch]:
    model = new_model()
    prune = section(method, epochs=epochs)
    watch = Watch(model)
    train(model, prune.train, constraint=PruningSchedule(prune, model), reporter=watch)
    return model, watch


def test_soft_pruned_weights_come_back_between_epochs():
    model, watch = watched("soft", epochs=3)
    zeros = wanted(model)
    assert [count == zeros for count in watch.zeros] == [False, False, False, True] * 3
    assert watch.zeros[STEPS] < zeros
    assert (~watch.masks[0] & watch.masks[1]).any(), "no weight was pruned in epoch 1 and alive in epoch 2"


@pytest.mark.parametrize("method", ["one_shot", "iterative", "gradual"])
def test_zeros_of_the_other_methods_never_come_back(method):
    model, watch = watched(method)
    assert watch.zeros == sorted(watch.zeros)
    assert not (~watch.masks[0] & watch.masks[1]).any()
    assert watch.zeros[-1] == wanted(model)


def test_iterative_zeros_grow_in_rounds_and_gradual_ones_step_by_step():
    assert len(set(watched("iterative")[1].zeros)) == 2
    assert len(set(watched("gradual")[1].zeros)) > 4


@pytest.mark.parametrize("method", METHODS)
def test_a_schedule_takes_back_the_amount_and_the_masks_it_gave(method):
    prune, model = section(method), new_model()
    one, two = PruningSchedule(prune, model), PruningSchedule(prune, new_model(seed=9))
    for step in range(1, STEPS * EPOCHS + 1):
        one.before_step(model)
        one.after_step(model, step, STEPS * EPOCHS)
    two.load(one.state())
    assert two.amount == one.amount > 0
    assert (two.hidden.keys() == two.masks.keys()) == (method == "feedback")
    for mine, theirs in ((two.masks, one.masks), (two.hidden, one.hidden)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_feedback_moves_masked_weights_by_the_gradient_of_the_masked_network_and_lets_them_come_back():
    model = new_model()
    prune = section("feedback", epochs=20)
    schedule = PruningSchedule(prune, model)
    layer = prunable(model)[0][1]
    schedule.masks = {name: torch.zeros_like(module.weight, dtype=torch.bool) for name, module in prunable(model)}
    schedule.after_step(model, 1, 100)
    assert not layer.weight.any(), "what is masked is zero where the gradient is taken"
    schedule.before_step(model)
    with torch.no_grad():
        layer.weight += 3.0
    schedule.after_step(model, FEEDBACK_STEPS, 100)
    assert (layer.weight > 2).any(), "the step was lost behind the mask"

    model, watch = watched("feedback", epochs=12)
    assert any((~before & after).any() for before, after in itertools.pairwise(watch.masks))
    assert watch.zeros[-1] == wanted(model)


def test_feedback_masks_averaged_weights_without_taking_them_for_its_own():
    model = new_model()
    prune = section("feedback", ema_decay=0.5)
    schedule = PruningSchedule(prune, model)
    train(model, prune.train, constraint=schedule)
    assert count_zeros(model)[0] == wanted(model)
    other, hidden = new_model(seed=5), {name: weight.clone() for name, weight in schedule.hidden.items()}
    schedule.after_step(other, STEPS * EPOCHS, STEPS * EPOCHS)
    assert all(torch.equal(weight, hidden[name]) for name, weight in schedule.hidden.items())
    assert count_zeros(other)[0] == wanted(model)


@pytest.mark.parametrize("make", [FixedMask, lambda model: PruningSchedule(section("gradual"), model)])
def test_masks_follow_a_model_that_was_moved_to_another_device(make):
    model = new_model()
    constraint = make(model)
    constraint.after_step(model.to("meta"), 1, 1000)
    assert {mask.device.type for mask in constraint.masks.values()} == {"meta"}


@pytest.mark.parametrize(
    ("where", "ema_decay", "method"), thinned(itertools.product(((1, 48), (2, 32)), (0.0, 0.9), METHODS), 11)
)
def test_a_schedule_that_was_cut_off_goes_on_as_if_it_had_not(tmp_path, where, ema_decay, method):
    prune = section(method, ema_decay=ema_decay)
    whole, parts = new_model(), new_model()
    train(whole, prune.train, constraint=PruningSchedule(prune, whole))
    with ResumeState(tmp_path, "x") as state, pytest.raises(ProcessLookupError):
        more = {"state": state, "reporter": StopAt(*where), "save_every_seconds": 0.0}
        train(parts, prune.train, constraint=PruningSchedule(prune, parts), **more)
    parts = new_model(seed=9)  # nothing of the result may come from here
    with ResumeState(tmp_path, "x") as state:
        train(parts, prune.train, constraint=PruningSchedule(prune, parts), state=state)
    assert same(weights(whole), weights(parts))


# --- what cannot be pruned, and names that a state has too ---


def test_an_amount_that_cannot_be_reached_is_said_before_training_with_one_that_can():
    model = layers(50, 1, 9)
    train = config()
    with pytest.raises(PruningError, match=r"amount: 0\.95 works$"):
        PruningSchedule(Prune(method="gradual", amount=0.97, train=train), model)
    PruningSchedule(Prune(amount=0.95, train=train), model)
    assert count_zeros(model) == (57, 60)


@pytest.mark.parametrize(("amount", "floor"), [(-0.1, 0.0), (1.0, 0.0), (math.nan, 0.0), (0.5, 1.5), (0.5, -1.0)])
def test_an_amount_that_is_no_share_is_refused(amount, floor):
    with pytest.raises(PruningError, match="^amount must be >= 0 and < 1, layer_floor 0 to 1"):
        global_masks(layers(5, 6), amount, layer_floor=floor)


def test_weights_without_a_rank_and_networks_without_weights_are_refused():
    model = layers(5, 6)
    with torch.no_grad():
        prunable(model)[1][1].weight.view(-1)[2] = math.nan
    with pytest.raises(PruningError, match="holds weights that are not finite"):
        global_masks(model, 0.5)
    with pytest.raises(PruningError, match="no convolution and no linear layer"):
        global_masks(nn.Sequential(nn.BatchNorm2d(3)), 0.5)


def test_a_weight_with_two_names_is_masked_exactly():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    model[1].weight = model[0].weight
    apply_masks(model, global_masks(model, 0.5))
    assert count_zeros(model) == (14, 28)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_may_be_called_as_an_entry_of_the_state_is(method):
    model = nn.Sequential()
    for name in ("amount", "hidden amount", "mask amount"):
        model.add_module(name, nn.Linear(6, 6))
    one = PruningSchedule(section(method), model)
    one.before_step(model)
    one.after_step(model, 4, 4)
    two = PruningSchedule(section(method), new_model())
    two.hidden = {name: torch.zeros_like(weight) for name, weight in one.hidden.items()}
    two.load(one.state())
    assert two.amount == one.amount == AMOUNT and two.masks.keys() == one.masks.keys()
    assert all(torch.equal(two.masks[name], mask) for name, mask in one.masks.items())
