"""What was tried to make a DenseNet's training step faster, each variant measured in turn in one process.

A DenseNet's cost is batch norm and concatenation. Every layer normalises the same earlier maps again, with other gains
and biases but the same statistics. `shared statistics` computes these once per map and gives every later norm the
concatenated vectors; norm and ReLU become one differentiable function. Writes metrics/bench_variants.json.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _bench import BATCH_SIZE, NANO, arguments, describe, engine, machine_of_a_stage, others_wait, write
from torch import Tensor, nn

import models

TURNS = 5
USED, COMPILED = "channels-last (what is used)", "channels-last, torch.compile"


class NormRelu(torch.autograd.Function):
    """relu(gain * (x - mean) / sqrt(variance + eps) + bias) for given statistics, (C,) each."""

    @staticmethod
    def forward(ctx, x: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
        out = F.batch_norm(x, mean, variance, gain, bias, False, 0.0, eps).relu_()
        ctx.save_for_backward(x, out, gain, mean, variance)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, out, gain, mean, variance = ctx.saved_tensors
        gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
        of_x, of_gain, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, gain, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        rate = (variance + ctx.eps).rsqrt()
        return of_x, of_gain, of_bias, -gain * rate * of_bias, -0.5 * gain * rate.square() * of_gain, None


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, in fp32 for bf16 maps."""
    if x.dtype == torch.bfloat16:
        x = x.float()
    mean = x.mean((0, 2, 3))
    return mean, (x - mean[:, None, None]).square().mean((0, 2, 3))


def shared(norm: nn.BatchNorm2d, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """`relu(norm(x))` in training mode, given the batch's statistics; the running ones are updated."""
    with torch.no_grad():
        count = x.numel() // x.shape[1]
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * count / (count - 1), norm.momentum)
        norm.num_batches_tracked += 1
    return NormRelu.apply(x, norm.weight, norm.bias, mean, variance, norm.eps)


def shared_forward(model: nn.Module, x: Tensor) -> Tensor:
    """A DenseNet's forward pass in training mode that computes the statistics of every map once."""
    x = model.stem(x)
    for index, block in enumerate(model.blocks):
        means, variances = map(list, zip(moments(x), strict=True))
        for layer in block:
            inner = F.relu(layer.norm2(layer.conv1(shared(layer.norm1, x, torch.cat(means), torch.cat(variances)))))
            new = layer.conv2(inner)
            for values, value in zip((means, variances), moments(new), strict=True):
                values.append(value)
            x = torch.cat([x, new], 1)
        if index < len(model.transitions):
            transition = model.transitions[index]
            x = transition.conv(shared(transition.norm, x, torch.cat(means), torch.cat(variances)))
            x = F.avg_pool2d(x, 2)
        else:
            x = shared(model.norm, x, torch.cat(means), torch.cat(variances))
    return model.classifier(x.mean((2, 3)))


def same(model: nn.Module, images: Tensor) -> float:
    """The largest difference in logits and gradients between both forward passes, relative to the largest value."""
    found = []
    for forward in (model, lambda x: shared_forward(model, x)):
        model.zero_grad()
        logits = forward(images)
        logits.square().sum().backward()
        found.append([logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-6)) for a, b in zip(*found, strict=True))


def main() -> int:
    args = arguments(
        __doc__.splitlines()[0],
        "metrics/bench_variants.json",
        cpu_alone=True,
        compile="torch.compile too: minutes more",
        alone="as root: other programs wait during the steps",
    )
    here = machine_of_a_stage(engine("cpu"))
    torch.manual_seed(0)
    plain, model = models.build(NANO).train(), models.build(NANO).to(memory_format=torch.channels_last).train()
    images = torch.randn(BATCH_SIZE, 3, 32, 32)
    strided = images.contiguous(memory_format=torch.channels_last)

    def step(forward: Callable, batch: Tensor) -> float:
        """Seconds of a forward and backward pass, in the precision used for training here."""
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=here.autocast):
            logits = forward(batch)
        logits.float().square().mean().backward()
        return time.perf_counter() - began

    difference = same(model.double(), strided[:32].double())
    model = model.float()
    variants: dict[str, tuple[Callable, Tensor]] = {
        "NCHW": (plain, images),
        USED: (model, strided),
        "channels-last, shared statistics": (lambda x: shared_forward(model, x), strided),
    }
    compile_seconds = None
    if args.compile:
        variants[COMPILED] = (torch.compile(model), strided)
        with tempfile.TemporaryDirectory() as empty:  # else code that an earlier run compiled would be loaded
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = empty
            compile_seconds = step(*variants[COMPILED])
    if args.alone:
        others_wait()
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(TURNS):
        for name, (forward, batch) in variants.items():
            taken[name].append(step(forward, batch))
    speeds = {name: BATCH_SIZE / statistics.median(values) for name, values in taken.items()}
    content = {
        "machine": describe(here),
        "model": "densenet_nano",
        "images_per_second": speeds,
        "largest_relative_difference": difference,
        "compile_seconds": compile_seconds,
    }
    write(args.output, content)
    for name, speed in speeds.items():
        print(f"{name:<40} {speed:7.1f} images/s")
    print(f"shared statistics differ by {difference:.1e} in float64")
    return 0


if __name__ == "__main__":
    sys.exit(main())
