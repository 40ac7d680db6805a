"""Trains the student with the teacher's answers (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

import sys

from trainer import TrainingJob


def work(job: TrainingJob) -> None:
    from micronet.distillation import distilled

    section = job.params.distill
    with job.resumable("distill", inputs=("teacher", "student")) as state:
        student = job.load("student")
        model = student.model() if section.start_from == "student" else job.new_model(student.spec)
        loss = distilled(job.teacher, section, job.machine, label_smoothing=section.train.label_smoothing)
        result = job.train(model, section.train, state=state, loss=loss)
        job.save("distilled", model, result, "teacher", "student", "distill")


if __name__ == "__main__":
    sys.exit(TrainingJob.main(__file__, __doc__, work))
