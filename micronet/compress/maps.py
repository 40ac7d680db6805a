"""Values of a network as the packed model sees them: the map a vector was flattened from, the scale of its codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import fx

from micronet.compress.errors import QuantizationError
from micronet.compress.operations import Call

Map = tuple[int, int, int]


def maps_of(calls: Mapping[fx.Node, Call], shapes: Mapping[fx.Node, tuple[int, ...]]) -> dict[fx.Node, Map]:
    """The map (C, H, W) of every value; for a vector the map it was flattened from, or (C, 1, 1) if there is none.

    Args:
        shapes: of the nodes' outputs for one image, (C, H, W) or (C,).

    Raises:
        QuantizationError: vectors of different maps are joined, or a norm has one scale per place of a map.
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
    """Whether only factors and shifts stand between a linear layer and the network's output."""
    while len(node.users) == 1:
        (user,) = node.users
        if calls[user].kind == "output":
            return True
        if calls[user].kind not in ("scale", "shift"):
            return False
        node = user
    return False


Worth = tuple[fx.Node, float] | None
"""The real value of one code: the node whose quantizer sets it, and a factor. None: it differs between channels."""


def worth_of(
    node: fx.Node, calls: Mapping[fx.Node, Call], shapes: Mapping[fx.Node, tuple[int, ...]], known: dict[fx.Node, Worth]
) -> Worth:
    """The real value of one code of a value.

    Args:
        calls: of a network whose quantizers (not in `calls`) follow what they quantize.
        shapes: of the outputs of all nodes for one image, including quantizers.
        known: results so far; extended by this call.
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


# Kinds whose output has the codes of their input, or sums of them: the factor between the values of a code.
_SAME_CODES: dict[str, Callable[[Call, tuple[int, ...]], float]] = {
    **dict.fromkeys(("concat", "maximum", "flatten", "identity", "interleave"), lambda _found, _source: 1.0),
    "average": _of_average,
    "mean": lambda _found, source: 1 / math.prod(source[1:]),
    "scale": lambda found, _source: found.settings.factor,
}
