"""Gathers the runs of one study: metrics/studies/NAME.csv, a row a variant and seed, and the plot of it."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from micronet.files import write_atomically, write_csv  # noqa: E402 - the lines above make it importable
from micronet.params import ParamsError  # noqa: E402
from studies.plan import RUNS, Plan, load  # noqa: E402

TABLES, PLOTS = Path("metrics/studies"), Path("docs/plots/studies")
COLUMNS = (
    "variant", "seed", "validation_accuracy_percent", "deck_score", "challenge_score", "epochs", "images",
    "validation_images", "budget", "packed_version", "failure",
)  # fmt: skip


def rows(plan: Plan, study: str) -> list[dict[str, Any]]:
    """A row a planned variant and seed; one that failed has no numbers but a `failure`, with its log's path."""
    found = []
    for variant in plan.variants(study):
        for seed in plan.seeds(study):
            path = RUNS / study / f"{variant}-{seed}.json"
            record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
            if record is None:
                record = {"budget": plan.budget, "failure": "has not run"}
            elif "failure" in record:
                record = record | {"failure": f"{record['failure']}; log: {record['log']}"}
            found.append({"variant": variant, "seed": seed} | record)
    return found


def write_table(path: Path, found: list[dict[str, Any]]) -> None:
    write_csv(path, COLUMNS, [{column: row.get(column) for column in COLUMNS} for row in found])


def write_plot(stem: Path, title: str, found: list[dict[str, Any]]) -> None:
    """STEM.png and STEM.svg: a dot a seed, a line at the mean of each variant. The same rows give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    variants = list(dict.fromkeys(row["variant"] for row in found))
    with matplotlib.rc_context({"svg.hashsalt": "micronet", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.3 * len(variants)), layout="constrained")
        for place, variant in enumerate(variants):
            values = [
                row["validation_accuracy_percent"]
                for row in found
                if row["variant"] == variant and row.get("validation_accuracy_percent") is not None
            ]
            axes.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.5)
            if values:
                axes.plot([sum(values) / len(values)], [place], "|", color="black", markersize=14)
            else:
                axes.text(0.02, place, "failed", transform=axes.get_yaxis_transform(), va="center")
        axes.set_yticks(range(len(variants)), variants)
        axes.invert_yaxis()
        axes.set_xlabel("validation accuracy in percent; a dot a seed, a line at the mean")
        axes.set_title(title, wrap=True)
        axes.grid(axis="x", alpha=0.3)
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=120, metadata=metadata)
            write_atomically(stem.with_suffix(f".{kind}"), buffer.getvalue())
        pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study")
    arguments = parser.parse_args(argv)
    try:
        plan = load()
        if arguments.study not in plan.file.studies:
            raise ParamsError([f"there is no study {arguments.study!r} (there are {', '.join(plan.file.studies)})"])
    except ParamsError as error:
        print(error, file=sys.stderr)
        return 2
    found = rows(plan, arguments.study)
    write_table(TABLES / f"{arguments.study}.csv", found)
    write_plot(PLOTS / arguments.study, plan.file.studies[arguments.study].question, found)
    for row in found:
        if row.get("failure"):
            print(f"{arguments.study}: {row['variant']}, seed {row['seed']}: {row['failure']}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
