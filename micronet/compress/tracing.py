"""Traces a network into operations and keeps the value of each."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from micronet.compress.errors import QuantizationError
from micronet.compress.operations import DROPS, call
from micronet.compress.spellings import Mode
from micronet.errors import shown
from models.layers import Interleave


class _Proxy(fx.Proxy):
    """A value during tracing that knows its shape: all numbers, except the number of images.

    `y += x` writes into `y`; torch's own proxy treats it as `y = y + x`.
    """

    tracer: Tracer

    @property
    def shape(self) -> tuple[Any, ...]:
        value = self.tracer.values.get(self.node)
        if not isinstance(value, Tensor):
            raise AttributeError("shape")  # fx then records a node for it
        images = self.tracer.create_proxy("call_method", "size", (self, 0), {})
        return (images, *value.shape[1:])

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return len(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class Tracer(fx.Tracer):
    """Traces a network into operations of the table; an `Interleave` is one.

    Args:
        images: (N, C, H, W), which an in-place operation may change; then `values` holds what every node makes of them.
    """

    def __init__(self, images: Tensor | None = None):
        super().__init__()
        self.images, self.values = images, dict[fx.Node, Any]()
        self.mode = Mode()
        self.computing = False

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of what `root` does in eval mode; `mode` then says whether its forward tested the mode."""
        try:
            for module in root.modules():
                module.training = self.mode
            return super().trace(root, concrete_args)
        finally:
            root.eval()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Interleave) or super().is_leaf_module(m, module_qualified_name)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """fx searches all parameters for the name of the attribute; what a layer computes with has none."""
        return attr_val if self.computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What torch's own layers consist of is computed, not traced."""
        return forward(*args, **kwargs) if self.computing else super().call_module(m, forward, args, kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *arguments: Any, **named: Any) -> fx.Node:
        node = super().create_node(*arguments, **named)
        if node.target not in DROPS:  # only these may be passed the mode
            plain: Any = map_aggregate((node.args, node.kwargs), lambda one: False if isinstance(one, Mode) else one)
            node.args, node.kwargs = plain
        if self.images is not None and node.op != "output":
            self.values[node] = self._value(node)
        return node

    def _known(self, argument: Any) -> Any:
        """The value of an argument."""
        if isinstance(argument, fx.Node):
            return self.values[argument]
        return False if isinstance(argument, Mode) else argument

    def _value(self, node: fx.Node) -> Any:
        """The output of a node. Raises `QuantizationError` if its layer cannot take its input."""
        if node.op == "placeholder":
            return self.images
        args: Any = map_aggregate(node.args, self._known)
        kwargs: Any = map_aggregate(node.kwargs, self._known)
        self.computing = True
        try:
            with torch.no_grad():
                if node.op == "get_attr":
                    return operator.attrgetter(str(node.target))(self.root)
                if node.op == "call_function":
                    return node.target(*args, **kwargs)  # type: ignore[operator]
                if node.op == "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                return self._computed(self.root.get_submodule(str(node.target)), args, kwargs)
        except Exception as error:  # whatever torch raises for a map that does not fit
            call(node, dict(self.root.named_modules()))  # reports an unknown operation as such
            values = (self.values[source] for source in node.all_input_nodes)
            comes = " and ".join(str(tuple(value.shape[1:])) for value in values if isinstance(value, Tensor))
            reason = shown(str(error).partition("\n")[0], 150)
            raise QuantizationError(f"{place_of(node)}: cannot take what comes to it, {comes}: {reason}") from None
        finally:
            self.computing = False

    def _computed(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """The output of a layer in eval mode, without testing the mode of the trace."""
        parts = list(module.modules())
        for part in parts:
            part.training = False
        try:
            return type(module).forward(module, *args, **kwargs)  # a call of a module would be traced
        finally:
            for part in parts:
                part.training = self.mode  # type: ignore[assignment]


def place_of(node: fx.Node) -> str:
    """The name of a node in messages."""
    return str(node.target) if node.op == "call_module" else node.name
