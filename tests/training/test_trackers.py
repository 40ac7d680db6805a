"""What goes to TensorBoard and MLflow while a run trains, told to recording fakes; both need not be installed."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from micronet import params
from micronet.training import trackers
from micronet.training.reporting import EpochRow, Reporter
from stages.dependencies import PRESENTATION
from tests.support.pipeline import shrunk
from tests.support.places import ROOT

ROWS = [EpochRow(1, 0.1, 2.3, 20.0, 2.2, 21.0), EpochRow(2, 0.01, 1.9, 30.0, 2.0, 31.0)]


class Fake:
    """A tracker that keeps what it is told; it fails in the methods named in `broken`."""

    package = "pytest"
    made: list[Fake] = []
    broken: set[str] = set()

    def __init__(self, stage, run, settings):
        self._do("open", stage, run, settings)
        Fake.made.append(self)

    def _do(self, name, *said):
        if name in Fake.broken:
            raise OSError(f"{name} failed\nfor a long time")
        self.__dict__.setdefault("said", []).append((name, *said))

    def numbers(self, values, epoch):
        self._do("numbers", values, epoch)

    def close(self):
        self._do("close")


class Told(Reporter):
    def __init__(self):
        self.said: list[str] = []
        self.told: list[str] = []

    def say(self, line):
        self.said.append(line)

    def start(self, **_):
        self.told.append("start")

    def step(self, **_):
        self.told.append("step")

    def epoch(self, row, seconds):
        self.told.append("epoch")

    def stop(self):
        self.told.append("stop")


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr(Fake, "made", [])
    monkeypatch.setattr(Fake, "broken", set())
    monkeypatch.setattr(trackers, "TRACKERS", {"tensorboard": Fake, "mlflow": Fake})


def follow(names=("tensorboard",)) -> Told:
    told = Told()
    reporter = trackers.Tracked(told, "prune", names, {"seed": 0, "prune": {"amount": 0.5}})
    reporter.start(epochs=2, images=10, epoch=0)
    for row in ROWS:
        reporter.step(epoch=row.epoch, images=10, loss=1.0)
        reporter.epoch(row, 12.5)
    reporter.stop()
    return told


def test_every_epoch_reaches_every_tracker_with_its_number_and_the_terminal_as_before():
    told = follow(("tensorboard", "mlflow"))
    assert told.told == ["start", "step", "epoch", "step", "epoch", "stop"] and told.said == []
    assert len(Fake.made) == 2
    for fake in Fake.made:
        (_, stage, run, settings), one, two, end = fake.said
        assert stage == "prune" and run.startswith("prune-20") and settings == {"seed": 0, "prune.amount": 0.5}
        assert one[1:] == (
            {
                "learning_rate": 0.1,
                "train_loss": 2.3,
                "train_accuracy_percent": 20.0,
                "validation_loss": 2.2,
                "validation_accuracy_percent": 21.0,
                "seconds": 12.5,
            },
            1,
        )
        assert two[2] == 2 and end == ("close",)


@pytest.mark.parametrize("broken", ["open", "numbers", "close"])
def test_a_tracker_that_fails_is_said_once_in_a_line_and_ends_no_training(broken):
    Fake.broken = {broken}
    told = follow()
    assert told.told == ["start", "step", "epoch", "step", "epoch", "stop"]
    assert told.said == [
        f"tensorboard takes no numbers of this run, which goes on without it: {broken} failed for a long time"
    ]


def test_a_missing_package_is_a_fault_of_the_params_that_says_what_to_install(monkeypatch, tmp_path):
    import json

    monkeypatch.syspath_prepend(str(ROOT / "stages"))
    import validation

    tree = shrunk()
    tree["engine"]["log_to"] = "mlflow"
    path = tmp_path / "params.json"
    path.write_text(json.dumps(tree))
    validation.validate(path)
    monkeypatch.setattr(Fake, "package", "no_such_package")
    with pytest.raises(params.ParamsError) as caught:
        validation.validate(path)
    (fault,) = caught.value.faults
    assert fault.startswith(f"{path}: engine.log_to: mlflow needs the package no_such_package") and len(fault) < 300
    assert "uv pip install" in fault and "log_to: none" in fault


def test_the_terminal_alone_is_told_while_it_is_off(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "stages"))
    import common

    from micronet.training.terminal import TerminalReporter

    tree = shrunk()
    assert type(common._reporter("prune", params.parse(tree))) is TerminalReporter
    tree["engine"]["log_to"] = ["mlflow", "tensorboard", "mlflow"]
    found = common._reporter("train_student", params.parse(tree))
    assert found.names == ["mlflow", "tensorboard"] and found.settings["train_student"]["train"]["epochs"] == 1


def test_where_numbers_go_is_in_no_digest_and_its_code_decides_no_result():
    off, on = params.Engine(), params.Engine.model_validate({"log_to": "tensorboard"})
    assert params.digest(off) == params.digest(on) and "log_to" not in on.model_dump()
    assert params.Engine.model_validate({"log_to": "none"}) == off
    assert "micronet/training/trackers.py" in PRESENTATION


@pytest.mark.parametrize("given", ["wandb", ["none"], 1, {"tensorboard": 1}, None, True, [["mlflow"]]])
def test_other_places_are_one_fault_that_lists_those_there_are(given):
    tree = shrunk()
    tree["engine"]["log_to"] = given
    with pytest.raises(params.ParamsError) as caught:
        params.parse(tree)
    said = "must be none, tensorboard or mlflow, or a list of the last two"
    assert caught.value.faults == [f"params.yaml: engine.log_to: {said}"]


def test_what_is_shown_beside_the_steps_is_shown_by_the_one_that_is_told():
    class Watching(Told):
        place = "stage 3 of 8"

        @contextmanager
        def watch(self, title, total, unit):
            yield lambda done: self.said.append(f"{title}: {done} of {total} {unit}")

    told = Watching()
    reporter = trackers.Tracked(told, "prune", (), {})
    with reporter.watch("measuring", 9, "images") as advance:
        advance(4)
    assert told.said == ["measuring: 4 of 9 images"] and reporter.place == "stage 3 of 8"
