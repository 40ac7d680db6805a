"""Writes the results block of README.md from metrics/, so that no number in it is typed by hand."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

from _tool import ROOT, TRAINING_STAGES

from micronet.files import write_atomically

BEGIN, END = "<!-- results: written by `make docs` from metrics/ -->", "<!-- end of results -->"


def render(root: Path) -> str:
    """The block, from `metrics/path.csv`, `metrics/score.json` and `metrics/runs/`."""
    score = json.loads((root / "metrics/score.json").read_text(encoding="utf-8"))
    runs = [json.loads((root / f"metrics/runs/{stage}.json").read_text(encoding="utf-8")) for stage in TRAINING_STAGES]
    accuracy, challenge, deck = score["test_accuracy_percent"], score["challenge"]["score"], score["deck"]["score"]
    lines = [
        f"**{accuracy:.2f} %** on the 10,000 test images; MicroNet score **{challenge:.4f}** under the challenge's "
        f"rules, **{deck:.4f}** under those of the slides that this project started from (they reached 0.0357); "
        f"a file of {score['packed']['bytes']:,} bytes.",
        "",
        *shortcuts(score),
        "",
        *for_the_slides(root / "metrics"),
        "| checkpoint | test accuracy | parameters | non-zero | MACs | deck score | challenge score |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    with (root / "metrics/path.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            cells = [
                row["stage"],
                f"{float(row['test_accuracy_percent']):.2f} %" if row["test_accuracy_percent"] else "-",
                f"{int(row['parameters']):,}",
                f"{int(row['nonzero_parameters']):,}",
                f"{int(row['macs']) / 1e6:.1f} M",
                f"{float(row['deck_score']):.4f}",
                f"{float(row['challenge_score']):.4f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    minutes = sum(run["seconds"] for run in runs) / 60
    devices = " and ".join(sorted({f"{run['device']}, {run['precision']}" for run in runs}))
    lines += ["", f"Training took {minutes:.0f} minutes on {devices}."]
    return "\n".join(lines)


def for_the_slides(metrics: Path) -> list[str]:
    """The models for the slides' rules, if there are any."""
    found = {name: metrics / name / "score.json" for name in ("dense", "refined", "cascade")}
    scores = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in found.items() if path.is_file()}
    if "dense" not in scores:
        return []

    def what(name: str) -> str:
        score = scores[name]
        return (
            f"**{score['test_accuracy_percent']:.2f} %** at **{score['deck']['score']:.4f}**, "
            f"{score['packed']['bytes']:,} bytes, in `release/{name}.safetensors` (`make {name}` measures it)."
        )

    lines = [
        "Zeros save no operation under the slides' rules, so these have a network of their own, the recipe `dense`: "
        f"{what('dense')}"
    ]
    if "refined" in scores:
        lines[0] += f" Trained on from its packed file with mixed images, it is the recipe `refined`: {what('refined')}"
    if "cascade" in scores:
        cascade = scores["cascade"]["cascade"]
        lines[0] += (
            f" Behind `glance`, which sees every image and is right on "
            f"{cascade['alone_test_accuracy_percent'][0]:.2f} %, it is asked about "
            f"{cascade['images_percent'][1]:.1f} % of them, and about "
            f"{scores['cascade']['flipped_images_percent']:.1f} % twice: {what('cascade')}"
        )
    return [*lines, ""]


def shortcuts(score: dict[str, Any]) -> list[str]:
    """What of the score is the network's, and what comes from how it is stored and evaluated."""
    once, flipped = score["one_pass"], score["flipped_images_percent"]
    twice = f"{flipped:.1f} % of the images, the least sure ones, are seen mirrored too, and both passes are charged. "
    return [
        f"{twice if flipped else ''}A mask may have a bit for a block of weights before those of its weights, and the "
        "inputs of equal weights are summed before they are multiplied ([how](docs/format.md)). The same network in "
        "one pass, with plain sums of products and a mask bit for every weight: "
        f"{once['test_accuracy_percent']:.2f} % at {once['plain_challenge_score']:.4f}."
    ]


def replaced(text: str, block: str) -> str:
    """README's text with the block between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def main() -> int:
    readme = ROOT / "README.md"
    write_atomically(readme, replaced(readme.read_text(encoding="utf-8"), render(ROOT)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
