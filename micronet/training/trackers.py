"""Logs the epochs of a run to TensorBoard or MLflow: `engine.log_to`.

It does not affect results, so no stage depends on it. Neither package is needed or loaded unless requested.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from micronet.data.progress import Advance
from micronet.errors import shown
from micronet.training.reporting import EpochRow, Reporter

LOGS = Path("logs")  # ignored by git and DVC
LONGEST_SETTING = 250  # characters of a value that are kept for MLflow


class Tracker(Protocol):
    """A place where the numbers of one run go."""

    def numbers(self, values: Mapping[str, float], epoch: int) -> None:
        """Logs the numbers of an epoch."""

    def close(self) -> None:
        """The run is over."""


class TensorBoard:
    """A folder of events, `logs/tensorboard/RUN`: `tensorboard --logdir logs/tensorboard` shows it."""

    package = "tensorboard"

    def __init__(self, stage: str, run: str, settings: Mapping[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(LOGS / "tensorboard" / run))
        lines = "\n".join(f"    {name}: {value}" for name, value in settings.items())
        self.writer.add_text("params", lines)

    def numbers(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class MLflow:
    """A run of the experiment `micronet`, on the server that MLFLOW_TRACKING_URI names, or in `logs/mlflow.db`."""

    package = "mlflow"

    def __init__(self, stage: str, run: str, settings: Mapping[str, Any]):
        import mlflow

        if "MLFLOW_TRACKING_URI" not in os.environ:
            LOGS.mkdir(exist_ok=True)
            mlflow.set_tracking_uri(f"sqlite:///{LOGS.resolve() / 'mlflow.db'}")
        mlflow.set_experiment("micronet")
        self.mlflow = mlflow
        mlflow.start_run(run_name=run, tags={"stage": stage})
        mlflow.log_params({name: str(value)[:LONGEST_SETTING] for name, value in settings.items()})

    def numbers(self, values: Mapping[str, float], epoch: int) -> None:
        self.mlflow.log_metrics(dict(values), step=epoch)

    def close(self) -> None:
        self.mlflow.end_run()


TRACKERS: dict[str, type[TensorBoard] | type[MLflow]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


def missing(names: Sequence[str]) -> Iterator[str]:
    """A fault for each of `TRACKERS` whose package is not installed, with how to install it."""
    for name in names:
        package = TRACKERS[name].package
        if find_spec(package) is None:
            way = f"`.venv/bin/uv pip install --python .venv/bin/python {package}` or log_to: none would work"
            yield f"engine.log_to: {name} needs the package {package}, which is not installed; {way}"


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested settings, by dotted key."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


class Tracked(Reporter):
    """Passes everything on to another reporter, and the epochs to trackers.

    A tracker that fails, because of a full disk or a lost server, is reported once and then dropped; training goes on.

    Args:
        told: the other reporter, which also reports failures.
        names: of `TRACKERS`.
        settings: the run's settings, nested.
    """

    def __init__(self, told: Reporter, stage: str, names: Sequence[str], settings: Mapping[str, Any]):
        self.told, self.stage, self.names, self.settings = told, stage, names, settings
        self.place = told.place
        self.trackers: dict[str, Tracker] = {}

    def say(self, line: str) -> None:
        self.told.say(line)

    @contextmanager
    def watch(self, title: str, total: int, unit: str) -> Iterator[Advance]:
        with self.told.watch(title, total, unit) as told:
            yield told

    def start(self, *, epochs: int, images: int, epoch: int, done: int = 0) -> None:
        self.stop_trackers()
        run = f"{self.stage}-{datetime.now():%Y-%m-%dT%H-%M-%S}"
        for name in self.names:
            self._try(name, partial(self._open, name, run))
        self.told.start(epochs=epochs, images=images, epoch=epoch, done=done)

    def step(self, *, epoch: int, images: int, loss: float) -> None:
        self.told.step(epoch=epoch, images=images, loss=loss)

    def epoch(self, row: EpochRow, seconds: float) -> None:
        values = {name: value for name, value in asdict(row).items() if name != "epoch"} | {"seconds": seconds}
        for name, tracker in list(self.trackers.items()):
            self._try(name, partial(tracker.numbers, values, row.epoch))
        self.told.epoch(row, seconds)

    def stop(self) -> None:
        self.stop_trackers()
        self.told.stop()

    def stop_trackers(self) -> None:
        """Closes the open runs."""
        for name in list(self.trackers):
            self._try(name, self.trackers.pop(name).close)

    def _open(self, name: str, run: str) -> None:
        self.trackers[name] = TRACKERS[name](self.stage, run, flat(self.settings))

    def _try(self, name: str, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:
            self.trackers.pop(name, None)
            said = " ".join(str(error).split()) or type(error).__name__
            self.say(f"{name} takes no numbers of this run, which goes on without it: {shown(said, 160)}")
