"""Pruning, quantizing and trimming steps against plain steps of the same, released network, in turn in one run.

Each kind trains as its stage does, on the same images and batch size; the teacher is left out. Ratios are those of the
median step, of the fastest, and of the mean, where one step in eight checks which weights to trim. With --alone, as
root, other programs wait meanwhile. Writes metrics/bench_steps.json and prints a table.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

from _bench import ROOT, arguments, describe, images, machine_of_a_stage, others_wait, print_table, write

from micronet import params

if TYPE_CHECKING:
    from micronet.training.hardware import Machine
    from micronet.training.run import Run

BATCH_SIZE, WARM_STEPS, STEPS = 256, 2, 8
TRIM = 0.3
KINDS = ("float", "pruning", "quantizing", "trimming")
STEPS_OF_A_RUN = 1000  # trimming checks the weights a hundred times in a run: after every tenth step of one this long


def run_of(kind: str, machine: Machine) -> Run:
    """A run of one of `KINDS`; all kinds start from the same network."""
    import torch

    import models
    from micronet.compress.calibration import calibrate
    from micronet.compress.pruning import FixedMask, PruningSchedule
    from micronet.compress.quantization import prepare
    from micronet.compress.trimming import Trimming
    from micronet.data.images import Split, normalise
    from micronet.training.run import Run

    recipe = params.load(ROOT / "recipes/record.yaml")
    pixels, labels = images(BATCH_SIZE * STEPS_OF_A_RUN // 10)
    data = Split(torch.from_numpy(pixels), torch.from_numpy(labels))
    torch.manual_seed(0)
    network = models.build(recipe.student.model.spec())
    models.fit(network, normalise(data.images[:500]))

    def run(trained: Any, section: Any, constraint: Any) -> Run:
        train = section.train.model_copy(update={"epochs": 10, "batch_size": BATCH_SIZE, "learning_rate": 1e-3})
        return Run(trained, train, data, machine, 0, constraint=constraint)

    if kind == "float":
        return run(network, recipe.student, None)
    if kind == "pruning":
        return run(network, recipe.prune, PruningSchedule(recipe.prune, network))
    section = recipe.quantize.model_copy(update={"trim": TRIM if kind == "trimming" else 0.0})
    prepared = prepare(network, section)
    constraint = Trimming(network, prepared, section) if section.trim else FixedMask(network)
    calibrate(prepared, data.images[:250])
    return run(prepared, section, constraint)


def timed(found: dict[str, Run]) -> dict[str, list[float]]:
    """Seconds of each kind's steps after the first ones, in turn."""
    batches = {kind: run.remaining_batches() for kind, run in found.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in found}
    for step in range(WARM_STEPS + STEPS):
        for kind, run in found.items():
            began = time.perf_counter()
            run.train_step(batches[kind][step]).item()
            seconds[kind].append(time.perf_counter() - began)
    return {kind: times[WARM_STEPS:] for kind, times in seconds.items()}


def main() -> int:
    args = arguments(
        __doc__.splitlines()[0], "metrics/bench_steps.json", alone="as root: other programs wait during the steps"
    )
    here = machine_of_a_stage(params.Engine(device=args.device))
    found = {kind: run_of(kind, here) for kind in KINDS}
    if args.alone:
        others_wait()
    seconds = timed(found)
    results = {
        kind: {
            "median_seconds": statistics.median(times),
            "fastest_seconds": min(times),
            "mean_seconds": statistics.mean(times),
            "ratio_of_median": statistics.median(times) / statistics.median(seconds["float"]),
            "ratio_of_fastest": min(times) / min(seconds["float"]),
            "ratio_of_mean": statistics.mean(times) / statistics.mean(seconds["float"]),
        }
        for kind, times in seconds.items()
    }
    write(args.output, {"machine": describe(here), "batch_size": BATCH_SIZE, "steps": STEPS, "kinds": results})
    rows = []
    for kind, result in results.items():
        times = [f"{1000 * result[f'{name}_seconds']:.0f}" for name in ("median", "fastest")]
        rows.append([kind, *times, *[f"{result[f'ratio_of_{name}']:.2f}" for name in ("median", "fastest", "mean")]])
    title = "one step of the released network, and as many times as a float one takes"
    print_table(title, ("kind", "median ms", "fastest ms", "ratio", "of the fastest", "of the mean"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
