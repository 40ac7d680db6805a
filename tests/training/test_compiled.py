"""A compiled training step: the same bytes in every process, stopped and resumed or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT

RUN = """
import hashlib, os, sys
import torch
from micronet import params
from micronet.training.hardware import machine
from micronet.training.reporting import Reporter
from micronet.training.state import ResumeState
from tests.support.configs import train_config
from tests.support.images import bright_split
from tests.support.models import new_model, weights
from micronet.training import loop

class Killed(Reporter):
    steps = 0
    def step(self, **_):
        self.steps += 1
        if self.steps == int(sys.argv[2]):
            os._exit(9)

model = new_model({"name": "densenet", "blocks": [1], "growth_rate": 4})
here = machine(params.Engine(device="cpu", precision="fp32", threads=2, compile="on"))
data = {"training": bright_split(64), "validation": bright_split(20, 1)}
with ResumeState(sys.argv[1], "one") as state:
    done = loop.train(
        model, config=train_config(epochs=2, batch_size=16), machine=here, seed=3, state=state, reporter=Killed(),
        save_every_seconds=0.0, **data,
    )
assert done.compiled
print(hashlib.sha256(b"".join(value.numpy().tobytes() for value in weights(model).values())).hexdigest())
"""


def digest(folder: Path, kill_after: int, expected: int = 0) -> str:
    """What a process prints that trains, with compiled code of its own, and is killed after some steps, 0: not."""
    command = [sys.executable, "-c", RUN, str(folder / "state"), str(kill_after)]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "code"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == expected, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_compiled_run_that_was_killed_and_resumed_ends_with_the_bytes_of_one_that_was_not(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert digest(parts, 6, expected=9) == ""
    resumed = digest(parts, 0)
    assert len(resumed) == 65 and resumed == digest(whole, 0)
