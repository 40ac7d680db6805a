"""Values of a network as the packed model holds them: the map that a vector is of, what its codes are worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import fx

from micronet.compress.errors import QuantizationError
from micronet.compress.operations import Call

Map = tuple[int, int, int]


def maps_of(calls: Mapping[fx.Node, Call], shapes: Mapping[fx.Node, tuple[int, ...]]) -> dict[fx.Node, Map]:
    """The map (C, H, W) of every value: of a vector that which it is flattened from, (C, 1, 1) where there is none.

    Args:
        shapes: of what the nodes give for one image, (C, H, W) or (C,).

    Raises:
        QuantizationError: vectors of different maps are joined, or a norm has a scale for every place of a map.
    """
    found: dict[fx.Node, Map] = {}
    for node, read in calls.items():
        if read.kind != "output":
            found[node] = _map_of(read, shapes[node], [found[source] for source in read.inputs])
    return found


def _map_of(read: Call, shape: tuple[int, ...], sources: list[Map]) -> Map:
    if read.kind == "flatten" and len(shape) == 3 and shape != sources[0]:
        raise QuantizationError(
            f"{read.place}: makes {shape} of a flattened {sources[0]}, which cannot be packed; "
            "a global pool before the flatten would work"
        )
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    if read.kind in ("mean", "linear") or not sources:
        return shape[0], 1, 1
    height, width = sources[0][1:]
    joined = sources if read.kind != "concat" else [source[1:] for source in sources]
    if len(set(joined)) > 1:
        shapes = " and ".join(map(str, sources[:2]))
        raise QuantizationError(
            f"{read.place}: joins what {shapes} were flattened to, which cannot be packed; "
            "maps of one size, or a global pool before each flatten, would work"
        )
    if read.kind == "norm" and (height, width) != (1, 1):
        raise QuantizationError(
            f"{read.place}: a batch norm of a flattened map of {height} x {width} cannot be packed; "
            "one of the map's channels before the flatten, or behind the linear layer, would work"
        )
    return shape[0] // (height * width), height, width


def gives_logits(node: fx.Node, calls: Mapping[fx.Node, Call]) -> bool:
    """Whether nothing but a factor and a shift stands between a linear layer and the network's result."""
    while len(node.users) == 1:
        (user,) = node.users
        if calls[user].kind == "output":
            return True
        if calls[user].kind not in ("scale", "shift"):
            return False
        node = user
    return False


Worth = tuple[fx.Node, float] | None
"""What a code of every channel is worth: the node whose quantizer says so, and a factor. None: channels differ."""


def worth_of(
    node: fx.Node, calls: Mapping[fx.Node, Call], shapes: Mapping[fx.Node, tuple[int, ...]], known: dict[fx.Node, Worth]
) -> Worth:
    """What the codes of a value are worth.

    Args:
        calls: of a network whose quantizers, which these do not know, stand behind what they quantize.
        shapes: of what nodes give for one image, quantizers too.
        known: what was found before, and is now.
    """
    if node not in known:
        found, worth = calls.get(node), (node, 1.0)
        if found is None or found.kind not in _SAME_CODES:
            return worth
        each = {worth_of(source, calls, shapes, known) for source in node.all_input_nodes}
        one = each.pop()
        if one is not None and not each:
            factor = _SAME_CODES[found.kind](found, shapes[node.all_input_nodes[0]])
            known[node] = one[0], one[1] * factor
        else:
            known[node] = None
    return known[node]


def _of_average(found: Call, _source: tuple[int, ...]) -> float:
    window = found.settings
    return 1 / (window.divisor or math.prod(window.kernel))


# Kinds whose result has the codes that they read, or sums of them: by how much one is worth more.
_SAME_CODES: dict[str, Callable[[Call, tuple[int, ...]], float]] = {
    **dict.fromkeys(("concat", "maximum", "flatten", "identity", "interleave"), lambda _found, _source: 1.0),
    "average": _of_average,
    "mean": lambda _found, source: 1 / math.prod(source[1:]),
    "scale": lambda found, _source: found.settings.factor,
}
