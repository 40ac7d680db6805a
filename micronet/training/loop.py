"""The one training loop: every stage that trains calls `train()` with its own loss, constraint and model.

The dataset is in memory as one uint8 tensor; a batch is gathered, augmented and normalised in batched
tensor code, without worker processes. A run that was killed resumes from its last saved state and produces
the same bytes as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from micronet.data.images import Split
from micronet.params import Train
from micronet.training.constraints import Constraint
from micronet.training.evaluation import evaluate
from micronet.training.hardware import Machine
from micronet.training.interruption import Interrupted, orphan_watch, stop_signals
from micronet.training.losses import Loss
from micronet.training.memory import memory_faults
from micronet.training.ranks import Ranks
from micronet.training.reporting import EpochRow, Reporter, write_curve
from micronet.training.run import Run
from micronet.training.sampling import Sampler
from micronet.training.state import ResumeState
from micronet.training.trial import check_labels, check_split

# On a GPU the loss is read only this often and at the end of an epoch: reading it waits for all pending GPU work.
STEPS_A_LOOK = 50


@dataclass(frozen=True)
class TrainResult:
    """What a run did. `seconds` and `images_per_second` cover the whole run, across interruptions."""

    rows: list[EpochRow]
    batch_size: int
    learning_rate: float
    validation_accuracy_percent: float
    seconds: float
    images_per_second: float
    precision: str  # bf16, fp32
    compiled: bool = False  # by torch.compile


class Saves:
    """Where a run is saved, and when it last was. Without a state nothing is saved."""

    def __init__(self, state: ResumeState | None, every_seconds: float):
        self.state, self.every_seconds = state, every_seconds
        self.last = time.monotonic()

    def restore(self, run: Run, reporter: Reporter) -> bool:
        """Restores the run from the saved state of an earlier one; returns whether there was one."""
        saved, remark = self.state.load(run.restore) if self.state else (None, None)
        if remark:
            reporter.say(remark)
        if saved:
            reporter.say(f"going on after epoch {run.epoch}, step {run.step_in_epoch} of {run.steps_an_epoch}")
        return saved is not None

    def save(self, run: Run) -> None:
        """Saves the run."""
        if self.state:
            self.state.save(run.snapshot())
            self.last = time.monotonic()

    def save_when_due(self, run: Run) -> None:
        """Saves the run within an epoch if the last save was long enough ago; the end of an epoch is always saved."""
        if time.monotonic() - self.last > self.every_seconds and run.step_in_epoch < run.steps_an_epoch:
            self.save(run)


@memory_faults("a smaller batch_size, or engine.evaluation_batch_size, takes less")
def train(
    model: nn.Module,
    *,
    config: Train,
    training: Split,
    validation: Split,
    machine: Machine,
    seed: int,
    loss: Loss | None = None,
    sampler: Sampler | None = None,
    constraint: Constraint | None = None,
    ranks: Ranks | None = None,
    state: ResumeState | None = None,
    reporter: Reporter | None = None,
    curve: Path | str | None = None,
    evaluation_batch_size: int = 500,
    save_every_seconds: float = 60.0,
) -> TrainResult:
    """Trains `model` in place; with `ema_decay` it holds the averaged weights afterwards.

    Args:
        loss: of logits and the batch they came from; cross entropy by default.
        sampler: draws the batches; by default as `config.augment` says.
        constraint: applied after every optimizer step, and to the averaged weights before they are used.
        ranks: the processes that train together, all of which call this; only the first one's state, reporter and
            curve are used.
        state: where the run is saved and resumed from; None: nowhere.
        curve: path of a CSV, one row per epoch.
        save_every_seconds: minimum time between two saves within an epoch; the end of each epoch is saved too.

    Raises:
        TrainingDiverged: the loss is not finite, or a hundred times that of an untrained model.
        Interrupted: Ctrl-C, SIGTERM, or DVC died; raised after the current step, with the state saved.
        WeightsError, TrainingError: network, images, labels and params do not fit together. Nothing was trained.
        NoMemory: a batch does not fit into memory.
        RanksError: one of the other processes has died.
    """
    reporter, ranks = reporter or Reporter(), ranks or Ranks()
    check_split(validation, "validation")
    run = Run(model, config, training, machine, seed, loss=loss, sampler=sampler, constraint=constraint, ranks=ranks)
    check_labels(validation.labels, run.classes, "validation")
    saves, orphaned = Saves(state, save_every_seconds), orphan_watch()
    if ranks.of_first(lambda: saves.restore(run, reporter)):
        ranks.same(run.snapshot, run.restore)
    _begin(run, reporter)
    try:
        with stop_signals() as signals:
            while run.epoch < config.epochs:
                began = time.monotonic()
                _train_epoch(run, saves, reporter, stopped=lambda: bool(signals) or orphaned())
                row = run.end_epoch(validation, evaluation_batch_size, reporter.watch)
                if curve:
                    write_curve(curve, run.rows)
                saves.save(run)
                reporter.epoch(row, time.monotonic() - began)
    finally:
        reporter.stop()
    run.finish()
    if curve:
        write_curve(curve, run.rows)
    if run.rows:
        accuracy = run.rows[-1].validation_accuracy_percent
    else:
        _, accuracy = ranks.of_first(
            lambda: evaluate(model, validation, run.machine, evaluation_batch_size, reporter.watch)
        )
    return TrainResult(
        rows=run.rows,
        batch_size=run.batch_size,
        learning_rate=run.peak,
        validation_accuracy_percent=accuracy,
        seconds=run.seconds,
        images_per_second=run.images_seen / run.seconds if run.images_seen else 0.0,
        precision="bf16" if run.machine.autocast else "fp32",
        compiled=run.compiled,
    )


def _begin(run: Run, reporter: Reporter) -> None:
    """Reports how much there is to do, and how much of it is done."""
    if run.compiled and run.epoch < run.config.epochs:
        reporter.say("compiling the training step: some minutes, or seconds where it was compiled before")
    images, done = (steps * run.batch_size for steps in (run.steps_an_epoch, run.step_in_epoch))
    reporter.start(epochs=run.config.epochs, images=images, epoch=run.epoch, done=done)


def _train_epoch(run: Run, saves: Saves, reporter: Reporter, stopped: Callable[[], bool]) -> None:
    """Trains the remaining steps of the epoch. Raises `Interrupted` after a step at which `stopped` is true."""
    for indices in run.remaining_batches():
        loss = run.train_step(indices)
        last = run.step_in_epoch == run.steps_an_epoch
        if run.machine.device.type == "cpu" or run.step_in_epoch % STEPS_A_LOOK == 0 or last:
            run.check(loss.item())
            done = run.step_in_epoch * run.batch_size
            reporter.step(epoch=run.epoch + 1, images=done, loss=run.totals[0].item() / done)
        if stopped():
            where = f"stopped in epoch {run.epoch + 1} after step {run.step_in_epoch} of {run.steps_an_epoch}"
            if saves.state:
                saves.save(run)
                where += "; the state is saved, the same command goes on from here"
            raise Interrupted(where)
        saves.save_when_due(run)
