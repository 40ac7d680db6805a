"""A spec being run: its tasks, the existing rows, and the table that holds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from micronet.errors import shown
from micronet.files import write_atomically
from sweeps import rows
from sweeps.rows import DONE, FAILED, TABLES, Row
from sweeps.spec import Spec
from sweeps.tasks import Task

if TYPE_CHECKING:
    from sweeps.engine import Outcome

LOGS = Path("logs/sweeps")


@dataclass
class Sweep:
    """A spec, its tasks and the existing rows.

    Attributes:
        rows: by (variant, seed), those valid for these tasks. old: of the table as it was found.
    """

    name: str
    spec: Spec
    tasks: list[Task]
    commit: str
    rows: dict[tuple[str, int], Row] = field(default_factory=dict)
    old: dict[tuple[str, int], Row] = field(default_factory=dict)

    @property
    def table(self) -> Path:
        return TABLES / f"{self.name}.csv"

    @classmethod
    def of(cls, name: str, spec: Spec, tasks: list[Task], commit: str) -> Sweep:
        """With the rows of the table. Raises `TableError`."""
        made = cls(name, spec, tasks, commit)
        found = rows.read(made.table)
        made.old = {row.key: row for row in found}
        made.rows = rows.kept(found, tasks, spec.metrics)
        return made

    @property
    def missing(self) -> list[Task]:
        return [task for task in self.tasks if (task.variant, task.seed) not in self.rows]

    def write(self) -> None:
        """Writes the table: one row per task in spec order; rows not yet run, or no longer requested, stay."""
        keys = [(task.variant, task.seed) for task in self.tasks]
        there = [self.rows.get(key) or self.old.get(key) for key in keys]
        others = [row for key, row in self.old.items() if key not in keys]
        rows.write(self.table, [row for row in [*there, *others] if row], self.spec.metrics)

    def row(self, outcome: Outcome) -> Row:
        """The row of a finished task, its log kept."""
        task = outcome.work.task
        log = LOGS / self.name / f"{task.name}.log"
        values: dict[str, float | None] = {}
        status, reason = outcome.status, outcome.reason
        if status == DONE:
            try:
                values = rows.measured(outcome.files, outcome.price, self.spec.metrics, task.last)
            except rows.TableError as error:
                status, reason = FAILED, str(error)
        if status == FAILED and outcome.log:
            write_atomically(log, outcome.log)
        return Row(
            variant=task.variant,
            seed=task.seed,
            status=status,
            metrics=values,
            budget=self.spec.budget or "",
            commit=self.commit[:12],
            params_digest=task.params_digest,
            code_digest=task.code_digest,
            data_digest=task.data_digest,
            machine=outcome.machine,
            seconds=outcome.seconds,
            reason=shown(reason),
            log=log.as_posix() if status == FAILED and outcome.log else "",
        )
