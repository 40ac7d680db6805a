"""Learning rates: the deck's, torch's, and those of a rise and a fall."""

from __future__ import annotations

import typing

import pytest
import torch
from torch import nn

from micronet.params import Train
from micronet.training.schedules import SCHEDULES, learning_rate


def test_every_schedule_that_params_take_has_a_rate():
    names = typing.get_args(Train.model_fields["schedule"].annotation)
    assert set(names) == set(SCHEDULES)
    for name in names:
        assert 0 < learning_rate(name, 3, 10, peak=0.1, warmup_fraction=0.2) <= 0.1


def test_a_constant_rate_is_the_peak():
    assert [learning_rate("constant", step, 3, peak=0.1, warmup_fraction=0.5) for step in range(3)] == [0.1] * 3


def test_step_schedule_is_the_decks_thirds():
    rates = [learning_rate("step", step, 300, peak=0.1) for step in (0, 99, 100, 199, 200, 299)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_cosine_schedule_agrees_with_torch():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        assert learning_rate("cosine", step, 50, peak=0.1) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_one_cycle_rises_to_its_peak_and_falls_to_nearly_nothing():
    rates = [learning_rate("one_cycle", step, 100, peak=1.0, warmup_fraction=0.2) for step in range(100)]
    assert rates.index(max(rates)) == 20
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(1 / 80)
    assert rates[:21] == sorted(rates[:21]) and rates[20:] == sorted(rates[20:], reverse=True)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_a_warm_up_begins_above_0_and_reaches_the_peak(schedule):
    rates = [learning_rate(schedule, step, 10, peak=0.5, warmup_fraction=0.4) for step in range(5)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
