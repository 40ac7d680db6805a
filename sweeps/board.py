"""What is seen of a sweep while it runs: a live table on a terminal, a line an event elsewhere."""

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
from sweeps.rows import Row

if TYPE_CHECKING:
    from rich.console import Console


class Board:
    """Counts rows as they come in.

    Args:
        metric: whose best is shown. total: rows in the end. slots: gives how many tasks run at once.
    """

    def __init__(self, name: str, metric: str, total: int, rows: Sequence[Row], console: Console | None = None):
        self.console = console or console_of(sys.stderr)
        self.name, self.metric, self.total, self.slots = name, metric, total, 1
        self.done = {row.key: row for row in rows}
        self.failed: list[Row] = []
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

    def ended(self, name: str, rows: Sequence[Row], seconds: float | None) -> None:
        """Takes the rows that an ended work gives; a work that several have in common gives none."""
        self.running.pop(name, None)
        if rows and seconds is not None:
            self.seconds.append(seconds)
        for row in rows:
            if row.status == "done":
                self.done[row.key] = row
            else:
                self.failed.append(row)
        if self.console.is_terminal and not any(row.status == "failed" for row in rows):
            return
        for row in rows:
            said = self._value(row) if row.status == "done" else f"failed: {row.reason}; its log: {row.log}"
            self.say(f"{row.variant}, seed {row.seed}: {said}")
        if not rows:
            self.say(f"{name}: made, for all that need it")

    def say(self, line: str) -> None:
        self.console.print(f"{escape(self.name)}: {escape(shown(line))}", highlight=False, soft_wrap=True)

    def _value(self, row: Row) -> str:
        value = row.metrics.get(self.metric)
        return f"{self.metric} {value:g}" if value is not None else "done"

    @property
    def best(self) -> Row | None:
        """The row with the largest value; of what is a score, the smallest."""
        there = [row for row in self.done.values() if row.metrics.get(self.metric) is not None]
        sign = -1 if self.metric.endswith(("score", "bytes", "bits", "loss")) else 1
        return max(there, key=lambda row: sign * (row.metrics[self.metric] or 0.0), default=None)

    @property
    def left(self) -> float | None:
        """Seconds that the rest takes at the pace so far."""
        if not self.seconds:
            return None
        rest = self.total - len(self.done) - len(self.failed)
        return sum(self.seconds) / len(self.seconds) * rest / max(1, self.slots)

    def summary(self) -> str:
        best = self.best
        told = f"; best: {best.variant}, seed {best.seed}, {self._value(best)}" if best else ""
        return f"{len(self.done)} of {self.total} rows done, {len(self.failed)} failed{told}"

    def table(self) -> Table:
        table = Table(title=escape(f"sweep {self.name}"), title_justify="left")
        for name in ("done", "running", "failed", "best", "time left"):
            table.add_column(name)
        best, left = self.best, self.left
        now = time.monotonic()
        running = [f"{shown(name, 40)} {now - since:.0f} s" for name, since in list(self.running.items())[:8]]
        more = len(self.running) - 8
        table.add_row(
            f"{len(self.done)} of {self.total}",
            escape("\n".join(running + ([f"and {more} more"] if more > 0 else []))),
            str(len(self.failed)),
            escape(f"{best.variant}-{best.seed}\n{self._value(best)}") if best else "",
            "" if left is None else f"{left // 3600:.0f}:{left % 3600 // 60:02.0f}:{left % 60:02.0f}",
        )
        return table
