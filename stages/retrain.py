"""Trains the pruned student further under its mask: zeros stay zero."""

from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/")[0])  # with PYTHONSAFEPATH, a script cannot see its neighbours

from taught import TaughtJob


def work(job: TaughtJob) -> None:
    from micronet.compress.pruning import FixedMask
    from micronet.training.weights import count_zeros

    section = job.params.retrain
    with job.resumable("retrain", inputs=("teacher", "pruned")) as state:
        model = job.load("pruned").model().to(job.machine.device)
        zeros, _ = count_zeros(model)
        mask = FixedMask(model)
        result = job.learn(model, section, state=state, constraint=mask)
        job.save("retrained", model, result, zeros=zeros)


if __name__ == "__main__":
    sys.exit(TaughtJob.main(__file__, __doc__, work))
