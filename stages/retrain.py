"""Trains the pruned student on under its mask: what is zero stays zero."""

from __future__ import annotations

import sys

from trainer import TrainingJob


def work(job: TrainingJob) -> None:
    from micronet.distillation import distilled
    from micronet.layers import count_zeros
    from micronet.pruning import FixedMask

    section = job.params.retrain
    with job.resumable("retrain", inputs=("teacher", "pruned")) as state:
        model = job.load("pruned").model().to(job.machine.device)
        zeros, _ = count_zeros(model)
        mask = FixedMask(model)
        loss = distilled(job.teacher, section, job.machine, label_smoothing=section.train.label_smoothing)
        result = job.train(model, section.train, state=state, loss=loss, constraint=mask)
        job.save("retrained", model, result, "teacher", "student", "distill", "prune", "retrain", zeros=zeros)


if __name__ == "__main__":
    sys.exit(TrainingJob.main(__file__, __doc__, work))
