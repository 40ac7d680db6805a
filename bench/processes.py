"""Two processes of one thread against one process of two threads: the same batches, trained in turn on one machine.

Each run is separate, started as by a stage, and times every step after the first ones, including data and sums over
processes, but not evaluation. The median over all steps of all turns counts, with the fastest beside it: on a busy
machine that shows what the processors can do. With --alone, as root, other programs wait during the steps. Writes
metrics/bench_processes.json and prints a table.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from _bench import (
    BATCH_SIZE,
    CASES,
    TRAIN,
    Case,
    arguments,
    describe,
    engine,
    images,
    machine_of_a_stage,
    measure,
    others_wait,
    print_table,
    write,
)

if TYPE_CHECKING:
    from micronet.training.processes import Member

TURNS = 3
WARM_STEPS, STEPS = 1, 6
SETTINGS = {"one process, two threads": (1, 2), "two processes, one thread each": (2, 1)}
NAMES = ("laptop student",)


def step_seconds(case: Case, threads: int, member: Member, alone: bool) -> list[float]:
    """Seconds of each timed step on the first rank; the others end with it."""
    import torch
    from loops import Done

    import models
    from micronet import params
    from micronet.data.images import Split
    from micronet.training.distillation import distilled
    from micronet.training.loop import train
    from micronet.training.ranks import joined
    from micronet.training.reporting import Reporter

    class Times(Reporter):
        def __init__(self) -> None:
            self.marks: list[float] = []

        def step(self, *, epoch: int, images: int, loss: float) -> None:
            self.marks.append(time.perf_counter())
            if len(self.marks) > WARM_STEPS + STEPS:
                raise Done

    ours = engine("cpu").model_copy(update={"threads": threads, "processes": member.size})
    here = machine_of_a_stage(ours, member.rank)
    torch.manual_seed(0)
    model = models.build(case.model)
    loss = distilled(lambda: models.build(case.teacher), params.Distillation(), here) if case.teacher else None
    pixels, labels = images((WARM_STEPS + STEPS + 2) * BATCH_SIZE)
    split, times = Split(torch.from_numpy(pixels), torch.from_numpy(labels)), Times()
    if alone:
        others_wait()
    with joined(member, here) as ranks:
        try:
            train(
                model, config=params.Train(epochs=1, **TRAIN), training=split, validation=split, machine=here,
                seed=0, loss=loss, ranks=ranks, reporter=times if member.first else None,
            )  # fmt: skip
        except Done:
            member.leave()
    return [after - before for before, after in pairwise(times.marks[WARM_STEPS:])]


def one_run(name: str, processes: int, threads: int, *, alone: bool) -> None:
    """Prints the step times of one run as JSON, in seconds."""
    from micronet.training.processes import together

    def work(member: Member) -> int:
        seconds = step_seconds(CASES[name], threads, member, alone)
        print(json.dumps({"seconds": seconds}))
        return 0

    together(processes, "bench", work)


def compared(name: str, *switches: str) -> dict[str, Any]:
    """The times of the settings, measured in turn."""
    seconds: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    for _ in range(TURNS):
        for setting, (processes, threads) in SETTINGS.items():
            seconds[setting] += measure("processes.py", "run", name, str(processes), str(threads), *switches)["seconds"]
    speeds = {
        kind: {setting: BATCH_SIZE / found(times) for setting, times in seconds.items()}
        for kind, found in (("median", statistics.median), ("fastest", min))
    }
    one, two = SETTINGS
    ratios = {f"ratio_of_{kind}_steps": speed[two] / speed[one] for kind, speed in speeds.items()}
    return ratios | {f"images_per_second_{kind}_step": speed for kind, speed in speeds.items()}


def main() -> int:
    if sys.argv[1:2] == ["run"]:
        one_run(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), alone="--alone" in sys.argv)
        return 0
    args = arguments(
        __doc__.splitlines()[0],
        "metrics/bench_processes.json",
        cpu_alone=True,
        alone="as root: other programs wait during the steps",
    )
    from micronet.training.hardware import machine

    results = {name: compared(name, *["--alone"] * args.alone) for name in NAMES}
    write(args.output, {"machine": describe(machine(engine("cpu"))), "turns": TURNS, "cases": results})
    rows = []
    for name, result in results.items():
        kinds = [result[f"images_per_second_{kind}_step"] for kind in ("median", "fastest")]
        speeds = [" / ".join(f"{kind[setting]:,.0f}" for kind in kinds) for setting in SETTINGS]
        rows.append([name, *speeds, *[f"{result[f'ratio_of_{kind}_steps']:.2f}" for kind in ("median", "fastest")]])
    title = "images a second of the median step, and of the fastest"
    print_table(title, ("case", *SETTINGS, "ratio", "of the fastest"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
