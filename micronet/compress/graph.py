"""Reads a whole network: its traced graph in one form, in which everything that decides the result is explicit.

`read` traces a copy and brings it into a form in which every operation of the table (`compress.operations`) has one
meaning: no operation overwrites a value that another one reads, dimensions and shapes are numbers, `x + x` and `alpha`
become products, `nn.Identity` is removed. With real weights, the graph then computes what the network does, or is
refused.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from micronet.compress.errors import QuantizationError
from micronet.compress.operations import DROPS, Call, call
from micronet.compress.pointwise import TORCH
from micronet.compress.tracing import Tracer, place_of
from micronet.errors import MicronetError, shown
from micronet.training.weights import plain_weights
from models import own

IMAGE = (3, 32, 32)
BATCH = 7  # size of the batch that shapes are taken from: unlikely to equal any other dimension
CLOSE = 1e-4  # of the greatest logit: what the order of a sum may change

# Operations that write into their input, and their counterparts that do not.
_FUNCTIONAL = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    torch.relu_: torch.relu,
    F.relu_: F.relu,
}
# What a network may be wrapped in, by type name (importing torch.compile's would load the compiler), and where it is.
_WRAPPERS = {"DataParallel": ".module", "DistributedDataParallel": ".module", "OptimizedModule": "._orig_mod"}


@dataclass(frozen=True)
class Network:
    """A network as read by `read`."""

    module: fx.GraphModule  # a copy, in the form above, all of it in the network's mode (training, eval)
    image: tuple[int, int, int]  # (C, H, W) of its input
    calls: dict[fx.Node, Call]  # in the order of the graph
    shapes: dict[fx.Node, tuple[int, ...]]  # of the outputs for one image: (C, H, W) or (C,)
    asks_mode: bool  # its forward branches on `self.training`: the graph is what it does at inference


def read(model: nn.Module, *, image: tuple[int, int, int] = IMAGE, shapes_alone: bool = False) -> Network:
    """Reads a network of normalised images (N, C, H, W) -> logits (N, classes), which is left unchanged.

    Args:
        image: (C, H, W).
        shapes_alone: read what it does at inference, without `nn.Dropout`; weights may be on the meta device or of any
            type. Otherwise the graph's logits are compared with the network's own.

    Raises:
        QuantizationError: it cannot be traced, or it contains an operation or argument that is unknown or whose meaning
            the graph would lose; one line that names it.
    """
    _refuse_by_modules(model)
    shadow = _shadow(model, shapes_alone)
    images = _images(shadow, image)
    tracer = Tracer(images.clone())
    try:
        graph = tracer.trace(shadow)
    except QuantizationError:
        raise
    except Exception as error:  # a forward that branches on values fails in many ways
        reason = "its forward fails, or depends on values, which one graph cannot hold"
        raise QuantizationError(
            f"{type(model).__name__}: cannot be traced, {reason}: {shown(own.reason(error), 180)}"
        ) from None
    module = fx.GraphModule(shadow, graph)
    module.meta["spec"] = getattr(model, "meta", {}).get("spec", getattr(model, "spec", None))
    reader = _Reader(module, image, tracer, at_inference=shapes_alone)
    with torch.no_grad():
        if shapes_alone:
            return reader.read()
        wanted = shadow(images.clone())  # before in-place operations are replaced
        network = reader.read()
        _compare(network.module(images), wanted, type(model).__name__)
    module.train(model.training)
    return network


def _refuse_by_modules(model: nn.Module) -> None:
    """Refuses what tracing would not show, or would undo."""
    name = type(model).__name__
    if name in _WRAPPERS:
        raise QuantizationError(f"a {name} cannot be read, the network in it ({_WRAPPERS[name]}) would work")
    if isinstance(model, torch.jit.ScriptModule):
        raise QuantizationError(f"a {name} cannot be read, the module that it was made of would work")
    try:
        plain_weights(model)
    except MicronetError as error:
        raise QuantizationError(str(error)) from None
    owners: dict[int, str] = {}
    for place, module in model.named_modules():
        known = place or name
        if vars(module).get("_forward_hooks") or vars(module).get("_forward_pre_hooks"):
            raise QuantizationError(
                f"{known}: has a forward hook, which may change what it gives; the network without it would work "
                "(handle.remove())"
            )
        if "forward" in vars(module):
            raise QuantizationError(f"{known}: its forward was replaced on the object, a class of its own would work")
        for key, parameter in module.named_parameters(recurse=False):
            before = owners.setdefault(id(parameter), f"{place}.{key}")
            if before != f"{place}.{key}":
                raise QuantizationError(f"{place}.{key}: is the parameter {before} too, one for each place would work")
    for part, _ in model.named_children():
        if hasattr(fx.GraphModule, part) or part == "activations":
            raise QuantizationError(f"{part}: this name of a part is taken here, another one would work")


def _shadow(model: nn.Module, shapes_alone: bool) -> nn.Module:
    """A copy in eval mode whose forward takes only images; its other arguments keep their defaults."""
    kind = type(model)
    try:
        inspect.signature(kind.forward).bind(model, None)
    except (TypeError, ValueError):
        raise QuantizationError(
            f"{kind.__name__}: the model takes more than one input, a model of images alone would work"
        ) from None
    try:
        shadow = copy.deepcopy(model)
    except Exception as error:  # some attribute that cannot be copied
        raise QuantizationError(f"{kind.__name__}: cannot be copied: {shown(error, 200)}") from None
    if shapes_alone:
        _give_weights(shadow)
    floats = {str(parameter.dtype) for parameter in shadow.parameters() if not parameter.is_meta} - {"torch.float32"}
    if floats:
        raise QuantizationError(f"{kind.__name__}: its weights are {floats.pop()}, those of model.float() would work")

    def forward(self: nn.Module, images: Tensor) -> Tensor:
        return kind.forward(self, images)

    shadow.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    return shadow.eval()


def _give_weights(model: nn.Module) -> None:
    """Makes a network computable whose weights are missing or not float32: on the meta device, torch would need its
    compiler, which takes longer to load than a small network takes to run."""
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        model.to_empty(device="cpu")
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.detach().zero_()
    model.float()


def _images(model: nn.Module, image: tuple[int, int, int]) -> Tensor:
    """Random images, on the network's device; drawn without torch's own generator."""
    first = next(model.parameters(), torch.zeros(0, device="cpu"))
    # On the network's device, wherever a caller's `with torch.device(...)` would put new tensors.
    return torch.randn(BATCH, *image, generator=torch.Generator().manual_seed(0), device="cpu").to(first.device)


def _compare(got: Tensor, wanted: Tensor, name: str) -> None:
    """Refuses a network whose graph gives different logits."""
    finite = wanted.isfinite()
    most = wanted[finite].abs().max() if finite.any() else wanted.new_zeros(())
    if not torch.equal(finite, got.isfinite()) or ((got - wanted).abs()[finite] > CLOSE * most).any():
        raise QuantizationError(
            f"{name}: its graph computes something else than the network itself, which is random, keeps a state or "
            "depends on values; one that gives the same for the same images would work"
        )


class _Reader:
    """Brings a traced graph into the form of `read`. A kind that has several forms has a method named after it."""

    def __init__(self, module: fx.GraphModule, image: tuple[int, int, int], tracer: Tracer, at_inference: bool):
        self.module, self.graph, self.image = module, module.graph, image
        self.at_inference = at_inference
        self.absent = (nn.Identity, *DROPS.values()) if at_inference else (nn.Identity,)
        self.modules = dict(module.named_modules())
        self.values, self.asks_mode = tracer.values, tracer.mode.asked
        # The number of images, and what is computed from it.
        self.numbers = {node: None for node, value in self.values.items() if not isinstance(value, Tensor)}
        self.places = {node: place for place, node in enumerate(self.graph.nodes)}
        self.memories: dict[fx.Node, fx.Node] = {}  # node: the node whose memory it may share
        self.holders: dict[fx.Node, list[fx.Node]] = defaultdict(list)  # and the reverse

    def read(self) -> Network:
        """The network in its final form. Call once."""
        self._check_values()
        for visit in (self._erase_identity, self._write_nowhere, self._settle):
            for node in list(self.graph.nodes):
                if node not in self.numbers:
                    visit(node, self._call(node))
        self._erase_numbers()
        self.graph.eliminate_dead_code()
        self.module.delete_all_unused_submodules()
        self.graph.lint()
        self.module.recompile()
        self.modules = dict(self.module.named_modules())
        calls = {node: call(node, self.modules) for node in self.graph.nodes}
        self._check_layers(calls)
        shapes = {node: tuple(self.values[node].shape[1:]) for node in self.graph.nodes if node.op != "output"}
        return Network(self.module, self.image, calls, shapes, self.asks_mode)

    def _call(self, node: fx.Node) -> Call:
        if node.op == "get_attr":
            raise QuantizationError(
                f"{node.target}: a buffer or parameter that is read by itself cannot be packed; "
                "one of a convolution, linear layer or batch norm would work"
            )
        return call(node, self.modules)

    def _check_values(self) -> None:
        """Checks that there is one input and one output, and that every value is computed image by image."""
        if [node.op for node in self.graph.nodes].count("placeholder") != 1:
            raise QuantizationError("the model takes more than one input, a model of images alone would work")
        output = next(reversed(self.graph.nodes))
        result = output.args[0]
        if not isinstance(result, fx.Node) or result in self.numbers:
            what = "number" if isinstance(result, fx.Node) else type(result).__name__
            raise QuantizationError(f"the model gives a {what}, logits (N, classes) alone would work")
        for node in self.graph.nodes:
            if node.op == "get_attr":
                self._call(node)
        for node, value in self.values.items():
            if node not in self.numbers:
                found = self._call(node)
                on_the_way = value.dim() == 3 and found.kind == "flatten"  # from (N, C) to (N, C, 1, 1)
                if not (value.dim() in (2, 4) or on_the_way) or len(value) != BATCH:
                    shape = ", ".join(["N", *map(str, value.shape[1:])]) if len(value) == BATCH else str(value.shape)
                    raise QuantizationError(
                        f"{place_of(node)}: gives ({shape}), maps (N, C, H, W) or vectors (N, C) would work"
                    )

    def _erase(self, node: fx.Node, becomes: fx.Node) -> None:
        node.replace_all_uses_with(becomes)
        self.graph.erase_node(node)

    def _erase_identity(self, node: fx.Node, found: Call) -> None:
        if isinstance(found.module, self.absent):
            self._erase(node, found.inputs[0])

    def _write_nowhere(self, node: fx.Node, found: Call) -> None:
        """Replaces in-place writes: later readers of the overwritten value read the result instead.

        Raises:
            QuantizationError: the same memory is read later under another name.
        """
        if found.read.in_place:
            self._give_to_late_readers(node, found)
            self._in_a_new_place(node, found)
        if node.prev.next is node:  # else it has been removed
            self.holders[self._memory(node)].append(node)

    def _give_to_late_readers(self, node: fx.Node, found: Call) -> None:
        written = found.inputs[0]
        for other in self.holders[self._memory(written)]:
            late = [user for user in other.users if self.places[user] > self.places[node]]
            if late and other is not written:
                raise QuantizationError(
                    f"{found.place}: writes into memory that {place_of(late[0])} reads later by another name, "
                    "an operation that is not in place would work"
                )
            for user in late:
                user.replace_input_with(other, node)

    def _memory(self, node: fx.Node) -> fx.Node:
        """The node whose memory a node's value may share; the result of a former in-place operation has its own. Call
        it on nodes in graph order, once they are in their final form."""
        if node not in self.memories:
            found = self._call(node)
            shares = found.kind in ("identity", "flatten") and node.target not in (torch.clone, "clone")
            self.memories[node] = self._memory(found.inputs[0]) if shares else node
        return self.memories[node]

    def _in_a_new_place(self, node: fx.Node, found: Call) -> None:
        """Replaces an operation that writes into its input by one that does not."""
        if found.kind in ("function", "clamp"):
            self._settle(node, found)
        elif found.module is not None:
            found.module.inplace = False
        elif node.op == "call_method":
            node.target = str(node.target).removesuffix("_")
        elif node.target in _FUNCTIONAL:
            node.target = _FUNCTIONAL[node.target]  # type: ignore[assignment]
        elif found.kind == "identity":  # F.dropout with inplace=True
            self._settle_identity(node, found)
        else:  # F.relu with inplace=True
            node.args, node.kwargs = found.inputs, {}

    def _settle(self, node: fx.Node, found: Call) -> None:
        if found.module is not None:  # however its input was passed
            node.args, node.kwargs = found.inputs, {}
        settle = getattr(self, f"_settle_{found.kind}", None)
        if settle is not None:
            settle(node, found)

    def _function(self, node: fx.Node, function: Callable, *arguments: Any, **named: Any) -> None:
        """Turns a node into a call of a function."""
        node.op, node.target, node.args, node.kwargs = "call_function", function, arguments, named

    def _settle_concat(self, node: fx.Node, found: Call) -> None:
        if found.settings.dimension % self.values[node].dim() != 1:
            raise QuantizationError(
                f"{found.place}: concatenates along another dimension than the channels, 1 would work"
            )
        self._function(node, torch.cat, list(found.inputs), 1)

    def _settle_mean(self, node: fx.Node, found: Call) -> None:
        (source,), given = found.inputs, found.settings.dimensions
        self._check_whole_map(found)
        if given:
            named = {"keepdim": True} if found.settings.keeps else {}
            self._function(node, torch.mean, source, (2, 3), **named)

    def _check_whole_map(self, found: Call) -> None:
        (source,), given = found.inputs, found.settings.dimensions
        if self.values[source].dim() != 4 or (given and sorted(dim % 4 for dim in given) != [2, 3]):
            what = "maximum" if found.kind == "global_maximum" else found.kind
            raise QuantizationError(f"{found.place}: only a {what} over height and width is known, dimensions (2, 3)")

    def _settle_global_maximum(self, node: fx.Node, found: Call) -> None:
        """A maximum over windows that cover the map."""
        (source,) = found.inputs
        self._check_whole_map(found)
        sides = tuple(self.values[source].shape[2:])
        if found.settings.keeps:
            self._function(node, F.max_pool2d, source, sides)
            return
        with self.graph.inserting_before(node):
            greatest = self.graph.call_function(F.max_pool2d, (source, sides))
        self.values[greatest] = self.values[node][:, :, None, None]
        self._function(node, torch.flatten, greatest, 1)

    def _settle_flatten(self, node: fx.Node, found: Call) -> None:
        (source,) = found.inputs
        before, after = self.values[source].shape, self.values[node].shape
        if after == before:
            self._erase(node, source)
        elif after == (BATCH, before[1:].numel()):
            self._function(node, torch.flatten, source, 1)
        elif after == (*before, 1) and {self._call(user).kind for user in node.users} == {"flatten"}:
            self._erase(node, source)
        elif after == (*before, 1, 1):
            self._function(node, torch.reshape, source, (-1, *after[1:]))
        else:
            raise QuantizationError(
                f"{found.place}: makes {tuple(after[1:])} of {tuple(before[1:])}, which is not known; "
                "a vector would work"
            )

    def _settle_function(self, node: fx.Node, found: Call) -> None:
        function = found.settings
        if function is not None:
            torch_function, told = TORCH[function.name]
            self._function(node, torch_function, found.inputs[0], *function.constants, **told)

    def _settle_clamp(self, node: fx.Node, found: Call) -> None:
        (source,), ends = found.inputs, found.settings
        if (ends.low, ends.high) == (0, None):
            self._function(node, F.relu, source)
        elif (ends.low, ends.high) == (None, None):
            self._erase(node, source)
        else:
            self._function(node, torch.clamp, source, ends.low, ends.high)

    def _settle_shift(self, node: fx.Node, found: Call) -> None:
        (source,), line = found.inputs, found.settings
        if line.factor != 1:
            with self.graph.inserting_before(node):
                product = self.graph.call_function(operator.mul, (source, line.factor))
            self.values[product], source = self.values[source], product
        self._function(node, operator.add, source, line.offset)

    def _settle_product(self, node: fx.Node, found: Call) -> None:
        """The map comes first; its factor, of the same shape or one number per channel, second."""
        if set(found.inputs) & set(self.numbers):
            return
        first, second = sorted(found.inputs, key=lambda value: -self.values[value].numel())
        shape, other = self.values[first].shape, self.values[second].shape
        if other not in (shape, (*shape[:2], *(1,) * (len(shape) - 2))):
            shapes = " and ".join(str(tuple(each[1:])) for each in (shape, other))
            raise QuantizationError(
                f"{found.place}: multiplies {shapes}, which is not known; two of one shape, or a map and one number a "
                "channel would work"
            )
        self._function(node, operator.mul, first, second)

    def _settle_add(self, node: fx.Node, found: Call) -> None:
        (first, second), alpha = found.inputs, found.settings.alpha
        if set(found.inputs) & set(self.numbers):
            return
        if self.values[first].shape != self.values[second].shape:
            shapes = " and ".join(str(tuple(self.values[value].shape[1:])) for value in (first, second))
            raise QuantizationError(f"{found.place}: adds {shapes}, which is not known; two of one shape would work")
        if first is second:
            self._function(node, operator.mul, first, 1 + alpha)
        elif alpha != 1:
            with self.graph.inserting_before(node):
                product = self.graph.call_function(operator.mul, (second, alpha))
            self.values[product] = self.values[second]
            self._function(node, operator.add, first, product)

    def _settle_identity(self, node: fx.Node, found: Call) -> None:
        if found.module is not None:
            return
        if node.target not in DROPS or found.settings is None or self.at_inference:
            self._erase(node, found.inputs[0])  # a copy changes nothing
            return
        place = f"{node.name}_module"
        while hasattr(self.module, place):
            place += "_"
        self.module.add_submodule(place, DROPS[node.target](found.settings).eval())
        self.modules = dict(self.module.named_modules())
        node.op, node.target, node.args, node.kwargs = "call_module", place, found.inputs, {}

    def _erase_numbers(self) -> None:
        """Removes the nodes that compute sizes; refuses an operation that still uses one."""
        for node in reversed(list(self.numbers)):
            if node.users:
                user = next(iter(node.users))
                raise QuantizationError(
                    f"{place_of(user)}: computes with {node.name}, a number of images; another number would work"
                )
            self.graph.erase_node(node)

    @staticmethod
    def _check_layers(calls: dict[fx.Node, Call]) -> None:
        places = [found.place for found in calls.values() if found.kind in ("conv", "linear", "norm")]
        for place in places:
            if places.count(place) > 1:
                raise QuantizationError(f"{place}: is used twice, a layer for each place would work")
