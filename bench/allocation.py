"""Pruning steps of the released network with memory kept, as stages keep it, and with malloc's defaults.

Each kind in its own process, in turn; the teacher is left out. Writes metrics/bench_allocation.json.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from typing import Any

from _bench import ROOT, arguments, describe, images, measure, median, print_table, write

from micronet import params

BATCH_SIZE, WARM_STEPS, STEPS, TURNS = 256, 5, 40, 3
KEPT, DEFAULTS = "kept", "malloc's defaults"


def steps(kept: bool) -> dict[str, Any]:
    """Measures steps in this process."""
    from micronet.training.allocation import keep_freed_memory

    if kept:
        keep_freed_memory(os.environ)
    import torch

    import models
    from micronet.compress.pruning import PruningSchedule
    from micronet.data.images import Split, normalise
    from micronet.training.hardware import machine
    from micronet.training.run import Run

    recipe = params.load(ROOT / "recipes/record.yaml")
    pixels, labels = images(BATCH_SIZE * (WARM_STEPS + STEPS))
    data = Split(torch.from_numpy(pixels), torch.from_numpy(labels))
    torch.manual_seed(0)
    network = models.build(recipe.student.model.spec())
    models.fit(network, normalise(data.images[:500]))
    train = recipe.prune.train.model_copy(update={"batch_size": BATCH_SIZE})
    run = Run(network, train, data, machine(recipe.engine), 0, constraint=PruningSchedule(recipe.prune, network))
    seconds, faults = [], 0
    for step, batch in enumerate(run.remaining_batches()):
        if step == WARM_STEPS:
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        if step == WARM_STEPS + STEPS:
            break
        began = time.perf_counter()
        run.train_step(batch).item()
        seconds.append(time.perf_counter() - began)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "images_per_second": BATCH_SIZE / statistics.mean(seconds[WARM_STEPS:]),
        "page_faults_per_step": (used.ru_minflt - faults) / STEPS,
        "peak_memory_bytes": used.ru_maxrss * 1024,
    }


def summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of some runs, and the speed of each."""
    found: dict[str, Any] = {key: median(turns, key) for key in turns[0]}
    return found | {"images_per_second_runs": [turn["images_per_second"] for turn in turns]}


def main() -> int:
    args = arguments(
        __doc__.splitlines()[0], "metrics/bench_allocation.json", cpu_alone=True,
        kept="only these steps, in this process; prints JSON", defaults="the same with malloc's defaults",
    )  # fmt: skip
    if args.kept or args.defaults:
        print(json.dumps(steps(args.kept)))
        return 0
    from micronet.training.hardware import machine

    runs: dict[str, list[dict[str, Any]]] = {KEPT: [], DEFAULTS: []}
    for _ in range(TURNS):
        runs[DEFAULTS].append(measure("allocation.py", "--defaults"))
        runs[KEPT].append(measure("allocation.py", "--kept"))
    found = {name: summary(turns) for name, turns in runs.items()}
    here = describe(machine(params.load(ROOT / "recipes/record.yaml").engine))
    write(args.output, {"machine": here, "turns": TURNS, "steps": STEPS, "memory": found})
    rows = []
    for name, result in found.items():
        values = result["images_per_second"], result["page_faults_per_step"], result["peak_memory_bytes"] / 1e6
        rows.append([name, *(f"{value:,.0f}" for value in values)])
    title = f"pruning steps of the released network, median of {TURNS}"
    print_table(title, ("memory", "images/s", "page faults a step", "peak MB"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
