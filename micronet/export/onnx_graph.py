"""An ONNX graph under construction: nodes and constants with unique names, and its file."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from micronet.packed.steps.geometry import Geometry

OPSET, IR_VERSION = 21, 10  # the first with 4-bit numbers
OPSET_OF_INT2, IR_VERSION_OF_INT2 = 25, 13
IMAGE, LOGITS, BATCH = "image", "logits", "N"

INTEGERS: tuple[tuple[int, Any, str], ...] = (
    (1, ml_dtypes.int2, "int2"),
    (7, ml_dtypes.int4, "int4"),
    (127, np.int8, "int8"),
)
"""(greatest magnitude of a code, the type that stores it, its name), from the smallest up."""


@dataclass
class Graph:
    """Nodes in order, and constants. A value has the name of the node that makes it."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)
    names: Counter[str] = field(default_factory=lambda: Counter([IMAGE, LOGITS]))
    known: dict[tuple[Any, ...], str] = field(default_factory=dict)
    stored: dict[str, tuple[int, str, int]] = field(default_factory=dict)  # {weight: (bits, type, how many)}

    def unique(self, name: str) -> str:
        """The name, with a number appended if it is taken."""
        found = name
        while found in self.names:
            self.names[name] += 1
            found = f"{name}.{self.names[name]}"
        self.names[found] = 1
        return found

    def node(self, op: str, layer: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Adds a node of a layer, `LAYER/OP`. Returns its first output."""
        name = self.unique(f"{layer}/{op}")
        more = [self.unique(f"{name}.output{place}") for place in range(1, outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), [name, *more], name=name, **attributes))
        return name

    def constant(self, name: str, array: Any) -> str:
        """Adds a constant; an existing one of this name and content is reused."""
        array = np.asarray(array)
        key = ("constant", name, str(array.dtype), array.shape, array.tobytes())
        if key not in self.known:
            self.known[key] = self.unique(name)
            self.constants[self.known[key]] = numpy_helper.from_array(array, self.known[key])
        return self.known[key]

    def number(self, value: Any, dtype: Any) -> str:
        """A constant that is one number, named by it."""
        return self.constant(f"{value:g}:{np.dtype(dtype).name}", np.array(value, dtype))

    def once(self, op: str, layer: str, *inputs: str, **attributes: Any) -> str:
        """Makes a node only once whose value may be needed several times."""
        key = (op, layer, inputs, tuple(sorted((name, str(value)) for name, value in attributes.items())))
        if key not in self.known:
            self.known[key] = self.node(op, layer, *inputs, **attributes)
        return self.known[key]

    def cast(self, value: str, layer: str, dtype: Any) -> str:
        """The value in another type."""
        return self.once("Cast", layer, value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def codes(self, codes: np.ndarray, bits: int, layer: str) -> str:
        """Weight codes in the smallest ONNX type that holds them; `bits`: their width in the packed file."""
        largest = int(np.abs(codes.astype(np.int64)).max(initial=0))
        kind, name = next((kind, name) for most, kind, name in INTEGERS if largest <= most)
        return self.weights(codes.astype(kind), bits, layer, name)

    def integers(self, codes: np.ndarray, bits: int, layer: str, dtype: Any) -> str:
        """Weight codes in a type for computing; runtimes fold the cast when they load the file."""
        return self.cast(self.codes(codes, bits, layer), f"{layer}.weight", dtype)

    def weights(self, numbers: np.ndarray, bits: int, layer: str, kind: str) -> str:
        """Weights as a constant, recorded for the table."""
        constant = self.constant(f"{layer}.weight", numbers)
        self.stored[constant] = bits, kind, numbers.size
        return constant

    def windows(self, value: str, layer: str, shape: tuple[int, int, int], geometry: Geometry, dtype: Any) -> str:
        """The windows on maps, (N, C, H, W) -> (N, C, H', kernel height, W', kernel width); 0 beyond the edges."""
        if geometry.padding != (0, 0):
            (top, left), zero = geometry.padding, self.number(0, dtype)
            sides = self.constant(f"{layer}.pads", np.array([0, 0, top, left] * 2, np.int64))
            value = self.node("Pad", layer, value, sides, zero)
        for axis, side in enumerate(geometry.size(shape)):
            padded = shape[1 + axis] + 2 * geometry.padding[axis]
            taps = np.arange(geometry.kernel[axis]) * geometry.dilation[axis]
            places = (np.arange(side)[:, None] * geometry.stride[axis] + taps).reshape(-1)
            if not np.array_equal(places, np.arange(padded)):
                chosen = self.constant(f"{layer}.places{axis}", places.astype(np.int64))
                value = self.node("Gather", layer, value, chosen, axis=2 + axis)
        (height, width), (down, right) = geometry.size(shape), geometry.kernel
        return self.reshape(value, layer, (shape[0], height, down, width, right))

    def reshape(self, value: str, layer: str, shape: tuple[int, ...]) -> str:
        """A value of N images in another shape, where N is left open."""
        return self.node("Reshape", layer, value, self.constant(f"{layer}.shape", np.array([0, *shape], np.int64)))

    def finish(self, value: str, dtype: Any) -> None:
        """Makes a value the output of the graph."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.nodes.append(helper.make_node("Cast", [value], [LOGITS], name=LOGITS, to=kind))

    def file(self, name: str, image: tuple[int, ...], classes: int, logits: Any, texts: dict[str, Any]) -> bytes:
        """The ONNX file, checked: one input, one output, any number of images, no external data."""
        given = helper.make_tensor_value_info(IMAGE, onnx.TensorProto.UINT8, [BATCH, *image])
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(logits))
        made = helper.make_tensor_value_info(LOGITS, kind, [BATCH, classes])
        nodes, constants = self._needed()
        graph = helper.make_graph(nodes, name, [given], [made], constants)
        two_bits = any(kind == "int2" for _, kind, _ in self.stored.values())
        opset, version = (OPSET_OF_INT2, IR_VERSION_OF_INT2) if two_bits else (OPSET, IR_VERSION)
        opsets = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name="micronet")
        said = {key: text if isinstance(text, str) else json.dumps(text) for key, text in texts.items()}
        helper.set_model_props(model, said)
        onnx.checker.check_model(model, full_check=True)
        return model.SerializeToString(deterministic=True)

    def _needed(self) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """The nodes and constants that the output depends on."""
        read, nodes = {LOGITS}, []
        for node in reversed(self.nodes):
            if not read.isdisjoint(node.output):
                read.update(node.input)
                nodes.append(node)
        return nodes[::-1], [constant for name, constant in self.constants.items() if name in read]
