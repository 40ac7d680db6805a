"""The one training loop: what it learns, how it goes on, what it keeps, what it refuses."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet.compress.pruning import FixedMask
from micronet.params import Augment
from micronet.training.evaluation import evaluate
from micronet.training.interruption import Interrupted
from micronet.training.run import Run, TrainingDiverged
from micronet.training.sampling import batches
from micronet.training.state import ResumeState
from tests.support.configs import MACHINE, train_config
from tests.support.failures import InterruptAt, StopAt
from tests.support.images import bright_split
from tests.support.models import new_model, same, weights
from tests.support.thinning import thinned
from tests.support.training import train


def test_an_epoch_sees_no_image_twice_and_another_order_each_time():
    first, second = (torch.cat(batches(100, 32, seed)) for seed in (1, 2))
    assert len(first) == 96 and len(first.unique()) == 96
    assert not torch.equal(first, second)


def test_training_lowers_the_loss():
    result = train(new_model(), train_config(epochs=6))
    assert result.rows[-1].train_loss < result.rows[0].train_loss - 0.1


def test_the_same_seed_gives_the_same_weights():
    one, two = new_model(), new_model()
    train(one, train_config())
    train(two, train_config())
    assert same(weights(one), weights(two))


@pytest.mark.parametrize(("where", "ema_decay"), thinned(itertools.product([(1, 16), (1, 64), (2, 48)], [0.0, 0.9]), 5))
def test_a_run_that_was_cut_off_ends_with_the_same_weights(tmp_path, where, ema_decay):
    settings = train_config(ema_decay=ema_decay, augment=Augment(cutmix_alpha=1.0, cutmix_probability=0.5))
    whole, parts = new_model(), new_model()
    expected = train(whole, settings)
    with ResumeState(tmp_path, "x") as state, pytest.raises(ProcessLookupError):
        train(parts, settings, state=state, reporter=StopAt(*where), save_every_seconds=0.0)
    saved = where != (1, 16)  # before the first save a run starts anew, as the stage does
    parts = new_model(seed=9 if saved else 0)
    with ResumeState(tmp_path, "x") as state:
        result = train(parts, settings, state=state)
    assert same(weights(whole), weights(parts))
    assert result.rows == expected.rows


def test_an_automatic_batch_size_is_that_of_the_run_which_goes_on(tmp_path, monkeypatch):
    fits = {"now": (32, 0.05)}
    monkeypatch.setattr("micronet.training.run.find_batch_size", lambda *_: fits["now"])
    settings = train_config(batch_size="auto")
    whole, parts = new_model(), new_model()
    train(whole, settings)
    with ResumeState(tmp_path, "x") as state:
        with pytest.raises(Interrupted):
            train(parts, settings, state=state, reporter=InterruptAt(2, 32))
        fits["now"] = (16, 0.02)  # another program has taken memory meanwhile
        result = train(parts, settings, state=state)
    assert (result.batch_size, result.learning_rate) == (32, 0.05)
    assert same(weights(whole), weights(parts))


class WithDropout(nn.Module):
    """A network that draws while it trains, in both ways that there are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.dropout, self.classifier = nn.Conv2d(3, 8, 3), nn.Dropout2d(0.3), nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.dropout(self.conv(images).relu()).mean((2, 3))
        return self.classifier(F.dropout(features, 0.3, self.training))


def test_a_network_with_dropout_is_the_same_for_the_same_seed_and_after_a_stop(tmp_path):
    torch.manual_seed(3)
    whole = WithDropout()
    again, parts = copy.deepcopy(whole), copy.deepcopy(whole)
    torch.manual_seed(4)
    train(whole, train_config())
    torch.manual_seed(5)  # whatever another process has drawn
    train(again, train_config())
    assert same(weights(whole), weights(again))
    with ResumeState(tmp_path, "x") as state:
        with pytest.raises(Interrupted):
            train(parts, train_config(), state=state, reporter=InterruptAt(2, 32))
        torch.manual_seed(6)
        train(parts, train_config(), state=state)
    assert same(weights(whole), weights(parts))


