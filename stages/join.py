"""Joins packed models into one file: the first sees every image, each other those that the one before is unsure of.

Files are given from the smallest network to the largest. The margins are set on validation images, for the given
shares of them; `tools/cascade.py` shows the cost and accuracy of others. The test set is not read.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, __file__.rpartition("/")[0])  # with PYTHONSAFEPATH, a script cannot see its neighbours

from common import CHECKPOINTS
from job import Job


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path, help="packed models, two or more")
    parser.add_argument(
        "--shares",
        nargs="+",
        type=float,
        required=True,
        metavar="X",
        help="share of images that go on after each network, after the last to its mirrored pass: one number per FILE",
    )


def work(job: Job) -> None:
    from micronet.packed.cascade import Cascade
    from micronet.packed.file import read

    networks = [read(path) for path in job.flags.files]
    validation, path = job.split("validation"), CHECKPOINTS / "quantized.safetensors"
    cascade = Cascade(networks, validation.images, validation.labels)
    tuning = cascade.tune(job.flags.shares)
    packed = cascade.write(path, tuning, cascade.claims(tuning))
    job.metrics(
        validation_accuracy_percent=round(tuning.accuracy_percent, 4),
        **{f"network_{number}_passes": passes for number, passes in enumerate(tuning.passes, 1)},
        payload_bits=packed.payload_bits,
        file_bytes=packed.file_bytes,
    )
    job.record_run(params_digest=job.params_digest("data"))
    job.reporter.say(f"{tuning.accuracy_percent:.2f} % on validation, {packed.file_bytes:,} bytes in {path}")


if __name__ == "__main__":
    sys.exit(Job.main(__file__, __doc__, work, more=arguments))
