"""Where and how a network runs: precision, memory format, compilation."""

from __future__ import annotations

import os

import pytest
import torch

import models
from micronet.compress.quantization import prepare
from micronet.params import Engine, ParamsError
from micronet.training.hardware import COMPILE_STEPS, Machine, check_processes, compiled, machine, suited
from micronet.training.loop import train
from tests.support.configs import MACHINE, quantize_config, train_config
from tests.support.images import bright_split
from tests.support.models import RESNET, new_model


def test_bf16_is_chosen_only_where_it_is_fast():
    chosen = machine(Engine(device="cpu", threads=0))
    assert chosen.autocast == (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    assert machine(Engine(device="cpu", precision="bf16", threads=0)).autocast


def test_a_network_that_torch_would_corrupt_memory_with_trains_in_nchw():
    def layout(*widths: int) -> bool:
        model = models.build({"name": "resnet", "blocks": [1] * len(widths), "widths": list(widths)})
        return suited(model, MACHINE).channels_last

    assert layout(4) and layout(8, 16) and not layout(4, 8)
    model = new_model(RESNET)
    data = {"training": bright_split(16), "validation": bright_split(8)}
    train(model, config=train_config(epochs=1), machine=MACHINE, seed=3, **data)
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
    quantized = prepare(model, quantize_config(weight_bits=4))
    assert suited(quantized, here).autocast == bf16


def test_a_run_says_which_precision_it_was_trained_in():
    for autocast, precision in ((True, "bf16"), (False, "fp32")):
        here = Machine(torch.device("cpu"), autocast=autocast, channels_last=True)
        data = {"training": bright_split(8), "validation": bright_split(8)}
        result = train(new_model(), config=train_config(), machine=here, seed=1, **data)
        assert result.precision == precision
    assert machine(Engine(device="cpu", precision="auto", threads=0)).any_precision
    assert not machine(Engine(device="cpu", precision="bf16", threads=0)).any_precision


def test_long_runs_on_cuda_are_compiled_but_no_network_with_quantizers():
    cuda = Machine(torch.device("cuda"), autocast=True, channels_last=True, compile="auto")
    model = new_model()
    prepared = prepare(model, quantize_config(weight_bits=4))
    assert compiled(model, cuda, COMPILE_STEPS) is not model
    assert compiled(model, cuda, COMPILE_STEPS - 1) is model
    assert compiled(prepared, cuda, COMPILE_STEPS) is prepared


def test_each_process_needs_a_core_or_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    check_processes(Engine(device="cpu", processes=4))
    with pytest.raises(ParamsError, match=r"engine.processes: must be <= 4, the cores of this machine \(got 5\)"):
        machine(Engine(device="cpu", processes=5))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_processes(Engine(processes=2))
    with pytest.raises(ParamsError, match=r"must be <= 2, the GPUs .*\(got 3\); engine.device: cpu counts cores"):
        check_processes(Engine(processes=3))
    check_processes(Engine(device="cpu", processes=3))
