"""Several processes that train one network: each sees its part, all hold the same, and all end together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import models
from micronet import params
from micronet.compress.calibration import calibrate
from micronet.compress.pruning import PruningSchedule
from micronet.compress.quantization import prepare
from micronet.compress.trimming import Trimming
from micronet.data.images import normalise
from micronet.errors import MicronetError
from micronet.params import Augment
from micronet.training.processes import Member, together
from micronet.training.ranks import Ranks, _Several, joined
from micronet.training.run import Run
from micronet.training.trial import TrainingError
from tests.support.configs import MACHINE, train_config
from tests.support.images import bright_split
from tests.support.models import CONVNET, TINY, new_model, same, weights
from tests.support.ranks import NAME, Started, finished, keep, start, training
from tests.support.thinning import thinned

MIXED = Augment(cutout_size=8, mixup_alpha=0.3, mixup_probability=0.5, cutmix_alpha=1.0, cutmix_probability=0.4)
BOUND = 20.0  # seconds in which all ranks are gone when one is


@pytest.fixture
def folder(tmp_path) -> Iterator[Path]:
    """A place for a run's files."""
    yield tmp_path


def loaded(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)


def member(rank: int, size: int) -> Member:
    each = Member()
    each.rank, each.size = rank, size
    return each


# --- what a rank sees and computes ---


