"""Quantizes the retrained student, trains it with the quantizers in place, and packs it into one small file."""

from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/")[0])  # with PYTHONSAFEPATH, a script cannot see its neighbours

from common import CHECKPOINTS
from taught import TaughtJob

from micronet.errors import shown


def work(job: TaughtJob) -> None:
    from micronet.packed.model import FIT
    from micronet.packed.quantizing import quantize

    section, path = job.params.quantize, CHECKPOINTS / "quantized.safetensors"
    image = job.params.data.image
    fit = {FIT: image.fit} if image else {}  # so that micronet.predict fits pictures in the same way
    with job.resumable("quantize", inputs=("teacher", "retrained")) as state:
        found = quantize(
            job.load("retrained").model(),
            section,
            images=job.split("train").images,
            validation=job.split("validation"),
            train=lambda prepared, mask: job.learn(prepared, section, state=state, constraint=mask),
            machine=lambda: job.machine,
            seed=job.seed,
            path=path,
            class_names=job.data.classes,
            metadata={"params_digest": job.digest_of("quantized"), **fit},
            evaluation_batch_size=job.params.engine.evaluation_batch_size,
            watch=job.reporter.watch,
        )
        if found.refitted:
            job.reporter.say(
                f"the step of {shown(', '.join(found.refitted), 120)} fell to 0 in training and was fitted anew; "
                "a lower quantize.train.learning_rate would work better, as would more pictures"
            )
        packed, accuracy = found.packed, found.validation_accuracy_percent
        job.metrics(
            validation_accuracy_percent=round(accuracy, 4),
            parameters=packed.parameters,
            nonzero_parameters=packed.nonzero_parameters,
            prunable_weights=packed.weights,
            zero_weights=packed.zero_weights,
            payload_bits=packed.payload_bits,
            file_bytes=packed.file_bytes,
            epochs=len(found.training.rows),
        )
        job.record_training("quantized", found.training)
        job.reporter.say(f"{accuracy:.2f} % on validation, {packed.file_bytes:,} bytes in {path}")


if __name__ == "__main__":
    sys.exit(TaughtJob.main(__file__, __doc__, work))
