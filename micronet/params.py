"""The typed form of `params.yaml`: the type, range and meaning of every hyperparameter.

`load(path)` reads the whole file and either returns a frozen `Params` or raises `ParamsError` with one
line per fault. Types are strict, as in DVC: `1e-3` is a number, `yes` is not a boolean, an unknown key
is a fault. Nothing here depends on torch, so validation costs no start-up time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from micronet import reading
from micronet.data_params import Data
from micronet.data_params import ImageFormat as ImageFormat
from micronet.errors import MicronetError, shown
from micronet.faults import faults
from micronet.model_params import AnyModel, Start
from micronet.sections import (
    BatchSize,
    Epochs,
    Fraction,
    NonNegative,
    Positive,
    Processes,
    Seconds,
    Section,
    Threads,
    Views,
)

MOST_FAULTS = 20  # lines about what is wrong with a file; a screenful is enough to begin with


class ParamsError(MicronetError):
    """A file of settings cannot be used: one short, printable line for each of the first `MOST_FAULTS` faults.

    `faults` holds all of them.
    """

    exit_code = 2

    def __init__(self, faults: list[str]):
        self.faults = [shown(fault) for fault in faults]
        more = len(faults) - MOST_FAULTS
        last = [f"and {more:,} more fault{'s' if more > 1 else ''}"] if more > 0 else []
        super().__init__("\n".join(self.faults[:MOST_FAULTS] + last))


def _log_to(given: Any) -> Any:
    """Converts `none`, a name or a list of names to a list of unique names. Raises ValueError."""
    names = given if isinstance(given, list | tuple) else [] if given == "none" else [given]
    if not all(isinstance(name, str) and name in ("tensorboard", "mlflow") for name in names):
        raise ValueError("must be none, tensorboard or mlflow, or a list of the last two")
    return list(dict.fromkeys(names))


class Engine(Section):
    """How the machine is used. On one kind of machine, only `threads`, `processes`, `precision` and `compile` change
    results."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: CUDA if torch sees it")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto",
        description="auto: bf16 on CUDA, and on CPUs with AMX or AVX-512 BF16 for networks without depthwise "
        "convolutions; otherwise fp32",
    )
    threads: Threads = Field(default=2, description="CPU threads of torch per process; 0 leaves torch's own choice")
    processes: Processes = Field(
        default=1,
        exclude_if=lambda processes: processes == 1,
        description="that train together, each on its share of every batch: at most one per core, on CUDA one per GPU",
    )
    channels_last: bool = Field(default=True, description="store a pixel's channels side by side, which is faster")
    compile: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="torch.compile the network in training; auto: in long runs without quantizers, on CUDA, and on a "
        "CPU with g++ for DenseNets with narrow layers and networks with depthwise convolutions",
    )
    evaluation_batch_size: BatchSize = Field(default=500, description="images per batch when nothing is trained")
    save_every_seconds: Seconds = Field(default=60.0, description="minimum time between two saves of resume state")
    log_to: Annotated[list[Literal["tensorboard", "mlflow"]], BeforeValidator(_log_to)] = Field(
        default=[],
        exclude=True,
        description="none, tensorboard or mlflow, or a list: where the numbers of every epoch go besides "
        "metrics/curves/; affects no result and no digest",
    )


class Augment(Section):
    """Batched augmentation, drawn independently for every image."""

    crop_padding: Annotated[int, Field(ge=0, le=16)] = Field(
        default=4, description="pixels padded before the crop (arXiv:1512.03385)"
    )
    flip: bool = Field(default=True, description="mirror half of the images left to right")
    cutout_size: Annotated[int, Field(ge=0, le=32)] = Field(
        default=0, description="side of the square set to mid grey, 0: off (arXiv:1708.04552)"
    )
    mixup_alpha: NonNegative = Field(default=0.0, description="Beta(alpha, alpha), 0: off (arXiv:1710.09412)")
    mixup_probability: Fraction = Field(default=1.0, description="share of images that get mixup")
    cutmix_alpha: NonNegative = Field(default=0.0, description="Beta(alpha, alpha), 0: off (arXiv:1905.04899)")
    cutmix_probability: Fraction = Field(default=1.0, description="share of images that get CutMix")

    @model_validator(mode="after")
    def _one_mix(self) -> Augment:
        if self.mixup_alpha > 0 and self.cutmix_alpha > 0:
            if self.mixup_probability + self.cutmix_probability > 1:
                raise ValueError("mixup_probability + cutmix_probability: must be at most 1 when both are on")
        return self


