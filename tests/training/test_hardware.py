"""Where and how a network runs: precision, memory format, compilation."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from torch import nn

import models
from micronet.compress.quantization import prepare
from micronet.params import Engine, ParamsError, load
from micronet.training.hardware import (
    COMPILE_IMAGES,
    COMPILE_STEPS,
    Machine,
    check_processes,
    compiled,
    is_thin,
    machine,
    machine_for,
)
from micronet.training.loop import train
from tests.support.configs import MACHINE, quantize_config, train_config
from tests.support.images import bright_split
from tests.support.models import RESNET, new_model
from tests.support.places import ROOT


def test_bf16_is_chosen_only_where_it_is_fast():
    chosen = machine(Engine(device="cpu", threads=0))
    assert chosen.autocast == (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    assert machine(Engine(device="cpu", precision="bf16", threads=0)).autocast


def test_a_network_that_torch_would_corrupt_memory_with_trains_in_nchw():
    def layout(*widths: int) -> bool:
        model = models.build({"name": "resnet", "blocks": [1] * len(widths), "widths": list(widths)})
        return machine_for(model, MACHINE).channels_last

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
    assert machine_for(model, here).autocast == bf16
    quantized = prepare(model, quantize_config(weight_bits=4))
    assert machine_for(quantized, here).autocast == bf16


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
    assert compiled(model, cuda, COMPILE_STEPS, 8) is not model
    assert compiled(model, cuda, COMPILE_STEPS - 1, 8) is model
    assert compiled(prepared, cuda, COMPILE_STEPS, 8) is prepared


DENSE = {"name": "densenet", "blocks": [12], "growth_rate": 4}
MOBILE = {"name": "mobilenet", "blocks": [1], "widths": [8]}


@pytest.mark.parametrize("spec", [DENSE, MOBILE], ids=["thin", "depthwise"])
def test_long_runs_of_thin_or_depthwise_networks_are_compiled_on_a_cpu_that_has_a_compiler(spec, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    here = machine(Engine(device="cpu", threads=0))
    dense = new_model(spec)
    steps = COMPILE_IMAGES // 100
    assert compiled(dense, here, steps, 100) is not dense
    assert compiled(dense, here, steps - 1, 100) is dense
    assert compiled(dense, replace(here, compile="off"), steps, 100) is dense
    assert compiled(dense, replace(here, compile="on"), 1, 1) is not dense
    grouped = nn.Conv2d(8, 8, 3, groups=4)
    for other in (new_model(RESNET), grouped, prepare(dense, quantize_config(weight_bits=4))):
        assert compiled(other, here, 100 * steps, 100) is other
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert compiled(dense, here, steps, 100) is dense
    with pytest.raises(ParamsError, match="engine.compile: on needs a C\\+\\+ compiler"):
        compiled(dense, replace(here, compile="on"), 1, 1)


def test_of_the_networks_of_all_recipes_only_the_slides_densenet_nano_is_thin():
    recipes = [load(path) for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    sections = [section for recipe in recipes for section in (recipe.teacher, recipe.student)]
    specs = {str(section.model.spec()): section.model.spec() for section in sections}
    thin = {spec["name"] for spec in specs.values() if "file" not in spec and is_thin(models.build(spec))}
    assert thin == {"densenet_nano"} and not is_thin(nn.Linear(3, 2))


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
