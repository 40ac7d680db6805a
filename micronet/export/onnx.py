"""A packed model as ONNX: once in its exact integers, once between QuantizeLinear and DequantizeLinear (QDQ).

The first file gives the packed file's logits, bit for bit, in any runtime; the second has the form that int8 tools look
for, with float32 in between. A model of 16-bit floats becomes a single float graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from micronet.data.datasets import CLASSES
from micronet.errors import shown
from micronet.export import onnx_floats, onnx_integers, onnx_qdq
from micronet.export.errors import ExportError
from micronet.export.onnx_graph import OPSET, OPSET_OF_INT2, Graph
from micronet.export.onnx_passes import Add, add_passes
from micronet.export.targets import Export, Options
from micronet.packed.model import PackedModel
from micronet.scoring.books import CHALLENGE, DECK
from micronet.scoring.packed_counts import packed_operations

if TYPE_CHECKING:
    from onnxruntime import InferenceSession  # type: ignore[import-untyped]

BATCH_SIZE = 100  # of `logits`
MOST_BYTES = 1 << 30  # of constants; a protocol buffer file is limited to 2 GiB
EXACT = "equal to the packed file's in every bit: ConvInteger, MatMulInteger, and float64 that nothing is rounded in"


def export(model: PackedModel, data: bytes, options: Options) -> Export:
    """The model as `NAME.onnx`, plus `NAME_qdq.onnx` if it computes in integers.

    `image` (N, C, H, W) uint8, raw pixels -> `logits` (N, classes): int32, the packed file's; in the QDQ file float32
    of the same scale; for a model of 16-bit floats float32.

    Raises:
        ExportError: the model is larger than an ONNX file can be.
    """
    texts = dict(_texts(model))
    exact, quantized = PurePosixPath(f"{options.name}.onnx"), PurePosixPath(f"{options.name}_qdq.onnx")
    if model.arithmetic == "half":
        floats = _made(model, options.name, texts, onnx_floats.add, np.float32, np.float32)
        notes = ["16-bit floats are computed with in 32 bits, so logits may differ in their last bits."]
        return Export({exact: floats[1]}, _table({exact: floats}), notes)
    integers = _made(model, options.name, texts, onnx_integers.add, onnx_integers.WIDE, np.int32)
    between = _made(model, f"{options.name}_qdq", texts, onnx_qdq.add, np.float32, np.float32)
    made = {exact: integers, quantized: between}
    return Export(
        {path: content for path, (_, content) in made.items()}, _table(made), list(_notes(model, exact, quantized))
    )


def _made(
    model: PackedModel, name: str, texts: dict[str, Any], add: Add, exact: Any, logits: Any
) -> tuple[Graph, bytes]:
    graph = Graph()
    add_passes(model, graph, add, exact, logits)
    if sum(constant.ByteSize() for constant in graph.constants.values()) > MOST_BYTES:
        raise ExportError(f"its constants take more than {MOST_BYTES:,} bytes in ONNX; a smaller network works")
    try:
        return graph, graph.file(name, model.image, model.classes, logits, texts)
    except (ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(shown(f"ONNX cannot say what it computes: {error}")) from None


def _texts(model: PackedModel) -> Iterator[tuple[str, Any]]:
    """The metadata: as JSON unless it is text."""
    yield from ((f"made.{shown(key, 60)}", shown(text)) for key, text in model.metadata.items())
    yield "classes", list(model.class_names)
    yield "digest", model.digest
    yield "image", "uint8 (N, C, H, W), pixels as they are: three channels are red, green, blue"
    yield "logit_scale", model.logit_scale
    yield "weights", model.weights
    yield "zero_weights", model.zero_weights
    yield "packed_bytes", model.file_bytes
    yield "packed_bits", model.payload_bits
    operations, once = packed_operations(model), [1.0] * len(model.networks)
    passes = "_one_pass_each" if any(end.choice for end in model.ends) else ""
    for book in (CHALLENGE, DECK):
        price = book.score(operations, once)
        yield f"{book.name}_operations{passes}", price.operations
        yield f"{book.name}_parameters{passes}", price.params
        if model.class_names == CLASSES:  # for other data the file does not say what scores are relative to
            yield f"{book.name}_score{passes}", price.score


def _table(made: dict[PurePosixPath, tuple[Graph, bytes]]) -> list[tuple[str, str]]:
    """The size of the files, and the types of the weights."""
    table = [
        (path.name, f"{len(content):,} bytes, {len(graph.nodes)} nodes") for path, (graph, content) in made.items()
    ]
    for path, (graph, _) in made.items():
        for bits, kind in sorted({(bits, kind) for bits, kind, _ in graph.stored.values()}):
            counts = [count for *found, count in graph.stored.values() if found == [bits, kind]]
            said = f"{path.name}: weights of {bits} bit{'s' if bits > 1 else ''}"
            table.append((said, f"{kind}, {sum(counts):,} in {len(counts)} layer{'s' if len(counts) > 1 else ''}"))
    return table


def _notes(model: PackedModel, exact: PurePosixPath, quantized: PurePosixPath) -> Iterator[str]:
    yield f"The logits of {exact} are {EXACT}."
    yield f"{quantized} computes in float32 between its integers: a class may differ where two logits are nearly equal."
    yield (
        "A layer's weights are stored as int2, int4 or int8, the smallest that holds its codes, zeros too; as uint8 "
        "with zero point 128 where two products could pass 16 bits, which x86 without VNNI adds them in."
    )
    yield "Activations of less than 8 bits are uint8 or int8, cut off by Clip: onnxruntime has no kernels below 8 bits."
    yield f"The files need operator set {OPSET}; with int2 {OPSET_OF_INT2}, which onnxruntime 1.32 runs."
    if any(end.choice for end in model.ends):
        yield (
            "Images that a margin sends on are gathered for their next pass, and the others do not take it: where "
            "there are none, the runtime has to run on an empty batch, as onnxruntime does."
        )


def session(content: bytes) -> InferenceSession:
    """An ONNX file in onnxruntime on the CPU, with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def logits(running: InferenceSession, images: np.ndarray) -> np.ndarray:
    """Logits (N, classes) of images (N, C, H, W) uint8, N > 0, in batches of `BATCH_SIZE`."""
    parts = (images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE))
    return np.concatenate([running.run(["logits"], {"image": np.ascontiguousarray(part)})[0] for part in parts])
