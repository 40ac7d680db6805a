"""The mistakes of the deck's own code, one regression test each. Most are silent: training goes on, worse."""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from micronet import params
from micronet.compress.pruning import PruningSchedule, amount_at, apply_masks, global_masks, zeros_wanted
from micronet.compress.quantizers import BinaryWeight
from micronet.data import store
from micronet.data.images import Split, normalise
from micronet.data.store import open_split
from micronet.params import Augment, Distillation, Prune, Quantize, Train
from micronet.training.checkpoint import load, save
from micronet.training.distillation import distilled
from micronet.training.evaluation import evaluate
from micronet.training.loop import TrainResult
from micronet.training.optimizers import make_optimizer
from micronet.training.reporting import Reporter
from micronet.training.sampling import Batch
from micronet.training.state import ResumeState
from micronet.training.weights import count_zeros, prunable
from tests.support import training
from tests.support.configs import MACHINE, train_config
from tests.support.failures import StopAt
from tests.support.images import random_split
from tests.support.models import TINY, calibrated, new_model, same, weights
from tests.support.places import ROOT

sys.path.insert(0, str(ROOT / "stages"))

import train_student  # noqa: E402 - a stage script
from trainer import TrainingJob  # noqa: E402

from tests.support.thinning import thinned


def config(**changes) -> Train:
    return train_config(learning_rate=0.1, **changes)


def train(model: nn.Module, settings: Train, **more: Any) -> TrainResult:
    """On images whose labels have nothing to do with them."""
    data = {"training": random_split(64), "validation": random_split(20, 1)}
    return training.train(model, settings, **data | more)


# --- distillation ---


def test_distillation_uses_log_softmax_and_t_squared():
    temperature, teacher, batch = 4.0, new_model().eval(), normalise(random_split(8).images)
    student = 3 * torch.randn(8, 10, generator=torch.Generator().manual_seed(5))
    loss = distilled(lambda: teacher, Distillation(temperature=temperature, alpha=1.0), MACHINE)
    value = float(loss(student, Batch(batch, torch.zeros(8))))
    with torch.no_grad():
        soft = F.softmax(teacher(batch) / temperature, dim=1)
    divergence = F.kl_div(F.log_softmax(student / temperature, dim=1), soft, reduction="batchmean")
    as_in_the_deck = F.kl_div(F.softmax(student / temperature, dim=1), soft, reduction="batchmean")
    assert value == pytest.approx(temperature**2 * float(divergence), rel=1e-4)
    assert value != pytest.approx(temperature**2 * float(as_in_the_deck), rel=0.1)


def test_the_teacher_is_in_eval_mode_and_without_gradients():
    class Teacher(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            noted.append((self.training, torch.is_grad_enabled()))
            return inner(x)

    noted: list[tuple[bool, bool]] = []
    inner = new_model()
    teacher = Teacher().train()
    train(new_model(seed=1), config(epochs=1), loss=distilled(lambda: teacher, Distillation(), MACHINE))
    assert noted == [(False, False)] * 4


# --- pruning ---


def test_pruning_happens_where_the_schedule_says_and_not_in_every_epoch():
    # `a > 0 & (b)` is `a > (0 & b)`: it was true in every epoch.
    class Counted(PruningSchedule):
        def _renew(self, model: nn.Module, amount: float) -> None:
            renewed.append(amount)
            super()._renew(model, amount)

    renewed: list[float] = []
    prune = Prune(method="iterative", amount=0.6, rounds=2, train=config(epochs=8))
    model = new_model()
    train(model, prune.train, constraint=Counted(prune, model))
    assert renewed == pytest.approx([0.3, 0.6])


def test_pruning_amounts_do_not_compound():
    model = new_model()
    total = count_zeros(model)[1]
    for _ in range(3):  # torch.nn.utils.prune ends at 0.875
        apply_masks(model, global_masks(model, 0.5))
    assert count_zeros(model) == (zeros_wanted(0.5, total), total)
    for amount in (0.6, 0.7, 0.8):
        apply_masks(model, global_masks(model, amount))
        assert count_zeros(model) == (zeros_wanted(amount, total), total)
    assert amount_at("iterative", 10, 10, amount=0.8, rounds=4) == pytest.approx(0.8)


def test_pruned_model_is_the_one_that_is_trained_and_saved(tmp_path):
    prune = Prune(method="one_shot", amount=0.5, train=config())
    model = new_model()
    schedule = PruningSchedule(prune, model)
    before = weights(model)
    train(model, prune.train, constraint=schedule)
    zeros = zeros_wanted(0.5, count_zeros(model)[1])
    facts = {"stage": "prune", "epochs": 2, "validation_accuracy_percent": 0.0, "params_digest": "x"}
    save(tmp_path / "pruned.safetensors", model, zeros=zeros, **facts)
    stored = load(tmp_path / "pruned.safetensors").model()
    assert same(weights(stored), weights(model))
    for name, module in prunable(stored):
        mask = schedule.masks[name]
        assert torch.equal(module.weight != 0, mask), "the mask is in the file"
        kept = mask & (before[f"{name}.weight"] != 0)
        assert not torch.equal(module.weight[kept], before[f"{name}.weight"][kept]), "what is left was trained"


def test_the_optimizer_holds_the_model_that_it_was_given():
    model = new_model()
    held = {id(tensor) for group in make_optimizer(model, config()).param_groups for tensor in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}


# --- BinaryConnect ---


def test_binary_connect_keeps_real_weights_when_evaluated():
    section = Quantize(method="binary_connect", weight_bits=1, train=config())
    prepared = calibrated(new_model(), section, random_split(20).images)
    before = weights(prepared)
    evaluate(prepared, random_split(20), MACHINE)
    assert same(weights(prepared), before)


def test_binary_connect_computes_with_two_values_a_channel_and_keeps_the_real_ones():
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)) / 3
    real = weight.clone()
    quantizer = BinaryWeight(weight).eval()
    used = quantizer(weight)
    assert torch.equal(weight, real)
    for channel in used:
        low, high = channel.unique().tolist()
        assert low == -high < 0


