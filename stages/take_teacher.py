"""Takes the teacher that another pipeline trained on the same images with the same `seed` and `teacher`: copies it.

FOLDER is that of the other pipeline, with its data/manifest.json and checkpoints/teacher.safetensors.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, __file__.rpartition("/")[0])  # with PYTHONSAFEPATH, a script cannot see its neighbours

from common import CHECKPOINTS, MANIFEST
from job import Job


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="of the pipeline that trained the teacher")


def work(job: Job) -> None:
    from micronet.errors import shown
    from micronet.files import checksum, write_atomically
    from micronet.training.checkpoint import CheckpointError, load

    path, manifest = job.flags.folder / CHECKPOINTS / "teacher.safetensors", job.flags.folder / MANIFEST
    teacher, place = load(path), shown(path, 120)
    if teacher.params_digest != job.digest_of("teacher"):
        raise CheckpointError(f"{place}: is not the teacher of these params; `seed` and `teacher` must be its own")
    if not manifest.is_file() or checksum(manifest) != checksum(MANIFEST):
        raise CheckpointError(f"{place}: learned from other images than these; data/manifest.json must be the same")
    write_atomically(CHECKPOINTS / "teacher.safetensors", path.read_bytes())
    job.reporter.say(f"{place}: {teacher.validation_accuracy_percent:.2f} % on validation")


if __name__ == "__main__":
    sys.exit(Job.main(__file__, __doc__, work, more=arguments))
