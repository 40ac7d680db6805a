"""Experiments under DVC, on one machine and between two: docs/experiments.md, command by command."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.support.pipeline import shrunk
from tests.support.places import ROOT
from tests.support.walkthrough import LIMIT, commands, copy, environment, page, shell

pytestmark = pytest.mark.slow
HERE, THERE = page("experiments").split("\n## 7. On the other machine\n")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A clone of a repository whose demo is short, with something published; `origin` is a bare repository."""
    folder = copy(tmp_path / "here")
    for name in ("pipelines", ".dvc"):
        (folder / name).mkdir()
    for name in (".dvc/config", ".dvc/.gitignore", ".gitattributes"):
        shutil.copy(ROOT / name, folder / name)
    for path in (ROOT / "pipelines").glob("*/params.yaml"):
        (folder / "pipelines" / path.parent.name).mkdir()
        shutil.copy(path, folder / "pipelines" / path.parent.name)
    shutil.copy(ROOT / "pipelines/dvc.yaml", folder / "pipelines")
    (folder / "recipes/demo.yaml").write_text(yaml.safe_dump(shrunk()))
    (folder / "release/cache/files/md5/ab").mkdir(parents=True)
    (folder / "release/cache/files/md5/ab/c").write_text("published")
    shell(tmp_path, "git init --quiet --bare --initial-branch main origin.git")
    shell(folder, "git init --quiet --initial-branch main && git add --all && git commit --quiet -m all")
    shell(folder, "git remote add origin ../origin.git && git push --quiet origin main")
    return folder


def wait_for_the_queue(folder: Path) -> None:
    end = time.monotonic() + LIMIT
    while re.search("Queued|Running", said := shell(folder, "dvc queue status")):
        assert time.monotonic() < end, said
        time.sleep(1)
    assert said.count("Success") == 2 and "Failed" not in said, said


def accuracy(folder: Path) -> float:
    return json.loads((folder / "metrics/summary.json").read_text())["accuracy_percent"]


def test_every_command_of_the_guide_works_and_nothing_is_written_outside_of_ones_own_remote(here, tmp_path):
    said: dict[str, str] = {}
    for command in commands(HERE):
        said[command] = shell(here, command)
        if command == "dvc queue status":
            wait_for_the_queue(here)
    run = said["dvc exp run -S prune.amount=0.8 -n zeros-80"]
    assert re.findall(r"^Running stage '(\w+)'", run, re.MULTILINE) == ["code", "prune", "retrain", "quantize", "score"]
    for command in ("dvc exp diff", "dvc metrics diff demo zeros", "dvc params diff demo zeros"):
        lines = said[command].splitlines()
        assert "pipelines/" not in said[command] and max(map(len, lines)) <= 100 and len(lines) < 24
    rows = said["dvc metrics diff demo zeros"].splitlines()
    assert rows[1].split()[1] == "accuracy_percent" and len(rows) == 9
    assert said["dvc params diff demo zeros"].splitlines()[1].split() == ["params.yaml", "prune.amount", "0.5", "0.8"]
    table = said["make experiments"]
    assert "zeros-80" in table and "prune.amount" in table and max(map(len, table.splitlines())) <= 130
    assert sorted(path.name for path in (here / "release/cache").rglob("*") if path.is_file()) == ["c"]
    assert not Path("/release").exists() and not Path("/micronet-store").exists()
    assert (tmp_path / "micronet-store/files/md5").is_dir()
    assert shell(here, "git status --porcelain --untracked-files=all") == ""

    there = tmp_path / "there"
    shell(tmp_path, f"git clone --quiet origin.git {there}")
    environment(there)
    for command in commands(THERE):
        said[command] = shell(there, command)
    assert accuracy(there) == accuracy(here)
    assert yaml.safe_load((there / "params.yaml").read_text())["prune"]["amount"] == 0.8
    packed = "checkpoints/quantized.safetensors"
    assert (there / packed).read_bytes() == (here / packed).read_bytes()
    assert "Running stage" not in shell(there, "dvc repro")


def test_without_a_remote_of_ones_own_a_push_says_so_in_words_and_writes_nowhere(here):
    (here / "dvc.yaml").write_text("stages:\n  one:\n    cmd: echo 1 > one\n    outs: [one]\n")
    shutil.rmtree(here / "pipelines")
    shell(here, "dvc repro && git add --all && git commit --quiet -m one && dvc exp run -f -n again")
    before = sorted(here.rglob("release/**/*"))
    done = subprocess.run([here / ".venv/bin/dvc", "push"], cwd=here, capture_output=True, text=True)
    assert done.returncode != 0 and "no remote specified" in done.stderr and "dvc remote default" in done.stderr
    shell(here, "dvc exp push origin again")
    assert sorted(here.rglob("release/**/*")) == before and not Path("/release").exists()