@pytest.mark.parametrize("where", [(2, 32), (1, 64)])  # in the middle of an epoch, and at its last step
def test_a_signal_stops_after_the_step_and_the_same_command_goes_on(tmp_path, where):
    whole, parts = new_model(), new_model()
    train(whole, train_config())
    with ResumeState(tmp_path, "x") as state:
        with pytest.raises(Interrupted, match=f"epoch {where[0]} after step .* of 4.*goes on from here"):
            train(parts, train_config(), state=state, reporter=InterruptAt(*where))
        train(parts, train_config(), state=state)
    assert same(weights(whole), weights(parts))


def test_zero_weights_stay_zero_under_a_fixed_mask_with_momentum_and_average():
    model = new_model()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight[:, :, ::2] = 0
    mask = FixedMask(model)
    train(model, train_config(ema_decay=0.9), constraint=mask)
    for name, module in model.named_modules():
        if name in mask.masks:
            assert torch.equal(module.weight != 0, mask.masks[name])


def test_the_average_is_what_is_kept():
    plain, averaged = new_model(), new_model()
    train(plain, train_config(epochs=1))
    train(averaged, train_config(epochs=1, ema_decay=0.99))
    assert not same(weights(plain), weights(averaged))


def test_a_loss_that_is_not_a_number_stops_with_epoch_step_and_rate():
    def broken(logits, batch):
        return logits.sum() * math.nan

    with pytest.raises(TrainingDiverged, match="loss is nan in epoch 1, step 1, at learning rate"):
        train(new_model(), train_config(), loss=broken)


def test_evaluation_counts_every_image_once_and_gives_the_mode_back():
    model = new_model().train()
    split = bright_split(30)
    _, in_one = evaluate(model, split, MACHINE, 30)
    _, in_parts = evaluate(model, split, MACHINE, 7)
    assert in_one == pytest.approx(in_parts)
    assert model.training


def test_a_run_restored_from_a_snapshot_takes_the_same_steps():
    settings = train_config(ema_decay=0.9, augment=Augment(mixup_alpha=1.0))
    one, two = (Run(new_model(seed=seed), settings, bright_split(64), MACHINE, 3) for seed in (0, 1))
    for indices in one.remaining_batches()[:2]:
        one.train_step(indices)
    two.restore(copy.deepcopy(one.snapshot()))
    left = [going.remaining_batches() for going in (one, two)]
    assert len(left[0]) == 2 and all(torch.equal(*pair) for pair in zip(*left, strict=True))
    for going in (one, two):
        for indices in left[0]:
            going.train_step(indices)
    assert one.end_epoch(bright_split(20, 1), 10) == two.end_epoch(bright_split(20, 1), 10)
    for going in (one, two):
        going.finish()
    assert same(weights(one.model), weights(two.model)) and not one.model.training


def test_an_epoch_counts_the_images_that_it_trains_on():
    many = Run(new_model(), train_config(batch_size=16), bright_split(40), MACHINE, 3)
    assert (many.steps_an_epoch, many.images_an_epoch, many.steps) == (2, 32, 4)
    few = Run(new_model(), train_config(batch_size=16), bright_split(10), MACHINE, 3)
    assert (few.steps_an_epoch, few.images_an_epoch) == (1, 10)


def test_a_run_without_epochs_measures_what_it_was_given():
    model = new_model()
    before, result = weights(model), train(model, train_config(epochs=0))
    assert result.rows == [] and result.images_per_second == 0.0 and same(before, weights(model))
    assert result.validation_accuracy_percent == evaluate(model, bright_split(20, 1), MACHINE)[1]


@pytest.mark.parametrize("loss", [math.inf, -math.inf, math.nan, 231.0])
def test_a_loss_far_above_that_of_an_untrained_network_is_divergence(loss):
    started = Run(new_model(), train_config(), bright_split(32), MACHINE, 3)
    started.train_step(started.remaining_batches()[0])
    started.check(230.0)
    with pytest.raises(TrainingDiverged, match="in epoch 1, step 1, .*no state was saved yet"):
        started.check(loss)
