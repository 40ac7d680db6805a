"""Trains one variant of a study with one seed and writes its validation accuracy and both scores.

The test split is never opened: studies compare validation accuracy. A run that was interrupted goes on from its saved
state. With --keep-going a run that fails is recorded as failed, with its log's path, and ends with exit code 0, so that
the others go on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from micronet import params as parameters  # noqa: E402 - the lines above make it importable
from micronet.files import write_json  # noqa: E402
from studies import sources  # noqa: E402
from studies.plan import PLAN, RUNS, Plan, Settings, load  # noqa: E402

if TYPE_CHECKING:
    from torch import nn

    from micronet.data.images import Split
    from micronet.training.constraints import Constraint
    from micronet.training.hardware import Machine
    from micronet.training.loop import TrainResult
    from micronet.training.reporting import EpochRow, Reporter
    from micronet.training.state import ResumeState

PARAMS, MANIFEST = Path("params.yaml"), Path("data/manifest.json")
STATE, LOGS = Path("run/studies"), Path("logs/studies")
CURVE_IMAGES = 500  # validation images that an epoch is followed with; the result is measured on all of them
# Training images that a quantized network's batch norm statistics are estimated from: as many as the results in
# metrics/studies were made with, which are fewer than the pipeline takes.
BATCH_NORM_IMAGES = 2000


def subset(split: Split, images: int) -> Split:
    """The first images of each class, the same number of each, at most `images` in all; all when there are no more."""
    import torch

    from micronet.data.images import Split

    if images >= len(split.labels):
        return split
    share = images // 10
    indices = torch.cat([torch.nonzero(split.labels == label).flatten()[:share] for label in range(10)])
    indices = indices.sort().values
    return Split(split.images[indices], split.labels[indices])


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    plan: Plan
    group: str
    variant: str
    seed: int
    reporter: Reporter | None

    @property
    def name(self) -> str:
        return f"{self.group}/{self.variant}-{self.seed}"

    @property
    def settings(self) -> Settings:
        return self.plan.settings[self.group][self.variant]

    @property
    def record(self) -> Path:
        return RUNS / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return LOGS / f"{self.name}.log"

    @property
    def weights(self) -> Path:
        """Where a shared network lies. Git-ignored; the record names its sha256."""
        return STATE / f"{self.name}.safetensors"

    @cached_property
    def needs(self) -> dict[str, Run]:
        """The shared networks that this run starts from or learns from."""
        found = {}
        if self.settings.start:
            found["base"] = Run(self.plan, "base", self.settings.start, self.seed, self.reporter)
        if self.settings.teacher:
            seed = self.plan.seeds("teacher")[0]
            found["teacher"] = Run(self.plan, "teacher", self.settings.teacher, seed, self.reporter)
        return found

    @cached_property
    def digest(self) -> str:
        """Names all that decides the result: settings, seed, code, data, shared networks."""
        parts = [self.settings.digest(), str(self.seed), json.dumps(sources.digests(self.plan))]
        parts += [hashlib.sha256(MANIFEST.read_bytes()).hexdigest()] if MANIFEST.is_file() else []
        parts += [run.weights_sha256() for run in self.needs.values()]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

    def weights_sha256(self) -> str:
        """The sha256 of a shared network, as its record says."""
        from micronet.errors import MicronetError

        record = json.loads(self.record.read_text(encoding="utf-8")) if self.record.is_file() else {}
        if "weights_sha256" not in record:
            reason = f"failed ({record['failure']}; {record['log']})" if "failure" in record else "has not run"
            raise MicronetError(f"{self.name} is needed and {reason}; `{self.command}` runs it")
        return record["weights_sha256"]

    @property
    def command(self) -> str:
        return f"python studies/run.py {self.group} {self.variant} --seed {self.seed}"

    def model(self) -> nn.Module:
        """A shared network; trained anew when its file is gone, as on a fresh clone."""
        from micronet.errors import MicronetError
        from micronet.training.checkpoint import load

        wanted = self.weights_sha256()
        if not self._has(wanted):
            self.reporter.say(f"{self.weights} is not here, training it")
            self.train()
            if not self._has(wanted):
                raise MicronetError(
                    f"{self.weights}: this machine trains other weights than {self.record} names; "
                    f"`{self.command}` records these"
                )
        return load(self.weights).model()

    def _has(self, sha256: str) -> bool:
        return self.weights.is_file() and hashlib.sha256(self.weights.read_bytes()).hexdigest() == sha256

    def _split(self, name: str) -> Split:
        """The training or the validation split, of the data that params.yaml names."""
        from micronet.data.store import open_split

        params = parameters.load(PARAMS)
        return open_split(params.data, name, manifest_path=MANIFEST, report=self.reporter.say)

    def known(self) -> dict[str, Any] | None:
        """The result of a run that did the very same work, in this study or another."""
        for path in sorted(RUNS.glob(f"*/*-{self.seed}.json")):
            record = json.loads(path.read_text(encoding="utf-8"))
            if record.get("digest") == self.digest and "failure" not in record:
                return {key: value for key, value in record.items() if key != "weights_sha256"}
        return None

    def train(self) -> dict[str, Any]:
        """Trains and measures. Writes the weights when the network is a shared one. Returns the record."""
        import torch

        import models
        from micronet.compress.pruning import PruningSchedule
        from micronet.packed.file import VERSION
        from micronet.packed.quantizing import quantize
        from micronet.scoring.measurement import passes
        from micronet.training.checkpoint import save
        from micronet.training.evaluation import evaluate
        from micronet.training.hardware import machine
        from micronet.training.state import ResumeState

        settings = self.settings
        here, batch_size = machine(settings.engine), settings.engine.evaluation_batch_size
        images, validation = subset(self._split("train"), settings.images), self._split("validation")
        with ResumeState(STATE / self.name, self.digest) as state:
            torch.manual_seed(self.seed)
            model = self.needs["base"].model() if settings.start else models.build(settings.model)
            model = model.to(here.device)
            fit = partial(self._fit, images=images, validation=validation, here=here, state=state)
            if settings.quantize:
                found = quantize(
                    model,
                    settings.quantize,
                    images=images.images,
                    validation=validation,
                    train=fit,
                    machine=lambda: here,
                    seed=self.seed,
                    batch_norm_images=BATCH_NORM_IMAGES,
                    evaluation_batch_size=batch_size,
                )
                model, result, accuracy = found.prepared, found.training, found.validation_accuracy_percent
                scores = _scores(found.module, passes=passes(found.module, validation))
            else:
                result = fit(model, PruningSchedule(settings.prune, model) if settings.prune else None)
                accuracy = evaluate(model, validation, here, batch_size)[1]
                scores = _scores(model, weight_bits=settings.weight_bits)
            record = {
                "budget": self.plan.budget,
                "digest": self.digest,
                "validation_accuracy_percent": round(accuracy, 4),
                **scores,
                "epochs": len(result.rows),
                "images": len(images.labels),
                "validation_images": len(validation.labels),
            }
            if settings.quantize:
                record["packed_version"] = VERSION  # which counts the scores
            self._check_zeros(model)
            if self.group in self.plan.file.shared:
                save(
                    self.weights,
                    model,
                    stage=self.group,
                    epochs=len(result.rows),
                    validation_accuracy_percent=accuracy,
                    params_digest=settings.digest(),
                )
                record["weights_sha256"] = hashlib.sha256(self.weights.read_bytes()).hexdigest()
            self.reporter.say(f"{accuracy:.2f} % on validation, {result.seconds:.0f} s, {result.batch_size} a batch")
            state.clear()
        return record

    def _fit(
        self,
        model: nn.Module,
        constraint: Constraint | None,
        *,
        images: Split,
        validation: Split,
        here: Machine,
        state: ResumeState,
    ) -> TrainResult:
        """Trains a network as the settings say."""
        from micronet.training.distillation import distilled
        from micronet.training.loop import train

        settings, loss = self.settings, None
        if settings.distillation:
            smoothing = settings.train.label_smoothing
            loss = distilled(self.needs["teacher"].model, settings.distillation, here, label_smoothing=smoothing)
        return train(
            model,
            config=settings.train,
            training=images,
            validation=subset(validation, CURVE_IMAGES),
            machine=here,
            seed=self.seed,
            loss=loss,
            constraint=constraint,
            state=state,
            reporter=self.reporter,
            evaluation_batch_size=settings.engine.evaluation_batch_size,
            save_every_seconds=settings.engine.save_every_seconds,
        )

    def _check_zeros(self, model: nn.Module) -> None:
        """Raises `RuntimeError` when a pruned network has another number of zeros than was asked for."""
        from micronet.compress.pruning import zeros_wanted
        from micronet.training.weights import count_zeros

        if self.settings.prune:
            zeros, weights = count_zeros(model)
            wanted = zeros_wanted(self.settings.prune.amount, weights)
            if zeros != wanted:
                raise RuntimeError(f"{wanted} zeros are wanted and {zeros} are there")


def _scores(model: nn.Module, passes: Sequence[float] = (1.0,), **widths: int) -> dict[str, float]:
    from micronet.scoring.challenge import challenge_score
    from micronet.scoring.counting import operations
    from micronet.scoring.deck import deck_score

    ops = operations(model, **widths)
    return {"deck_score": deck_score(ops, passes).score, "challenge_score": challenge_score(ops, passes).score}


def logged(reporter: Reporter, path: Path) -> Reporter:
    """The reporter, with sentences and epochs written into a log too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    say, epoch = reporter.say, reporter.epoch

    def write(line: str) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def said(line: str) -> None:
        write(line)
        say(line)

    def ended(row: EpochRow, seconds: float) -> None:
        write(f"{row} {seconds:.1f} s")
        epoch(row, seconds)

    reporter.say, reporter.epoch = said, ended
    return reporter


