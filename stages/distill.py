"""Trains the student with the teacher's answers (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/")[0])  # with PYTHONSAFEPATH, a script cannot see its neighbours

from taught import TaughtJob


def work(job: TaughtJob) -> None:
    import models

    section = job.params.distill
    with job.resumable("distill", inputs=("teacher", "student")) as state:
        student = job.load("student")
        starts = {
            "student": student.model,
            "scratch": lambda: job.new_model(student.spec),
            "teacher": lambda: models.narrowed(job.teacher(), student.spec),
        }
        model = starts[section.start_from]()
        result = job.learn(model, section, state=state)
        job.save("distilled", model, result)


if __name__ == "__main__":
    sys.exit(TaughtJob.main(__file__, __doc__, work))
