"""Writes the results block of README.md from metrics/, so that no number in it is typed by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import documents
import seeds
from _tool import METRICS, ROOT, front, read_csv, read_json, read_json_if_there, training_runs

from micronet import params as parameters
from micronet.files import write_atomically

BEGIN, END = "<!-- results: written by `make docs` from metrics/ -->", "<!-- end of results -->"
FOR_THE_SLIDES = ("dense", "refined", "cascade")  # folders of metrics/: the models for the slides' rules


FEWEST_SEEDS = 3  # that a headline is the mean of


def render(metrics: Path, params: Path = ROOT / "params.yaml") -> str:
    """The block, from `path.csv`, `score.json` and `runs/` of a metrics folder, and the models beside them.

    Args:
        params: of the recipe; its seeds in `seeds.json` count when they are of these params, and enough.
    """
    runs, made_by = training_runs(metrics), "python stages/score.py"
    facts = {
        "score": read_json(metrics / "score.json", made_by),
        "path": read_csv(metrics / "path.csv", made_by, ("test_accuracy_percent", "macs")),
        "minutes": sum(run["seconds"] for run in runs) / 60,
        "seed": parameters.load(params).seed,
        "devices": sorted({f"{run['device']}, {run['precision']}" for run in runs}),
    }
    facts["seeds"] = read_json_if_there(metrics / "seeds.json", "make seeds")
    if facts["seeds"] and (
        len(facts["seeds"]["rows"]) < FEWEST_SEEDS
        or facts["seeds"]["params_digest"] != seeds.recipe_digest(parameters.load(params))
    ):
        facts["seeds"] = None
    for name in FOR_THE_SLIDES:
        facts[name] = read_json_if_there(metrics / name / "score.json", f"make {name}")
    return documents.render("results", facts)


def replaced(text: str, block: str) -> str:
    """README's text with the block between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{block}\n{END}{after}"


def main() -> int:
    readme = ROOT / "README.md"

    def work() -> int:
        write_atomically(readme, replaced(readme.read_text(encoding="utf-8"), render(ROOT / METRICS)))
        return 0

    return front("results", work)


if __name__ == "__main__":
    sys.exit(main())