@pytest.mark.parametrize(("count", "size"), [(11, 3), (12, 3), (3, 3), (128, 7)])
def test_the_shares_of_a_batch_are_all_of_it_in_order_and_differ_by_one_image_at_most(count, size):
    shares = [torch.arange(count)[_Several(member(rank, size)).share(count)] for rank in range(size)]
    assert torch.equal(torch.cat(shares), torch.arange(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def frozen_norms(model: nn.Module) -> nn.Module:
    """Norms that stay in eval mode; a batch norm takes the statistics of what its own rank sees."""
    for module in model.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train = lambda mode=True, norm=module: norm  # type: ignore[method-assign]
    return model


def ten_steps(ranks: Ranks) -> list[float]:
    settings = train_config(batch_size=11, learning_rate=0.02, augment=MIXED, clip_norm=1.0, label_smoothing=0.1)
    run = Run(frozen_norms(new_model(TINY)), settings, bright_split(110), MACHINE, 3, ranks=ranks)
    return [run.train_step(indices).item() for indices in run.remaining_batches()]


def test_two_ranks_lose_in_ten_steps_what_one_process_loses():
    alone = ten_steps(Ranks())

    def work(each: Member) -> list[float]:
        with joined(each, MACHINE) as ranks:
            losses = ten_steps(ranks)
        each.leave()
        return losses

    shared = together(2, NAME, work)
    assert len(alone) == 10 and max(alone) - min(alone) > 0.05
    assert shared == pytest.approx(alone, abs=1e-4)


class Odd(nn.Module):
    """Has a parameter that nothing uses, one that only some shares of a batch use, a constant, and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(3), nn.Linear(3, 10)
        self.unused, self.seldom = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(10))
        self.register_buffer("constant", torch.tensor([0.1, 1 / 3, 7.7]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(nn.functional.dropout(self.norm(x.mean((2, 3))) + self.constant, 0.3, self.training))
        return y + self.seldom if len(x) == 4 else y


def test_every_rank_holds_the_same_after_training_and_what_nothing_uses_stays(folder):
    def work(each: Member) -> None:
        torch.manual_seed(each.rank)
        model = Odd()
        settings = train_config(batch_size=11, weight_decay=0.1, ema_decay=0.9)  # 4, 4 and 3 images
        with joined(each, MACHINE) as ranks:
            run = Run(model, settings, bright_split(44), MACHINE, 3, ranks=ranks)
            for indices in run.remaining_batches():
                run.train_step(indices)
            state = run.snapshot()
            averages = {f"average {name}": value for name, value in state["average"]["model"].items()}
            keep({**state["model"], **averages, "totals": state["totals"]}, folder / str(each.rank))
        each.leave()

    finished(folder, work, 3)
    torch.manual_seed(0)
    before, one = weights(Odd()), loaded(folder / "0")
    assert all(same(one, loaded(folder / str(rank))) for rank in (1, 2))
    assert all(torch.equal(one[name], before[name]) for name in ("unused", "constant"))
    assert not torch.equal(one["seldom"], before["seldom"]) and one["norm.running_mean"].any()
    assert 0 < one["totals"][1] <= 44


def test_masks_steps_and_squares_of_gradients_are_the_same_on_every_rank(folder):
    data = bright_split(64)
    settings = params.Quantize(weight_bits=3, activation_bits=4, trim=0.3, train=train_config(batch_size=9))
    pruned = params.Prune(method="feedback", amount=0.5, train=train_config(batch_size=9))

    def work(each: Member) -> None:
        model = new_model(CONVNET)
        models.fit(model, normalise(data.images))
        prepared = prepare(model, settings)
        trimming = Trimming(model, prepared, settings)
        calibrate(prepared, data.images)
        other = new_model(TINY)
        pruning = PruningSchedule(pruned, other)
        kept = {}
        with joined(each, MACHINE) as ranks:
            for network, section, limit in ((prepared, settings, trimming), (other, pruned, pruning)):
                run = Run(network, section.train, data, MACHINE, 3, constraint=limit, ranks=ranks)
                for indices in run.remaining_batches():
                    run.train_step(indices)
                kept |= {f"{type(limit).__name__} {name}": value for name, value in limit.state().items()}
                kept |= weights(network)
            keep(kept, folder / str(each.rank))
        each.leave()

    finished(folder, work)
    one = loaded(folder / "0")
    assert same(one, loaded(folder / "1"))
    assert any(value.any() for name, value in one.items() if name.startswith("Trimming squares"))


def test_a_batch_without_an_image_for_every_rank_is_refused():
    with pytest.raises(
        TrainingError, match=r"a batch of 2 has no image for each of 3 ranks; engine.processes: 2 would"
    ):
        Run(new_model(), train_config(batch_size=2), bright_split(8), MACHINE, 3, ranks=_Alike(member(0, 3)))
    with pytest.raises(TrainingError, match="a batch of 1 has no image"):  # the split is smaller than the batch
        Run(new_model(), train_config(), bright_split(1), MACHINE, 3, ranks=_Alike(member(0, 2)))


class _Alike(_Several):
    """A rank that needs no other to begin."""

    def of_first(self, make):
        return make()


# --- how they end ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Tensor]:
    """The weights after a run of two ranks that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    finished(folder, training(folder, SETTINGS))
    assert same(loaded(folder / "weights 0"), loaded(folder / "weights 1"))
    return loaded(folder / "weights 0")


SETTINGS = train_config(ema_decay=0.9, augment=MIXED)


def interrupted(folder: Path) -> tuple[Started, list[int]]:
    """A run of two ranks in its second epoch, and the process of its further rank."""
    started = start(folder, training(folder, SETTINGS, slow=0.1))
    started.until("step 2 16")
    return started, started.others()


def went_on(folder: Path, whole: dict[str, Tensor]) -> None:
    said = finished(folder, training(folder, SETTINGS, slow=0.001))
    assert not (folder / "run/x/state.refused").exists(), said
    assert same(loaded(folder / "weights 0"), whole) and same(loaded(folder / "weights 1"), whole)


@pytest.mark.parametrize("which", thinned(["first", "further"], 2))
def test_when_a_rank_is_killed_all_end_and_the_same_command_goes_on_to_the_same_bytes(folder, whole, which):
    started, (further,) = interrupted(folder)
    os.kill(started.process if which == "first" else further, signal.SIGKILL)
    code = started.ended([further], BOUND)
    if which == "further":
        assert code == 1
        assert started.said == (
            f"{NAME}: rank 1 of 2 was killed by SIGKILL; the same command goes on from what was saved\n"
        )
    went_on(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_of_them_stops_a_run_after_its_step_with_the_state_saved(folder, whole, number):
    started, others = interrupted(folder)
    os.killpg(started.process, number)  # as a terminal does, to each
    assert started.ended(others, BOUND) == 130
    assert started.said.count("\n") == 1
    assert "stopped in epoch 2 after step" in started.said and "the same command goes on from here" in started.said
    went_on(folder, whole)


def test_a_rank_that_dies_while_the_first_one_works_alone_ends_it_soon(folder, monkeypatch):
    monkeypatch.setattr("micronet.training.processes.GRACE", 0.3)

    def work(each: Member) -> None:
        if not each.first:
            os.kill(os.getpid(), signal.SIGKILL)
        each.begin()
        time.sleep(60)

    started = start(folder, work)
    assert started.ended(started.others(), BOUND) == 1
    assert "rank 1 of 2 was killed by SIGKILL" in started.said


def test_what_a_further_rank_fails_at_is_said_in_one_line_by_the_first(folder):
    def work(each: Member) -> None:
        with joined(each, MACHINE) as ranks:
            if not each.first:
                raise MicronetError("there is no room for \x1b[31m" + "x" * 500)
            ranks.of_first(lambda: None)
            ranks.sum(nn.Linear(1, 1), [])

    started = start(folder, work)
    assert started.ended(started.others(), BOUND) == 1
    (line,) = started.said.splitlines()
    assert line.startswith(f"{NAME}: rank 1 of 2 has ended with there is no room for \\x1b[31mxxx") and len(line) <= 300


def test_the_first_rank_says_alone_what_it_refuses_and_the_others_never_begin(folder):
    def work(each: Member) -> None:
        if not each.first:
            (folder / "begun").touch()
        raise MicronetError("the teacher is missing; stage train_teacher makes it")

    started = start(folder, work, 3)
    assert started.ended([], BOUND) == 1
    assert started.said == f"{NAME}: the teacher is missing; stage train_teacher makes it\n"
    assert not (folder / "begun").exists()


def test_one_process_is_this_one_and_nothing_is_started(monkeypatch):
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a process was started"))
    each = together(1, NAME, lambda only: only)  # type: ignore[arg-type,return-value]
    with joined(each, MACHINE) as ranks:  # type: ignore[arg-type]
        assert ranks.share(5) == slice(None) and not torch.distributed.is_initialized()
