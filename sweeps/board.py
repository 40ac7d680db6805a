"""What a sweep shows while it runs: a live table on a terminal, elsewhere one line per event."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.live import Live
from rich.markup import escape
from rich.table import Table

from micronet.console import console as console_of
from micronet.errors import shown
from sweeps.rows import DONE, FAILED, TOO_DEAR, Row

if TYPE_CHECKING:
    from rich.console import Console


class Board:
    """Counts rows as they come in.

    Args:
        metric: whose best value is shown. total: final number of rows. rows: the existing ones.

    Attributes:
        slots: how many tasks run at once.
    """

    def __init__(self, name: str, metric: str, total: int, rows: Sequence[Row], console: Console | None = None):
        self.console = console or console_of(sys.stderr)
        self.name, self.metric, self.total, self.slots = name, metric, total, 1
        self.rows: dict[tuple[str, int], Row] = {row.key: row for row in rows}
        self.running: dict[str, float] = {}
        self.seconds: list[float] = []
        self.live = Live(get_renderable=self.table, console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Board:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()
        self.say(self.summary())

    def began(self, name: str) -> None:
        self.running[name] = time.monotonic()
        if not self.console.is_terminal:
            self.say(f"{name}: begins")

    def ended(self, name: str, row: Row, seconds: float | None) -> None:
        """Takes the row produced by a work."""
        if seconds is not None:
            self.seconds.append(seconds)
        self.rows[row.key] = row
        log = f"; its log: {row.log}" if row.log else ""
        said = self._value(row) if row.status == DONE else f"{row.status.replace('_', ' ')}: {row.reason}{log}"
        self.passed(name, said, f"{row.variant}, seed {row.seed}", always=row.status == FAILED)

    def passed(self, name: str, said: str, what: str = "", *, always: bool = False) -> None:
        """A work has ended; a shared one, or an intermediate step, gives no row.

        Args:
            what: its label, if not its name. always: print on a terminal too, where the table shows the rest.
        """
        self.running.pop(name, None)
        if always or not self.console.is_terminal:
            self.say(f"{what or name}: {said}")

    def say(self, line: str) -> None:
        self.console.print(f"{escape(self.name)}: {escape(shown(line))}", highlight=False, soft_wrap=True)

    def _value(self, row: Row) -> str:
        value = row.metrics.get(self.metric)
        return f"{self.metric} {value:g}" if value is not None else "done"

    def of(self, *statuses: str) -> list[Row]:
        """The rows with one of these statuses."""
        return [row for row in self.rows.values() if row.status in statuses]

    @property
    def best(self) -> Row | None:
        """The row with the best value: the smallest for scores, else the largest."""
        there = [row for row in self.of(DONE) if row.metrics.get(self.metric) is not None]
        sign = -1 if self.metric.endswith(("score", "bytes", "bits", "loss")) else 1
        return max(there, key=lambda row: sign * (row.metrics[self.metric] or 0.0), default=None)

    @property
    def left(self) -> float | None:
        """Estimated seconds left at the pace so far."""
        if not self.seconds:
            return None
        return sum(self.seconds) / len(self.seconds) * (self.total - len(self.rows)) / max(1, self.slots)

    def summary(self) -> str:
        best = self.best
        told = f"; best: {best.variant}, seed {best.seed}, {self._value(best)}" if best else ""
        dear = f", {len(self.of(TOO_DEAR))} too dear" if self.of(TOO_DEAR) else ""
        return f"{len(self.of(DONE))} of {self.total} rows done, {len(self.of(FAILED))} failed{dear}{told}"

    def table(self) -> Table:
        table = Table(title=escape(f"sweep {self.name}"), title_justify="left")
        for name in ("done", "running", "failed", "best", "time left"):
            table.add_column(name)
        best, left = self.best, self.left
        now = time.monotonic()
        running = [f"{shown(name, 40)} {now - since:.0f} s" for name, since in list(self.running.items())[:8]]
        more = len(self.running) - 8
        table.add_row(
            f"{len(self.of(DONE))} of {self.total}",
            escape("\n".join(running + ([f"and {more} more"] if more > 0 else []))),
            str(len(self.of(FAILED))),
            escape(f"{best.variant}-{best.seed}\n{self._value(best)}") if best else "",
            "" if left is None else f"{left // 3600:.0f}:{left % 3600 // 60:02.0f}:{left % 60:02.0f}",
        )
        return table
