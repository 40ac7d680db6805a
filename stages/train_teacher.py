"""Trains the teacher, the large model whose answers the student learns."""

from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/")[0])  # where PYTHONSAFEPATH hides what stands beside a script

from trainer import TrainingJob


def work(job: TrainingJob) -> None:
    section = job.params.teacher
    with job.resumable("teacher") as state:
        model = job.new_model(section.model.spec())
        result = job.train(model, section.train, state=state)
        job.save("teacher", model, result, "teacher")


if __name__ == "__main__":
    sys.exit(TrainingJob.main(__file__, __doc__, work))
