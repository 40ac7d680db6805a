"""What `score` says of the checkpoints that it measures, and the few numbers that it leaves for people to compare."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest
import yaml

from micronet import params
from micronet.files import FileError
from micronet.packed.module import load_packed
from micronet.scoring import path
from micronet.training.reporting import Reporter
from tests.support.pipeline import script, shrunk
from tests.support.places import ROOT


class Recording(Reporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture
def score(monkeypatch, pipeline):
    """The module of the script, in a folder in which all other stages ran."""
    monkeypatch.syspath_prepend(str(ROOT / "stages"))
    monkeypatch.chdir(pipeline)
    import score

    return score


def job(tree: dict, **flags: bool):
    from job import Job

    arguments = argparse.Namespace(params="params.yaml", **{"check": False, "packed": False} | flags)
    return Job(script("score"), params.parse(tree), arguments, Recording())


def of_others(job, model) -> list[str]:
    return path.of_other_params(Path("checkpoints"), model, job.digest_of)


def test_checkpoints_of_these_params_are_not_spoken_of(score):
    assert of_others(job(shrunk()), load_packed(score.PACKED)) == []


@pytest.mark.parametrize(
    ("section", "change", "strangers"),
    [
        ("quantize", {"activation_bits": 5}, ["quantized"]),
        ("prune", {"amount": 0.25}, ["pruned", "retrained", "quantized"]),
        ("student", {"train": {"epochs": 2, "learning_rate": 0.1}}, ["student", "distilled", "pruned", "retrained"]),
        ("engine", {"evaluation_batch_size": 7}, []),
    ],
)
def test_checkpoints_of_other_params_are_named_in_a_line_each_with_the_stage_that_makes_them(
    score, section, change, strangers
):
    tree = shrunk()
    tree[section] |= change
    changed = job(tree)
    said = score.strangers_of(changed, load_packed(score.PACKED))
    found = said.get("made_with_other_params", [])
    assert found[: len(strangers)] == strangers and bool(found) == bool(strangers)
    assert set(said) <= {"made_with_other_params"}
    assert len(changed.reporter.lines) == len(found)
    for line, name in zip(changed.reporter.lines, found, strict=True):
        assert line.startswith(f"checkpoints/{name}.safetensors: was made with other params than params.yaml holds; ")
        assert "`python stages/" in line and len(line) <= 300


def test_a_changed_seed_is_another_run_and_a_checkpoint_that_is_not_there_is_no_stranger(
    score, pipeline, tmp_path, monkeypatch
):
    model = load_packed(score.PACKED)
    assert len(of_others(job(shrunk() | {"seed": 7}), model)) == 6
    monkeypatch.chdir(tmp_path)
    Path("checkpoints").mkdir()
    Path("checkpoints/student.safetensors").write_text("no checkpoint")
    assert of_others(job(shrunk()), model) == []
    (tmp_path / "checkpoints/teacher.safetensors").symlink_to(pipeline / "checkpoints/teacher.safetensors")
    assert of_others(job(shrunk() | {"seed": 7}), model) == ["teacher", "quantized"]


def test_a_checkpoint_made_of_another_file_than_lies_there_is_named_with_it(score, pipeline, tmp_path, monkeypatch):
    """Somebody who runs stages by hand made a checkpoint, or the data, anew and not what is made of it."""
    monkeypatch.chdir(tmp_path)
    for name in ("data", "checkpoints", "metrics"):
        shutil.copytree(pipeline / name, name)
    folders = Path("checkpoints"), Path("metrics/runs")
    assert path.of_other_files(*folders) == {}
    record = json.loads(Path("metrics/runs/retrain.json").read_text())
    places = [f"checkpoints/{name}.safetensors" for name in ("teacher", "pruned")]
    assert list(record["made_of"]) == ["data/manifest.json", *places]

    Path(places[1]).write_bytes(Path("checkpoints/distilled.safetensors").read_bytes())
    assert path.of_other_files(*folders) == {"retrained": places[1]}, "nothing is known of the new one"
    one = job(shrunk())
    assert score.strangers_of(one, load_packed(score.PACKED))["made_of_other_files"] == ["retrained"]
    said = next(line for line in one.reporter.lines if line.startswith("checkpoints/retrained"))
    assert f"was made of another {places[1]} than lies here; `python stages/retrain.py` makes it" in said

    manifest = Path("data/manifest.json")
    manifest.write_text(manifest.read_text() + " ")
    everything = ["teacher", "student", "distilled", "retrained", "quantized"]
    assert path.of_other_files(*folders) == dict.fromkeys(everything, "data/manifest.json")
    for damaged in ("", "[]", '{"made_of": 3}', '{"checkpoint": 3}'):
        Path("metrics/runs/train_teacher.json").write_text(damaged)
        assert "teacher" not in path.of_other_files(*folders)


@pytest.mark.slow
def test_strangers_are_marked_in_the_table_and_in_the_record_of_the_run_and_change_no_number(
    pipeline, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(ROOT / "stages"))
    monkeypatch.chdir(tmp_path)
    import score
    from job import Job

    whole = Job.split
    monkeypatch.setattr(Job, "split", lambda self, name: whole(self, name).part(100))
    for name in ("data", "checkpoints"):
        Path(name).symlink_to(pipeline / name)
    Path("params.yaml").write_text(yaml.safe_dump(shrunk()))
    written = {}
    for amount in (shrunk()["prune"]["amount"], 0.25):
        tree = shrunk() | {"score": {"measure_path": False}}
        tree["prune"]["amount"] = amount
        assert score.work(job(tree)) == 0
        written[amount] = {path.name: path.read_bytes() for path in Path("metrics").glob("*.*")}
    same, other = capsys.readouterr().out.split("Test accuracy, MicroNet score")[1:]
    assert " * " not in same and "made with other params" not in same
    assert [line.split()[0] for line in other.splitlines() if " * " in line] == ["pruned", "retrained", "quantized"]
    assert "* made with other params, or of other files, than these" in other
    assert max(len(line) for line in other.splitlines() if " * " in line) <= 80
    one, two = written.values()
    assert one == two and set(one) == {"score.json", "summary.json", "path.csv", "predictions.csv"}
    record = json.loads(Path("metrics/runs/score.json").read_text())
    assert record["made_with_other_params"] == ["pruned", "retrained", "quantized"]
    summary = json.loads(one["summary.json"])
    found = json.loads(one["score.json"])
    assert summary["accuracy_percent"] == found["test_accuracy_percent"]
    assert summary["challenge_score"] == pytest.approx(found["challenge"]["score"], abs=1e-6)
    assert sorted(summary)[0] == "accuracy_percent", "DVC sorts its table by name"
    rows = one["predictions.csv"].decode().splitlines()
    right = sum(row.split(",")[1] == row.split(",")[2] for row in rows[1:])
    assert rows[0] == "image,actual,predicted,confidence_percent"
    assert 100 * right / (len(rows) - 1) == pytest.approx(found["test_accuracy_percent"])
    Path("metrics/predictions.csv").write_bytes(one["predictions.csv"].replace(b"\n0,", b"\n0,no ", 1))
    assert score.work(job(shrunk(), check=True)) == 1
    said = capsys.readouterr().err
    assert (
        said.startswith("metrics/predictions.csv: actual of 1 image, first of 0: claimed no ") and said.count("\n") == 1
    )
    Path("metrics/predictions.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(FileError, match="predictions.csv: cannot be read; `python stages/score.py` makes it anew"):
        score.work(job(shrunk(), check=True))
    Path("metrics/predictions.csv").write_bytes(one["predictions.csv"])
    Path("metrics/path.csv").unlink()
    Path("metrics/summary.json").write_text(json.dumps(summary | {"accuracy_percent": 99.9, "more": "\x1b"}))
    assert score.work(job(shrunk(), check=True)) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"metrics/summary.json: accuracy_percent: claimed 99.9, measured {summary['accuracy_percent']}",
        "metrics/summary.json: more: claimed \\x1b, measured None",
    ]
    Path("metrics/summary.json").unlink()
    assert score.work(job(shrunk(), check=True)) == 1
    assert "metrics/summary.json: is not there or damaged" in capsys.readouterr().err
