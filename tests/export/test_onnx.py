"""ONNX: the exact graph gives the packed file's logits, the one of QDQ its classes; what the files hold and say."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from micronet import params
from micronet.compress.functions import FUNCTIONS, Function
from micronet.compress.pointwise import computed
from micronet.data.images import normalise
from micronet.data.sources import fetch
from micronet.export import onnx as target
from micronet.export.errors import ExportError
from micronet.export.onnx import export
from micronet.export.onnx_floats import _applied
from micronet.export.onnx_graph import IMAGE, Graph
from micronet.export.onnx_integers import Pass
from micronet.export.targets import Options
from micronet.packed.file import decode
from micronet.packed.model import PackedModel
from micronet.packed.module import PackedModule
from micronet.packed.reference import predict
from micronet.scoring.challenge import challenge_score
from micronet.scoring.deck import deck_score
from micronet.scoring.packed_counts import packed_operations
from tests.support.exports import FLOATS, INTEGERS, RELEASED, altered_files, digest, released, sample, seen_by
from tests.support.images import random_images
from tests.support.packed import conv, hand_made, linear, pool, tiny_files
from tests.support.places import ROOT
from tests.support.thinning import thinned

SOME = slice(46, 60)  # of the sample: networks with a margin look twice at some of them
AGREES, ACCURACY_APART = 99.9, 0.05  # percent of 10,000 images; points


def both(data: bytes) -> tuple[PackedModel, bytes, bytes]:
    """The model of a file of integers, its exact graph and that of QDQ."""
    model = decode(data)
    exact, quantized = export(model, data, Options()).files.values()
    return model, exact, quantized


def run(content: bytes, images: np.ndarray) -> np.ndarray:
    return target.logits(target.session(content), images)


@pytest.mark.parametrize("name", thinned(INTEGERS, 3))
def test_a_released_file_has_its_logits_in_the_exact_graph_and_its_classes_in_qdq(name):
    model, exact, quantized = both(released(name))
    images = seen_by(model, sample()[SOME])
    look = PackedModule(model).look(normalise(torch.from_numpy(images)))
    logits = look.logits.numpy()
    found = run(exact, images)
    assert found.dtype == np.int32 and np.array_equal(found, logits)
    assert np.array_equal(run(quantized, images).argmax(1), logits.argmax(1))
    assert not model.ends[0].choice or int(look.passes.max()) > 1, "no image takes a second pass"


@pytest.mark.parametrize("name", FLOATS)
def test_a_released_file_of_16_bit_floats_has_its_classes(name):
    data = released(name)
    (content,) = export(decode(data), data, Options()).files.values()
    found = "".join(map(str, run(content, sample()[SOME]).argmax(1)))
    assert found == RELEASED[name]["answers"][SOME]


@pytest.mark.parametrize("count", [1, 7, 0])
def test_every_operation_pass_and_number_of_images_is_as_in_the_reference(count):
    for data in tiny_files():
        model, exact, quantized = both(data)
        images = random_images(count, 5, model.image).numpy()
        wanted = predict(model, images)
        (found,), (near,) = (target.session(file).run(None, {"image": images}) for file in (exact, quantized))
        assert found.shape == wanted.shape and np.array_equal(found, wanted)
        assert np.abs(near - wanted).max(initial=0) <= 1e-3


@pytest.mark.parametrize("number", [0, 1, 3, 4])
def test_onnxs_own_evaluator_gives_the_same_logits(number):
    data = tiny_files()[number]
    model, *files = both(data)
    images = random_images(2, 5, model.image).numpy()
    for content in files:
        (found,) = ReferenceEvaluator(onnx.load_from_string(content)).run(None, {"image": images})
        assert np.array_equal(found, predict(model, images))


def test_altered_networks_of_every_operation_have_the_references_logits():
    files = altered_files(80)
    assert len(files) == 9
    for data in files:
        model = decode(data)
        images = random_images(2, 3, model.image).numpy()
        (exact, _) = export(model, data, Options()).files.values()
        assert np.array_equal(run(exact, images), predict(model, images))


def test_weights_are_in_the_smallest_type_of_onnx_and_in_one_without_a_sign_where_pairs_saturate():
    first = conv([[1, -1, 0], [0, 1, 1]], name="signs")
    fours = conv([[7, -7], [3, 0]], 1, name="fours", input_range=(np.zeros(2), np.full(2, 15)))
    codes = np.zeros(2), np.full(2, 15 * 1024)
    model = hand_made(first, fours, pool(2, 2), linear([[127, 2], [-100, 0]], [5, 7], 3, codes))
    made = export(model, b"", Options(name="net"))
    graph = onnx.load_from_string(made.files[PurePosixPath("net.onnx")])
    types = {one.name: onnx.TensorProto.DataType.Name(one.data_type) for one in graph.graph.initializer}
    assert {name: types[f"{name}.weight"] for name in ("signs", "fours", "linear")} == {
        "signs": "INT2",
        "fours": "INT4",
        "linear": "INT8",
    }
    assert [opset.version for opset in graph.opset_import] == [25]
    assert ("net.onnx: weights of 4 bits", "int4, 4 in 1 layer") in made.table
    images = random_images(5).numpy()
    assert np.array_equal(run(made.files[PurePosixPath("net.onnx")], images), predict(model, images))

    eights = hand_made(conv([[127, 127, -1]]), pool(1, 1), linear([[1]], [0], 2, (np.zeros(1), np.full(1, 15 * 1024))))
    graph = onnx.load_from_string(export(eights, b"", Options()).files[PurePosixPath("micronet.onnx")])
    types = {one.name: onnx.TensorProto.DataType.Name(one.data_type) for one in graph.graph.initializer}
    assert types["conv.weight"] == "UINT8"


@pytest.mark.parametrize("number", range(5))
def test_a_graph_is_one_checked_file_of_named_nodes_without_loose_ends(number):
    data = tiny_files()[number]
    model = decode(data)
    layers = {step.name for step in model.steps}
    for content in export(model, data, Options()).files.values():
        onnx.checker.check_model(content, full_check=True)
        proto = onnx.load_from_string(content)
        graph = proto.graph
        assert [
            (one.name, [dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim])
            for one in graph.input
        ] == [("image", ["N", *model.image])]
        assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert [
            (one.name, [dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim])
            for one in graph.output
        ] == [("logits", ["N", model.classes])]
        names = [node.name for node in graph.node]
        assert len(set(names)) == len(names)
        owners = {name.split("/")[-2 if name.startswith("mirrored/") else 0] for name in names[:-1]}
        owners = {owner.removesuffix(".weight").removesuffix(".margin") for owner in owners}
        assert owners <= layers and names[-1] == "logits"
        read = {value for node in graph.node for value in node.input} | {"logits"}
        made = {value for node in graph.node for value in node.output}
        loose = {value for value in made - read if not value.endswith("/TopK.output1")}
        assert loose == set() and {one.name for one in graph.initializer} <= read
        assert all(one.data_location == onnx.TensorProto.DEFAULT for one in graph.initializer)


def test_the_metadata_say_classes_sizes_and_scores():
    data = released("mnist")
    model, exact, _ = both(data)
    said = {one.key: one.value for one in onnx.load_from_string(exact).metadata_props}
    assert json.loads(said["classes"]) == list(model.class_names) and said["digest"] == model.digest
    assert json.loads(said["packed_bytes"]) == len(data) and json.loads(said["packed_bits"]) == model.payload_bits
    assert float(said["logit_scale"]) == model.logit_scale
    ops = packed_operations(model)
    assert json.loads(said["challenge_operations"]) == challenge_score(ops).operations
    assert json.loads(said["deck_parameters"]) == deck_score(ops).params
    assert not [key for key in said if key.endswith("_score")], "the file does not say that it is of MNIST"


def test_a_network_of_cifar10s_classes_says_its_scores():
    said = {one.key: one.value for one in onnx.load_from_string(both(released("dense"))[1]).metadata_props}
    for book in ("challenge", "deck"):
        assert json.loads(said[f"{book}_score_one_pass_each"]) == RELEASED["dense"][f"{book}_score"]


def test_every_function_of_a_file_of_16_bit_floats_is_torchs():
    constants = {"clamp": (-0.5, 1.5), "power": (3.0,), "leaky_relu": (0.25,), "elu": (0.5,), "celu": (0.75,)}
    graph = Graph()
    walk = Pass(graph, ())
    value = graph.node("Flatten", "x", graph.cast(IMAGE, "x", np.float32))
    value = graph.node(
        "Mul", "x", graph.node("Sub", "x", value, graph.number(128, np.float32)), graph.number(1 / 16, np.float32)
    )
    functions = [Function(name, constants.get(name, ())) for name in FUNCTIONS]
    graph.finish(
        graph.node("Concat", "all", *(_applied(one, value, walk, one.name) for one in functions), axis=1), np.float32
    )
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    found = run(graph.file("functions", (1, 16, 16), 256 * len(functions), np.float32, {}), pixels)
    x = (torch.arange(256) - 128) / 16
    for function, got in zip(functions, found.reshape(len(functions), 256), strict=True):
        np.testing.assert_allclose(got, computed(function, x).numpy(), rtol=1e-5, atol=1e-6, err_msg=function.name)


def test_the_example_of_the_documents_runs(tmp_path, monkeypatch, capsys):
    model, exact, _ = both(released("glance"))
    (tmp_path / "micronet.onnx").write_bytes(exact)
    document = (ROOT / "docs/export.md").read_text(encoding="utf-8").split("## ONNX")[1]
    example = re.findall(r"```python\n(.*?)```", document, flags=re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    best = predict(model, np.zeros((1, 3, 32, 32), np.uint8))[0].argmax()
    assert capsys.readouterr().out == f"{[model.class_names[best]] * 2}\n"


def test_what_is_too_large_for_a_file_is_a_line(monkeypatch):
    monkeypatch.setattr(target, "MOST_BYTES", 10)
    data = tiny_files()[0]
    with pytest.raises(ExportError, match="its constants take more than 10 bytes in ONNX; a smaller network works"):
        export(decode(data), data, Options())


@pytest.mark.slow
@pytest.mark.parametrize("name", INTEGERS)
def test_10000_images_have_equal_logits_in_the_exact_graph_and_their_class_and_accuracy_in_qdq(name):
    model, exact, quantized = both(released(name))
    assert digest(run(exact, seen_by(model, sample()))) == RELEASED[name]["answers_sha256"]
    source = "mnist" if name.startswith("mnist") else "auto"
    arrays = fetch(params.Data(source=source, validation_size=5000))[1]
    images = arrays.test_images.reshape(-1, *model.image).copy()
    assert len(images) == 10_000
    module = PackedModule(model)
    logits = torch.cat([module(normalise(part)) for part in torch.from_numpy(images).split(500)]).numpy()
    assert np.array_equal(run(exact, images), logits)
    answers, near = logits.argmax(1), run(quantized, images).argmax(1)
    assert 100 * (answers == near).mean() >= AGREES
    accuracies = [100 * float((one == arrays.test_labels).mean()) for one in (answers, near)]
    assert abs(accuracies[0] - accuracies[1]) <= ACCURACY_APART
