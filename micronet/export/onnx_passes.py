"""The passes that an image takes through the networks of a packed model, as one ONNX graph.

Images that go on are selected by their position in the batch, so a later network computes only those images, and
nothing if all are sure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from micronet.export.onnx_graph import IMAGE, Graph
from micronet.export.onnx_integers import Pass
from micronet.packed.model import PackedModel, shifts
from micronet.packed.steps import Step

Add = Callable[[Step, Pass], str]


def add_passes(model: PackedModel, graph: Graph, add: Add, exact: Any, logits: Any) -> None:
    """Adds every pass, and the output.

    Args:
        add: adds the nodes of a step.
        exact: the type in which the logits are summed.
        logits: the type of the output.
    """
    walk = Pass(graph, model.steps)
    last = len(model.networks) - 1
    total = _one_pass(model, 0, walk, add)
    for number, (end, shift) in enumerate(zip(model.ends, shifts(model.steps), strict=True), 1):
        if end.choice is None:
            break
        again = number > last
        layer = f"{end.name}.margin"
        going = _unsure(graph, layer, total, end.choice.margin, exact)
        seen = graph.node("Gather", layer, IMAGE, going, axis=0)
        if number % 2:
            seen = _mirrored(graph, layer, seen)
        second = replace(walk, image=seen, values={}, mark="mirrored/" if again else "")
        made = _one_pass(model, min(number, last), second, add)
        before = graph.node("Gather", layer, total, going, axis=0)
        both = [
            value if power <= 0 else graph.node("Mul", layer, value, graph.number(2.0**power, exact))
            for value, power in ((before, shift), (made, -shift))
        ]
        # The positions of the images in the form that ScatterND needs: one row each.
        rows = graph.node("Unsqueeze", layer, going, graph.constant("last", np.array([1])))
        total = graph.node("ScatterND", layer, total, rows, graph.node("Add", layer, *both))
    graph.finish(total, logits)


def _one_pass(model: PackedModel, network: int, walk: Pass, add: Add) -> str:
    """The logits of one network, (N, classes)."""
    made = walk.values[0] = add(model.steps[0], walk)
    for index in model.networks[network]:
        made = walk.values[index] = add(model.steps[index], walk)
    return made


def _unsure(graph: Graph, layer: str, total: str, margin: int, exact: Any) -> str:
    """The positions of the images whose two greatest logits are closer than the margin, (M,) int64."""
    greatest = graph.node("TopK", layer, total, graph.constant("two", np.array([2])), outputs=2, axis=1)
    first, second = (graph.node("Gather", layer, greatest, graph.number(place, np.int64), axis=1) for place in range(2))
    less = graph.node("Less", layer, graph.node("Sub", layer, first, second), graph.number(margin, exact))
    return graph.node("Squeeze", layer, graph.node("NonZero", layer, less), graph.constant("first", np.array([0])))


def _mirrored(graph: Graph, layer: str, images: str) -> str:
    """Columns from right to left."""
    names = {"end": [-1], "before": [np.iinfo(np.int64).min], "columns": [3], "back": [-1]}
    return graph.node("Slice", layer, images, *(graph.constant(name, np.array(value)) for name, value in names.items()))
