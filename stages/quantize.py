"""Quantizes the retrained student, trains it with the quantizers in place, and packs it into one small file."""

from __future__ import annotations

import sys

from common import CHECKPOINTS
from taught import TaughtJob

BATCH_NORM_IMAGES = 10_000  # training images that the batch norm statistics are estimated from anew


def work(job: TaughtJob) -> None:
    from micronet.compress.calibration import calibrate, recalibrate_batch_norm, training_batches
    from micronet.compress.pruning import FixedMask
    from micronet.compress.quantization import prepare
    from micronet.compress.trimming import Trimming
    from micronet.packed.module import PackedModule
    from micronet.packed.packing import pack
    from micronet.training.evaluation import evaluate

    section, engine = job.params.quantize, job.params.engine
    path = CHECKPOINTS / "quantized.safetensors"
    with job.resumable("quantize", inputs=("teacher", "retrained")) as state:
        model = job.load("retrained").model()
        prepared = prepare(model, section)
        mask = Trimming(model, prepared, section) if section.trim else FixedMask(model)
        images = job.split("train").images
        calibrate(prepared, images[: section.calibration_images])
        result = job.learn(prepared, section, state=state, constraint=mask)
        prepared = prepared.cpu()
        if section.train.epochs:
            batches = training_batches(images[:BATCH_NORM_IMAGES], section.train.augment, job.seed)
            recalibrate_batch_norm(prepared, batches)
        trial, validation = state.path.with_name("packed"), job.split("validation")
        model = pack(prepared, trial, quantize=section, images=validation.images)
        machine = job.machine.exact()
        module = PackedModule(model).to(machine.device)
        accuracy = evaluate(module, validation, machine, engine.evaluation_batch_size)[1]
        sections = ("teacher", "student", "distill", "prune", "retrain", "quantize")
        claims = {"validation_accuracy_percent": f"{accuracy:.4f}", "params_digest": job.params_digest(*sections)}
        packed = pack(prepared, path, quantize=section, images=validation.images, metadata=claims)
        weighted = [step for step in packed.steps if step.weight is not None]
        job.metrics(
            validation_accuracy_percent=round(accuracy, 4),
            parameters=packed.parameters,
            nonzero_parameters=packed.nonzero_parameters,
            prunable_weights=sum(step.weight.size for step in weighted),
            zero_weights=sum(int((step.weight == 0).sum()) for step in weighted),
            payload_bits=packed.payload_bits,
            file_bytes=packed.file_bytes,
            epochs=len(result.rows),
        )
        job.record_training(result, *sections)
        job.reporter.say(f"{accuracy:.2f} % on validation, {packed.file_bytes:,} bytes in {path}")


if __name__ == "__main__":
    sys.exit(TaughtJob.main(__file__, __doc__, work))