def perform(run: Run, train: Callable[[Run], dict[str, Any]] = Run.train) -> dict[str, Any]:
    """The record of a run that went well, written to its place. Raises whatever made it fail."""
    shared = run.group in run.plan.file.shared
    record = None if shared else run.known()
    if record:
        run.reporter.say(f"{record['validation_accuracy_percent']:.2f} % on validation, by another study's run")
    record = record or train(run)
    write_json(run.record, record)
    return record


def work(run: Run) -> int:
    """Performs a run in this process. The exit code: 1 when it failed, its reason the last line of its log."""
    from micronet.errors import MicronetError
    from micronet.training.interruption import Interrupted

    logged(run.reporter, run.log)
    try:
        perform(run)
    except (KeyboardInterrupt, Interrupted) as error:
        print(f"{run.name}: {str(error) or 'stopped'}", file=sys.stderr)
        return 130
    except Exception as error:
        reason = " ".join(str(error).split()) if isinstance(error, MicronetError) else repr(error)
        with run.log.open("a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
            file.write(f"failed: {reason}\n")
        print(f"{run.name}: failed: {reason}; its log: {run.log}", file=sys.stderr)
        return 1
    return 0


def guarded(run: Run) -> int:
    """Performs a run in a process of its own and records a failure, so that not even a kill stops the other runs."""
    command = [sys.executable, __file__, run.group, run.variant, "--seed", str(run.seed)]
    child = subprocess.Popen(command)
    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal sends it to the child as well
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    parent = os.getppid()
    while True:
        try:
            code = child.wait(timeout=1)
            break
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:  # DVC is gone: the child saves its state and ends
                parent = os.getppid()
                child.terminate()
    if code not in (1, *range(-64, 0)) or code in (-signal.SIGINT, -signal.SIGTERM):
        return code if code >= 0 else 130
    lines = run.log.read_text(encoding="utf-8").splitlines() if run.log.is_file() else []
    told = code == 1 and bool(lines) and lines[-1].startswith("failed: ")
    reason = lines[-1].removeprefix("failed: ") if told else f"ended by {f'signal {-code}' if code < 0 else 'an error'}"
    if not told:
        print(f"{run.name}: failed: {reason}; its log: {run.log}", file=sys.stderr)
    record = {"budget": run.plan.budget, "failure": reason, "log": run.log.as_posix()}
    write_json(run.record, record)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Exit code 2 for a study or variant that does not exist, 1 for a run that failed, 130 for one that was stopped."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("study", help="one of studies/studies.yaml, or teacher or base: what others need")
    parser.add_argument("variant")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--keep-going", action="store_true", help="record a failure instead of failing")
    arguments = parser.parse_args(argv)
    try:
        plan = load()
        plan.check(arguments.study, arguments.variant)
        parameters.load(PARAMS)
        if PLAN.is_file() and parameters.read_yaml(PLAN) != plan.document:
            raise parameters.ParamsError([f"{PLAN}: is older than the studies; `python studies/plan.py` writes it"])
    except parameters.ParamsError as error:
        print(error, file=sys.stderr)
        return 2
    run = Run(plan, arguments.study, arguments.variant, arguments.seed, None)
    if arguments.keep_going:
        return guarded(run)
    from micronet.training.terminal import TerminalReporter

    return work(replace(run, reporter=TerminalReporter(run.name)))


if __name__ == "__main__":
    sys.exit(main())
