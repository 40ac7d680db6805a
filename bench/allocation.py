"""Pruning steps of the released network with memory kept, as stages keep it, and with malloc's defaults.

Each kind in its own process, in turn; the teacher is left out. Writes metrics/bench_allocation.json.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from typing import Any

from _bench import arguments, describe, machine_of_a_stage, measure, median, print_table, write
from steps import BATCH_SIZE, run_of

from micronet import params

WARM_STEPS, STEPS, TURNS = 5, 40, 3
KEPT, DEFAULTS = "kept", "malloc's defaults"


def measured(kept: bool) -> dict[str, Any]:
    """Speed, page faults and memory of steps in this process."""
    from micronet.training.hardware import machine

    chosen = params.Engine()
    run = run_of("pruning", machine_of_a_stage(chosen) if kept else machine(chosen))
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
        print(json.dumps(measured(args.kept)))
        return 0
    from micronet.training.hardware import machine

    runs: dict[str, list[dict[str, Any]]] = {KEPT: [], DEFAULTS: []}
    for _ in range(TURNS):
        runs[DEFAULTS].append(measure("allocation.py", "--defaults"))
        runs[KEPT].append(measure("allocation.py", "--kept"))
    found = {name: summary(turns) for name, turns in runs.items()}
    here = describe(machine(params.Engine()))
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
