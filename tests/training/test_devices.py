"""What must hold on every device. On a CPU in `make test`; with a GPU, `make gpu-check` runs the same on it."""

from __future__ import annotations

import pytest
import torch

import models
from micronet import params
from micronet.compress.pruning import PruningSchedule
from micronet.compress.trimming import Trimming
from micronet.data.images import normalise
from micronet.packed.module import load_packed
from micronet.packed.packing import pack
from micronet.training.augmentation import augment
from micronet.training.batch_size import find_batch_size
from micronet.training.distillation import distilled
from micronet.training.evaluation import evaluate
from micronet.training.hardware import machine
from micronet.training.loop import train
from micronet.training.reporting import Reporter
from micronet.training.state import ResumeState
from micronet.training.views import answers_to_view, fixed_views, known_answers
from micronet.training.weights import count_zeros
from tests.support.configs import train_config
from tests.support.images import bright_split
from tests.support.models import calibrated, new_model, same, weights
from tests.support.thinning import thinned

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SPECS = [
    {"name": "resnet", "blocks": [1, 1], "widths": [8, 16]},
    {"name": "densenet", "blocks": [2, 2], "growth_rate": 4},
    {"name": "convnet", "widths": [8, 16]},
]
EVERYTHING = {"cutout_size": 8, "mixup_alpha": 0.2, "mixup_probability": 0.5, "cutmix_alpha": 1.0}
EVERYTHING["cutmix_probability"] = 0.5
DATA = {"training": bright_split(64, 64), "validation": bright_split(20, 20)}


@pytest.fixture(params=DEVICES)
def here(request):
    """The machine as `auto` sets it up on one device, with one thread: two are slow on tensors so small."""
    return machine(params.Engine(device=request.param, threads=1))


def trained(spec: dict, here, settings: params.Train, **more) -> dict[str, torch.Tensor]:
    model = new_model(spec)
    models.fit(model, normalise(DATA["training"].images))
    train(model, config=settings, machine=here, seed=1, **DATA, **more)
    return weights(model)


@pytest.mark.parametrize("spec", thinned(SPECS, 2, name=lambda spec: spec["name"]))
def test_the_same_seed_gives_the_same_bytes(here, spec):
    settings = train_config(augment=EVERYTHING, ema_decay=0.9)
    assert same(trained(spec, here, settings), trained(spec, here, settings))


def test_two_threads_give_the_same_bytes_twice():
    here = machine(params.Engine(device="cpu", threads=2))
    settings = train_config(epochs=1, batch_size=32, augment=EVERYTHING)
    assert same(trained(SPECS[2], here, settings), trained(SPECS[2], here, settings))


def test_a_run_cut_off_between_steps_goes_on_to_the_same_bytes(here, tmp_path):
    class Cut(Exception):
        pass

    class CutOff(Reporter):
        def epoch(self, row, seconds) -> None:
            raise Cut

    whole = trained(SPECS[0], here, train_config())
    with ResumeState(tmp_path, "x") as state, pytest.raises(Cut):
        trained(SPECS[0], here, train_config(), state=state, reporter=CutOff())
    with ResumeState(tmp_path, "x") as state:
        assert same(trained(SPECS[0], here, train_config(), state=state), whole)


def test_augmentation_draws_from_the_devices_own_generator(here):
    data = bright_split(32, 32)
    batch, labels = data.images.to(here.device), data.labels.to(here.device)
    settings = params.Augment(**EVERYTHING)
    results = [augment(batch, labels, settings, torch.Generator(here.device).manual_seed(5), 10) for _ in range(2)]
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert results[0][0].device.type == here.device.type
    assert torch.allclose(results[0][1].sum(1).cpu(), torch.ones(32))


def test_pruning_and_distillation_train_on_the_device(here):
    settings = params.Prune(method="gradual", amount=0.5, train=train_config())
    model, teacher = new_model(SPECS[0]), new_model(SPECS[2], seed=1)
    constraint = PruningSchedule(settings, model.to(here.device))
    loss = distilled(lambda: teacher, settings, here)
    train(model, config=settings.train, machine=here, seed=1, loss=loss, constraint=constraint, **DATA)
    zeros, count = count_zeros(model)
    assert zeros == round(0.5 * count)


def test_fixed_views_are_answered_and_learned_from_on_the_device(here):
    images, augmentation = DATA["training"].images, params.Augment(**EVERYTHING)
    views, teacher = fixed_views(4, images, augmentation, seed=0, pairs=True), new_model(SPECS[2], seed=1)
    answers = torch.stack([answers_to_view(teacher, images, views, view, here, 40) for view in range(4)])
    with torch.no_grad():
        plain = teacher.cpu().eval()(views.show(images, 1, slice(0, 64)))
    assert torch.allclose(answers[1], plain, atol=0.05 * float(plain.abs().max()))  # bf16 where it is fast
    settings = params.Distillation(views=4)
    loss = distilled(lambda: teacher, settings, here)
    found = [
        trained(SPECS[0], here, train_config(), loss=loss, sampler=known_answers(views, answers, here))
        for _ in range(2)
    ]
    assert same(*found)


def test_quantizers_train_and_trim_on_the_device(here):
    settings = params.Quantize(weight_bits=3, activation_bits=4, per_channel=True, trim=0.3, train=train_config())
    model = new_model(SPECS[2])
    models.fit(model, normalise(DATA["training"].images))
    prepared = calibrated(model, settings, DATA["training"].images)
    constraint = Trimming(model, prepared, settings)
    train(prepared, config=settings.train, machine=here, seed=1, constraint=constraint, **DATA)
    assert constraint.price() <= 0.7 * constraint.total
    for name, mask in constraint.masks.items():
        assert not prepared.get_submodule(name).weight[~mask].any(), name


def test_a_packed_model_answers_with_the_same_integers_everywhere(here, tmp_path):
    settings = params.Quantize(weight_bits=4, activation_bits=4, flip_share=0.3, train=train_config())
    prepared = calibrated(new_model(SPECS[0]), settings, DATA["training"].images)
    pack(prepared.eval(), tmp_path / "packed", quantize=settings, images=bright_split(50, 50).images)
    packed, data = load_packed(tmp_path / "packed"), normalise(bright_split(50, 50).images)
    expected = packed(data)
    assert 0 < (packed.look(data).passes == 2).sum() < 50
    assert torch.equal(packed.to(here.device)(data.to(here.device)).cpu(), expected)


def test_evaluation_does_not_depend_on_the_batch_size(here):
    model = new_model(SPECS[0]).to(here.device)
    counted = {round(evaluate(model, bright_split(50, 50), here, size)[1], 6) for size in (7, 50)}
    assert len(counted) == 1


def test_automatic_batch_size_trains(here):
    model = new_model(SPECS[0]).to(here.device)
    size, rate = find_batch_size(model, train_config(batch_size="auto", max_batch_size=300), here, (1000, 3, 32, 32))
    assert (size, rate) == ((128, 0.05) if here.device.type == "cpu" else (256, 0.1))


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_a_compiled_run_learns_the_same(device):
    """Compiled kernels sum in another order, so the weights are close, not equal."""
    results = []
    for choice in ("off", "on"):
        here = machine(params.Engine(device=device, precision="fp32", compile=choice))
        results.append(trained(SPECS[0], here, train_config(epochs=1)))
    for name, value in results[0].items():
        assert torch.allclose(value.float(), results[1][name].float(), rtol=1e-2, atol=1e-3), name
