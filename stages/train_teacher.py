"""Trains the teacher, the large model whose answers the student learns from.

With `teacher.start` it starts from given weights instead of random ones; `epochs: 0` uses them unchanged.
"""

from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/")[0])  # with PYTHONSAFEPATH, a script cannot see its neighbours

from trainer import TrainingJob


def work(job: TrainingJob) -> None:
    with job.resumable("teacher") as state:
        model = job.model("teacher")
        result = job.train(model, job.params.teacher.train, state=state)
        job.save("teacher", model, result)


if __name__ == "__main__":
    sys.exit(TrainingJob.main(__file__, __doc__, work))
