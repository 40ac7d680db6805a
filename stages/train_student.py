"""Trains the student without a teacher: the baseline, and where distillation starts from."""

from __future__ import annotations

import sys

from trainer import TrainingJob


def work(job: TrainingJob) -> None:
    section = job.params.student
    with job.resumable("student") as state:
        model = job.new_model(section.model.spec())
        result = job.train(model, section.train, state=state)
        job.save("student", model, result, "student")


if __name__ == "__main__":
    sys.exit(TrainingJob.main(__file__, __doc__, work))