class Train(Section):
    """One run of the training loop."""

    epochs: Epochs = Field(description="passes over the training split")
    batch_size: BatchSize | Literal["auto"] = Field(
        default=128,
        description="auto: on CUDA the largest power of two that fits, on a CPU 128; never more than the whole split",
    )
    max_batch_size: BatchSize = Field(default=1024, description="upper limit of batch_size: auto")
    optimizer: Literal["sgd", "adam"] = Field(
        default="sgd", description="adam: with decoupled weight decay (arXiv:1711.05101)"
    )
    learning_rate: Positive = Field(
        description="peak rate; for batch_size: auto the rate at 128, scaled linearly (arXiv:1706.02677)"
    )
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(default=0.9, description="SGD, Nesterov when > 0")
    weight_decay: NonNegative = Field(default=5e-4, description="not on batch norms, biases and quantizer steps")
    schedule: Literal["cosine", "step", "one_cycle", "constant"] = Field(
        default="one_cycle",
        description="step: x0.1 after each third, as in the deck; one_cycle: a rise, then a straight line to 0 "
        "(arXiv:1708.07120); cosine: a rise, then half a cosine to 0 (arXiv:1608.03983)",
    )
    warmup_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.2, description="share of the steps over which the rate rises linearly to the peak (one_cycle, cosine)"
    )
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0, description="share of a label spread evenly over all classes, 0: off (arXiv:1512.00567)"
    )
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0,
        description="decay per step of the averaged weights, which are evaluated and saved, 0: off (arXiv:1703.01780)",
    )
    clip_norm: NonNegative = Field(default=0.0, description="limit on the gradient norm, 0: off (arXiv:1211.5063)")
    augment: Augment = Augment()


class Teacher(Section):
    """The large model whose answers the student learns from."""

    model: AnyModel = Field(description="an architecture of models/ by its name, or a class of a file in networks/")
    start: Start | None = Field(
        default=None,
        exclude_if=lambda start: start is None,
        description="weights to start from; epochs: 0 uses them unchanged",
    )
    train: Train = Field(description="how long it trains, and how")


class Student(Section):
    """The small model, trained without a teacher: the baseline, and the start of distillation."""

    model: AnyModel = Field(description="an architecture of models/ by its name, or a class of a file in networks/")
    start: Start | None = Field(
        default=None,
        exclude_if=lambda start: start is None,
        description="a checkpoint to start from (`tools/unpack.py` makes one from a packed model); else random weights",
    )
    train: Train = Field(description="how long it trains, and how")


class Distillation(Section):
    """Hinton et al. 2015, arXiv:1503.02531: alpha * T^2 * KL(teacher || student) + (1 - alpha) * CE(labels)."""

    temperature: Positive = Field(
        default=4.0,
        description="logits are divided by it before the softmax, which brings out what a teacher half believes",
    )
    alpha: Fraction = Field(default=0.9, description="weight of the teacher's answers; 0 trains without a teacher")
    # Left out of a digest while it is off, so that results from before it existed keep their digest.
    views: Views = Field(
        default=0,
        exclude_if=lambda views: views == 0,
        description="fixed views per image (crops, mixed and cut as train.augment says), with answers computed once; "
        "0: the teacher answers every image anew (arXiv:2106.05237)",
    )
    mirror_answers: bool = Field(
        default=False,
        exclude_if=lambda mirror: not mirror,
        description="the teacher's answer is the mean over an image, as the student sees it, and its mirror image",
    )


class Taught(Distillation):
    """A training run with the teacher's answers."""

    train: Train = Field(description="how long it trains, and how")

    @model_validator(mode="after")
    def _pairs_of_views(self) -> Taught:
        if self.mirror_answers and self.views % 2:
            raise ValueError(
                f"views: must be even with mirror_answers, every view with its mirror image (got {self.views})"
            )
        if self.mirror_answers and not self.train.augment.flip:
            raise ValueError("mirror_answers: must be false where train.augment.flip is")
        return self


class Distill(Taught):
    """Train the student with the teacher's answers."""

    start_from: Literal["student", "scratch", "teacher"] = Field(
        default="student",
        description="teacher: the teacher's own weights, or those of its most-read channels for a narrower convnet",
    )


