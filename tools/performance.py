"""Writes docs/performance.md from what `make bench`, `make profile` and `make gpu-check` left in metrics/."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import documents
from _tool import METRICS, Facts, arguments_of, front, read_json, read_json_if_there

from micronet.files import write_atomically

DOCUMENT = Path("docs/performance.md")
GOALS = {"densenet_nano": 3.0}  # images per second relative to the plain loop; 2 for every other case
GOAL = 2.0
SHORT = 2  # epochs of the runs measured before they were as long as a recipe's
STEPS_GOAL = 1.3  # a step that quantizes and trims, relative to a float step
PARTS = {  # of the document: the file of metrics/, what makes it
    "bench": ("bench", "make bench"),
    "accuracy": ("bench_accuracy", "make bench"),
    "profile": ("profile", "make profile"),
    "variants": ("bench_variants", "make profile"),
    "startup": ("bench_startup", "make bench"),
    "steps": ("bench_steps", "make bench"),
    "allocation": ("bench_allocation", "make bench"),
    "processes": ("bench_processes", "make bench"),
}
EXPORT = ("bench_export", "make bench")
GPU_PARTS = {"bench": ("bench_gpu", "make gpu-check"), "profile": ("profile_gpu", "make gpu-check")}


def by_processor(found: Facts) -> list[Facts]:
    """A file's measurements, one per kind of processor, newest first."""
    return [found, *found.get("other_processors", [])]


def bench_of(found: Facts) -> dict[str, Any]:
    """One processor's speeds beside the plain loop's, each case's ratio (its goal), and the cases that miss it."""
    cases = found["cases"]
    goals = {name: GOALS.get(name, GOAL) for name in cases}
    return {
        **{key: found[key] for key in ("machine", "turns", "cases")},
        "epochs": found.get("epochs", SHORT),
        "goals": goals,
        "missed": [name for name, case in cases.items() if case["ratio"] < goals[name]],
    }


def parts_of(metrics: Path, parts: dict[str, tuple[str, str]]) -> dict[str, list[Any]]:
    """The contents of some files of metrics/, a list each: one entry per kind of processor."""
    found = {part: by_processor(read_json(metrics / f"{name}.json", by)) for part, (name, by) in parts.items()}
    return {**found, "bench": [bench_of(one) for one in found["bench"]]}


def kind(found: dict[str, Any]) -> tuple[str, str]:
    """The processor and precision of a measurement."""
    return found["machine"]["device"], found["machine"]["precision"]


def obstacles(bench: dict[str, Any], profiles: list[Facts]) -> list[dict[str, Any]]:
    """The share of a machine's limits that the goals would need there, for the cases that miss them."""
    found = []
    cases = next((profile["cases"] for profile in profiles if kind(profile) == kind(bench)), {})
    for name in bench["missed"]:
        if name not in cases:
            continue
        plain, measured = bench["cases"][name]["plain"], cases[name]
        faster = bench["goals"][name] * plain["images_per_second"] / measured["images_per_second"]
        found.append(
            {
                "name": name,
                "faster": faster,
                "arithmetic_percent": faster * measured["gflop_per_second_share_of_limit_percent"],
                "copy_percent": faster * measured["gb_per_second_share_of_limit_percent"],
            }
        )
    return found


def gain_of_compiling(variants: Facts) -> float | None:
    """How many times faster a compiled step was than the uncompiled one in use; None: not measured."""
    speeds = variants["images_per_second"]
    name = next((name for name in speeds if "torch.compile" in name), None)
    return speeds[name] / speeds["channels-last (what is used)"] if name else None


def render(metrics: Path) -> str:
    """docs/performance.md."""
    here = parts_of(metrics, PARTS)
    gpu = parts_of(metrics, GPU_PARTS) if (metrics / "bench_gpu.json").is_file() else None
    export = read_json_if_there(metrics / f"{EXPORT[0]}.json", EXPORT[1])
    stand = [{"machine": bench["machine"], "cases": obstacles(bench, here["profile"])} for bench in here["bench"]]
    facts = {
        **here,
        "gains": [gain_of_compiling(variants) for variants in here["variants"]],
        "obstacles": [one for one in stand if one["cases"]],
        "gpu": gpu,
        "exports": by_processor(export) if export else [],
        "steps_goal": STEPS_GOAL,
    }
    return documents.render("performance", facts)


def main() -> int:
    def work() -> int:
        write_atomically(DOCUMENT, render(METRICS))
        return 0

    return front("performance", work)


if __name__ == "__main__":
    arguments_of("performance", __doc__).parse_args()
    sys.exit(main())
