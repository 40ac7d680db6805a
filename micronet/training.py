"""The one training loop: every stage that trains calls `train()` with its own loss, constraint and model.

The dataset lies in memory as one uint8 tensor; a batch is gathered, augmented and normalised in batched
tensor code, without worker processes. A run that was killed goes on from its last saved state and ends
with the same bytes as one that was not.
"""

from __future__ import annotations

import copy
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from micronet.augment import augment
from micronet.checkpoint import ResumeState
from micronet.data import Split, normalise
from micronet.errors import MicronetError
from micronet.logger import EpochRow, Reporter, write_curve
from micronet.params import Augment, Engine, Train

COMPILE_STEPS = 5_000  # a run this long earns back the minute or so that compiling takes
CPU_BATCH_SIZE = 128  # what `batch_size: auto` is on CPU, where a larger batch is no faster


@dataclass(frozen=True)
class Batch:
    """What one step trains on."""

    images: Tensor  # (N, 3, 32, 32) float32, augmented and normalised
    targets: Tensor  # (N,) int64, or (N, classes) float32 where images are mixed
    answers: Tensor | None = None  # (N, classes) float32, the teacher's logits, where they were computed before


Loss = Callable[[Tensor, Batch], Tensor]
"""logits (N, classes), the batch that gave them -> scalar."""

Sampler = Callable[[Tensor, Tensor, Tensor, torch.Generator], Batch]
"""All images (M, 3, 32, 32) uint8, all labels (M,), a batch's indices (N,), a generator -> the batch."""


class TrainingDiverged(MicronetError):
    """The loss is NaN or exploded; says where, and that the last good state is kept."""


class Interrupted(MicronetError):
    """Ctrl-C, SIGTERM or the death of the DVC process that started this one; says how to go on."""

    exit_code = 130


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
class Machine:
    """Where and how a model runs."""

    device: torch.device
    autocast: bool
    channels_last: bool
    compile: str = "off"  # engine.compile
    any_precision: bool = False  # engine.precision is auto: a model may run in another one where that is faster

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def exact(self) -> Machine:
        """This machine without autocast, for integers held in float32."""
        return replace(self, autocast=False)


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


def machine(engine: Engine) -> Machine:
    """Chooses the device and precision, sets threads and deterministic kernels.

    `precision: auto` is bf16 on CUDA and on CPUs that multiply it, with AMX or AVX-512 BF16, where it is two to three
    times as fast; elsewhere bf16 is emulated and ten times slower, so it is fp32.
    """
    if engine.threads:
        torch.set_num_threads(engine.threads)
    cuda = engine.device == "cuda" or (engine.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if cuda else "cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    torch.use_deterministic_algorithms(True)
    bf16 = engine.precision == "bf16" or (engine.precision == "auto" and (cuda or _multiplies_bf16()))
    free = engine.precision == "auto"
    return Machine(device, bf16, channels_last=engine.channels_last, compile=engine.compile, any_precision=free)


def suited(model: nn.Module, machine: Machine) -> Machine:
    """The machine as this network is trained on it.

    In fp32 where the precision is free and depthwise convolutions meet a CPU: its kernels for them in bf16 made
    inverted residuals of 1 to 4 M multiply-accumulates two to three times slower than in fp32, with AMX.

    In NCHW where training in channels-last would corrupt memory: torch 2.15's CPU backward of a channels-last 1x1 convolution with a stride and fewer than 8 input channels writes
    where it must not: the process ends with "double free" sooner or later.
    """
    if machine.device.type != "cpu":
        return machine
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if machine.any_precision and any(module.groups == module.in_channels > 1 for module in convolutions):
        machine = replace(machine, autocast=False)
    hit = any(
        module.kernel_size == (1, 1) and max(module.stride) > 1 and module.in_channels < 8 for module in convolutions
    )
    return replace(machine, channels_last=False) if hit else machine


def device_name(machine: Machine) -> str:
    """The GPU's name, or the processor's with the number of cores and its vector instructions."""
    if machine.device.type == "cuda":
        return torch.cuda.get_device_name(machine.device)
    model = "CPU"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def _multiplies_bf16() -> bool:
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private to torch: one that is gone says no
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def learning_rate(schedule: str, step: int, steps: int, *, peak: float, warmup_fraction: float = 0.0) -> float:
    """The rate of optimizer step `step` (0 is the first) of `steps`.

    one_cycle: linear up to the peak, then linear down to 0 (arXiv:1708.07120, without the momentum cycle).
    cosine: linear up, then half a cosine down to 0 (arXiv:1608.03983).
    step: the peak, a tenth, a hundredth, a third of the steps each (the deck). constant: the peak.
    """
    if schedule == "constant":
        return peak
    if schedule == "step":
        return peak * 0.1 ** min(2, 3 * step // max(1, steps))
    rise = warmup_fraction * steps
    if step < rise:
        return peak * (step + 1) / (rise + 1)
    fraction = (step - rise) / max(1.0, steps - rise)
    if schedule == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * fraction))
    return peak * (1.0 - fraction)


