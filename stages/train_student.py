"""Trains the student without a teacher: the baseline, and where distillation starts from.

With `student.start` it goes on from the weights of a checkpoint instead of from random ones.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, __file__.rpartition("/")[0])  # where PYTHONSAFEPATH hides what stands beside a script

from trainer import TrainingJob

from micronet import params as parameters

if TYPE_CHECKING:
    from torch import nn


def started(start: parameters.Start, spec: dict) -> nn.Module:
    """The model of an earlier run's checkpoint. Raises `CheckpointError` for other bytes or another architecture."""
    import models
    from micronet.training.checkpoint import CheckpointError, load

    found = load(start.file)
    digest = hashlib.sha256(Path(start.file).read_bytes()).hexdigest()
    if digest != start.sha256:
        raise CheckpointError(f"{start.file}: its sha256 is {digest}, student.start.sha256 names another one")
    if found.spec != models.normalise(spec):
        raise CheckpointError(f"{start.file}: holds a model of {found.spec}, which is not student.model")
    return found.model()


def work(job: TrainingJob) -> None:
    section = job.params.student
    with job.resumable("student") as state:
        spec = section.model.spec()
        model = started(section.start, spec) if section.start else job.new_model(spec)
        result = job.train(model, section.train, state=state)
        job.save("student", model, result, "student")


if __name__ == "__main__":
    sys.exit(TrainingJob.main(__file__, __doc__, work))
