"""What a stage saves: a sparsity that is there, whatever 16-bit storage adds to it; and fixed views that fit."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import pytest
import torch

from micronet import params
from micronet.training import checkpoint, views
from micronet.training.checkpoint import CheckpointError, load
from micronet.training.loop import TrainResult
from micronet.training.memory import NoMemory
from micronet.training.reporting import Reporter
from micronet.training.trial import TrainingError
from micronet.training.weights import count_zeros
from tests.support.configs import MACHINE, demo
from tests.support.images import random_split
from tests.support.models import TINY, new_model
from tests.support.places import ROOT

sys.path.insert(0, str(ROOT / "stages"))

from taught import TaughtJob  # noqa: E402


@pytest.fixture
def job(tmp_path, monkeypatch) -> TaughtJob:
    """A run of a stage in an empty folder, on six images."""
    monkeypatch.chdir(tmp_path)
    made = TaughtJob(Path("prune.py"), params.parse(demo()), argparse.Namespace(), Reporter())
    monkeypatch.setattr(made, "split", lambda name: random_split(6))
    made.__dict__["machine"] = MACHINE
    return made


def test_zeros_that_16_bits_add_are_no_lie_and_zeros_that_lack_are(job, monkeypatch):
    monkeypatch.setattr(checkpoint, "HALF_ABOVE_PARAMETERS", 0)
    model = new_model().eval()
    with torch.no_grad():
        model.stages[0][0].conv1.weight[0, 0] = 1e-9  # nine weights that 16 bits round to zero
    done = TrainResult([], 1, 0.1, 10.0, 1.0, 0.0, "fp32")
    with pytest.raises(CheckpointError, match="10 zero weights are claimed and 9 are there"):
        job.save("pruned", model, done, zeros=10)
    job.save("pruned", model, done, zeros=0)
    assert count_zeros(load("checkpoints/pruned.safetensors").model())[0] == 9


def test_fixed_views_that_do_not_fit_are_refused_before_the_teacher_is_asked_for(job, monkeypatch):
    monkeypatch.setattr(views, "available_memory", lambda: 3.0 * views.views_memory(6, 10))
    monkeypatch.setattr(job, "teacher", lambda: pytest.fail("the teacher was asked for"))
    section = params.Distill(views=4, train=job.params.distill.train)
    with pytest.raises(NoMemory, match="^views: 4 views of 6 images take .* views: 2 would fit"):
        job.learn(new_model(), section, state=None)


def test_the_digest_of_the_answers_covers_whatever_was_drawn(job):
    everything = params.Augment(
        cutout_size=8, mixup_alpha=1.0, cutmix_alpha=1.0, mixup_probability=0.5, cutmix_probability=0.5
    )
    drawn = views.fixed_views(2, random_split(6).images, everything, seed=0)
    digests = {job._answers_digest(drawn)}
    for name, table in drawn.tables().items():
        changed = table.clone()
        changed[0, 0] = ~changed[0, 0] if table.dtype == torch.bool else changed[0, 0] + 1
        digests.add(job._answers_digest(dataclasses.replace(drawn, **{name: changed})))
    assert len(drawn.tables()) == 7 and len(digests) == 8


def test_a_teacher_of_other_classes_is_refused_before_it_answers_a_view(job, monkeypatch):
    monkeypatch.setattr(job, "teacher", lambda: new_model(TINY | {"classes": 20}))
    monkeypatch.setattr(views, "answers_to_view", lambda *_: pytest.fail("the teacher has answered"))
    section = params.Distill(views=2, train=job.params.distill.train)
    with pytest.raises(TrainingError, match="^the teacher tells 20 classes apart, the student 10"):
        job.learn(new_model(), section, state=None)
