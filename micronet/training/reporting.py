"""The record of a run, a CSV with one row per epoch; and who is told about progress.

The training loop talks to a `Reporter`. What a terminal shows is passed in (`micronet/training/terminal.py`), so
changing it does not affect results.
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
    """One epoch; accuracies in percent, losses in nats. Without validation, the last two are NaN."""

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy_percent: float
    validation_loss: float
    validation_accuracy_percent: float


class Reporter:
    """Is told about progress; this one stays silent."""

    place = ""  # of the reporting stage in its pipeline

    def say(self, line: str) -> None:
        """A sentence for the user."""

    @contextmanager
    def watch(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        """Work outside the training steps, of `total` units: yields a function to be told how many are done."""
        yield lambda done: None

    def start(self, *, epochs: int, images: int, epoch: int, done: int = 0) -> None:
        """A run of `epochs` epochs of `images` images begins, or resumes after `epoch` epochs and `done` images."""

    def step(self, *, epoch: int, images: int, loss: float) -> None:
        """`images` images of this epoch are done."""

    def epoch(self, row: EpochRow, seconds: float) -> None:
        """An epoch ended."""

    def stop(self) -> None:
        """The run is over, however it ended."""


def write_curve(path: Path | str, rows: list[EpochRow]) -> None:
    """Writes the curve of a run so far: always the whole file, so a resumed run neither skips nor repeats a row."""
    columns = [field.name for field in fields(EpochRow)]
    write_csv(path, columns, map(asdict, rows), digits=6)
