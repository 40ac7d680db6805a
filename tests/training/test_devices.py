"""What must hold on every device. On a CPU in `make test`; with a GPU, `make gpu-check` runs the same on it."""

from __future__ import annotations

import pytest
import torch

import models
from micronet import params
from micronet.compress.calibration import calibrate
from micronet.compress.pruning import PruningSchedule
from micronet.compress.quantization import prepare
from micronet.compress.trimming import Trimming
from micronet.data.images import Split, normalise
from micronet.packed.module import load_packed
from micronet.packed.packing import pack
from micronet.training.augmentation import augment
from micronet.training.distillation import distilled
from micronet.training.evaluation import evaluate
from micronet.training.hardware import machine
from micronet.training.loop import train
from micronet.training.optimizers import find_batch_size
from micronet.training.reporting import Reporter
from micronet.training.state import ResumeState

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SPECS = [
    {"name": "resnet", "blocks": [1, 1], "widths": [8, 16]},
    {"name": "densenet", "blocks": [2, 2], "growth_rate": 4},
    {"name": "convnet", "widths": [8, 16]},
]
EVERYTHING = {"cutout_size": 8, "mixup_alpha": 0.2, "mixup_probability": 0.5, "cutmix_alpha": 1.0}
EVERYTHING["cutmix_probability"] = 0.5


@pytest.fixture(params=DEVICES)
def here(request):
    """The machine as `auto` sets it up on one device."""
    return machine(params.Engine(device=request.param))


def images(count: int) -> Split:
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(10, (count,), generator=generator)
    noise = torch.randint(0, 100, (count, 3, 32, 32), generator=generator)
    return Split((noise + 15 * labels[:, None, None, None]).to(torch.uint8), labels)


def config(**changes) -> params.Train:
    return params.Train(**({"epochs": 2, "batch_size": 16, "learning_rate": 0.05} | changes))


def trained(spec: dict, here, settings: params.Train, **more) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = models.build(spec)
    models.fit(model, normalise(images(64).images))
    train(model, config=settings, training=images(64), validation=images(20), machine=here, seed=1, **more)
    return {name: value.cpu() for name, value in model.state_dict().items()}


def same(one: dict, two: dict) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("spec", SPECS, ids=[spec["name"] for spec in SPECS])
def test_the_same_seed_gives_the_same_bytes(here, spec):
    settings = config(augment=EVERYTHING, ema_decay=0.9)
    assert same(trained(spec, here, settings), trained(spec, here, settings))


def test_a_run_cut_off_between_steps_goes_on_to_the_same_bytes(here, tmp_path):
    class Cut(Exception):
        pass

    class CutOff(Reporter):
        def epoch(self, row, seconds) -> None:
            raise Cut

    whole = trained(SPECS[0], here, config())
    with ResumeState(tmp_path, "x") as state, pytest.raises(Cut):
        trained(SPECS[0], here, config(), state=state, reporter=CutOff())
    with ResumeState(tmp_path, "x") as state:
        assert same(trained(SPECS[0], here, config(), state=state), whole)


def test_augmentation_draws_from_the_devices_own_generator(here):
    data = images(32)
    batch, labels = data.images.to(here.device), data.labels.to(here.device)
    settings = params.Augment(**EVERYTHING)
    results = [augment(batch, labels, settings, torch.Generator(here.device).manual_seed(5)) for _ in range(2)]
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert results[0][0].device.type == here.device.type
    assert torch.allclose(results[0][1].sum(1).cpu(), torch.ones(32))


def test_pruning_and_distillation_train_on_the_device(here):
    settings = params.Prune(method="gradual", amount=0.5, train=config())
    torch.manual_seed(0)
    model, teacher = models.build(SPECS[0]), models.build(SPECS[2])
    constraint = PruningSchedule(settings, model.to(here.device))
    loss = distilled(lambda: teacher, settings, here)
    train(
        model, config=settings.train, training=images(64), validation=images(20), machine=here, seed=1, loss=loss,
        constraint=constraint,
    )  # fmt: skip
    weights = [layer.weight for layer in model.modules() if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    count = sum(weight.numel() for weight in weights)
    assert sum(int((weight == 0).sum()) for weight in weights) == round(0.5 * count)


def test_quantizers_train_and_trim_on_the_device(here):
    settings = params.Quantize(weight_bits=3, activation_bits=4, per_channel=True, trim=0.3, train=config())
    torch.manual_seed(0)
    model = models.build(SPECS[2])
    models.fit(model, normalise(images(64).images))
    prepared = prepare(model, settings)
    calibrate(prepared, images(64).images)
    constraint = Trimming(model, prepared, settings)
    train(
        prepared, config=settings.train, training=images(64), validation=images(20), machine=here, seed=1,
        constraint=constraint,
    )  # fmt: skip
    assert constraint.price() <= 0.7 * constraint.total
    for name, mask in constraint.masks.items():
        assert not prepared.get_submodule(name).weight[~mask].any(), name


def test_a_packed_model_answers_with_the_same_integers_everywhere(here, tmp_path):
    settings = params.Quantize(weight_bits=4, activation_bits=4, flip_share=0.3, train=config())
    torch.manual_seed(0)
    prepared = prepare(models.build(SPECS[0]), settings)
    calibrate(prepared, images(64).images)
    pack(prepared.eval(), tmp_path / "packed", quantize=settings, images=images(50).images)
    packed, data = load_packed(tmp_path / "packed"), normalise(images(50).images)
    expected = packed(data)
    assert 0 < (packed.look(data).passes == 2).sum() < 50
    assert torch.equal(packed.to(here.device)(data.to(here.device)).cpu(), expected)


def test_evaluation_does_not_depend_on_the_batch_size(here):
    model = models.build(SPECS[0]).to(here.device)
    counted = {round(evaluate(model, images(50), here, size)[1], 6) for size in (7, 50)}
    assert len(counted) == 1


def test_automatic_batch_size_trains(here):
    model = models.build(SPECS[0]).to(here.device)
    size, rate = find_batch_size(model, config(batch_size="auto", max_batch_size=300), here)
    assert (size, rate) == ((128, 0.05) if here.device.type == "cpu" else (256, 0.1))


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_a_compiled_run_learns_the_same(device):
    """Compiled kernels sum in another order, so the weights are close, not equal."""
    results = []
    for choice in ("off", "on"):
        here = machine(params.Engine(device=device, precision="fp32", compile=choice))
        results.append(trained(SPECS[0], here, config(epochs=1)))
    for name, value in results[0].items():
        assert torch.allclose(value.float(), results[1][name].float(), rtol=1e-2, atol=1e-3), name
