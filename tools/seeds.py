"""Writes metrics/seeds.json, mean and spread of the active recipe over its seeds, from metrics/sweeps/seeds.csv."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from _tool import METRICS, ToolError, front

from micronet.files import write_json
from sweeps import rows
from sweeps.rows import Row
from sweeps.spec import ROOT, read
from sweeps.tasks import plan

SPEC = ROOT / "sweeps/seeds.yaml"


def summary(found: Sequence[Row]) -> dict[str, Any]:
    """`NAME`, `NAME_spread` (sample standard deviation) and the seeds, of rows that are done.

    Raises:
        ToolError: fewer than two are, so that nothing has a spread.
    """
    done = [row for row in found if row.status == "done"]
    if len(done) < 2:
        raise ToolError(f"metrics/sweeps/seeds.csv: {len(done)} seeds are done; `make seeds N=3` makes more")
    best = max(done, key=lambda row: row.metrics["validation_accuracy_percent"] or 0.0)
    told: dict[str, Any] = {"seeds": [row.seed for row in done], "best_on_validation": best.seed}
    for name in done[0].metrics:
        values = [value for row in done if (value := row.metrics.get(name)) is not None]
        if len(values) == len(done):
            told |= {name: round(fmean(values), 6), f"{name}_spread": round(stdev(values), 6)}
    return told | {"commits": sorted({row.commit for row in done})}


def current(path: Path) -> list[Row]:
    """The rows of the active recipe and of today's code."""
    found = rows.read(path)
    spec = read(SPEC).model_copy(update={"seeds": sorted({row.seed for row in found}) or [0]})
    return list(rows.kept(found, plan(spec), spec.metrics).values())


def main() -> int:
    def work() -> None:
        write_json(METRICS / "seeds.json", summary(current(METRICS / "sweeps/seeds.csv")))

    return front("seeds", work)


if __name__ == "__main__":
    sys.exit(main())
