"""Quantizes the retrained student, trains it with the quantizers in place, and packs it into one small file."""

from __future__ import annotations

import sys

from common import CHECKPOINTS
from trainer import TrainingJob

BATCH_NORM_IMAGES = 10_000  # training images that the batch norm statistics are estimated from anew


def work(job: TrainingJob) -> None:
    from micronet.checkpoint import write_atomically
    from micronet.data import normalise
    from micronet.distillation import distilled
    from micronet.packing import load_packed, pack
    from micronet.pruning import FixedMask
    from micronet.quantization import calibrate, prepare, recalibrate_batch_norm
    from micronet.training import evaluate

    section = job.params.quantize
    path = CHECKPOINTS / "quantized.safetensors"
    with job.resumable("quantize", inputs=("teacher", "retrained")) as state:
        model = job.load("retrained").model()
        mask = FixedMask(model)
        prepared = prepare(model, section)
        images = job.split("train").images
        calibrate(prepared, images[: section.calibration_images])
        loss = distilled(job.teacher, section, job.machine, label_smoothing=section.train.label_smoothing)
        result = job.train(prepared, section.train, state=state, loss=loss, constraint=mask)
        prepared = prepared.cpu()
        if section.train.epochs:
            batches = (normalise(batch) for batch in images[:BATCH_NORM_IMAGES].split(500))
            recalibrate_batch_norm(prepared, batches)
        write_atomically(path, pack(prepared, section))
        packed = load_packed(path)
        machine = job.machine.exact()
        _, accuracy = evaluate(packed, job.split("validation"), machine, job.params.engine.evaluation_batch_size)
        job.metrics(validation_accuracy_percent=round(accuracy, 4), **packed.packed.facts(), epochs=len(result.rows))
        job.record_training(result, "teacher", "student", "distill", "prune", "retrain", "quantize")
        job.reporter.say(f"{accuracy:.2f} % on validation, {path.stat().st_size:,} bytes in {path}")


if __name__ == "__main__":
    sys.exit(TrainingJob.main(__file__, __doc__, work))
