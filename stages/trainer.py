"""What the stages that train share: machine, seed, checkpoints in and out, resume state."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from common import CHECKPOINTS, MANIFEST, METRICS
from dependencies import stage_digests
from job import Job
from validation import model_faults

from micronet import params as parameters
from micronet.files import checksum
from micronet.training.processes import Member, check_cores, together
from micronet.training.reporting import Reporter

if TYPE_CHECKING:
    from torch import nn

    from micronet.training.checkpoint import Checkpoint
    from micronet.training.constraints import Constraint
    from micronet.training.hardware import Machine
    from micronet.training.loop import TrainResult
    from micronet.training.losses import Loss
    from micronet.training.sampling import Sampler
    from micronet.training.state import ResumeState

Network = Literal["teacher", "student"]
STATE = Path("run")
FIT_IMAGES = 5000  # training images from which a model may set weights before training
FIT_PIXELS = FIT_IMAGES * 32 * 32  # so fewer images if they are larger
DECIDE_NOTHING = {"evaluation_batch_size", "save_every_seconds"}  # keys of `engine` that affect no result


@dataclass
class TrainingJob(Job):
    """A run of a training stage, or one of the processes that train together."""

    member: Member = field(default_factory=Member)
    made_of: dict[str, str] = field(default_factory=dict)  # files that determine the result, with their SHA-256
    trains: ClassVar[bool] = True

    def perform(self, work: Callable[[Self], int | None]) -> int | None:
        """Does the stage's work in `engine.processes` processes; the first one writes and reports."""

        processes = self.params.engine.processes

        def join(member: Member) -> int | None:
            job = replace(self, member=member, reporter=self.reporter if member.first else Reporter())
            if processes > 1:
                with self._told():
                    _ = job.machine  # raises if there are too few GPUs
            return work(job)

        if processes > 1:
            with self._told():
                check_cores(processes)
        return together(processes, self.stage, join)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Makes params faults raised inside begin with the name of their file."""
        try:
            yield
        except parameters.ParamsError as error:
            raise parameters.ParamsError([f"{self.flags.params}: {fault}" for fault in error.faults]) from None

    @cached_property
    def machine(self) -> Machine:
        from micronet.training.hardware import machine

        return machine(self.params.engine, self.member.rank)

    @property
    def seed(self) -> int:
        """A seed specific to this stage, so that two stages do not see the images in the same order."""
        return zlib.crc32(f"{self.params.seed} {self.stage}".encode())

    def model(self, name: Network) -> nn.Module:
        """The teacher or the student before training: with random weights, or those of its start.

        Raises:
            ParamsError: it cannot be built.
            StartError: the weights of its start are missing or do not fit.
        """
        import models
        from micronet.training.starts import started

        section, data = getattr(self.params, name), self.data
        try:
            spec = models.suited(section.model.spec(), image=data.shape, classes=len(data.classes))
            return started(section.start, spec, name) if section.start else self.new_model(spec)
        except models.SpecError as error:
            raise parameters.ParamsError(model_faults(name, error)) from None

    def new_model(self, spec: dict[str, Any]) -> nn.Module:
        """A model with random weights, identical for the same seed."""
        import torch

        import models
        from micronet.data.images import normalise

        torch.manual_seed(self.seed)
        model = models.build(spec)
        if hasattr(model, "fit"):
            images = self.split("train").images
            models.fit(model, normalise(images[: max(1, min(FIT_IMAGES, FIT_PIXELS // images[0, 0].numel()))]))
        return model

    def load(self, name: str) -> Checkpoint:
        """The checkpoint of an earlier stage."""
        from micronet.training.checkpoint import load

        return load(CHECKPOINTS / f"{name}.safetensors")

    @contextmanager
    def resumable(self, section: str, inputs: tuple[str, ...] = ()) -> Iterator[ResumeState | None]:
        """The state of an earlier, interrupted run of the same work; removed if the block succeeds.

        It is found only if everything that determines the result is the same: params, code, input checkpoints, data. Of
        several processes, only the first has it.
        """
        from micronet.training.state import ResumeState

        if not self.member.first:
            yield None
            return
        paths = [CHECKPOINTS / f"{name}.safetensors" for name in inputs]
        for path in paths:
            self.load(path.stem)  # a missing or foreign input is reported before anything is written
        self.made_of = {path.as_posix(): checksum(path) for path in (MANIFEST, *paths) if path.is_file()}
        engine = self.params.engine.model_dump_json(exclude=DECIDE_NOTHING)
        parts = [parameters.digest(self.params.seed, engine, getattr(self.params, section))]
        parts += [json.dumps(stage_digests(self.stage, self.params))]
        parts += self.made_of.values()
        with ResumeState(STATE / self.stage, hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]) as state:
            yield state
            state.clear()

    def train(
        self,
        model: nn.Module,
        config: parameters.Train,
        *,
        state: ResumeState | None,
        loss: Loss | None = None,
        sampler: Sampler | None = None,
        constraint: Constraint | None = None,
    ) -> TrainResult:
        """`micronet.training.train` on this stage's data, machine, seed and paths. Of several processes, only the first
        returns."""
        from micronet.training.loop import train
        from micronet.training.ranks import joined

        training, validation = self.split("train"), self.split("validation")
        with joined(self.member, self.machine) as ranks:
            result = train(
                model,
                config=config,
                training=training,
                validation=validation,
                machine=self.machine,
                seed=self.seed,
                loss=loss,
                sampler=sampler,
                constraint=constraint,
                ranks=ranks,
                state=state,
                reporter=self.reporter,
                curve=METRICS / "curves" / f"{self.stage}.csv" if self.member.first else None,
                evaluation_batch_size=self.params.engine.evaluation_batch_size,
                save_every_seconds=self.params.engine.save_every_seconds,
            )
        self.member.leave()
        return result

    def save(self, name: str, model: nn.Module, result: TrainResult, *, zeros: int | None = None) -> None:
        """Writes the checkpoint, `metrics/STAGE.json` and `metrics/runs/STAGE.json`.

        The validation accuracy is that of the weights as stored.

        Args:
            name: of the checkpoint.
            zeros: how many prunable weights are claimed to be zero; a checkpoint with fewer is refused.
        """
        from micronet.training.checkpoint import save, stored
        from micronet.training.evaluation import evaluate
        from micronet.training.hardware import machine_for
        from micronet.training.weights import count_nonzero, count_zeros

        size = self.params.engine.evaluation_batch_size
        kept = count_zeros(stored(model))[0]
        if zeros is not None:  # 16-bit storage, or zeros of the start outside the mask, can only add some
            zeros = max(zeros, kept)
        machine = machine_for(model, self.machine)
        _, accuracy = evaluate(model, self.split("validation"), machine, size, self.reporter.watch)
        path = CHECKPOINTS / f"{name}.safetensors"
        save(
            path,
            model,
            stage=self.stage,
            epochs=len(result.rows),
            validation_accuracy_percent=accuracy,
            params_digest=self.digest_of(name),
            zeros=zeros,
        )
        found, prunable = count_zeros(model)
        self.metrics(
            validation_accuracy_percent=round(accuracy, 4),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            nonzero_parameters=count_nonzero(model),
            prunable_weights=prunable,
            zero_weights=found,
            epochs=len(result.rows),
            batch_size=result.batch_size,
            learning_rate=result.learning_rate,
        )
        self.record_training(name, result)
        self.reporter.say(f"{accuracy:.2f} % on validation, {path}")

    def record_training(self, name: str, result: TrainResult) -> None:
        """Writes `metrics/runs/STAGE.json`, after the checkpoint of this name; seconds and speed include interrupted
        parts of the run."""
        import torch

        from micronet.training.hardware import device_name

        self.record_run(
            params_digest=self.digest_of(name),
            checkpoint=checksum(CHECKPOINTS / f"{name}.safetensors"),
            made_of=self.made_of,
            seconds=round(result.seconds, 1),
            images_per_second=round(result.images_per_second, 1),
            device=device_name(self.machine),
            precision=result.precision,
            compiled=result.compiled,
            threads=torch.get_num_threads(),
            processes=self.member.size,
            torch=torch.__version__,
        )
