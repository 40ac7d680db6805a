"""A signal that ends `make` reaches the sweep, which ends what it started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time

import pytest

from tests.support.places import ROOT

PYTHON = """#!/usr/bin/env bash
trap 'echo "$@" >> {folder}/told; exit 130' TERM
echo "$@" >> {folder}/began
for ((i = 0; i < 400; i++)); do sleep 0.05; done
"""


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("sweep", "sweeps/run.py -- sweeps/demo.yaml"),
        ("seeds", "sweeps/run.py --seeds 3 -- sweeps/seeds.yaml"),
        ("studies", "sweeps/run.py --rows-may-fail -- sweeps/augmentation.yaml sweeps/batch_size.yaml"),
    ],
)
def test_what_ends_make_is_told_to_the_sweep(tmp_path, target, words):
    (tmp_path / "venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "requirements.lock", tmp_path / "venv/installed.lock")
    python = tmp_path / "venv/bin/python"
    python.write_text(PYTHON.format(folder=tmp_path))
    python.chmod(0o755)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("N", "ARGS", "BUDGET", "MAKEFLAGS")
    }
    command = ["make", target, f"VENV={tmp_path / 'venv'}", "SPEC=sweeps/demo.yaml"]
    started = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 20
    while not (tmp_path / "began").exists() and time.monotonic() < limit:
        time.sleep(0.02)
    started.send_signal(signal.SIGTERM)
    started.wait(20)
    assert (tmp_path / "told").read_text().startswith(words)
    assert (tmp_path / "told").read_text() == (tmp_path / "began").read_text(), "and nothing comes after it"
