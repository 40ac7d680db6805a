"""The one training loop: every stage that trains calls `train()` with its own loss, constraint and model.

The dataset lies in memory as one uint8 tensor; a batch is gathered, augmented and normalised in batched
tensor code, without worker processes. A run that was killed goes on from its last saved state and ends
with the same bytes as one that was not.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from micronet.data.images import Split
from micronet.errors import MicronetError
from micronet.params import Train
from micronet.training.evaluation import evaluate
from micronet.training.hardware import Machine, compiled, suited
from micronet.training.interruption import Interrupted, orphan_watch, stop_signals
from micronet.training.optimizers import Average, find_batch_size, make_optimizer
from micronet.training.reporting import EpochRow, Reporter, write_curve
from micronet.training.sampling import Loss, Sampler, augmented, batches, cross_entropy
from micronet.training.schedules import learning_rate
from micronet.training.state import ResumeState


class TrainingDiverged(MicronetError):
    """The loss is NaN or exploded; says where, and that the last good state is kept."""


class Constraint(Protocol):
    """What holds for the weights: a mask, a schedule of masks, a clip."""

    def before_step(self, model: nn.Module) -> None:
        """Called between the backward pass and the optimizer's step."""

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Called after optimizer step `step` of `steps` (1 is the first); also on the averaged weights."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs."""

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state` gave."""


@dataclass(frozen=True)
class TrainResult:
    """What a run did. `seconds` and `images_per_second` count all of it, over interruptions too."""

    rows: list[EpochRow]
    batch_size: int
    learning_rate: float
    validation_accuracy_percent: float
    seconds: float
    images_per_second: float
    precision: str  # bf16, fp32


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
    state: ResumeState | None = None,
    reporter: Reporter | None = None,
    curve: Path | str | None = None,
    evaluation_batch_size: int = 500,
    save_every_seconds: float = 60.0,
) -> TrainResult:
    """Trains `model` in place; with `ema_decay` it holds the averaged weights afterwards.

    Args:
        loss: from logits and the batch that gave them; cross entropy by default.
        sampler: draws the batches; what `config.augment` says by default.
        constraint: applied after every optimizer step, and to the averaged weights before they are used.
        state: where the run is saved and from where it goes on; None: nowhere.
        curve: CSV, a row an epoch.
        save_every_seconds: least time between two saves within an epoch; each epoch's end is saved too.

    Raises:
        TrainingDiverged: the loss is not finite, or a hundred times that of an untrained model.
        Interrupted: Ctrl-C, SIGTERM, or DVC died; after the current step, with the state saved.
    """
    reporter = reporter or Reporter()
    loss = loss or cross_entropy(config.label_smoothing)
    sampler = sampler or augmented(config.augment)
    machine = suited(model, machine)
    model.to(machine.device, memory_format=machine.memory_format).train()
    images = training.images.to(machine.device)
    labels = training.labels.to(machine.device).long()
    batch_size, peak = find_batch_size(model, config, machine)
    optimizer = make_optimizer(model, config)
    average = Average(model, config.ema_decay) if config.ema_decay else None
    generator = torch.Generator(machine.device)
    steps_an_epoch = len(batches(len(labels), batch_size, 0))
    steps = steps_an_epoch * config.epochs
    forward = compiled(model, machine, steps)
    rows: list[EpochRow] = []
    epoch, step_in_epoch, elapsed, seen = 0, 0, 0.0, 0
    totals = torch.zeros(2, device=machine.device, dtype=torch.float64)  # sum of losses, correct answers
    explosion = 100.0 * math.log(10)

    def snapshot() -> dict:
        return {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": {"model": average.model.state_dict(), "steps": average.steps} if average else None,
            "constraint": constraint.state() if constraint else None,
            "generator": generator.get_state(),
            "rows": [asdict(row) for row in rows],
            "epoch": epoch,
            "step_in_epoch": step_in_epoch,
            "totals": totals,
            "elapsed": elapsed + time.monotonic() - began,
            "seen": seen,
        }

    if state:
        saved, remark = state.load()
        if remark:
            reporter.say(remark)
        if saved:
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            if average:
                average.model.load_state_dict(saved["average"]["model"])
                average.steps = saved["average"]["steps"]
            if constraint:
                constraint.load(saved["constraint"])
            generator.set_state(saved["generator"].cpu())
            rows = [EpochRow(**row) for row in saved["rows"]]
            epoch, step_in_epoch = saved["epoch"], saved["step_in_epoch"]
            totals.copy_(saved["totals"])
            elapsed, seen = saved["elapsed"], saved["seen"]
            reporter.say(f"going on after epoch {epoch}, step {step_in_epoch} of {steps_an_epoch}")

    def rate_of(step: int) -> float:
        return learning_rate(config.schedule, step, steps, peak=peak, warmup_fraction=config.warmup_fraction)

    def averaged() -> nn.Module:
        """The weights that are evaluated and kept."""
        if not average:
            return model
        if constraint:
            constraint.after_step(average.model, epoch * steps_an_epoch, steps)
        return average.model

    began = last_save = time.monotonic()
    orphaned = orphan_watch()
    reporter.start(epochs=config.epochs, images=steps_an_epoch * batch_size, epoch=epoch)
    try:
        with stop_signals() as signals:
            while epoch < config.epochs:
                epoch_seed = (seed * 1_000_003 + epoch) % 2**63
                if step_in_epoch == 0:
                    generator.manual_seed(epoch_seed)
                    totals.zero_()
                epoch_began = time.monotonic()
                for indices in batches(len(labels), batch_size, epoch_seed, machine.device)[step_in_epoch:]:
                    step = epoch * steps_an_epoch + step_in_epoch
                    rate = rate_of(step)
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    batch = sampler(images, labels, indices, generator)
                    batch = replace(batch, images=batch.images.contiguous(memory_format=machine.memory_format))
                    with torch.autocast(machine.device.type, torch.bfloat16, enabled=machine.autocast):
                        logits = forward(batch.images)
                    value = loss(logits, batch)
                    optimizer.zero_grad(set_to_none=True)
                    value.backward()
                    if config.clip_norm:
                        nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                    if constraint:
                        constraint.before_step(model)
                    optimizer.step()
                    step_in_epoch += 1
                    seen += len(indices)
                    if constraint:
                        constraint.after_step(model, step + 1, steps)
                    if average:
                        average.update(model)
                    with torch.no_grad():
                        hard = batch.targets if batch.targets.ndim == 1 else batch.targets.argmax(1)
                        totals[0] += value.detach() * len(indices)
                        totals[1] += (logits.argmax(1) == hard).sum()
                    done = step_in_epoch * batch_size
                    if machine.device.type == "cpu" or step_in_epoch % 50 == 0:  # reading a value waits for the GPU
                        current = value.item()
                        if not math.isfinite(current) or current > explosion:
                            kept = f"the state of epoch {rows[-1].epoch} is kept" if rows else "no state was saved yet"
                            raise TrainingDiverged(
                                f"the loss is {current:g} in epoch {epoch + 1}, step {step_in_epoch}, at learning rate "
                                f"{rate:g}; {kept}; a lower learning rate or clip_norm: 1 usually helps"
                            )
                        reporter.step(epoch=epoch + 1, images=done, loss=totals[0].item() / done)
                    if signals or orphaned():
                        where = f"stopped in epoch {epoch + 1} after step {step_in_epoch} of {steps_an_epoch}"
                        if state:
                            state.save(snapshot())
                            where += "; the state is saved, the same command goes on from here"
                        raise Interrupted(where)
                    now = time.monotonic()
                    if state and now - last_save > save_every_seconds and step_in_epoch < steps_an_epoch:
                        state.save(snapshot())
                        last_save = now
                rate = rate_of((epoch + 1) * steps_an_epoch - 1)
                trained = steps_an_epoch * batch_size if steps_an_epoch > 1 else min(batch_size, len(labels))
                epoch += 1
                step_in_epoch = 0
                validation_loss, accuracy = evaluate(averaged(), validation, machine, evaluation_batch_size)
                train_loss, train_correct = (totals / trained).tolist()
                rows.append(EpochRow(epoch, rate, train_loss, 100.0 * train_correct, validation_loss, accuracy))
                if curve:
                    write_curve(curve, rows)
                if state:
                    state.save(snapshot())
                    last_save = time.monotonic()
                reporter.epoch(rows[-1], time.monotonic() - epoch_began)
    finally:
        reporter.stop()
    if average:
        model.load_state_dict(averaged().state_dict())
    elif constraint:
        constraint.after_step(model, steps, steps)
    if curve:
        write_curve(curve, rows)
    model.eval()
    accuracy = rows[-1].validation_accuracy_percent if rows else evaluate(model, validation, machine)[1]
    seconds = elapsed + time.monotonic() - began
    speed, precision = seen / seconds if seconds and seen else 0.0, "bf16" if machine.autocast else "fp32"
    return TrainResult(rows, batch_size, peak, accuracy, seconds, speed, precision)
