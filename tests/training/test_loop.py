"""The one training loop: schedules, resume, averages, what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import models
from micronet.compress.pruning import FixedMask
from micronet.compress.quantization import prepare
from micronet.compress.quantizers import LsqActivation, LsqWeight
from micronet.data.images import Split
from micronet.params import Augment, Engine, Quantize, Train
from micronet.training.evaluation import evaluate
from micronet.training.hardware import COMPILE_STEPS, Machine, compiled, machine, suited
from micronet.training.interruption import Interrupted
from micronet.training.loop import TrainingDiverged, TrainResult, train
from micronet.training.optimizers import find_batch_size, parameter_groups
from micronet.training.reporting import Reporter
from micronet.training.sampling import batches
from micronet.training.schedules import learning_rate
from micronet.training.state import ResumeState

MACHINE = Machine(torch.device("cpu"), autocast=False, channels_last=True)
TINY = {"name": "resnet", "blocks": [1], "widths": [4]}


def images(count: int, seed: int = 0) -> Split:
    """Random images whose label shows in their brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    noise = torch.randint(0, 100, (count, 3, 32, 32), generator=generator)
    return Split((noise + 15 * labels[:, None, None, None]).to(torch.uint8), labels)


def config(**changes) -> Train:
    return Train(**({"epochs": 2, "batch_size": 16, "learning_rate": 0.05} | changes))


def new_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.build(TINY)


def run(model: nn.Module, settings: Train, **more) -> TrainResult:
    return train(model, config=settings, training=images(64), validation=images(20, 1), machine=MACHINE, seed=3, **more)


def same(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, two) for one, two in pairs)


def test_step_schedule_is_the_decks_thirds():
    rates = [learning_rate("step", step, 300, peak=0.1) for step in (0, 99, 100, 199, 200, 299)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_cosine_schedule_agrees_with_torch():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(50):
        assert learning_rate("cosine", step, 50, peak=0.1) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_one_cycle_rises_to_its_peak_and_falls_to_nearly_nothing():
    rates = [learning_rate("one_cycle", step, 100, peak=1.0, warmup_fraction=0.2) for step in range(100)]
    assert rates.index(max(rates)) == 20
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(1 / 80)
    assert rates[:21] == sorted(rates[:21]) and rates[20:] == sorted(rates[20:], reverse=True)


def test_an_epoch_sees_no_image_twice_and_another_order_each_time():
    first, second = (torch.cat(batches(100, 32, seed)) for seed in (1, 2))
    assert len(first) == 96 and len(first.unique()) == 96
    assert not torch.equal(first, second)


def test_training_lowers_the_loss():
    result = run(new_model(), config(epochs=6))
    assert result.rows[-1].train_loss < result.rows[0].train_loss - 0.1


def test_the_same_seed_gives_the_same_weights():
    one, two = new_model(), new_model()
    run(one, config())
    run(two, config())
    assert same(one, two)


class StopAt(Reporter):
    """Dies at one step, as a process that is killed does."""

    def __init__(self, epoch: int, images: int):
        self.where = epoch, images

    def step(self, *, epoch: int, images: int, loss: float) -> None:
        if (epoch, images) == self.where:
            raise ProcessLookupError


@pytest.mark.parametrize("where", [(1, 16), (1, 64), (2, 48)])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_run_that_was_cut_off_ends_with_the_same_weights(tmp_path, where, ema_decay):
    settings = config(ema_decay=ema_decay, augment=Augment(cutmix_alpha=1.0, cutmix_probability=0.5))
    whole, parts = new_model(), new_model()
    expected = run(whole, settings)
    with ResumeState(tmp_path, "x") as state, pytest.raises(ProcessLookupError):
        run(parts, settings, state=state, reporter=StopAt(*where), save_every_seconds=0.0)
    saved = where != (1, 16)  # before the first save a run starts anew, as the stage does
    parts = new_model(seed=9 if saved else 0)
    with ResumeState(tmp_path, "x") as state:
        result = run(parts, settings, state=state)
    assert same(whole, parts)
    assert result.rows == expected.rows


@pytest.mark.parametrize("where", [(2, 32), (1, 64)])  # in the middle of an epoch, and at its last step
def test_a_signal_stops_after_the_step_and_the_same_command_goes_on(tmp_path, where):
    import os
    import signal

    class Interrupt(Reporter):
        def step(self, *, epoch: int, images: int, loss: float) -> None:
            if (epoch, images) == where:
                os.kill(os.getpid(), signal.SIGINT)

    whole, parts = new_model(), new_model()
    run(whole, config())
    with ResumeState(tmp_path, "x") as state:
        with pytest.raises(Interrupted, match=f"epoch {where[0]} after step .* of 4.*goes on from here"):
            run(parts, config(), state=state, reporter=Interrupt())
        run(parts, config(), state=state)
    assert same(whole, parts)


def test_zero_weights_stay_zero_under_a_fixed_mask_with_momentum_and_average():
    model = new_model()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight[:, :, ::2] = 0
    mask = FixedMask(model)
    run(model, config(ema_decay=0.9), constraint=mask)
    for name, module in model.named_modules():
        if name in mask.masks:
            assert torch.equal(module.weight != 0, mask.masks[name])


def test_the_average_is_what_is_kept():
    plain, averaged = new_model(), new_model()
    run(plain, config(epochs=1))
    run(averaged, config(epochs=1, ema_decay=0.99))
    assert not same(plain, averaged)


def test_a_loss_that_is_not_a_number_stops_with_epoch_step_and_rate():
    def broken(logits, batch):
        return logits.sum() * math.nan

    with pytest.raises(TrainingDiverged, match="loss is nan in epoch 1, step 1, at learning rate"):
        run(new_model(), config(), loss=broken)


def test_weight_decay_spares_norms_and_biases():
    decayed, spared = parameter_groups(new_model(), 1e-3)
    assert decayed["weight_decay"] == 1e-3 and spared["weight_decay"] == 0
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in spared["params"])


