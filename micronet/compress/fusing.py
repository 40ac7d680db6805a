"""Fuses what a network computes from a map value by value into one function of one value, however it is spelled.

`x * sigmoid(x)`, `x * F.relu6(x + 3) / 6` and `F.silu(x)` are the same kind of thing once a function is stored as a
table of codes.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from micronet.compress.graph import Network
from micronet.compress.operations import call
from micronet.compress.pointwise import Pointwise, Term

UNARY = ("function", "clamp", "relu", "scale", "shift")
ABSORBED = ("function", "scale", "shift")  # fused into a function when nothing else reads them: one table for all
PLACE = "activations.of_"  # prefix of a function's module name
REACH = 64  # operations that a value is traced back


def fuse(network: Network) -> Network:
    """Gives each function of one value a `Pointwise`: activation functions, products of a value with something computed
    from it alone, and the operations before either that nothing else reads. The network's module is modified.
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
    """The original name of a function's last operation."""
    return str(node.target).removeprefix(PLACE) if str(node.target).startswith(PLACE) else node.name


class _Fusing:
    """Walks a network back to front, so that operations absorbed into a function are not visited by themselves."""

    def __init__(self, network: Network):
        self.module, self.graph = network.module, network.module.graph
        self.calls, self.shapes = network.calls, dict(network.shapes)
        self.made = 0
        # For each value, the values that it is a function of: itself first, then ever earlier ones.
        self.sources: dict[fx.Node, tuple[fx.Node, ...]] = {}
        for node, found in self.calls.items():
            before = found.inputs[0] if found.kind in UNARY else None
            if found.kind in ("add", "product"):
                before = self._common(*found.inputs)
            self.sources[node] = (node, *(() if before is None else self.sources[before]))[:REACH]

    def visit(self, node: fx.Node) -> None:
        """Builds the function that ends in this node, if there is one."""
        found = self.calls[node]
        if self.made and not node.users and found.kind in (*UNARY, "add", "product"):
            self.graph.erase_node(node)  # it is part of a function now
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
        """The one value that a function or a product depends on."""
        found = self.calls[node]
        if found.kind == "function":
            return found.inputs[0]
        return self._common(*found.inputs) if found.kind == "product" else None

    def _common(self, first: fx.Node, second: fx.Node) -> fx.Node | None:
        """The last value that both depend on."""
        known = set(self.sources[second])
        return next((value for value in self.sources[first] if value in known), None)

    def _between(self, origin: fx.Node, node: fx.Node) -> set[fx.Node]:
        """The operations that compute a value from its origin."""
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
