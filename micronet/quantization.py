"""Networks whose weights and activations take few values, trained with the quantizers in place.

`prepare` copies a model, traces it and puts quantizers into it: on every convolution's and linear layer's weight,
on the image, after every ReLU, and where a result goes on without one (into a concatenation, a pool, or through a
projection shortcut). A branch that ends in a residual addition is not quantized before it: the packed model
requantizes once, after addition and ReLU. Batch norms stay as they are while training; `micronet.packing` turns them
into multipliers. All quantizers compute in float32, whatever autocast says.

Widths below 9: LSQ, a learned step a tensor (Esser et al. 2020, arXiv:1902.08153), or a step an output channel, as in
Krishnamoorthi 2018 (arXiv:1806.08342). 1-bit weights: BinaryConnect
(Courbariaux et al. 2015, arXiv:1511.00363) with a scale an output channel. `half` leaves the arithmetic in float.
`fx_int8` trains and calibrates in torch's FX graph mode (`micronet.fx_int8`); `finish` brings it into the same form.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from micronet import fx_int8
from micronet.augment import augment
from micronet.data import normalise
from micronet.errors import MicronetError
from micronet.params import Augment, Quantize
from models.layers import Interleave

SIGNED_BITS = 8  # of results that go on without a ReLU: they feed additions and norms, never a weighted sum
SMALLEST_STEP = 1e-6
SAMPLES = 1 << 16  # values an activation quantizer keeps of one calibration batch
CANDIDATES = 80  # steps that a search tries


class PackError(MicronetError, ValueError):
    """A model that the packed format cannot hold: one line that names the operation and what would work."""


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Lowest and highest code: symmetric when signed, from 0 when not."""
    return (-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of all products, without a temporary when both lie alike in memory."""
    if a.stride() != b.stride():
        return (a * b).sum()
    if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


class _Lsq(torch.autograd.Function):
    """round(clamp(x / step)) * step; the straight-through gradient of x, LSQ's gradient of the step.

    The step's gradient is (q - x / step) inside the range and the bound outside. Summed against the incoming
    gradient g that is g . q - g_inside . (x / step): two dot products, so no mask is ever stored.
    """

    @staticmethod
    def forward(ctx, x: Tensor, step: Tensor, low: int, high: int, gradient_scale: float) -> Tensor:
        scaled = x.float() / step
        values = torch.clamp(scaled, low, high).round_().mul_(step)
        ctx.save_for_backward(scaled, values, step)
        ctx.settings = low, high, gradient_scale, x.dtype
        return values

    @staticmethod
    def backward(ctx, gradient: Tensor):
        scaled, values, step = ctx.saved_tensors
        low, high, gradient_scale, dtype = ctx.settings
        gradient = gradient.float()
        inside = torch.ops.aten.hardtanh_backward(gradient, scaled, low, high)
        step_gradient = None
        if ctx.needs_input_grad[1]:
            if step.dim():
                parts = (gradient * (values / step) - inside * scaled).flatten(1).sum(1)
            else:
                parts = _dot(gradient, values) / step - _dot(inside, scaled)
            step_gradient = (parts * gradient_scale).reshape(step.shape)
        return inside.to(dtype), step_gradient, None, None, None


class _Binary(torch.autograd.Function):
    """scale * sign(w) with sign(0) = +1, and 0 under the mask; the gradient passes straight to the real weight."""

    @staticmethod
    def forward(ctx, weight: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(codes)
        return codes * scale

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (codes,) = ctx.saved_tensors
        return gradient * codes.abs(), None, None


def best_step(values: Tensor, low: int, high: int) -> float:
    """The step of least squared error for these values, of `CANDIDATES` between a fifth and all of the range."""
    values = values.detach().float().reshape(-1)
    bound = high if low == 0 else min(-low, high)
    largest = float(values.max() if low == 0 else values.abs().max())
    if largest <= 0:
        return 1.0 / bound
    best, least = largest / bound, float("inf")
    for index in range(CANDIDATES):
        step = largest / bound * (1.0 - 0.95 * index / CANDIDATES)
        error = float((torch.clamp(values / step, low, high).round_().mul_(step).sub_(values)).square_().mean())
        if error < least:
            best, least = step, error
    return max(best, SMALLEST_STEP)


class LsqWeight(nn.Module):
    """A weight on a grid of 2**bits - 1 codes, symmetric about 0, with a learned step (float32, > 0).

    One step for the tensor, or one for each output channel, (C_out, 1, ..): requantization has a multiplier for each
    channel anyway, so that costs nothing in the packed file. The step of a `frozen` weight stays as it is made, so that
    filters that come in opposite pairs, a whitening's, keep opposite codes.
    """

    def __init__(self, weight: Tensor, bits: int, per_channel: bool = False, frozen: bool = False):
        super().__init__()
        self.bits = bits
        self.low, self.high = code_range(bits, signed=True)
        steps = [self._first_step(part) for part in (weight if per_channel else weight[None])]
        step = torch.tensor(steps, device=weight.device).reshape(-1, *[1] * (weight.dim() - 1))
        self.step = nn.Parameter(step if per_channel else step.reshape(()), requires_grad=not frozen)

    def _first_step(self, weight: Tensor) -> float:
        # The zeros of a pruned weight stay zero at any step and would only blur the search.
        return best_step(weight[weight != 0], self.low, self.high) if (weight != 0).any() else 1.0

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.step.clamp_(min=SMALLEST_STEP)
        each = weight.numel() // self.step.numel()
        return _Lsq.apply(weight, self.step, self.low, self.high, (each * self.high) ** -0.5)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Integer codes (int64, as `weight`) and the scale of each output channel (float64, (C_out,))."""
        step = self.step.clamp(min=SMALLEST_STEP)  # the last update may have left it below
        codes = torch.clamp(weight.float() / step, self.low, self.high).round_()
        return codes.long(), step.double().flatten().expand(weight.shape[0])

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class BinaryWeight(nn.Module):
    """A weight of two values, ±scale; where it is exactly 0 when the quantizer is made (pruned) it stays 0.

    `scale` is the mean |w| of each output channel, of the whole tensor when `per_tensor`. While training the real
    weights are clipped to [-1, 1] in place, as the paper does after every update.
    """

    bits = 1

    def __init__(self, weight: Tensor, per_tensor: bool = False):
        super().__init__()
        self.per_tensor = per_tensor
        self.register_buffer("mask", weight.detach() != 0)
        if not self.mask.any():
            self.mask.fill_(True)

    def _codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        mask = self.mask.float()
        codes = torch.where(weight >= 0, mask, -mask)
        size, count = weight.detach().float().abs() * mask, mask
        if self.per_tensor:
            scale = (size.sum() / count.sum()).expand(weight.shape[0])
        else:
            scale = size.flatten(1).sum(1) / count.flatten(1).sum(1).clamp(min=1)
        return codes, scale.clamp(min=SMALLEST_STEP)

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                weight.clamp_(-1, 1)
        codes, scale = self._codes(weight.detach())
        return _Binary.apply(weight, codes, scale.reshape(-1, *[1] * (weight.dim() - 1)))

    @torch.no_grad()
    def codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes -1, +1 and 0 under the mask (int64, as `weight`), the scale of each output channel (float64)."""
        codes, scale = self._codes(weight)
        return codes.long(), scale.double()


class HalfWeight(nn.Module):
    """A weight as the nearest 16-bit float."""

    bits = 16

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (weight.detach().half().float() - weight.detach())


class InputCodes(nn.Module):
    """A normalised image (pixel - 128) / 64 as codes floor((pixel - 128) / 2**(8 - bits)) times `step`.

    The convolution's padding is code 0, a pixel of 128. The floor drops the low bits of a pixel, so the values lie
    up to a step below the pixel's; the first batch norm takes the mean of that up.
    """

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits
        self.low, self.high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.step = 2.0 ** (8 - bits) / 64

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(torch.floor(x.float() / self.step), self.low, self.high).mul_(self.step)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class LsqActivation(nn.Module):
    """An activation on 2**bits codes from 0 (this contains the ReLU) or on 2**bits - 1 about 0 when signed.

    One learned step (float32, > 0), set by `calibrate` at first. `relu` says whether a ReLU of the model is in it.
    """

    def __init__(self, bits: int, signed: bool):
        super().__init__()
        self.bits, self.signed, self.relu = bits, signed, not signed
        self.low, self.high = code_range(bits, signed)
        self.step = nn.Parameter(torch.tensor(6.0 / self.high))
        self.samples: list[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.samples is not None:
            values = x.detach().float().flatten()
            self.samples.append(values[:: max(1, values.numel() // SAMPLES)].clone())
            return x if self.signed else F.relu(x)
        if self.training:
            with torch.no_grad():
                self.step.clamp_(min=SMALLEST_STEP)
        return _Lsq.apply(x, self.step, self.low, self.high, (x[0].numel() * self.high) ** -0.5)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, signed={self.signed}"


class FloatActivation(nn.Module):
    """Where `half` ends a step of the packed model: a ReLU or nothing."""

    bits = 16

    def __init__(self, signed: bool):
        super().__init__()
        self.signed, self.relu = signed, not signed

    def forward(self, x: Tensor) -> Tensor:
        return x if self.signed else F.relu(x)


class QuantizedConv2d(nn.Conv2d):
    """A convolution that computes with `quantizer(weight)`; `weight` stays real, under its plain name."""

    quantizer: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.quantizer(self.weight), self.bias)


class QuantizedLinear(nn.Linear):
    """A linear layer that computes with `quantizer(weight)`."""

    quantizer: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.quantizer(self.weight), self.bias)


ACTIVATIONS = (LsqActivation, FloatActivation)
_ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELU = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
_CAT = (torch.cat, torch.concat, torch.concatenate)
_SCALE = (operator.mul, torch.mul, "mul")
_FLATTEN = (torch.flatten, "flatten")


def kind(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """What a traced node is to the packed format.

    One of input, conv, linear, norm, add, relu, concat, average, maximum, mean, flatten, interleave, identity, scale,
    image_codes, activation, output.

    Raises:
        PackError: an operation that the format does not know.
    """
    known = (
        "conv2d, batch_norm2d, +, relu, cat, avg_pool2d, max_pool2d, mean over (2, 3), Interleave and a last linear "
        "would work"
    )
    if node.op in ("placeholder", "output"):
        return {"placeholder": "input", "output": "output"}[node.op]
    if node.op == "call_module":
        module = modules[node.target]
        for types, name in (
            (nn.Conv2d, "conv"),
            (nn.Linear, "linear"),
            (nn.BatchNorm2d, "norm"),
            (nn.ReLU, "relu"),
            (nn.AvgPool2d, "average"),
            (nn.MaxPool2d, "maximum"),
            (nn.AdaptiveAvgPool2d, "mean"),
            (nn.Flatten, "flatten"),
            (Interleave, "interleave"),
            ((nn.Identity, nn.Dropout), "identity"),
            (InputCodes, "image_codes"),
            (ACTIVATIONS, "activation"),
        ):
            if isinstance(module, types):
                if name == "conv" and (module.padding_mode != "zeros" or isinstance(module.padding, str)):
                    raise PackError(f"{node.target}: this padding cannot be packed, a number of zeros would work")
                if name == "conv" and module.dilation != (1, 1):
                    raise PackError(f"{node.target}: a dilated convolution cannot be packed, dilation 1 would work")
                if name == "norm" and (module.running_mean is None or module.weight is None):
                    raise PackError(f"{node.target}: a batch norm cannot be packed without statistics and affine=True")
                return name
        raise PackError(f"{node.target}: {type(module).__name__} cannot be packed ({known})")
    for targets, name in (
        (_ADD, "add"),
        (_RELU, "relu"),
        (_CAT, "concat"),
        ((F.avg_pool2d,), "average"),
        ((F.max_pool2d,), "maximum"),
        ((torch.mean, "mean", F.adaptive_avg_pool2d), "mean"),
        (_FLATTEN, "flatten"),
    ):
        if node.target in targets:
            return name
    if node.target in _SCALE:
        factors = [argument for argument in node.args if isinstance(argument, int | float)]
        if len(factors) == 1 and factors[0] > 0 and [user.op for user in node.users] == ["output"]:
            return "scale"
        raise PackError(f"{node.name}: a product cannot be packed, one of all logits and a positive number would work")
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
    raise PackError(f"{node.name}: {target} cannot be packed ({known})")


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, Interleave) or super().is_leaf_module(module, name)


def _quantized(module: nn.Conv2d | nn.Linear, quantizer: nn.Module) -> nn.Module:
    """The same layer, sharing its parameters, with a weight quantizer."""
    new = module.__class__.__new__(QuantizedConv2d if isinstance(module, nn.Conv2d) else QuantizedLinear)
    new.__dict__ = dict(module.__dict__, _modules={"quantizer": quantizer})
    return new


def _weight_quantizer(name: str, module: nn.Module, quantize: Quantize, edge: bool, last: bool) -> nn.Module:
    if quantize.method == "half":
        return HalfWeight()
    bits = quantize.weight_bits
    if quantize.method == "binary_connect" and edge and quantize.keep_first_and_last:
        bits = 8
    bits = quantize.layer_bits.get(name, bits)
    if bits == 1:
        return BinaryWeight(module.weight, per_tensor=last)
    frozen = not module.weight.requires_grad
    return LsqWeight(module.weight, bits, quantize.per_channel and not last, frozen)


def prepare(model: nn.Module, quantize: Quantize) -> fx.GraphModule:
    """A copy of a model with quantizers in it, with the same plain parameter names and `meta["spec"]`.

    Takes and gives what the model does: normalised images (N, 3, 32, 32) -> logits (N, classes). The steps of its
    activation quantizers are a guess until `calibrate` has seen images.

    Raises:
        PackError: an operation that could not be packed later, or a layer of `layer_bits` that is not there.
    """
    prepared = _prepare(model, quantize)
    if quantize.method != "fx_int8":
        return prepared
    trained = fx_int8.prepare(model)
    trained.meta |= prepared.meta
    return trained


def _prepare(model: nn.Module, quantize: Quantize) -> fx.GraphModule:
    model = copy.deepcopy(model)
    graph = _Tracer().trace(model)
    prepared = fx.GraphModule(model, graph)
    prepared.train(model.training)
    modules = dict(prepared.named_modules())
    kinds = {node: kind(node, modules) for node in graph.nodes}
    if sum(name == "input" for name in kinds.values()) != 1:
        raise PackError("the model takes more than one input, a model of images alone would work")
    layers = [node.target for node in graph.nodes if kinds[node] in ("conv", "linear")]
    if len(set(layers)) < len(layers):
        shared = next(name for name in layers if layers.count(name) > 1)
        raise PackError(f"{shared}: is used twice, a layer for each place would work")
    for name in quantize.layer_bits:
        if name not in layers:
            raise PackError(f"quantize.layer_bits: there is no layer {name!r} (there are {', '.join(layers)})")
    for name in layers:
        edge, last = name in (layers[0], layers[-1]), isinstance(modules[name], nn.Linear)
        quantizer = _weight_quantizer(name, modules[name], quantize, edge, last)
        parent, _, leaf = name.rpartition(".")
        setattr(prepared.get_submodule(parent), leaf, _quantized(modules[name], quantizer))

    def activation(signed: bool) -> nn.Module:
        if quantize.method == "half":
            return FloatActivation(signed)
        return LsqActivation(SIGNED_BITS if signed else quantize.activation_bits, signed)

    def insert(after: fx.Node, quantizer: nn.Module) -> fx.Node:
        prepared.add_submodule(f"activations.{after.name}", quantizer)
        with graph.inserting_after(after):
            node = graph.call_module(f"activations.{after.name}")
        after.replace_all_uses_with(node)
        node.args = (after,)
        kinds[node] = "activation"
        pending.pop(after, None)
        return node

    # Results that are still real numbers, and what may yet be computed in the same step of the packed model.
    pending: dict[fx.Node, tuple[str, ...]] = {}
    kernels = {node: modules[node.target].kernel_size for node in graph.nodes if kinds[node] == "conv"}
    source: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        name, inputs = kinds[node], node.all_input_nodes
        if name == "input":
            if quantize.method != "half":
                prepared.add_submodule("activations.image", InputCodes(quantize.input_bits))
                with graph.inserting_after(node):
                    codes = graph.call_module("activations.image")
                node.replace_all_uses_with(codes)
                codes.args = (node,)
                kinds[codes] = "image_codes"
        elif name == "conv":
            pending[node], source[node] = ("norm", "maximum", "add", "relu"), node
        elif name == "norm":
            folds = pending.pop(inputs[0], None) is not None
            pending[node], source[node] = ("maximum", "add", "relu"), source[inputs[0]] if folds else node
        elif name == "maximum":
            if inputs[0] in pending:
                after = pending.pop(inputs[0])
                pending[node] = tuple(follower for follower in after if follower in ("norm", "relu"))
                source[node] = source.get(inputs[0], node)
        elif name == "add":
            if len(inputs) != 2 or not all(isinstance(argument, fx.Node) for argument in node.args):
                raise PackError(f"{node.name}: adds a constant or one value to itself, two different values would work")
            waiting = [value for value in inputs if value in pending]
            if len(waiting) == 2:
                # The projection of the shortcut is the smaller kernel; else the second operand.
                areas = [kernels.get(source.get(value), (9, 9)) for value in waiting]
                insert(waiting[0 if areas[0] < areas[1] else 1], activation(signed=True))
            for value in inputs:
                pending.pop(value, None)
            pending[node] = ("maximum", "relu")
        elif name == "relu":
            pending.pop(inputs[0], None)
            quantizer = activation(signed=False)
            prepared.add_submodule(f"activations.{node.name}", quantizer)
            with graph.inserting_after(node):
                new = graph.call_module(f"activations.{node.name}", (inputs[0],))
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            kinds[new] = "activation"
            continue
        if node in pending:
            # It may stay real on the way to one user that the packed model computes in the same step.
            users = list(node.users)
            if len(users) != 1 or kinds[users[0]] not in pending[node]:
                insert(node, activation(signed=True))
    graph.eliminate_dead_code()
    prepared.delete_all_unused_submodules()
    graph.lint()
    prepared.recompile()
    prepared.meta["spec"] = getattr(model, "spec", None)
    prepared.meta["quantize"] = quantize.model_dump(mode="json")
    return prepared


@torch.no_grad()
def finish(prepared: fx.GraphModule) -> fx.GraphModule:
    """What `prepare` made, trained, in the form that packs: itself, or FX graph mode's model translated.

    A translated convolution has its batch norm's gain in its weight, as FX graph mode quantizes it, and is followed by
    a norm that only adds. Ranges without a ReLU become symmetric.
    """
    if "float_model" not in prepared.meta:
        return prepared
    result = _prepare(prepared.meta["float_model"], Quantize.model_validate(prepared.meta["quantize"])).eval()
    modules = dict(result.named_modules())
    for node in result.graph.nodes:
        name, module = kind(node, modules), modules.get(str(node.target))
        if name in ("conv", "linear"):
            weight, bias, folded = fx_int8.layer(prepared, node.target)
            if folded is not None:
                gain = folded.weight / torch.sqrt(folded.running_var + folded.eps)
                weight = weight * gain.reshape(-1, 1, 1, 1)
                after = modules[next(iter(node.users)).target]
                after.weight.fill_(1.0)
                after.running_mean.zero_()
                after.running_var.fill_(1.0 - after.eps)
                after.bias.copy_(folded.bias - folded.running_mean * gain)
            module.weight.copy_(weight)
            if bias is not None:
                module.bias.copy_(bias)
            module.quantizer.step.fill_(max(float(weight.abs().max()) / module.quantizer.high, SMALLEST_STEP))
        elif name == "norm" and kind(node.all_input_nodes[0], modules) != "conv":
            module.load_state_dict(fx_int8.norm(prepared, node.target).state_dict())
        elif name == "activation":
            before = node.all_input_nodes[0]
            names = [node.target.removeprefix("activations."), before.name, str(before.target)]
            if kind(before, modules) == "norm":
                names.append(str(before.all_input_nodes[0].target))
            low, high = fx_int8.observed_range(prepared, names)
            module.step.fill_(max((max(-low, high) if module.signed else high) / module.high, SMALLEST_STEP))
    return result


@torch.no_grad()
def calibrate(prepared: nn.Module, images: Tensor, batch_size: int = 250) -> None:
    """Sets the step of every activation quantizer from images, (N, 3, 32, 32) uint8: least squared error.

    Activations are observed with the weights quantized and the activations not. Batch norms are left alone.
    """
    if "float_model" in getattr(prepared, "meta", {}):
        fx_int8.calibrate(prepared, (normalise(batch) for batch in images.split(batch_size)))
        return
    quantizers = [module for module in prepared.modules() if isinstance(module, LsqActivation)]
    if not quantizers:
        return
    was_training = prepared.training
    prepared.eval()
    device = quantizers[0].step.device
    for quantizer in quantizers:
        quantizer.samples = []
    try:
        for start in range(0, len(images), batch_size):
            prepared(normalise(images[start : start + batch_size]).to(device))
        for quantizer in quantizers:
            values = torch.cat(quantizer.samples)
            values = values[:: max(1, len(values) // (4 * SAMPLES))]
            quantizer.step.fill_(best_step(values.relu() if quantizer.relu else values, quantizer.low, quantizer.high))
    finally:
        for quantizer in quantizers:
            quantizer.samples = None
        prepared.train(was_training)


@torch.no_grad()
def recalibrate_batch_norm(prepared: nn.Module, batches: Iterable[Tensor]) -> None:
    """Estimates the statistics of every batch norm anew, as the mean over batches of normalised images.

    Everything else stays in eval mode, so steps and weights do not move.
    """
    norms = [module for module in prepared.modules() if isinstance(module, nn.BatchNorm2d)]
    was_training, momenta = prepared.training, [norm.momentum for norm in norms]
    prepared.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        for batch in batches:
            prepared(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        prepared.train(was_training)


def training_batches(images: Tensor, config: Augment, seed: int, batch_size: int = 500) -> Iterable[Tensor]:
    """Normalised batches of images (N, 3, 32, 32) uint8, augmented as in training, for `recalibrate_batch_norm`.

    The weights have learned to live with the statistics of augmented images, whose crops have grey borders: with
    those of the images as they are, the laptop student lost half a point on validation.
    """
    generator = torch.Generator(images.device).manual_seed(seed)
    for batch in images.split(batch_size):
        labels = torch.zeros(len(batch), dtype=torch.int64, device=batch.device)  # mixed like any other, and unused
        yield augment(batch, labels, config, generator)[0]
