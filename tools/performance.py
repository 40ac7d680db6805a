"""Writes docs/performance.md from what `make bench`, `make profile` and `make gpu-check` left in metrics/."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import documents
from _tool import METRICS, front, read_json, read_json_if_there

from micronet.files import write_atomically

DOCUMENT = Path("docs/performance.md")
GOALS = {"densenet_nano": 3.0}  # images a second relative to the plain loop; 2 for every other case
GOAL = 2.0
PARTS = {  # of the document: the file of metrics/, what makes it
    "bench": ("bench", "make bench"),
    "accuracy": ("bench_accuracy", "make bench"),
    "profile": ("profile", "make profile"),
    "variants": ("bench_variants", "make profile"),
    "startup": ("bench_startup", "make bench"),
}
EXPORT = ("bench_export", "make bench")
GPU_PARTS = {"bench": ("bench_gpu", "make gpu-check"), "profile": ("profile_gpu", "make gpu-check")}


def parts_of(metrics: Path, parts: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """The contents of some files of metrics/, the ratio that is each case's goal, and the cases that miss it."""
    found = {part: read_json(metrics / f"{name}.json", made_by) for part, (name, made_by) in parts.items()}
    cases = found["bench"]["cases"]
    goals = {name: GOALS.get(name, GOAL) for name in cases}
    return {**found, "goals": goals, "missed": [name for name, case in cases.items() if case["ratio"] < goals[name]]}


def obstacles(parts: dict[str, Any]) -> list[dict[str, Any]]:
    """What share of the machine's limits the goals would take, for the cases that miss them."""
    found = []
    for name in parts["missed"]:
        plain, measured = parts["bench"]["cases"][name]["plain"], parts["profile"]["cases"].get(name)
        if measured is None:
            continue
        faster = parts["goals"][name] * plain["images_per_second"] / measured["images_per_second"]
        found.append(
            {
                "name": name,
                "faster": faster,
                "arithmetic_percent": faster * measured["gflop_per_second_share_of_limit_percent"],
                "copy_percent": faster * measured["gb_per_second_share_of_limit_percent"],
            }
        )
    return found


def render(metrics: Path) -> str:
    """docs/performance.md."""
    here = parts_of(metrics, PARTS)
    gpu = parts_of(metrics, GPU_PARTS) if (metrics / "bench_gpu.json").is_file() else None
    export = read_json_if_there(metrics / f"{EXPORT[0]}.json", EXPORT[1])
    facts = {**here, "obstacles": obstacles(here), "gpu": gpu, "export": export}
    return documents.render("performance", facts)


def main() -> int:
    def work() -> int:
        write_atomically(DOCUMENT, render(METRICS))
        return 0

    return front("performance", work)


if __name__ == "__main__":
    sys.exit(main())
