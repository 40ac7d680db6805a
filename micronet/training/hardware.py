"""Where and how a model runs: device, precision, memory format, compilation."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from micronet.params import Engine, ParamsError
from micronet.training.openmp import ThreadsError, settle
from micronet.training.processes import check_cores

COMPILE_STEPS = 5_000  # on CUDA, a run this long makes up for the minute or so that compiling takes
# On a CPU densenet_nano makes up for its 300 s of compiling after a quarter of this; inverted residuals, whose steps
# are a fifth to a half faster, for their half minute too.
COMPILE_IMAGES = 1_000_000
# A DenseNet with narrow layers has at most this many convolution weights per normalised channel. On a CPU a compiled
# step was 1.5 times as fast at growth rate 4, with 21 of them, and no faster at growth rate 12, with 62.
THIN = 24


@dataclass(frozen=True)
class Machine:
    """Where and how a model runs."""

    device: torch.device
    autocast: bool
    channels_last: bool
    compile: str = "off"  # engine.compile
    any_precision: bool = False  # engine.precision is auto: a model may run in another precision if that is faster

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def place(self, model: nn.Module) -> nn.Module:
        """Moves the model, without a copy, to this device and memory format."""
        return model.to(self.device).to(memory_format=self.memory_format)

    def exact(self) -> Machine:
        """This machine without autocast, for integers stored as float32."""
        return replace(self, autocast=False)


def machine(engine: Engine, rank: int = 0) -> Machine:
    """Chooses the device and precision, sets threads and deterministic kernels.

    Each of several ranks has its own GPU. Raises `ThreadsError` for OpenMP settings that would make torch, which has
    already read them, hang, and `ParamsError` for more `engine.processes` than cores or GPUs.

    `precision: auto` is bf16 on CUDA and on CPUs that multiply bf16 (AMX or AVX-512 BF16), where it is two to three
    times as fast, and fp32 elsewhere, where bf16 is emulated and ten times slower.
    """
    if ignored := settle(dict(os.environ), engine.threads):
        raise ThreadsError(f"{ignored[0]}; torch is loaded already, so unset it before")
    if engine.threads:
        torch.set_num_threads(engine.threads)
    check_processes(engine)
    cuda = _on_cuda(engine)
    device = torch.device("cuda" if cuda else "cpu")
    if cuda and engine.processes > 1:
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # needed for a deterministic cuBLAS
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms would load the compiler, for two seconds
    bf16 = engine.precision == "bf16" or (engine.precision == "auto" and (cuda or multiplies_bf16()))
    free = engine.precision == "auto"
    return Machine(device, bf16, channels_last=engine.channels_last, compile=engine.compile, any_precision=free)


def _on_cuda(engine: Engine) -> bool:
    return engine.device == "cuda" or (engine.device == "auto" and torch.cuda.is_available())


def check_processes(engine: Engine) -> None:
    """Raises `ParamsError` if there are fewer GPUs, or cores, than `engine.processes`."""
    if engine.processes == 1:
        return
    check_cores(engine.processes)
    if _on_cuda(engine) and engine.processes > (most := torch.cuda.device_count()):
        got = f"(got {engine.processes}); engine.device: cpu counts cores"
        raise ParamsError([f"engine.processes: must be <= {max(1, most)}, the GPUs of this machine {got}"])


def machine_for(model: nn.Module, machine: Machine) -> Machine:
    """The machine as this network is trained on it, which may differ in precision or memory format.

    fp32 for depthwise convolutions on a CPU, if `precision` is auto: bf16 kernels made inverted residuals of 1 to 4 M
    multiply-accumulates two to three times slower than fp32, with AMX.

    NCHW where training in channels-last would corrupt memory: torch 2.15's CPU backward pass of a channels-last 1x1
    convolution with a stride and fewer than 8 input channels writes out of bounds, and sooner or later the process
    dies with "double free".
    """
    if machine.device.type != "cpu":
        return machine
    convolutions = _convolutions(model)
    if machine.any_precision and has_depthwise(model):
        machine = replace(machine, autocast=False)
    hit = any(
        module.kernel_size == (1, 1) and max(module.stride) > 1 and module.in_channels < 8 for module in convolutions
    )
    return replace(machine, channels_last=False) if hit else machine


def _convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def device_name(machine: Machine) -> str:
    """The GPU's name, or the processor's with its number of cores and vector instructions."""
    if machine.device.type == "cuda":
        return torch.cuda.get_device_name(machine.device)
    model = "CPU"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def multiplies_bf16() -> bool:
    """Whether the processor has instructions that multiply bf16: AMX or AVX-512 BF16."""
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private to torch: a missing one counts as no
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def compiled(model: nn.Module, machine: Machine, steps: int, batch_size: int) -> Callable[[Tensor], Tensor]:
    """What a run of `steps` steps calls: the model, or a `torch.compile` of it, which shares its weights.

    `compile: auto` compiles if a run is long enough to make up for it: on CUDA any network, on a CPU those that spend
    their time on norms and copies, which the compiler fuses (`bench/variants.py`). A network with quantizers took more
    than three minutes on an H200 before its second step, so `auto` does not compile it. What cannot be compiled runs
    uncompiled. Compiled kernels add in a different order from eager ones, but always in the same order.

    Raises:
        ParamsError: `compile: on`, on a CPU without a C++ compiler.
    """
    if machine.compile == "on" and machine.device.type == "cpu" and compiler() is None:
        raise ParamsError(["engine.compile: on needs a C++ compiler; g++, or auto, which compiles where it pays"])
    if machine.compile == "off" or (machine.compile == "auto" and not _worth_it(model, machine, steps, batch_size)):
        return model
    torch.use_deterministic_algorithms(True)  # from now on for the compiler too
    torch._dynamo.config.suppress_errors = True
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # hides that CUDA's compiler found no GPU
    return torch.compile(model)


def _worth_it(model: nn.Module, machine: Machine, steps: int, batch_size: int) -> bool:
    """Whether a run is long enough to make up for the time that compiling takes."""
    if isinstance(model, fx.GraphModule):
        return False
    if machine.device.type == "cuda":
        return steps >= COMPILE_STEPS
    return steps * batch_size >= COMPILE_IMAGES and (is_thin(model) or has_depthwise(model)) and compiler() is not None


def has_depthwise(model: nn.Module) -> bool:
    """Whether it has convolutions of one channel each, as inverted residuals have: few products for every copy."""
    return any(module.groups == module.in_channels > 1 for module in _convolutions(model))


def is_thin(model: nn.Module) -> bool:
    """Whether norms and copies, not products, take most of a CPU's time: a DenseNet with narrow layers.

    It normalises every map again and again: its norms have at least twice as many channels as its convolutions output.
    """
    convolutions = _convolutions(model)
    made = sum(module.out_channels for module in convolutions)
    weights = sum(module.weight.numel() for module in convolutions)
    normalised = sum(module.num_features for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    return 0 < 2 * made <= normalised and weights <= THIN * normalised


def compiler() -> str | None:
    """The C++ compiler that torch.compile uses on a CPU: $CXX, else g++; None if there is none."""
    return shutil.which(os.environ.get("CXX") or "g++")