def test_weight_decay_spares_the_steps_of_quantizers_also_where_every_channel_has_one():
    quantize = Quantize(weight_bits=4, activation_bits=4, per_channel=True, train=config())
    prepared = prepare(new_model(), quantize)
    decayed, spared = parameter_groups(prepared, 1e-3)
    steps = {id(module.step) for module in prepared.modules() if isinstance(module, LsqWeight | LsqActivation)}
    assert steps and steps < {id(parameter) for parameter in spared["params"]}
    layers = [module for module in prepared.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert {id(layer.weight) for layer in layers} == {id(parameter) for parameter in decayed["params"]}


def test_automatic_batch_size_is_128_on_cpu_at_the_given_rate():
    assert find_batch_size(new_model(), config(batch_size="auto"), MACHINE) == (128, 0.05)


def test_bf16_is_chosen_only_where_it_is_fast():
    chosen = machine(Engine(device="cpu", threads=0))
    assert chosen.autocast == (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    assert machine(Engine(device="cpu", precision="bf16", threads=0)).autocast


def test_a_network_that_torch_would_corrupt_memory_with_trains_in_nchw():
    def layout(*widths: int) -> bool:
        model = models.build({"name": "resnet", "blocks": [1] * len(widths), "widths": list(widths)})
        return suited(model, MACHINE).channels_last

    assert layout(4) and layout(8, 16) and not layout(4, 8)
    model = models.build({"name": "resnet", "blocks": [1, 1], "widths": [4, 8]})
    run(model, config())
    assert model.stem.conv.weight.is_contiguous()


@pytest.mark.parametrize(
    ("name", "free", "device", "bf16"),
    [
        ("mobilenet", True, "cpu", False),
        ("mobilenet", False, "cpu", True),
        ("mobilenet", True, "cuda", True),
        ("resnet", True, "cpu", True),
    ],
)
def test_depthwise_convolutions_are_trained_in_fp32_on_a_cpu_when_the_precision_is_free(name, free, device, bf16):
    here = Machine(torch.device(device), autocast=True, channels_last=True, any_precision=free)
    model = models.build({"name": name, "blocks": [1], "widths": [8]})
    assert suited(model, here).autocast == bf16
    quantized = prepare(model, Quantize(weight_bits=4, train=Train(epochs=1, learning_rate=0.1)))
    assert suited(quantized, here).autocast == bf16


def test_a_run_says_which_precision_it_was_trained_in():
    for autocast, precision in ((True, "bf16"), (False, "fp32")):
        here = Machine(torch.device("cpu"), autocast=autocast, channels_last=True)
        result = train(new_model(), config=config(), training=images(8), validation=images(8), machine=here, seed=1)
        assert result.precision == precision
    assert machine(Engine(device="cpu", precision="auto", threads=0)).any_precision
    assert not machine(Engine(device="cpu", precision="bf16", threads=0)).any_precision


def test_evaluation_counts_every_image_once_and_gives_the_mode_back():
    model = new_model().train()
    split = images(30)
    _, in_one = evaluate(model, split, MACHINE, 30)
    _, in_parts = evaluate(model, split, MACHINE, 7)
    assert in_one == pytest.approx(in_parts)
    assert model.training


def test_long_runs_on_cuda_are_compiled_but_no_network_with_quantizers():
    cuda = Machine(torch.device("cuda"), autocast=True, channels_last=True, compile="auto")
    model = models.build({"name": "resnet", "blocks": [1], "widths": [4]})
    prepared = prepare(model, Quantize(weight_bits=4, train=Train(epochs=1, learning_rate=0.1)))
    assert compiled(model, cuda, COMPILE_STEPS) is not model
    assert compiled(model, cuda, COMPILE_STEPS - 1) is model
    assert compiled(prepared, cuda, COMPILE_STEPS) is prepared
