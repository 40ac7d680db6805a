"""From a trained float network to a measured packed file: the one path for the stage, studies and searches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, fx, nn

from micronet.compress.calibration import (
    calibrate,
    recalibrate_batch_norm,
    refit_lost_steps,
    training_batches,
)
from micronet.compress.pruning import FixedMask
from micronet.compress.quantization import prepare
from micronet.compress.trimming import Trimming
from micronet.data.images import Split
from micronet.data.progress import Watch, counted, unwatched
from micronet.files import write_atomically
from micronet.packed.file import decode, restated
from micronet.packed.model import PackedModel
from micronet.packed.module import PackedModule
from micronet.packed.packing import pack, rehearse
from micronet.params import Quantize
from micronet.training.constraints import Constraint
from micronet.training.evaluation import evaluate
from micronet.training.hardware import Machine
from micronet.training.loop import TrainResult

BATCH_NORM_IMAGES = 10_000  # training images from which the batch norm statistics are re-estimated


@dataclass(frozen=True)
class Quantized:
    """The result of quantizing a network."""

    prepared: fx.GraphModule  # trained, with quantizers, on the CPU
    packed: PackedModel  # as written
    module: PackedModule  # the packed file read back, on the device where it was measured
    validation_accuracy_percent: float  # of `module`
    training: TrainResult
    refitted: Sequence[str] = ()  # layers and activations whose step training reduced to nothing


def quantize(
    model: nn.Module,
    section: Quantize,
    *,
    images: Tensor,
    validation: Split,
    train: Callable[[fx.GraphModule, Constraint], TrainResult],
    machine: Callable[[], Machine],
    seed: int,
    path: Path | None = None,
    metadata: Mapping[str, str] | None = None,
    class_names: Sequence[str] = (),
    batch_norm_images: int = BATCH_NORM_IMAGES,
    evaluation_batch_size: int = 500,
    watch: Watch = unwatched,
) -> Quantized:
    """Quantizes a network, trains it with the quantizers in place, packs it and measures the file as read back.

    Args:
        model: trained; its zeros stay zero. It is moved to the CPU.
        images: of the training split, (N, C, H, W) uint8: the first ones set the steps of the activations and, after
            training, the statistics of the batch norms.
        train: trains the prepared network, in place, under a constraint.
        machine: where the file is measured. Requested only after training, because creating one may set torch's thread
            count, on which the last bits of a calibration depend.
        seed: for the crops that the batch norms see.
        path: where the packed file is written, with its accuracy and `metadata` under its digest; None: nowhere.
        class_names: in the order of the logits; stored in the packed file.
        watch: shows the progress of calibration, packing and measuring.
        batch_norm_images: how many of `images` the batch norms see; none of them if nothing was trained.

    Raises:
        QuantizationError, PackError: the network contains something that cannot be packed. Nothing is written.
        TrimmingError: see `Trimming`.
    """
    model = model.cpu()  # like the calibration images
    channels, height, width = images.shape[1:]
    prepared = prepare(model, section, (channels, height, width))
    constraint = Trimming(model, prepared, section) if section.trim else FixedMask(model)
    calibrate(prepared, images[: section.calibration_images], watch=watch)
    rehearse(prepared, section)
    training = train(prepared, constraint)
    prepared = prepared.cpu()
    refitted = refit_lost_steps(prepared, images[: section.calibration_images]) if section.train.epochs else []
    if section.train.epochs:
        batches = training_batches(images[:batch_norm_images], section.train.augment, seed)
        with watch("batch norm statistics", len(images[:batch_norm_images]), "images") as done:
            recalibrate_batch_norm(prepared, counted(batches, done))
    packed = pack(
        prepared, quantize=section, images=validation.images, seen=images, class_names=class_names, watch=watch
    )
    exact = machine().exact()
    module = PackedModule(packed).to(exact.device)
    accuracy = evaluate(module, validation, exact, evaluation_batch_size, watch, "measuring the packed model")[1]
    if path is not None:
        claims = {"validation_accuracy_percent": f"{accuracy:.4f}", **(metadata or {})}
        data = restated(packed, claims)
        packed = decode(data)
        write_atomically(path, data)
    return Quantized(prepared, packed, module, accuracy, training, refitted)
