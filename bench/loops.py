"""One loop on one case, in this process: prints images per second and peak memory as JSON. Started by `run.py`."""

from __future__ import annotations

import json
import resource
import sys
import time

import _bench
import torch
from _bench import BATCH_SIZE, CASES, CUDA_STEPS, EPOCHS, TRAIN, WARM_STEPS, images, machine_of_a_stage

import models
from micronet import params
from micronet.data.images import Split
from micronet.training.distillation import distilled
from micronet.training.loop import train
from micronet.training.reporting import Reporter


class Done(Exception):
    """Enough has been measured."""


class Stopwatch(Reporter):
    """Times the steps between the first report after the warm-up and the last; then ends the loop."""

    def __init__(self, steps: int):
        self.last = (WARM_STEPS + steps) * BATCH_SIZE
        self.marks: list[tuple[float, int]] = []

    def __call__(self, done: int) -> None:
        if done >= WARM_STEPS * BATCH_SIZE:
            self.marks.append((time.perf_counter(), done))
        if done >= self.last:
            raise Done

    def step(self, *, epoch: int, images: int, loss: float) -> None:
        self(images)

    @property
    def images_per_second(self) -> float:
        (began, first), (ended, last) = self.marks[0], self.marks[-1]
        return (last - first) / (ended - began)


def main() -> None:
    loop, name, device = sys.argv[1:]
    case = CASES[name]
    torch.manual_seed(0)
    model = models.build(case.model)
    teacher = models.build(case.teacher) if case.teacher else None
    pixels, labels = images()
    watch = Stopwatch(case.steps if device == "cpu" else CUDA_STEPS)
    torch.set_num_threads(_bench.engine(device).threads)
    try:
        if loop == "plain":
            import plain

            plain.train(
                model, pixels, labels, epochs=EPOCHS, rate=lambda step, steps: TRAIN["learning_rate"],
                weight_decay=TRAIN["weight_decay"], teacher=teacher, device=device, clock=watch,
            )  # fmt: skip
        else:
            here = machine_of_a_stage(_bench.engine(device))
            split = Split(torch.from_numpy(pixels), torch.from_numpy(labels))
            loss = distilled(lambda: teacher, params.Distillation(), here) if teacher is not None else None
            train(
                model, config=params.Train(epochs=EPOCHS, **TRAIN), training=split, validation=split, machine=here,
                seed=0, loss=loss, reporter=watch,
            )  # fmt: skip
    except Done:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    print(json.dumps({"images_per_second": watch.images_per_second, "peak_memory_bytes": peak}))


if __name__ == "__main__":
    main()
