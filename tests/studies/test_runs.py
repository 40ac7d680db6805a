"""A run of a study: what it writes and reads, what it survives, what it refuses, what DVC makes of its failure."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from micronet.files import write_atomically
from micronet.training.reporting import Reporter
from studies import plan, run
from tests.support.pipeline import dvc
from tests.support.places import ROOT
from tests.support.studies import TINY, a_run
from tools import studies_table


def test_a_run_writes_accuracy_both_scores_epochs_and_images(folder):
    assert run.work(a_run("rates", "slow")) == 0
    record = json.loads((folder / "metrics/studies/runs/rates/slow-0.json").read_text())
    assert 0 < record["validation_accuracy_percent"] < 100
    assert record["deck_score"] > 0 and record["challenge_score"] > 0
    assert (record["epochs"], record["images"], record["validation_images"]) == (2, 200, 200)
    assert list((folder / "run/studies/rates/slow-0").iterdir()) == [folder / "run/studies/rates/slow-0/lock"]


def test_a_run_never_opens_the_test_split(folder, monkeypatch):
    opened, original = [], torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda name, **kw: opened.append(Path(name).name) or original(name, **kw))
    run.perform(a_run("rates", "slow"))
    assert set(opened) == {
        "train_images.bin", "train_labels.bin", "validation_images.bin", "validation_labels.bin"
    }  # fmt: skip


def test_shared_networks_are_trained_once_and_what_is_quantized_is_measured_as_a_packed_file(folder, monkeypatch):
    priced, original = [], run._scores
    monkeypatch.setattr(run, "_scores", lambda model, **kw: priced.append(model) or original(model, **kw))
    for group in ("teacher", "base"):
        run.perform(a_run(group, "thin"))
    weights = folder / "run/studies/base/thin-0.safetensors"
    before = weights.stat().st_mtime_ns
    records = {name: run.perform(a_run("widths", name)) for name in ("plain", "taught", "pruned", "bits_2")}
    assert weights.stat().st_mtime_ns == before
    assert [type(model).__name__ for model in priced[2:]] == ["ResNet", "ResNet", "ResNet", "PackedModule"]
    assert len({record["validation_accuracy_percent"] for record in records.values()}) > 1
    assert records["pruned"]["challenge_score"] < 0.8 * records["plain"]["challenge_score"]
    assert records["bits_2"]["deck_score"] < records["plain"]["deck_score"]


@pytest.mark.slow
def test_fx_graph_mode_runs_as_a_variant(folder):
    run.perform(a_run("base", "thin"))
    records = [run.perform(a_run("widths", name)) for name in ("bits_8_fx", "bits_2")]
    assert records[0]["deck_score"] > records[1]["deck_score"]


def test_a_shared_network_whose_file_is_gone_is_trained_again(folder):
    record = run.perform(a_run("base", "thin"))
    (folder / "run/studies/base/thin-0.safetensors").unlink()
    a_run("base", "thin").model()
    assert a_run("base", "thin").weights_sha256() == record["weights_sha256"]
    assert (folder / "run/studies/base/thin-0.safetensors").is_file()


def test_a_run_without_its_teacher_says_what_makes_it(folder, capsys):
    assert run.work(a_run("widths", "taught")) == 1
    assert "teacher/thin-0 is needed and has not run; `python studies/run.py teacher thin --seed 0` runs it" in (
        capsys.readouterr().err
    )


class Stopping(Reporter):
    """Ends the run after its first epoch, as Ctrl-C does."""

    def __init__(self):
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def epoch(self, row, seconds) -> None:
        if row.epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_record(folder):
    whole = run.perform(a_run("rates", "slow"))
    (folder / "metrics/studies/runs/rates/slow-0.json").unlink()
    assert run.work(a_run("rates", "slow", Stopping())) == 130
    assert not (folder / "metrics/studies/runs/rates/slow-0.json").exists()
    second = Stopping()
    second.epoch = lambda row, seconds: None
    assert run.perform(a_run("rates", "slow", second)) == whole
    assert any("going on after epoch 1" in line for line in second.said)


def test_the_same_work_in_another_study_is_not_done_twice(folder):
    record = run.perform(a_run("rates", "slow"))

    def train(_):
        raise AssertionError("trained again")

    assert run.perform(a_run("widths", "plain"), train) == record
    with pytest.raises(AssertionError):
        run.perform(a_run("rates", "broken"), train)


def test_the_subset_holds_as_many_images_of_each_class():
    labels = torch.arange(1000) % 7 % 10
    split = run.subset(SimpleNamespace(images=torch.arange(1000), labels=torch.arange(1000) % 10), 100)
    assert split.labels.bincount().tolist() == [10] * 10
    assert run.subset(SimpleNamespace(images=labels, labels=labels), 1000).labels is labels


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nothing", "slow"], "there is no study 'nothing' (there are rates, widths)"),
        (["rates", "nothing"], "rates: there is no variant 'nothing' (there are broken, slow)"),
    ],
)
def test_an_unknown_study_or_variant_lists_those_that_exist(folder, capsys, arguments, text):
    kept = folder / "metrics/studies/runs/rates/slow-0.json"
    write_atomically(kept, "{}")
    assert run.main([*arguments, "--seed", "0"]) == 2
    assert capsys.readouterr().err == text + "\n"
    assert kept.read_text() == "{}"


def test_a_faulty_study_file_ends_with_2_and_leaves_everything(folder, capsys):
    changed = json.loads(json.dumps(TINY))
    del changed["studies"]["widths"]["variants"]["taught"]["teacher"]
    (folder / "studies/studies.yaml").write_text(yaml.safe_dump(changed))
    failed = folder / "metrics/studies/runs/rates/slow-0.json"
    write_atomically(failed, '{"failure": "x", "log": "y"}')
    assert plan.main(["--retry"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert failed.exists() and not plan.PLAN.exists()


def test_a_plan_that_is_older_than_the_studies_is_refused(folder, capsys):
    assert plan.main([]) == 0
    (folder / "studies/params.yaml").write_text("budget: tiny\nengine: {threads: 2}\n")
    assert run.main(["rates", "slow", "--seed", "0"]) == 2
    assert "studies/plan.yaml: is older than the studies; `python studies/plan.py` writes it" in capsys.readouterr().err


def test_a_run_that_is_killed_is_recorded_and_retry_forgets_failures_only(folder, monkeypatch, capfd):
    original = subprocess.Popen
    suicide = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(run.subprocess, "Popen", lambda command: original(suicide))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert run.guarded(a_run("rates", "broken")) == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    record = folder / "metrics/studies/runs/rates/broken-0.json"
    assert json.loads(record.read_text())["failure"] == "ended by signal 9"
    kept = folder / "metrics/studies/runs/rates/slow-0.json"
    write_atomically(kept, '{"validation_accuracy_percent": 50.0}')
    assert plan.forget_failures() == [record.relative_to(folder)]
    assert kept.exists() and not record.exists()


# --- under DVC ---


def test_a_variant_that_fails_is_reported_and_the_others_finish(folder):
    for name in ("stages", "models", "networks", "micronet", "data/sample"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("plan.py", "run.py", "collect.py", "sources.py"):
        shutil.copy(ROOT / "studies" / name, folder / "studies")
    stages = yaml.safe_load((ROOT / "studies/dvc.yaml").read_text())
    text = json.dumps(stages["stages"]["optimizer"]).replace("optimizer", "rates")
    stages["stages"] = {
        "code": stages["stages"]["code"],
        "rates": json.loads(text),
        "collect": stages["stages"]["collect"] | {"matrix": {"study": ["rates"]}},
    }
    (folder / "studies/dvc.yaml").write_text(yaml.safe_dump(stages))
    assert plan.main([]) == 0
    assert dvc(folder, "init", "--no-scm", "-q").returncode == 0
    first = dvc(folder, "repro", "studies/dvc.yaml")
    assert first.returncode == 0, first.stdout + first.stderr
    log = "logs/studies/rates/broken-0.log"
    assert "rates/broken-0: failed: the loss is " in first.stderr and f"its log: {log}" in first.stderr
    assert (folder / log).read_text().splitlines()[-1].startswith("failed: the loss is ")
    rows = studies_table.read(folder / "metrics/studies/rates.csv")
    assert [row["variant"] for row in rows] == ["broken", "slow"]
    assert [bool(row["validation_accuracy_percent"]) for row in rows] == [False, True]
    assert rows[0]["failure"].endswith(f"log: {log}")
    for kind in ("png", "svg"):
        assert (folder / f"docs/plots/studies/rates.{kind}").stat().st_size > 1000
