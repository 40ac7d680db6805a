"""Prunes the distilled student: the smallest weights of the whole network become zero, and the mask is fixed."""

from __future__ import annotations

import sys

from trainer import TrainingJob


def work(job: TrainingJob) -> None:
    from micronet.distillation import distilled
    from micronet.layers import count_zeros
    from micronet.pruning import PruningSchedule, zeros_wanted

    section = job.params.prune
    with job.resumable("prune", inputs=("teacher", "distilled")) as state:
        model = job.load("distilled").model().to(job.machine.device)
        schedule = PruningSchedule(section, model)
        loss = distilled(job.teacher, section, job.machine, label_smoothing=section.train.label_smoothing)
        result = job.train(model, section.train, state=state, loss=loss, constraint=schedule)
        zeros = zeros_wanted(section.amount, count_zeros(model)[1])
        job.save("pruned", model, result, "teacher", "student", "distill", "prune", zeros=zeros)


if __name__ == "__main__":
    sys.exit(TrainingJob.main(__file__, __doc__, work))