def cross_entropy(label_smoothing: float = 0.0) -> Loss:
    """The plain loss: cross entropy with hard or soft targets."""

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(logits.float(), batch.targets, label_smoothing=label_smoothing)

    return loss


def augmented(config: Augment) -> Sampler:
    """The plain sampler: every image is augmented anew whenever it is seen."""

    def sample(images: Tensor, labels: Tensor, indices: Tensor, generator: torch.Generator) -> Batch:
        return Batch(*augment(images[indices], labels[indices], config, generator))

    return sample


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, machine: Machine, batch_size: int = 500) -> tuple[float, float]:
    """Mean cross entropy and accuracy in percent, in eval mode; the model's mode is given back."""
    training = model.training
    model.eval()
    loss, correct = 0.0, 0
    for start in range(0, len(split.labels), batch_size):
        images = normalise(split.images[start : start + batch_size].to(machine.device))
        labels = split.labels[start : start + batch_size].to(machine.device).long()
        with torch.autocast(machine.device.type, torch.bfloat16, enabled=machine.autocast):
            logits = model(images.contiguous(memory_format=machine.memory_format))
        loss += F.cross_entropy(logits.float(), labels, reduction="sum").item()
        correct += int((logits.argmax(1) == labels).sum())
    model.train(training)
    return loss / len(split.labels), 100.0 * correct / len(split.labels)


class Average:
    """Exponential moving average of weights and batch norm statistics (arXiv:1703.01780, section 3).

    The decay rises as (1 + t) / (10 + t), so that the start is forgotten early.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self.model = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.steps += 1
        weight = 1.0 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        pairs = zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        averaged, current = [], []
        for mine, theirs in pairs:
            if mine.is_floating_point():
                averaged.append(mine)
                current.append(theirs)
            else:
                mine.copy_(theirs)
        torch._foreach_lerp_(averaged, current, weight)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Weight decay for convolution and linear weights only, not for batch norms, biases and quantizer steps."""
    weights, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_weight = parameter.ndim > 1 and name.rpartition(".")[2] == "weight"
            (weights if is_weight else others).append(parameter)
    return [{"params": weights, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, config: Train) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or Adam with decoupled weight decay."""
    groups = parameter_groups(model, config.weight_decay)
    if config.optimizer == "adam":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    nesterov = config.momentum > 0
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov, fused=True)


def find_batch_size(model: nn.Module, config: Train, machine: Machine) -> tuple[int, float]:
    """The batch size and the peak learning rate of a run.

    For `batch_size: auto` on CUDA: the largest power of two up to `max_batch_size` whose training step fits in
    memory, with the rate scaled linearly from 128 (arXiv:1706.02677). On CPU: 128.
    """
    if config.batch_size != "auto":
        return config.batch_size, config.learning_rate
    if machine.device.type != "cuda":
        return CPU_BATCH_SIZE, config.learning_rate
    size = 2 ** int(math.log2(config.max_batch_size))
    while size > 1:
        trial = copy.deepcopy(model).train()
        try:
            images = torch.zeros(size, 3, 32, 32, device=machine.device)
            with torch.autocast("cuda", torch.bfloat16, enabled=machine.autocast):
                logits = trial(images.contiguous(memory_format=machine.memory_format))
            logits.float().sum().backward()
            break
        except torch.cuda.OutOfMemoryError:
            size //= 2
        finally:
            del trial
            torch.cuda.empty_cache()
    return size, config.learning_rate * size / 128


def compiled(model: nn.Module, machine: Machine, steps: int) -> Callable[[Tensor], Tensor]:
    """What a run of so many steps calls: the model, or a `torch.compile` of it, which shares its weights.

    `compile: auto` compiles on CUDA, in runs long enough to earn it back; on a CPU compiling took minutes and gained
    little. A network with quantizers took more than three minutes on an H200 before its second step, so `auto` leaves
    it as it is. What cannot be compiled runs as it is.
    """
    worth = machine.device.type == "cuda" and steps >= COMPILE_STEPS and not isinstance(model, fx.GraphModule)
    if machine.compile == "off" or (machine.compile == "auto" and not worth):
        return model
    torch._dynamo.config.suppress_errors = True
    return torch.compile(model)


def batches(count: int, batch_size: int, seed: int, device: torch.device | str = "cpu") -> list[Tensor]:
    """Index batches of one epoch: a permutation by seed, cut into equal batches; the rest of the images waits
    for another epoch, so that every step sees a full batch (one short batch when there are fewer images)."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(device)
    full = count // batch_size
    return list(order[: full * batch_size].view(full, batch_size)) if full else [order]


def orphan_watch() -> Callable[[], bool]:
    """Tells whether the DVC process that started this one has gone since; outside of DVC it never has."""
    parent, watched = os.getppid(), "DVC_STAGE" in os.environ
    return lambda: watched and os.getppid() != parent


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying in the middle of a step; a second one kills at once."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are not ours to take
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        with _stop_signals() as signals:
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
