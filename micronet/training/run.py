"""A training run: everything that changes from step to step, how a step changes it, and how a saved run resumes."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from micronet.data.images import Split
from micronet.data.progress import Watch, unwatched
from micronet.errors import MicronetError
from micronet.params import Train
from micronet.training.batch_size import find_batch_size
from micronet.training.constraints import Constraint, Unconstrained
from micronet.training.evaluation import evaluate
from micronet.training.hardware import Machine, compiled, machine_for
from micronet.training.losses import Loss, cross_entropy
from micronet.training.moving_average import MovingAverage
from micronet.training.optimizers import make_optimizer
from micronet.training.ranks import Ranks
from micronet.training.reporting import EpochRow
from micronet.training.sampling import Batch, Sampler, augmented, batches
from micronet.training.schedules import learning_rate
from micronet.training.snapshots import check_snapshot
from micronet.training.trial import check_labels, check_network, check_shares, check_split, class_count

EXPLODED = 100.0  # times the loss of an untrained network, counting at least ten classes


class TrainingDiverged(MicronetError):
    """The loss is NaN or exploded; the message says where, and that the last good state is kept."""


class Run:
    """A run at some step of some epoch. It trains `model` in place.

    A run restored from the `snapshot` of another produces the same bytes. Before the first step, a copy of the network
    sees two images, so that a network, images and params that do not fit together are refused in one line.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Train,
        training: Split,
        machine: Machine,
        seed: int,
        *,
        loss: Loss | None = None,
        sampler: Sampler | None = None,
        constraint: Constraint | None = None,
        ranks: Ranks | None = None,
    ):
        check_network(model)
        check_split(training, "training")
        self.config, self.seed, self.ranks = config, seed, ranks or Ranks()
        self.machine = machine_for(model, machine)
        self.model = self.machine.place(model).train()
        self.ranks.same(self.model.state_dict, self.model.load_state_dict)
        self.images = training.images.to(self.machine.device)
        self.labels = training.labels.to(self.machine.device).long()
        self._take_batches(
            *self.ranks.of_first(lambda: find_batch_size(model, config, self.machine, training.images.shape))
        )
        smallest = check_shares(self.batch_size, self.ranks.size)
        self.classes = class_count(
            model, training.images, self.machine, batch_size=smallest, trains=config.epochs > 0, ranks=self.ranks.size
        )
        check_labels(training.labels, self.classes, "training")
        self.loss = loss or cross_entropy(config.label_smoothing)
        self.sampler = sampler or augmented(config.augment, self.classes)
        self.constraint = constraint or Unconstrained()
        self.optimizer = make_optimizer(model, config)
        self.average = MovingAverage(model, config.ema_decay) if config.ema_decay else None
        self.generator = torch.Generator(self.machine.device)
        self.forward = compiled(model, self.machine, self.steps, self.batch_size)
        self.rows: list[EpochRow] = []
        self.epoch = 0  # epochs done
        self.step_in_epoch = 0  # steps done in the current epoch
        self.images_seen = 0
        self.totals = torch.zeros(2, device=self.machine.device, dtype=torch.float64)  # sum of losses, correct answers
        self.seconds_before, self.began = 0.0, time.monotonic()

    def _take_batches(self, size: int, peak: float) -> None:
        """Sets the batch size and the peak learning rate."""
        self.batch_size, self.peak = size, peak
        self.steps_an_epoch = self._steps_with(size)
        self.steps = self.steps_an_epoch * self.config.epochs

    def _steps_with(self, size: int) -> int:
        """The steps of an epoch with batches of this size."""
        return len(batches(len(self.labels), size, 0))

    @property
    def seconds(self) -> float:
        """How long the run has taken, across interruptions."""
        return self.seconds_before + time.monotonic() - self.began

    @property
    def compiled(self) -> bool:
        """Whether its steps run through `torch.compile`."""
        return self.forward is not self.model

    @property
    def images_an_epoch(self) -> int:
        """How many images an epoch trains on."""
        return min(self.steps_an_epoch * self.batch_size, len(self.labels))

    def snapshot(self) -> dict[str, Any]:
        """Everything that a run needs to resume from here, as tensors, numbers and containers of them."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state() if self.average else None,
            "constraint": self.constraint.state(),
            "generator": self.generator.get_state(),
            "rows": [asdict(row) for row in self.rows],
            "batch_size": self.batch_size,  # an automatic one is what fitted in memory when the run began
            "peak": self.peak,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "images_seen": self.images_seen,
            "totals": self.totals,
            "seconds": self.seconds,
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Goes to the point where a run with the same arguments took this snapshot.

        Raises `Misfit`, with nothing changed, if the snapshot is of a different run.
        """
        check_snapshot(
            snapshot,
            self.snapshot(),
            optimizer=self.optimizer,
            model=self.model,
            epochs=self.config.epochs,
            steps_with=self._steps_with,
            sizes=range(1, len(self.labels) + 1) if self.config.batch_size == "auto" else [self.batch_size],
        )
        self._take_batches(snapshot["batch_size"], snapshot["peak"])
        self.model.load_state_dict(snapshot["model"])
        self.optimizer.load_state_dict(snapshot["optimizer"])
        if self.average:
            self.average.load(snapshot["average"])
        self.constraint.load(snapshot["constraint"])
        self.generator.set_state(snapshot["generator"].cpu())
        self.rows = [EpochRow(**row) for row in snapshot["rows"]]
        self.epoch, self.step_in_epoch = snapshot["epoch"], snapshot["step_in_epoch"]
        self.images_seen = snapshot["images_seen"]
        self.totals.copy_(snapshot["totals"])
        self.seconds_before, self.began = snapshot["seconds"], time.monotonic()

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0 over all epochs."""
        warmup = self.config.warmup_fraction
        return learning_rate(self.config.schedule, step, self.steps, peak=self.peak, warmup_fraction=warmup)

    def remaining_batches(self) -> list[Tensor]:
        """The image indices for each remaining step of this epoch; begins the epoch if it is new."""
        seed = (self.seed * 1_000_003 + self.epoch) % 2**63
        if self.step_in_epoch == 0:
            self.generator.manual_seed(seed)
            self.totals.zero_()
        return batches(len(self.labels), self.batch_size, seed, self.machine.device)[self.step_in_epoch :]

    def train_step(self, indices: Tensor) -> Tensor:
        """One step on the images at these indices, (N,) int64. Returns the loss before it, a scalar on the device."""
        step = self.epoch * self.steps_an_epoch + self.step_in_epoch
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        self.ranks.begin(self.model, self.seed * 1_000_003 + step)
        part = self.ranks.share(len(indices))
        batch = self.sampler(self.images, self.labels, indices, self.generator, part)
        batch = replace(batch, images=batch.images.contiguous(memory_format=self.machine.memory_format))
        with torch.autocast(self.machine.device.type, torch.bfloat16, enabled=self.machine.autocast):
            logits = self.forward(batch.images)
        loss = self.loss(logits, batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.ranks.backward(loss, len(logits), len(indices))
        figures = self._figures(loss, logits, batch, len(indices))
        self.ranks.sum(self.model, [*self.constraint.gradients(), figures])
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.constraint.before_step(self.model)
        self.optimizer.step()
        self.constraint.after_step(self.model, step + 1, self.steps)
        if self.average:
            self.average.update(self.model)
        self.step_in_epoch += 1
        self.images_seen += len(indices)
        self.totals += figures[:2]
        return figures[2]

    @torch.no_grad()
    def _figures(self, loss: Tensor, logits: Tensor, batch: Batch, count: int) -> Tensor:
        """(3,) float32: the sum of the losses, the number of correct answers, and what these images contribute to the
        mean loss of all `count` images of the batch."""
        labels = batch.targets if batch.targets.ndim == 1 else batch.targets.argmax(1)
        loss, correct = loss.detach().float(), (logits.argmax(1) == labels).sum().float()
        return torch.stack([loss * len(logits), correct, loss * (len(logits) / count)])

    def check(self, loss: float) -> None:
        """Raises `TrainingDiverged` if the loss of the last step shows that the run is beyond recovery."""
        if math.isfinite(loss) and loss <= EXPLODED * math.log(max(10, self.classes)):
            return
        kept = f"the state of epoch {self.rows[-1].epoch} is kept" if self.rows else "no state was saved yet"
        rate = self.rate(self.epoch * self.steps_an_epoch + self.step_in_epoch - 1)
        raise TrainingDiverged(
            f"the loss is {loss:g} in epoch {self.epoch + 1}, step {self.step_in_epoch}, at learning rate "
            f"{rate:g}; {kept}; a lower learning rate or clip_norm: 1 usually helps"
        )

    def end_epoch(self, validation: Split, batch_size: int, watch: Watch = unwatched) -> EpochRow:
        """Evaluates after the last step of an epoch, and moves on to the next one."""
        rate = self.rate((self.epoch + 1) * self.steps_an_epoch - 1)
        self.epoch += 1
        self.step_in_epoch = 0
        kept = self.kept_model()
        validation_loss, accuracy = self.ranks.of_first(
            lambda: evaluate(kept, validation, self.machine, batch_size, watch, "validation")
        )
        train_loss, correct = (self.totals / self.images_an_epoch).tolist()
        self.rows.append(EpochRow(self.epoch, rate, train_loss, 100.0 * correct, validation_loss, accuracy))
        return self.rows[-1]

    def kept_model(self) -> nn.Module:
        """The model whose weights are evaluated and kept: the average if there is one, with the constraint applied."""
        if not self.average:
            return self.model
        self.constraint.after_step(self.average.model, self.epoch * self.steps_an_epoch, self.steps)
        return self.average.model

    def finish(self) -> None:
        """Puts the weights to keep into the model, and leaves it in eval mode."""
        if self.average:
            self.model.load_state_dict(self.kept_model().state_dict())
        else:
            self.constraint.after_step(self.model, self.steps, self.steps)
        self.model.eval()
