"""Prunes the distilled student: the smallest weights of the whole network become zero, and the mask is fixed."""

from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/")[0])  # with PYTHONSAFEPATH, a script cannot see its neighbours

from taught import TaughtJob


def work(job: TaughtJob) -> None:
    from micronet.compress.pruning import PruningSchedule, zeros_wanted
    from micronet.training.weights import count_zeros

    section = job.params.prune
    with job.resumable("prune", inputs=("teacher", "distilled")) as state:
        model = job.load("distilled").model().to(job.machine.device)
        schedule = PruningSchedule(section, model, job.data.shape)
        result = job.learn(model, section, state=state, constraint=schedule)
        zeros = zeros_wanted(section.amount, count_zeros(model)[1])
        job.save("pruned", model, result, zeros=zeros)


if __name__ == "__main__":
    sys.exit(TaughtJob.main(__file__, __doc__, work))