class Prune(Taught):
    """Global unstructured pruning by magnitude."""

    method: Literal["one_shot", "iterative", "gradual", "soft", "feedback"] = Field(
        default="one_shot",
        description="one_shot: at once, then training; iterative: in rounds (arXiv:1506.02626); gradual: cubic in the "
        "steps (arXiv:1710.01878); soft: pruned weights may grow back (arXiv:1808.06866); feedback: gradual, masked "
        "weights keep learning (arXiv:2006.07253)",
    )
    amount: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        description="share of all prunable weights (convolutions and linear layers) that become zero"
    )
    cost_exponent: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.0,
        exclude_if=lambda exponent: exponent == 0,
        description="magnitudes are divided by this power of the weight's cost, so that expensive layers lose more",
    )
    layer_floor: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.02, description="minimum share of weights that every layer keeps, so that none is pruned away"
    )
    rounds: Annotated[Epochs, Field(ge=1)] = Field(
        default=4, description="iterative: prune this many times, to a growing amount"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Prune:
        if self.method != "one_shot" and self.train.epochs == 0 and self.amount > 0:
            raise ValueError(f"train.epochs: must be > 0 for method {self.method} (0 is one_shot)")
        if self.method == "iterative" and self.rounds > self.train.epochs > 0:
            raise ValueError(f"rounds: must be at most train.epochs, {self.train.epochs} (got {self.rounds})")
        if self.amount > 1 - self.layer_floor:
            raise ValueError(f"amount: {self.amount} leaves less than layer_floor {self.layer_floor} of the weights")
        return self


class Retrain(Taught):
    """Continue training with the mask fixed."""


Bits = Annotated[int, Field(ge=1, le=8)]


class Quantize(Taught):
    """Fewer bits per weight and activation, trained with the quantizers in place, packed into one file."""

    method: Literal["half", "fx_int8", "binary_connect", "lsq"] = Field(
        default="lsq",
        description="lsq: a learned step per tensor (arXiv:1902.08153); binary_connect: 1-bit weights "
        "(arXiv:1511.00363); fx_int8: torch's FX graph mode; half: 16-bit floats",
    )
    weight_bits: Bits = Field(default=8, description="lsq: 2..8; fx_int8: 8; binary_connect: 1; half ignores it")
    activation_bits: Annotated[int, Field(ge=2, le=8)] = Field(
        default=8, description="bits of the maps between layers; fx_int8: 8; half ignores it"
    )
    signed_bits: Annotated[int, Field(ge=2, le=8)] = Field(
        default=8,
        exclude_if=lambda bits: bits == 8,
        description="bits of results without a ReLU or another function: sums of inverted residuals, what is added, "
        "concatenated or pooled, both parts of a PReLU per channel; fx_int8: 8; half ignores it",
    )
    input_bits: Annotated[int, Field(ge=2, le=8)] = Field(default=8, description="bits kept of every pixel")
    per_channel: bool = Field(
        default=False,
        exclude_if=lambda per_channel: not per_channel,
        description="lsq: one step per output channel instead of one per tensor; not in the last layer "
        "(arXiv:1806.08342)",
    )
    layer_bits: dict[str, Annotated[int, Field(ge=1, le=8)]] = Field(
        default_factory=dict, description="weight bits of single layers by name, e.g. {stem.conv: 8}"
    )
    keep_first_and_last: bool = Field(default=True, description="binary_connect: first and last layer stay at 8 bits")
    multiplier_bits: Annotated[int, Field(ge=6, le=16)] = Field(
        default=10, description="width of the fixed-point requantization multipliers"
    )
    factored_sums: bool = Field(
        default=True,
        description="add up the inputs of equal weights first, then multiply once, where that costs less "
        "(arXiv:1804.06508)",
    )
    trim: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0,
        exclude_if=lambda share: share == 0,
        description="lsq: share of the weights' cost (storage and operations) that further zeros save during training: "
        "weights, rows and kernels that the loss needs least for their cost (arXiv:1801.05787, arXiv:1611.05128)",
    )
    flip_share: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.0,
        exclude_if=lambda share: share == 0,
        description="share of the validation images, the least sure ones, that sets the margin below which the packed "
        "model also sees the mirror image; test images that take this second pass are charged for it",
    )
    calibration_images: BatchSize = Field(
        default=1000, description="number of training images that set the initial activation steps"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Quantize:
        widths = {"lsq": range(2, 9), "fx_int8": range(8, 9), "binary_connect": range(1, 2)}.get(self.method)
        if widths is not None and self.weight_bits not in widths:
            raise ValueError(
                f"weight_bits: {self.method} takes {widths[0]}"
                + (f" to {widths[-1]}" if len(widths) > 1 else "")
                + f" (got {self.weight_bits})"
            )
        if self.per_channel and self.method != "lsq":
            raise ValueError(f"per_channel: must be false for {self.method}, which has scales of its own")
        if self.trim and self.method != "lsq":
            raise ValueError(f"trim: must be 0 for {self.method}, only lsq can trim")
        if self.trim and self.train.epochs == 0:
            raise ValueError("trim: must be 0 when train.epochs is 0: it reads the gradients of training")
        if self.method == "half" and self.flip_share:
            raise ValueError("flip_share: must be 0 for half, which has no integer logits")
        for key in ("activation_bits", "signed_bits"):
            if self.method == "fx_int8" and getattr(self, key) != 8:
                raise ValueError(f"{key}: fx_int8 takes 8 (got {getattr(self, key)})")
        return self


class Reference(Section):
    """What the scores are relative to."""

    operations: Annotated[float, Field(gt=0.0, le=1e15)] = Field(description="32-bit operations for one image")
    parameters: Annotated[float, Field(gt=0.0, le=1e12)] = Field(description="32-bit parameters")


class Score(Section):
    """Measurement on the test set."""

    batch_size: BatchSize = Field(default=500, description="images per batch; no result depends on it")
    measure_path: bool = Field(default=True, description="measure every checkpoint of the path, not only the last")
    reference: Reference | None = Field(
        default=None,
        exclude_if=lambda reference: reference is None,
        description="what the scores are relative to; by default the challenge's for CIFAR-10 and CIFAR-100, for other "
        "data the teacher in 16 bits",
    )


class Params(Section):
    """All of `params.yaml`: one section per stage, and what they share."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        description="of initial weights, image order and crops; the splits use data.seed"
    )
    data: Data
    engine: Engine
    teacher: Teacher
    student: Student
    distill: Distill
    prune: Prune
    retrain: Retrain
    quantize: Quantize
    score: Score

    @model_validator(mode="after")
    def _processes_share_every_batch(self) -> Params:
        processes = self.engine.processes
        for name in ("teacher", "student", "distill", "prune", "retrain", "quantize"):
            train: Train = getattr(self, name).train
            size = train.max_batch_size if train.batch_size == "auto" else train.batch_size
            if train.epochs and size < processes:
                key = "max_batch_size" if train.batch_size == "auto" else "batch_size"
                raise ValueError(f"{name}.train.{key}: must be >= engine.processes, {processes} (got {size})")
        if processes > 1 and self.quantize.method == "fx_int8" and self.quantize.train.epochs:
            raise ValueError(
                "quantize.method: fx_int8 observes its ranges in one process, engine.processes: 1 or method: lsq works "
                f"(got engine.processes: {processes})"
            )
        return self


def read_yaml(path: Path | str) -> Any:
    """The content of a YAML 1.2 file, read as DVC reads it: with the same parser; a duplicate key is a fault.

    Raises:
        ParamsError: it cannot be read, or is not YAML; the message is one line.
    """
    try:
        return reading.read(path)
    except reading.UnreadableError as error:
        raise ParamsError([str(error)]) from None


def parse(tree: Any, path: Path | str = "params.yaml") -> Params:
    """Checks the content of a params file. Raises `ParamsError` with every fault found."""
    path = Path(path)
    if not isinstance(tree, dict):
        raise ParamsError([f"{path}: must hold sections, one a stage (got {type(tree).__name__})"])
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise ParamsError([f"{path}: {fault}" for fault in faults(error)]) from None


def load(path: Path | str = "params.yaml") -> Params:
    """Reads and checks a whole params file.

    Raises:
        ParamsError: one line per fault, e.g. `params.yaml: teacher.train.learning_rate: must be > 0 (got -1)`.
    """
    return parse(read_yaml(Path(path)), path)


def digest(*sections: BaseModel | int | str) -> str:
    """A short sha256 of the content of sections: identifies what a checkpoint came from."""
    tree = [section.model_dump(mode="json") if isinstance(section, BaseModel) else section for section in sections]
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]
