"""Writes docs/performance.md from what `make bench`, `make profile` and `make gpu-check` left in metrics/."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from _tool import METRICS, front, read_json

from micronet.files import write_atomically

GOALS = {"densenet_nano": 3.0}  # images a second relative to the plain loop; 2 for every other case
GOAL = 2.0

INTRODUCTION = """# How fast training is, and what limits it

Written by `make docs` from `metrics/bench*.json` and `metrics/profile.json`, which `make bench` and `make profile`
measure; the numbers count only when nothing else runs beside them.
"""


def machine_line(content: dict[str, Any]) -> str:
    """On what, and when."""
    machine = content["machine"]
    return (
        f"Measured {machine['date']} on {machine['device']}: {machine['precision']}, {machine['threads']} threads, "
        f"torch {machine['torch']}."
    )


def goal_of(case: str) -> float:
    """The ratio that this project set itself for a case on two CPU cores with AMX."""
    return GOALS.get(case, GOAL)


def bench(content: dict[str, Any]) -> list[str]:
    """The ratio table of `make bench`."""
    lines = [
        "## Against the loop that everybody copies",
        "",
        "`bench/plain.py` (PIL transforms, a DataLoader with two workers, float32 in NCHW) and our loop in turn, each "
        f"in a process of its own: medians of {content['turns']} runs. "
        "Model, batch of 128, augmentation and optimizer are the same. "
        "Memory is the peak of the training process; the plain loop's workers come on top of its own. The goal was set "
        "for a CPU with AMX.",
        "",
        machine_line(content),
        "",
        "| case | plain, images/s | ours, images/s | ratio | goal | plain, MB | ours, MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, case in content["cases"].items():
        plain, ours = case["plain"], case["ours"]
        cells = [
            name,
            f"{plain['images_per_second']:,.0f}",
            f"{ours['images_per_second']:,.0f}",
            f"**{case['ratio']:.2f}**",
            f"{goal_of(name):.0f}",
            f"{plain['peak_memory_bytes'] / 1e6:,.0f}",
            f"{ours['peak_memory_bytes'] / 1e6:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    missed = [name for name, case in content["cases"].items() if case["ratio"] < goal_of(name)]
    if missed:
        lines += [
            "",
            f"Below the goal: {', '.join(missed)}; *What the missed goals would take* says what stands in the way.",
        ]
    return [*lines, ""]


def accuracy(content: dict[str, Any]) -> list[str]:
    """Whether the faster loop is as accurate."""
    found = content["validation_accuracy_percent"]
    seeds = "; ".join(f"{name} {', '.join(f'{value:.2f}' for value in values)}" for name, values in found.items())
    difference, spread = content["difference_of_means"], content["largest_standard_deviation"]
    verdict = "within" if abs(difference) <= 2 * spread else "beyond"
    return [
        "## At equal accuracy",
        "",
        f"The laptop student after {content['epochs']} epochs on {content['training_images']:,} images, validation "
        f"accuracy in percent a seed: {seeds}. Means differ by {difference:+.2f} points; the seeds' standard "
        f"deviation is {spread:.2f}, so the difference is {verdict} two of them. "
        "The loops draw different crops and orders.",
        "",
        machine_line(content),
        "",
    ]


def shares(content: dict[str, Any]) -> list[str]:
    """Where the time goes, and the share of the machine's limits."""
    limits = content["limits"]
    lines = [
        "## Where the time goes",
        "",
        f"{machine_line(content)} Its limits, measured in the same run: a matrix product does "
        f"{limits['gflop_per_second']:.0f} GFLOP/s, a copy {limits['gb_per_second']:.1f} GB/s (read and write). "
        "Arithmetic is 6 operations a MAC (a teacher's: 2). Traffic is the least that unfused operations need in "
        "float32, "
        "concatenations left out; above 100 % means that maps stay in the cache.",
        "",
        "| case | data | forward | teacher | backward | optimizer | of the arithmetic limit | of the copy limit |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, case in content["cases"].items():
        parts = [
            f"{case['share_percent'].get(part, 0):.1f} %"
            for part in ("data", "forward", "teacher", "backward", "optimizer")
        ]
        of_limits = [f"{case[f'{key}_share_of_limit_percent']:.0f} %" for key in ("gflop_per_second", "gb_per_second")]
        lines.append(f"| {' | '.join([name, *parts, *of_limits])} |")
    groups = list(next(iter(content["cases"].values()))["operator_share_percent"])
    lines += ["", f"| case | {' | '.join(groups)} | evaluation, of an epoch |"]
    lines.append(f"|---|{'---:|' * (len(groups) + 1)}")
    for name, case in content["cases"].items():
        cells = [f"{case['operator_share_percent'][group]:.0f} %" for group in groups]
        lines.append(f"| {' | '.join([name, *cells])} | {case['evaluation_share_of_an_epoch_percent']:.1f} % |")
    return [*lines, ""]


def obstacles(bench: dict[str, Any], profile: dict[str, Any]) -> list[str]:
    """What share of the machine's limits the goals would take, for the cases that miss them."""
    lines = []
    for name, case in bench["cases"].items():
        measured = profile["cases"].get(name)
        if case["ratio"] >= goal_of(name) or measured is None:
            continue
        faster = goal_of(name) * case["plain"]["images_per_second"] / measured["images_per_second"]
        shares = [
            f"{faster * measured[f'{key}_share_of_limit_percent']:.0f} %"
            for key in ("gflop_per_second", "gb_per_second")
        ]
        lines.append(f"| {name} | {faster:.1f} | {' | '.join(shares)} |")
    if not lines:
        return []
    return [
        "## What the missed goals would take",
        "",
        "At the goal's speed a step would use these shares of the limits, while operations are not fused. "
        "Concatenations come on top of the copies. Only a narrower number format raises the arithmetic limit and "
        f"halves the traffic: bf16, where a CPU multiplies it. This was measured in {profile['machine']['precision']}.",
        "",
        "| case | times as fast as now | of the arithmetic limit | of the copy limit |",
        "|---|---:|---:|---:|",
        *lines,
        "",
    ]


def variants(content: dict[str, Any]) -> list[str]:
    """What was tried on a DenseNet."""
    speeds = content["images_per_second"]
    first = next(iter(speeds.values()))
    seconds = content["compile_seconds"]
    compiled = "" if seconds is None else f" `torch.compile` took {seconds:.0f} s to compile."
    lines = [
        "## What was tried on a DenseNet",
        "",
        f"Forward and backward of {content['model']}, in turn in one process (`bench/variants.py`). Shared statistics: "
        "a map's mean and variance are computed once and used by every later norm, norm and ReLU are one "
        "differentiable function; logits and gradients differ from plain PyTorch's by "
        f"{content['largest_relative_difference']:.0e} in float64.{compiled}",
        "",
        machine_line(content),
        "",
        "| variant | images/s | against the first |",
        "|---|---:|---:|",
    ]
    lines += [f"| {name} | {speed:,.0f} | {speed / first:.2f} |" for name, speed in speeds.items()]
    return [*lines, ""]


def startup(content: dict[str, Any]) -> list[str]:
    """How long a person waits."""
    return [
        "## Start-up",
        "",
        f"`python stages/score.py --help`: {content['help_seconds']:.2f} s (goal: 2). `make score` with nothing to do, "
        f"the measurement on all test images included: {content['score_seconds']:.1f} s (goal: 20).",
        "",
        machine_line(content),
        "",
    ]


PARTS = (
    ("bench", bench, "make bench"),
    ("bench_accuracy", accuracy, "make bench"),
    ("profile", shares, "make profile"),
    ("bench_variants", variants, "make profile"),
    ("bench_startup", startup, "make bench"),
)
GPU_PARTS = (("bench_gpu", bench, "make gpu-check"), ("profile_gpu", shares, "make gpu-check"))


def render(metrics: Path) -> str:
    """docs/performance.md."""
    lines = [INTRODUCTION]
    for name, part, command in PARTS:
        lines += part(read_json(metrics / f"{name}.json", command))
        if name == "profile":
            lines += obstacles(
                read_json(metrics / "bench.json", "make bench"), read_json(metrics / f"{name}.json", command)
            )
    if (metrics / "bench_gpu.json").is_file():
        lines += ["# On a GPU", ""]
        for name, part, command in GPU_PARTS:
            lines += part(read_json(metrics / f"{name}.json", command))
    else:
        lines += ["## On a GPU", "", "Not measured yet: `make gpu-check` checks and measures it.", ""]
    return "\n".join(lines)


def main() -> int:
    def work() -> int:
        write_atomically(Path("docs/performance.md"), render(METRICS))
        return 0

    return front("performance", work)


if __name__ == "__main__":
    sys.exit(main())
