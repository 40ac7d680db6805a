"""Networks whose weights and activations take few values, trained with the quantizers in place.

`prepare` copies a model, traces it and inserts quantizers: on the weight of every convolution and linear layer, on
the image, after every ReLU, and on results without a ReLU (into a concatenation, a pool, or through a projection
shortcut). A branch that ends in a residual addition is not quantized before it: the packed model requantizes once,
after addition and ReLU. Batch norms stay as they are during training; `micronet.packed.packing` turns them into
multipliers. `micronet.compress.methods` says which quantizers are used.

`fx_int8` trains and calibrates in torch's FX graph mode (`micronet.compress.fx_int8`); `finish` converts the result
to the same form.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import fx, nn

from micronet.compress import fx_int8
from micronet.compress.errors import QuantizationError
from micronet.compress.fusing import fuse, origin_name
from micronet.compress.graph import IMAGE, Network, read
from micronet.compress.maps import Worth, gives_logits, maps_of, worth_of
from micronet.compress.methods import METHODS
from micronet.compress.operations import OPERATIONS, kind, packable
from micronet.compress.pointwise import SlopesBelow, never_negative
from micronet.compress.quantizers import SMALLEST_STEP, LsqActivation, QuantizedConv2d, QuantizedLinear
from micronet.errors import shown
from micronet.params import Quantize


def prepare(model: nn.Module, quantize: Quantize, image: tuple[int, int, int] = IMAGE) -> fx.GraphModule:
    """A copy of a model with quantizers, the same plain parameter names, `meta["spec"]` and `meta["image"]`.

    Input and output are the model's: normalised images (N, C, H, W) -> logits (N, classes). The steps of its
    activation quantizers are a guess until `calibrate` has seen images.

    Args:
        image: (C, H, W).

    Raises:
        QuantizationError: the network cannot be read, an operation could not be packed later, or `layer_bits` names a
            layer that does not exist or bits that the method does not have.
    """
    if quantize.method == "fx_int8" and set(quantize.layer_bits.values()) - {8}:
        name, bits = next((name, bits) for name, bits in quantize.layer_bits.items() if bits != 8)
        raise QuantizationError(
            f"quantize.layer_bits: {shown(name, 60)}: fx_int8 has 8 bits in every layer (got {bits}); lsq would work"
        )
    network = read(model, image=image)
    prepared = _Rewriter(network, quantize).rewrite()
    prepared.meta["asks_mode"] = network.asks_mode
    if quantize.method != "fx_int8":
        return prepared
    trained = fx_int8.prepare_fx(read(model, image=image).module, image)
    trained.meta |= prepared.meta
    finish(trained)  # refuses now what could not be translated later
    return trained


@dataclass(frozen=True)
class _Real:
    """A result that is not quantized yet."""

    followers: tuple[str, ...]  # kinds that may be merged with it into one step of the packed model
    kernel: tuple[float, float] = (math.inf, math.inf)  # of the convolution that it comes from
    function: bool = False  # it is the result of a function of one value
    signed: bool = True  # it may be negative


class _Rewriter:
    """Inserts quantizers into the graph of a model's copy, front to back; each step of the packed model ends in one.

    A kind of operation that gives an unquantized result, or takes one, has a method named after it.
    """

    def __init__(self, network: Network, quantize: Quantize):
        self.quantize, self.method = quantize, METHODS[quantize.method](quantize)
        self.half = quantize.method == "half"
        network = network if self.half else fuse(network)
        self.prepared = network.module
        self.prepared.meta |= {"quantize": quantize.model_dump(mode="json"), "image": network.image}
        self.graph = self.prepared.graph
        self.modules: dict[Any, Any] = dict(self.prepared.named_modules())  # by target; their attributes vary
        self.calls = {node: packable(node, self.modules) for node in self.graph.nodes}
        self.shapes = dict(network.shapes)
        maps_of(self.calls, self.shapes)  # refuses values without a map
        self.worths: dict[fx.Node, Worth] = {}
        self.real: dict[fx.Node, _Real] = {}
        self.logits: set[fx.Node] = set()

    def rewrite(self) -> fx.GraphModule:
        """The copy, with quantizers. Call once."""
        self._weights()
        for node in list(self.graph.nodes):
            visit = getattr(self, f"_visit_{self.calls[node].kind}", None)
            if visit is not None:
                visit(node)
            if node in self.real and not self._stays_real(node):
                self._insert(node)
        self.graph.eliminate_dead_code()
        self.prepared.delete_all_unused_submodules()
        self.graph.lint()
        self.prepared.recompile()
        return self.prepared

    def _weights(self) -> None:
        """Gives every layer a weight quantizer."""
        layers = [found.place for found in self.calls.values() if found.kind in ("conv", "linear")]
        ends = {found.place for node, found in self.calls.items() if self._ends(node)}
        for name in self.quantize.layer_bits:
            if name not in layers:
                known = shown(", ".join(layers), 120)
                way = "the student's own names, or none, would work"
                said = f"there is no layer {shown(name, 40)!r} in the student (there are {known}); {way}"
                raise QuantizationError(f"quantize.layer_bits: {said}")
        for name in layers:
            edge, logits = name in (layers[0], layers[-1]), name in ends
            quantizer = self.method.weight(name, self.modules[name], edge=edge, logits=logits)
            parent, _, leaf = name.rpartition(".")
            setattr(self.prepared.get_submodule(parent), leaf, _quantized(self.modules[name], quantizer))

    def _stays_real(self, node: fx.Node) -> bool:
        """Whether a result has a single user, which the packed model computes in the same step."""
        users = [self.calls[user].kind for user in node.users]
        if self.half and users == ["clamp"]:  # floats have no code range that could clamp
            return False
        return len(users) == 1 and users[0] in self.real[node].followers

    def _insert(self, after: fx.Node) -> None:
        """Quantizes an unquantized result."""
        real, users = self.real.pop(after), [self.calls[user].kind for user in after.users]
        if real.function:
            quantizer = self.method.result(real.signed)
        elif users and set(users) <= _OF_ONE_VALUE:
            quantizer = self.method.argument()
        else:
            quantizer = self.method.activation(signed=True)
        self._call(after, after.name, quantizer, after)

    def _call(self, after: fx.Node, name: str, quantizer: nn.Module, source: fx.Node) -> None:
        """Inserts a quantizer of `source` behind a node; the node's users now read the quantizer."""
        self.prepared.add_submodule(f"activations.{name}", quantizer)
        with self.graph.inserting_after(after):
            node = self.graph.call_module(f"activations.{name}")
        after.replace_all_uses_with(node)
        node.args = (source,)
        self.shapes[node] = self.shapes[source]

    def _same_worth(self, source: fx.Node, user: fx.Node) -> None:
        """Gives a dot product or an addition codes of one scale: a concatenation's may differ between channels."""
        worth = worth_of(source, self.calls, self.shapes, self.worths)
        if self.quantize.method == "half" or worth is not None:
            return
        name = f"activations.{user.name}_input"
        self.prepared.add_submodule(name, self.method.activation(signed=True))
        with self.graph.inserting_before(user):
            quantized = self.graph.call_module(name, (source,))
        user.replace_input_with(source, quantized)
        self.shapes[quantized] = self.shapes[source]

    def _visit_input(self, node: fx.Node) -> None:
        quantizer = self.method.image()
        if quantizer is not None:
            self._call(node, "image", quantizer, node)

    def _visit_conv(self, node: fx.Node) -> None:
        self._same_worth(node.all_input_nodes[0], node)
        self.real[node] = _Real(self.calls[node].operation.followers, self.modules[node.target].kernel_size)

    def _visit_norm(self, node: fx.Node) -> None:
        before = self.real.pop(node.all_input_nodes[0], _Real(()))
        self.real[node] = _Real(self.calls[node].operation.followers, before.kernel)

    def _visit_identity(self, node: fx.Node) -> None:
        before = self.real.pop(node.all_input_nodes[0], None)
        if before is not None:
            self.real[node] = before

    def _visit_shift(self, node: fx.Node) -> None:
        """The number is added to the bias of the operation before it."""
        source, following = node.all_input_nodes[0], self.calls[node].operation.followers
        if source in self.logits:
            self.logits.add(node)
            return
        if self.quantize.method == "fx_int8":
            self._refuse(node, "FX graph mode does not observe the range of a sum with a number, lsq would work")
        before = self.real.pop(source, None)
        followers = following if before is None or not before.function else before.followers
        self.real[node] = replace(before, followers=followers, signed=True) if before else _Real(followers)

    def _visit_function(self, node: fx.Node) -> None:
        if self.calls[node].kind == "function" and self.half:
            self.real[node] = _Real((), function=True)  # each function is a step of its own
            return
        self._argument(node)
        signed = not never_negative(self.modules[node.target]) if self.calls[node].kind == "function" else True
        self.real[node] = _Real(self.calls[node].operation.followers, function=True, signed=signed)

    def _argument(self, node: fx.Node) -> None:
        """Gives a function codes of one scale, few enough for a table."""
        source = node.all_input_nodes[0]
        if self.half or isinstance(self._module(source), LsqActivation):
            return
        self.prepared.add_submodule(f"activations.{node.name}_argument", self.method.argument())
        with self.graph.inserting_before(node):
            quantized = self.graph.call_module(f"activations.{node.name}_argument", (source,))
        node.replace_input_with(source, quantized)
        self.shapes[quantized] = self.shapes[source]

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.prepared.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _visit_prelu(self, node: fx.Node) -> None:
        """With one slope it is a function of one value; with one per channel, x plus a gain of relu(-x)."""
        if self.quantize.method == "fx_int8":
            self._refuse(node, "FX graph mode does not train the slopes of a PReLU here, lsq would work")
        layer = self.modules[node.target]
        if layer.weight.numel() == 1 and not self.half:
            self._argument(node)
            self.real[node] = _Real(_FOLLOWERS["function"], function=True)
            return
        self._argument(node)
        (source,), part = node.all_input_nodes, f"activations.{node.name}_below"
        self.prepared.add_submodule(part, self.method.part())
        name = str(node.target)
        parent, _, leaf = name.rpartition(".")
        setattr(self.prepared.get_submodule(parent), leaf, SlopesBelow.of(layer))
        with self.graph.inserting_before(node):
            negative = self.graph.call_function(operator.mul, (source, -1.0))
            below = self.graph.call_module(name, (self.graph.call_module(part, (negative,)),))
        node.op, node.target, node.args, node.kwargs = "call_function", operator.add, (below, source), {}
        self.real[node] = _Real(_FOLLOWERS["add"])

    def _visit_product(self, node: fx.Node) -> None:
        if self.quantize.method == "fx_int8":
            self._refuse(node, "FX graph mode does not observe the range of a product, lsq would work")
        self.real[node] = _Real(self.calls[node].operation.followers)

    def _visit_scale(self, node: fx.Node) -> None:
        """The factor is merged into what it scales; a code range keeps its sign."""
        source, scale = node.all_input_nodes[0], self.calls[node]
        if source in self.logits:
            if scale.settings.factor <= 0:
                self._refuse(node, "turns the order of the logits, a positive factor would work")
            self.logits.add(node)
        elif self.quantize.method == "fx_int8":  # FX graph mode gives the product the range of its input
            self._refuse(node, "FX graph mode does not observe the range of a product, lsq would work")
        elif source in self.real:
            before = self.real.pop(source)
            followers = before.followers if before.function else scale.operation.followers
            signed = before.signed or scale.settings.factor < 0
            self.real[node] = replace(before, followers=followers, signed=signed)
        elif scale.settings.factor <= 0:
            self.real[node] = _Real(scale.operation.followers)

    def _ends(self, node: fx.Node) -> bool:
        return self.calls[node].kind == "linear" and gives_logits(node, self.calls)

    def _visit_linear(self, node: fx.Node) -> None:
        source = self.shapes[node.all_input_nodes[0]]
        if len(source) > 1:
            self._refuse(node, f"a linear layer packs on vectors, not on maps {source}; a flatten before would work")
        self._same_worth(node.all_input_nodes[0], node)
        if self._ends(node):
            self.logits.add(node)
        else:
            self.real[node] = _Real(self.calls[node].operation.followers)

    def _visit_average(self, node: fx.Node) -> None:
        if self.shapes[node][1:] != self.calls[node].settings.size(self.shapes[node.all_input_nodes[0]][1:]):
            self._refuse(node, "windows that the edge cuts cannot be packed, ceil_mode=False would work")

    def _visit_output(self, node: fx.Node) -> None:
        if node.args[0] not in self.logits:
            raise QuantizationError("the model does not end in a linear layer; one that gives (N, classes) would work")

    def _refuse(self, node: fx.Node, reason: str) -> NoReturn:
        raise QuantizationError(f"{self.calls[node].place}: {reason}")

    def _visit_maximum(self, node: fx.Node) -> None:
        self._visit_average(node)
        window, source = self.calls[node].settings, node.all_input_nodes[0]
        before = self.real.pop(source, None)
        if before is not None:
            own = self.calls[node].operation.followers
            of_sums = not self.half and self.calls[source].kind == "conv"
            if not (of_sums and window.apart and window.kernel[0] == window.kernel[1]):
                # Other maxima are taken over codes, whose order a norm with a negative gain would reverse.
                own = tuple(name for name in own if name != "norm")
            self.real[node] = _Real(tuple(name for name in before.followers if name in own), before.kernel)

    def _visit_add(self, node: fx.Node) -> None:
        waiting = [value for value in node.all_input_nodes if value in self.real]
        if len(waiting) < 2:
            main = next(iter(waiting), node.all_input_nodes[0])
            self._same_worth(next(value for value in node.all_input_nodes if value is not main), node)
        if len(waiting) == 2:
            # Quantize the shortcut's projection, which has the smaller kernel; failing that, the second operand.
            first, second = waiting
            self._insert(first if self.real[first].kernel < self.real[second].kernel else second)
        for value in waiting:
            self.real.pop(value, None)
        self.real[node] = _Real(self.calls[node].operation.followers)

    def _visit_relu(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        self.real.pop(source, None)
        self._call(node, node.name, self.method.activation(signed=False), source)
        self.graph.erase_node(node)

    def _visit_clamp(self, node: fx.Node) -> None:
        if self.half:
            self.real[node] = _Real((), function=True)
            return
        source = node.all_input_nodes[0]
        self.real.pop(source, None)
        self._call(node, node.name, self.method.cut(self.calls[node].settings), source)
        self.graph.erase_node(node)


_FOLLOWERS = {known.kind: known.followers for known in OPERATIONS}
_OF_ONE_VALUE = {"function", "prelu"}


def _quantized(module: nn.Conv2d | nn.Linear, quantizer: nn.Module) -> nn.Module:
    """The same layer with a weight quantizer; it shares the parameters."""
    new = module.__class__.__new__(QuantizedConv2d if isinstance(module, nn.Conv2d) else QuantizedLinear)
    new.__dict__ = dict(module.__dict__, _modules={"quantizer": quantizer})
    return new


@torch.no_grad()
def finish(prepared: fx.GraphModule) -> fx.GraphModule:
    """A trained result of `prepare` in the form that packs: unchanged, or translated from FX graph mode.

    A translated convolution has its batch norm's gain in its weight, as FX graph mode quantizes it, and is followed by
    a norm that only adds. Ranges without a ReLU become symmetric.
    """
    if "float_model" not in prepared.meta:
        return prepared
    quantize = Quantize.model_validate(prepared.meta["quantize"])
    float_model = read(prepared.meta["float_model"], image=prepared.meta["image"])
    result = _Rewriter(float_model, quantize).rewrite().eval()
    modules: dict[Any, Any] = dict(result.named_modules())
    for node in result.graph.nodes:
        translate = _TRANSLATIONS.get(kind(node, modules))
        if translate is not None:
            translate(node, modules, prepared)
    return result


def _translate_layer(node: fx.Node, modules: dict[Any, Any], trained: fx.GraphModule) -> None:
    weight, bias, folded = fx_int8.trained_layer(trained, str(node.target))
    layer = modules[node.target]
    if folded is not None:
        assert folded.running_mean is not None and folded.running_var is not None
        gain = folded.weight / torch.sqrt(folded.running_var + folded.eps)
        weight = weight * gain.reshape(-1, *(1,) * (weight.dim() - 1))
        bias = None if bias is None else bias * gain
        after = modules[next(iter(node.users)).target]
        offset = folded.bias - folded.running_mean * gain
        after.running_var.fill_(1.0 - after.eps)
        if after.affine:
            after.weight.fill_(1.0)
            after.running_mean.zero_()
            after.bias.copy_(offset)
        else:
            after.running_mean.copy_(-offset)
    layer.weight.copy_(weight)
    if bias is not None:
        layer.bias.copy_(bias)
    layer.quantizer.step.fill_(max(float(weight.abs().max()) / layer.quantizer.high, SMALLEST_STEP))


def _translate_norm(node: fx.Node, modules: dict[Any, Any], trained: fx.GraphModule) -> None:
    source, folded = node.all_input_nodes[0], None
    if kind(source, modules) in ("conv", "linear"):
        folded = fx_int8.trained_layer(trained, str(source.target))[2]
    if folded is None:
        norm, found = modules[node.target], fx_int8.trained_norm(trained, str(node.target)).state_dict()
        norm.load_state_dict({key: found[key] for key in norm.state_dict()})


def _translate_activation(node: fx.Node, modules: dict[Any, Any], trained: fx.GraphModule) -> None:
    before, quantizer = node.all_input_nodes[0], modules[node.target]
    names = [str(node.target).removeprefix("activations."), origin_name(before), str(before.target)]
    names[0] = names[0].removeprefix("activations_of_")
    if kind(before, modules) == "norm":
        names.append(str(before.all_input_nodes[0].target))
    low, high = fx_int8.observed_range(trained, names)
    most = max(-low, high) if quantizer.signed else high
    quantizer.step.fill_(max(most / quantizer.high, SMALLEST_STEP))


_TRANSLATIONS = {
    "conv": _translate_layer,
    "linear": _translate_layer,
    "norm": _translate_norm,
    "activation": _translate_activation,
}
