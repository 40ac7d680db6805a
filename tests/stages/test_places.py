"""Files, folders and signals that a stage may meet: one line, an exit code, nothing lost."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from micronet.files import FileError
from micronet.scoring import path, results
from tests.support.pipeline import ENVIRONMENT, command, run, shrunk, write_params


def in_the_place_of(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("metrics", "metrics is no folder; move it away"),
        ("metrics/curves", "metrics/curves is no folder; move it away"),
        ("checkpoints", "checkpoints is no folder; move it away"),
        ("run/train_teacher", "run/train_teacher is no folder; move it away"),
    ],
)
def test_a_file_in_the_place_of_a_folder_ends_a_stage_before_it_trains(prepared, name, said):
    in_the_place_of(prepared / name)
    done = run(prepared, "train_teacher")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("train_teacher: ") and said in done.stderr
    assert (prepared / name).read_text() == "mine"


def test_a_flipped_byte_of_the_prepared_data_is_said_and_mended_by_a_stage_that_trains(prepared):
    write_params(prepared, shrunk())
    data = prepared / "data/cifar10-sample"
    files = {path.name: path.read_bytes() for path in data.iterdir()}
    data.unlink()  # the link
    data.mkdir()
    for name, content in files.items():
        (data / name).write_bytes(content)
    damaged = bytearray(files["train_labels.bin"])
    damaged[7] = 255
    (data / "train_labels.bin").write_bytes(damaged)
    done = run(prepared, "train_teacher")
    assert done.returncode == 0 and "train_labels.bin: sha256" in done.stderr and "rebuilding" in done.stderr
    assert {path.name: path.read_bytes() for path in data.iterdir()} == files


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stage_that_is_asked_to_end_says_so_in_a_line(prepared, number):
    (prepared / "data/manifest.json").unlink()
    tree = shrunk()
    tree["data"] |= {"source": "npm", "validation_size": 800, "folder": "data/other"}
    write_params(prepared, tree)
    tools = prepared / "bin"
    tools.mkdir()
    (tools / "npm").write_text(f"#!/bin/sh\ntouch '{prepared}/started'\nsleep 60\n")
    (tools / "npm").chmod(0o755)
    environment = ENVIRONMENT | {"PATH": f"{tools}:{ENVIRONMENT['PATH']}", "XDG_CACHE_HOME": str(prepared / "cache")}
    process = subprocess.Popen(
        command("prepare_data"),
        cwd=prepared,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):
        if (prepared / "started").exists():
            break
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.splitlines()[-1] == "prepare_data: stopped"
    assert "Traceback" not in said and not list((prepared / "cache/micronet").glob("*/*"))


def test_what_score_compares_with_is_one_line_when_it_is_damaged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_by = "python stages/score.py"
    with pytest.raises(FileError, match=r"score\.json: there is no such file; `python stages/score.py` makes it"):
        results.read_score(Path("metrics/score.json"), made_by)
    Path("metrics").mkdir()
    for text in ("[]", "{", "[" * 100_000, "3"):
        Path("metrics/score.json").write_text(text)
        with pytest.raises(FileError, match=r"score\.json: "):
            results.read_score(Path("metrics/score.json"), made_by)
    columns = "stage,test_accuracy_percent,parameters,nonzero_parameters,deck_score,challenge_score,macs"
    for text in ("stage\nx", f"{columns}\na,1,2,3,4,5,many", f"{columns}\na,1", f"{columns}\na,1,2.5,3,4,5,6"):
        Path("metrics/path.csv").write_text(text)
        with pytest.raises(FileError, match=r"path\.csv: is damaged; `python stages/score.py` makes it anew"):
            path.read(Path("metrics/path.csv"), made_by)
    Path("metrics/path.csv").write_text(f"{columns}\na,,2,3,0.5,,6\n")
    (row,) = path.read(Path("metrics/path.csv"), made_by)
    assert list(row.values()) == ["a", None, 2, 3, 0.5, None, 6] and list(row) == columns.split(",")
