"""Where training time goes, and what share of the machine's own limits it reaches.

Splits a step into data, forward (the teacher's separately), backward and optimizer, and an epoch into steps and
evaluation. The limits are measured here too: a matrix product in the training precision, and a copy of a large array.
Traffic is the minimum for unfused operations: every map read and written once forward, twice backward, in float32.
Writes metrics/profile.json and prints a table.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from _bench import (
    BATCH_SIZE,
    CASES,
    CIFAR10_EPOCH,
    TRAIN,
    Case,
    arguments,
    describe,
    engine,
    images,
    machine_of_a_stage,
    print_table,
    write,
)

PARTS = ("data", "forward", "teacher", "backward", "optimizer")
GROUPS = {  # operators by kind, the first that matches
    "convolution": ("conv", "mkldnn"),
    "batch norm": ("batch_norm",),
    "concatenation and copies": ("cat", "copy", "slice", "contiguous", "clone", "narrow"),
    "ReLU, additions, pools": ("relu", "threshold", "add", "pool", "mean", "fill", "zero", "mul", "clamp"),
}


def synchronise(device: Any) -> None:
    """Waits until a GPU has finished its work, so that timing is correct; a CPU already has."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], device: Any, times: int = 5) -> float:
    """The median time of one call, after a warm-up call."""
    work()
    taken = []
    for _ in range(times):
        synchronise(device)
        began = time.perf_counter()
        work()
        synchronise(device)
        taken.append(time.perf_counter() - began)
    return sorted(taken)[times // 2]


def limits(machine: Any) -> dict[str, float]:
    """GFLOP/s of a matrix product, GB/s (read and write) of a copy."""
    import torch

    size = 2048 if machine.device.type == "cpu" else 8192
    dtype = torch.bfloat16 if machine.autocast else torch.float32
    a, b = (torch.randn(size, size, device=machine.device, dtype=dtype) for _ in range(2))
    source = torch.zeros(2**26, device=machine.device)
    target = torch.empty_like(source)
    product = seconds_of(lambda: torch.mm(a, b), machine.device)
    copy = seconds_of(lambda: target.copy_(source), machine.device)
    return {"gflop_per_second": 2 * size**3 / product / 1e9, "gb_per_second": 2 * source.nbytes / copy / 1e9}


def traffic(model: Any) -> int:
    """Bytes of one image's maps, each read and written once forward and twice backward, in float32."""
    from micronet.scoring.counting import operations

    kinds = ("conv", "linear", "batch_norm", "relu", "add", "pool")
    elements = sum(
        math.prod(op.input_shape) + math.prod(op.output_shape) for op in operations(model) if op.kind in kinds
    )
    return 3 * 4 * elements


def operator_shares(work: Callable[[], Any], device: Any) -> dict[str, float]:
    """Each operator group's percentage of one call's time, without the operators it calls."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        work()
    kernel = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    operators = dict.fromkeys([*GROUPS, "everything else"], 0.0)
    for event in recorded.key_averages():
        group = next(
            (name for name, words in GROUPS.items() if any(word in event.key for word in words)), "everything else"
        )
        operators[group] += getattr(event, kernel)
    total = sum(operators.values())
    return {name: 100 * taken / total for name, taken in operators.items()}


def work_of(model: Any, teacher: Any) -> tuple[int, int]:
    """Operations and minimum bytes moved per image in a step, of two modules; the teacher may be None."""
    from micronet.scoring.counting import operations
    from micronet.scoring.records import macs

    work = 6 * macs(operations(model)) + (2 * macs(operations(teacher)) if teacher is not None else 0)
    return work, traffic(model) + (traffic(teacher) // 3 if teacher is not None else 0)


def result(
    spent: dict[str, float], steps: int, evaluation: float, operators: dict[str, float], work: tuple[int, int]
) -> dict[str, Any]:
    """What is written about a case.

    Args:
        spent: seconds of each part in so many steps.
        evaluation: seconds per image.
        work: see `work_of`.
    """
    a_step, (trained, validated) = sum(spent.values()) / steps, CIFAR10_EPOCH
    training_seconds, evaluation_seconds = trained * a_step / BATCH_SIZE, validated * evaluation
    return {
        "images_per_second": BATCH_SIZE / a_step,
        "share_percent": {
            part: 100 * taken / sum(spent.values()) for part, taken in spent.items() if taken / a_step > 1e-4
        },
        "evaluation_share_of_an_epoch_percent": 100 * evaluation_seconds / (training_seconds + evaluation_seconds),
        "operator_share_percent": operators,
        "gflop_per_second": work[0] * BATCH_SIZE / a_step / 1e9,
        "gb_per_second": work[1] * BATCH_SIZE / a_step / 1e9,
    }


def profile(case: Case, machine: Any) -> dict[str, Any]:
    """Trains a case for its `steps`, after a warm-up step, and says where the time went: see `result`."""
    import torch

    import models
    from micronet import params
    from micronet.data.images import Split
    from micronet.training.evaluation import evaluate
    from micronet.training.losses import cross_entropy
    from micronet.training.optimizers import make_optimizer
    from micronet.training.sampling import augmented

    torch.manual_seed(0)
    config, device = params.Train(epochs=1, **TRAIN), machine.device
    model = machine.place(models.build(case.model)).train()
    teacher = machine.place(models.build(case.teacher)).eval() if case.teacher else None
    pixels, labels = (torch.from_numpy(array).to(device) for array in images(5_000))
    optimizer, loss_of, sample = make_optimizer(model, config), cross_entropy(), augmented(config.augment, 10)
    generator = torch.Generator(device).manual_seed(0)
    spent = dict.fromkeys(PARTS, 0.0)

    def step(record: bool) -> None:
        mark = time.perf_counter()

        def lap(part: str) -> None:
            nonlocal mark
            synchronise(device)
            now = time.perf_counter()
            if record:
                spent[part] += now - mark
            mark = now

        indices = torch.randperm(len(labels), generator=generator, device=device)[:BATCH_SIZE]
        batch = sample(pixels, labels, indices, generator)
        batch = replace(batch, images=batch.images.contiguous(memory_format=machine.memory_format))
        lap("data")
        with torch.autocast(device.type, torch.bfloat16, enabled=machine.autocast):
            logits = model(batch.images)
        loss = loss_of(logits, batch)
        lap("forward")
        if teacher is not None:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=machine.autocast):
                teacher(batch.images)
        lap("teacher")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        lap("backward")
        optimizer.step()
        lap("optimizer")

    step(record=False)
    for _ in range(case.steps):
        step(record=True)
    held_out = Split(pixels[:500], labels[:500])
    evaluation = seconds_of(lambda: evaluate(model, held_out, machine), device, 3) / 500
    model.train()
    operators = operator_shares(lambda: step(record=False), device)
    return result(spent, case.steps, evaluation, operators, work_of(model, teacher))


def main() -> int:
    args = arguments(__doc__.splitlines()[0], "metrics/profile.json")
    here = machine_of_a_stage(engine(args.device))
    most = limits(here)
    found = {}
    for name, case in CASES.items():
        print(f"profiling {name}", file=sys.stderr)
        found[name] = profile(case, here)
        for key in most:
            found[name][f"{key}_share_of_limit_percent"] = 100 * found[name][key] / most[key]
    write(args.output, {"machine": describe(here), "limits": most, "cases": found})
    title = (
        f"share of a step in percent; limits {most['gflop_per_second']:.0f} GFLOP/s, {most['gb_per_second']:.1f} GB/s"
    )
    rows = []
    for name, result in found.items():
        shares = [f"{result['share_percent'].get(part, 0):.0f}" for part in PARTS]
        of_limits = [f"{result[f'{key}_share_of_limit_percent']:.0f} %" for key in most]
        rows.append([name, *shares, *of_limits, f"{result['evaluation_share_of_an_epoch_percent']:.0f} %"])
    print_table(title, ("case", *PARTS, "arithmetic", "traffic", "evaluation"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
