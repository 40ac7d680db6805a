"""The record of a run: one row an epoch, as CSV; and who is told about progress.

`Reporter` is what a training loop talks to. What a terminal shows is passed in (`micronet/training/terminal.py`), so
changing it changes no result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from micronet.data.progress import Advance
from micronet.files import write_csv


@dataclass(frozen=True)
class EpochRow:
    """One epoch; accuracies in percent, losses in nats. Without validation the last two are NaN."""

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy_percent: float
    validation_loss: float
    validation_accuracy_percent: float


class Reporter:
    """Told about progress; this one stays silent."""

    place = ""  # of what reports in its pipeline

    def say(self, line: str) -> None:
        """A sentence for the user."""

    @contextmanager
    def watch(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        """Work beside the steps, of `total` units: gives a function that takes how many are done."""
        yield lambda done: None

    def start(self, *, epochs: int, images: int, epoch: int, done: int = 0) -> None:
        """A run of `epochs` epochs of `images` images begins, or goes on after `epoch` of them and `done` images."""

    def step(self, *, epoch: int, images: int, loss: float) -> None:
        """So many images of this epoch are done."""

    def epoch(self, row: EpochRow, seconds: float) -> None:
        """An epoch ended."""

    def stop(self) -> None:
        """The run is over, however it ended."""


def write_curve(path: Path | str, rows: list[EpochRow]) -> None:
    """Writes the curve of a run so far: the whole file, so a resumed run neither skips nor doubles a row."""
    columns = [field.name for field in fields(EpochRow)]
    write_csv(path, columns, map(asdict, rows), digits=6)
