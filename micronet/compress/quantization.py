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

import torch
from torch import fx, nn

from micronet.compress import fx_int8
from micronet.compress.operations import PackError, Tracer, kind
from micronet.compress.quantizers import (
    SMALLEST_STEP,
    BinaryWeight,
    FloatActivation,
    HalfWeight,
    InputCodes,
    LsqActivation,
    LsqWeight,
    QuantizedConv2d,
    QuantizedLinear,
)
from micronet.params import Quantize

SIGNED_BITS = 8  # of results that go on without a ReLU: they feed additions and norms, never a weighted sum


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
    graph = Tracer().trace(model)
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
