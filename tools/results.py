"""Writes the results block of README.md from metrics/, so that no number in it is typed by hand."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

BEGIN, END = "<!-- results: written by `make docs` from metrics/ -->", "<!-- end of results -->"
RUNS = "train_teacher train_student distill prune retrain quantize".split()


def render(root: Path) -> str:
    """The block, from `metrics/path.csv`, `metrics/score.json` and `metrics/runs/`."""
    score = json.loads((root / "metrics/score.json").read_text(encoding="utf-8"))
    runs = [json.loads((root / f"metrics/runs/{stage}.json").read_text(encoding="utf-8")) for stage in RUNS]
    lines = [
        f"**{score['test_accuracy_percent']:.2f} %** on the 10,000 test images; MicroNet score "
        f"**{score['challenge']['score']:.4f}** under the challenge's rules, **{score['deck']['score']:.4f}** under those of "
        f"the slides that this project started from (they reached 0.0357); a file of {score['packed']['bytes']:,} bytes.",
        "",
        "| checkpoint | test accuracy | parameters | non-zero | MACs | deck score | challenge score |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    with (root / "metrics/path.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            accuracy = f"{float(row['test_accuracy_percent']):.2f} %" if row["test_accuracy_percent"] else "-"
            lines.append(
                f"| {row['stage']} | {accuracy} | {int(row['parameters']):,} | {int(row['nonzero_parameters']):,} "
                f"| {int(row['macs']) / 1e6:.1f} M | {float(row['deck_score']):.4f} | {float(row['challenge_score']):.4f} |"
            )
    minutes = sum(run["seconds"] for run in runs) / 60
    devices = " and ".join(sorted({f"{run['device']}, {run['precision']}" for run in runs}))
    lines += ["", f"Training all of it took {minutes:.0f} minutes on {devices}."]
    return "\n".join(lines)


def replaced(text: str, block: str) -> str:
    """README's text with the block between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    readme = root / "README.md"
    readme.write_text(replaced(readme.read_text(encoding="utf-8"), render(root)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
