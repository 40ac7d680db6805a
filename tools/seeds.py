"""Writes metrics/seeds.json, mean and spread of the active recipe over seeds, from metrics/sweeps/seeds.csv."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from _tool import METRICS, ToolError, arguments_of, front

from micronet import params as parameters
from micronet.files import write_json
from report.differences import recipe_digest as recipe_digest
from sweeps import rows
from sweeps.rows import DONE, Row
from sweeps.spec import ROOT, read
from sweeps.tasks import plan

SPEC = ROOT / "sweeps/seeds.yaml"


def summary(found: Sequence[Row], of: str) -> dict[str, Any]:
    """Mean and spread (sample standard deviation) of each metric that all finished rows have, and those rows.

    Args:
        of: digest of the params.

    Raises:
        ToolError: fewer than two rows are finished, so there is no spread.
    """
    done = sorted((row for row in found if row.status == DONE), key=lambda row: row.seed)
    if len(done) < 2:
        raise ToolError(f"metrics/sweeps/seeds.csv: {len(done)} seeds are done; `make seeds N=3` makes more")
    columns = {name: [row.metrics.get(name) for row in done] for name in done[0].metrics}
    values = {name: [one for one in column if one is not None] for name, column in columns.items()}
    whole = {name: column for name, column in values.items() if len(column) == len(done)}
    return {
        "params_digest": of,
        "mean": {name: round(fmean(column), 6) for name, column in whole.items()},
        "spread": {name: round(stdev(column), 6) for name, column in whole.items()},
        "best_on_validation": max(done, key=lambda row: row.metrics["validation_accuracy_percent"] or 0.0).seed,
        "rows": [{"seed": row.seed, "commit": row.commit, **row.metrics} for row in done],
    }


def current(path: Path) -> list[Row]:
    """The rows of the active recipe and the current code."""
    found = rows.read(path)
    spec = read(SPEC).model_copy(update={"seeds": sorted({row.seed for row in found}) or [0]})
    return list(rows.kept(found, plan(spec), spec.metrics).values())


def main() -> int:
    def work() -> None:
        of = recipe_digest(parameters.load())
        write_json(METRICS / "seeds.json", summary(current(METRICS / "sweeps/seeds.csv"), of))

    return front("seeds", work)


if __name__ == "__main__":
    arguments_of("seeds", __doc__).parse_args()
    sys.exit(main())