def test_sign_of_zero_is_plus_one():
    weight = torch.tensor([[0.5, -0.5, 0.25, -0.25]])
    quantizer = BinaryWeight(weight)
    weight[0, 1:3] = torch.tensor([0.0, -0.0])  # in training a weight may pass through 0: that makes no third level
    codes, _ = quantizer.codes(weight)
    assert codes.tolist() == [[1, 1, 1, -1]]
    assert (quantizer(weight) != 0).all()


# --- the test set ---


def test_checkpoint_is_not_chosen_on_the_test_set(sample_data, sample_manifest, tmp_path, monkeypatch):
    opened: list[str] = []
    original = open_split

    def noted(config: params.Data, name: str, **_: object) -> Split:
        opened.append(name)
        return original(sample_data, name, manifest_path=sample_manifest, report=lambda line: None)

    monkeypatch.setattr(store, "open_split", noted)
    monkeypatch.chdir(tmp_path)
    tree = params.read_yaml(ROOT / "recipes/demo.yaml")
    tree["student"] = {
        "model": TINY,
        "train": {"epochs": 1, "batch_size": 400, "learning_rate": 0.05},
    }
    tree["engine"] = {"device": "cpu", "precision": "fp32", "threads": 0}
    script = ROOT / "stages/train_student.py"
    train_student.work(TrainingJob(script, params.parse(tree), argparse.Namespace(), Reporter()))
    assert Path("checkpoints/student.safetensors").is_file()
    assert set(opened) == {"train", "validation"}


def opened_splits(source: Path) -> list[str | None]:
    """The splits that a file opens by name; None: one that is computed."""
    found: list[str | None] = []
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            position = {"job.split": 0, "self.split": 0, "open_split": 1, "data.open_split": 1}.get(called)
            if position is not None:
                names = node.args[position : position + 1]
                found += [name.value if isinstance(name, ast.Constant) else None for name in names]
    return found


def test_no_stage_but_score_opens_the_test_split():
    files = [path for path in (ROOT / "stages").glob("*.py") if path.name not in ("score.py", "job.py")]
    opened = {path.name: opened_splits(path) for path in files}
    assert {"train", "validation"} <= set(opened["trainer.py"]), "the search finds what is there"
    assert {name for names in opened.values() for name in names} <= {"train", "validation"}


def test_no_training_code_of_the_library_opens_a_split_at_all():
    files = [path for room in ("training", "compress", "packed") for path in (ROOT / "micronet" / room).rglob("*.py")]
    assert {"loop.py", "distillation.py", "pruning.py", "quantization.py", "packing.py"} <= {
        file.name for file in files
    }
    assert {path.name: found for path in files if (found := opened_splits(path))} == {}


def test_the_kept_weights_do_not_depend_on_what_they_are_evaluated_on():
    one, two = new_model(), new_model()
    train(one, config(epochs=3), validation=random_split(20, 1))
    train(two, config(epochs=3), validation=random_split(40, 2))
    assert same(weights(one), weights(two))


# --- resuming ---


def interrupted(folder: Path, settings: Train) -> None:
    with ResumeState(folder, "x") as state, pytest.raises(ProcessLookupError):
        train(new_model(), settings, state=state, reporter=StopAt(2, 48), save_every_seconds=0.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_resume_restores_more_than_weights_and_epoch(tmp_path, optimizer):
    settings = config(optimizer=optimizer, ema_decay=0.9, augment=Augment(cutmix_alpha=1.0))
    whole, parts = new_model(), new_model(seed=9)
    expected = train(whole, settings)
    interrupted(tmp_path, settings)
    with ResumeState(tmp_path, "x") as state:
        result = train(parts, settings, state=state)
    assert same(weights(whole), weights(parts)) and result.rows == expected.rows


@pytest.mark.parametrize("lost", thinned(["optimizer", "average", "generator", "step_in_epoch"], 2))
def test_each_part_of_the_resume_state_is_needed_for_the_same_result(tmp_path, lost):
    settings = config(ema_decay=0.9, augment=Augment(cutmix_alpha=1.0))
    whole, parts = new_model(), new_model()
    train(whole, settings)
    interrupted(tmp_path, settings)
    with ResumeState(tmp_path, "x") as state:
        content, _ = state.load()
        match lost:
            case "optimizer":
                for entries in content["optimizer"]["state"].values():
                    entries["momentum_buffer"].zero_()
            case "average":
                content["average"] = {"model": content["model"], "steps": 0}
            case "generator":
                content["generator"] = torch.Generator().manual_seed(77).get_state()
            case "step_in_epoch":
                content["step_in_epoch"] = 0
        state.save(content)
        train(parts, settings, state=state)
    assert not same(weights(whole), weights(parts))
