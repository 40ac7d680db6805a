"""Trains the student without a teacher: the baseline, and the start of distillation.

With `student.start` it starts from given weights instead of random ones.
"""

from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/")[0])  # with PYTHONSAFEPATH, a script cannot see its neighbours

from trainer import TrainingJob


def work(job: TrainingJob) -> None:
    with job.resumable("student") as state:
        model = job.model("student")
        result = job.train(model, job.params.student.train, state=state)
        job.save("student", model, result)


if __name__ == "__main__":
    sys.exit(TrainingJob.main(__file__, __doc__, work))
