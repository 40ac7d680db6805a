"""What a network computes of one map value by value, made one function of one value, however it is spelled.

`x * sigmoid(x)`, `x * F.relu6(x + 3) / 6` and `F.silu(x)` are the same to whoever stores a function as a table of
codes.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from micronet.compress.graph import Network
from micronet.compress.operations import call
from micronet.compress.pointwise import Pointwise, Term

UNARY = ("function", "clamp", "relu", "scale", "shift")
ABSORBED = ("function", "scale", "shift")  # what stands before a function alone goes into it: one table for all
PLACE = "activations.of_"  # begins the name of a function's module
REACH = 64  # operations that a value is followed back


def fuse(network: Network) -> Network:
    """The network with a `Pointwise` for each function of one value: activation functions, products of a value with
    what was made of it alone, and what stands before either of them alone. Its module is changed.
    """
    fusing = _Fusing(network)
    for node in reversed(list(network.module.graph.nodes)):
        fusing.visit(node)
    if not fusing.made:
        return network
    module = network.module
    module.graph.lint()
    module.recompile()
    module.delete_all_unused_submodules()
    modules = dict(module.named_modules())
    return replace(
        network,
        calls={node: call(node, modules) for node in module.graph.nodes},
        shapes={node: shape for node, shape in fusing.shapes.items() if node in set(module.graph.nodes)},
    )


def origin_name(node: fx.Node) -> str:
    """The name that the last operation of a function had."""
    return str(node.target).removeprefix(PLACE) if str(node.target).startswith(PLACE) else node.name


class _Fusing:
    """Walks a network back to front, so that what goes into a function is not looked at for itself."""

    def __init__(self, network: Network):
        self.module, self.graph = network.module, network.module.graph
        self.calls, self.shapes = network.calls, dict(network.shapes)
        self.made = 0
        # The values of which each one is a function, itself first, then ever earlier ones.
        self.sources: dict[fx.Node, tuple[fx.Node, ...]] = {}
        for node, found in self.calls.items():
            before = found.inputs[0] if found.kind in UNARY else None
            if found.kind in ("add", "product"):
                before = self._common(*found.inputs)
            self.sources[node] = (node, *(() if before is None else self.sources[before]))[:REACH]

    def visit(self, node: fx.Node) -> None:
        """Makes the function of which this node is the last operation, if it is one."""
        found = self.calls[node]
        if self.made and not node.users and found.kind in (*UNARY, "add", "product"):
            self.graph.erase_node(node)  # a function holds it
            return
        origin = self._origin(node)
        if origin is None or (found.kind == "function" and found.settings is None):
            return
        region = self._between(origin, node)
        while self.calls[origin].kind in (*ABSORBED, "product") and set(origin.users) <= region:
            before = self.calls[origin].inputs[0] if self.calls[origin].kind in ABSORBED else self._origin(origin)
            if before is None:
                break
            region |= self._between(before, origin)
            origin = before
        self._make(node, origin, [each for each in self.graph.nodes if each in region])

    def _origin(self, node: fx.Node) -> fx.Node | None:
        """The one value of which a function or a product is a function."""
        found = self.calls[node]
        if found.kind == "function":
            return found.inputs[0]
        return self._common(*found.inputs) if found.kind == "product" else None

    def _common(self, first: fx.Node, second: fx.Node) -> fx.Node | None:
        """The last value of which both are functions."""
        known = set(self.sources[second])
        return next((value for value in self.sources[first] if value in known), None)

    def _between(self, origin: fx.Node, node: fx.Node) -> set[fx.Node]:
        """The operations that make a value of its origin."""
        region: set[fx.Node] = set()
        waiting = [node]
        while waiting:
            each = waiting.pop()
            if each is not origin and each not in region:
                region.add(each)
                waiting += self.calls[each].inputs
        return region

    def _make(self, node: fx.Node, origin: fx.Node, region: list[fx.Node]) -> None:
        places = {origin: 0} | {each: place for place, each in enumerate(region, 1)}
        found = [self.calls[each] for each in region]
        terms = [Term(each.kind, each.settings, tuple(places[one] for one in each.inputs)) for each in found]
        name = PLACE + node.name
        self.module.add_submodule(name, Pointwise(terms))
        with self.graph.inserting_before(node):
            made = self.graph.call_module(name, (origin,))
        self.shapes[made] = self.shapes[node]
        node.replace_all_uses_with(made)
        self.graph.erase_node(node)
        self.made += 1
