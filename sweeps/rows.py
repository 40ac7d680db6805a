"""The rows of a sweep, `metrics/sweeps/NAME.csv`: one per variant and seed, with what made it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from micronet.errors import MicronetError, shown
from micronet.files import read_csv, write_csv
from micronet.scoring.books import BOOKS
from sweeps.tasks import Task

TABLES = Path("metrics/sweeps")
PRICES = tuple(f"{book.name}_score" for book in BOOKS)
# How a task ends; the last: priced, but not trained. worker.py imports none of our modules and spells them itself.
DONE, FAILED, TOO_DEAR = "done", "failed", "too_dear"


class TableError(MicronetError):
    """A table of rows cannot be used; a one-line message."""


@dataclass(frozen=True)
class Row:
    """The result of a variant with a seed.

    Attributes:
        status: `DONE`, `FAILED` or `TOO_DEAR`. metrics: by column; None if there is no such number.
        commit, params_digest, code_digest, data_digest: what made it. seconds: of the task, on `machine`.
        reason, log: if it failed.
    """

    variant: str
    seed: int
    status: str
    metrics: dict[str, float | None]
    budget: str = ""
    commit: str = ""
    params_digest: str = ""
    code_digest: str = ""
    data_digest: str = ""
    machine: str = ""
    seconds: float | None = None
    reason: str = ""
    log: str = ""

    @property
    def key(self) -> tuple[str, int]:
        return self.variant, self.seed

    def is_of(self, task: Task) -> bool:
        """Whether this is the result that a task would have."""
        mine = (self.variant, self.seed, self.params_digest, self.code_digest, self.data_digest)
        return mine == (task.variant, task.seed, task.params_digest, task.code_digest, task.data_digest)


PLAIN = tuple(field.name for field in fields(Row) if field.name != "metrics")
BEFORE = PLAIN[:3]  # columns before those of the metrics


def write(path: Path, rows: Sequence[Row], metrics: Sequence[str]) -> None:
    """Writes the table, its columns in a fixed order."""
    columns = [*BEFORE, *metrics, *PLAIN[3:]]
    write_csv(path, columns, [{name: getattr(row, name) for name in PLAIN} | _cells(row, metrics) for row in rows])


def _cells(row: Row, metrics: Sequence[str]) -> dict[str, float | None]:
    return {name: row.metrics.get(name) for name in metrics}


def read(path: Path) -> list[Row]:
    """The rows of a table; none if there is no such file.

    Raises:
        TableError: it is damaged.
    """
    if not path.is_file():
        return []
    try:
        return [_row(cells) for cells in read_csv(path)]
    except (KeyError, TypeError, ValueError) as error:
        way = f"`git checkout -- {path}` or removing it would work"
        raise TableError(f"{path}: is no table of a sweep ({shown(error, 80)}); {way}") from None


def _row(cells: Mapping[str, Any]) -> Row:
    numbers = {name: float(text) if text else None for name, text in cells.items() if name not in PLAIN}
    plain = {name: cells[name] for name in PLAIN if name not in ("seed", "seconds")}
    if any(text is None for text in plain.values()):
        raise ValueError("a row is cut off")
    seconds = float(cells["seconds"]) if cells["seconds"] else None
    return Row(seed=int(cells["seed"]), seconds=seconds, metrics=numbers, **plain)


def kept(rows: Sequence[Row], tasks: Sequence[Task], metrics: Sequence[str]) -> dict[tuple[str, int], Row]:
    """The rows that need not run again: done, with the same params, code and data, and all requested metrics."""
    found = {row.key: row for row in rows if row.status == DONE}
    wanted = set(metrics)
    return {
        (task.variant, task.seed): row
        for task in tasks
        if (row := found.get((task.variant, task.seed))) and row.is_of(task) and wanted <= set(row.metrics)
    }


def comparable(rows: Sequence[Row], reference: str | None) -> tuple[list[Row], list[Row]]:
    """Rows that can be compared, of one code, one data and one budget; and the rest.

    Of several such sets the largest with the reference counts; of equally large ones the first in the table.
    """
    sets: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        sets.setdefault((row.code_digest, row.data_digest, row.budget), []).append(row)
    chosen = max(sets.values(), key=lambda one: (any(row.variant == reference for row in one), len(one)), default=[])
    return chosen, [row for one in sets.values() if one is not chosen for row in one]


def measured(
    files: Mapping[str, str], price: Mapping[str, float], metrics: Sequence[str], last: str
) -> dict[str, float | None]:
    """The metrics of a task, from the files it left.

    Raises:
        TableError: there is no such metric; names those there are.
    """
    found: dict[str, float | None] = {}
    for name in metrics:
        stage, key = name.split(".") if "." in name else (last, name)
        if name in PRICES and last != "score":
            found[name] = price.get(name)
            continue
        there = json.loads(files.get(f"metrics/{'summary' if stage == 'score' else stage}.json", "{}"))
        if key not in there or isinstance(there[key], str | bool):
            numbers = [one for one, value in there.items() if isinstance(value, int | float)]
            raise TableError(
                f"metrics: {stage} measures no {key!r} (it measures {', '.join(numbers) or 'nothing here'})"
            )
        found[name] = there[key]
    return found
