"""The runner in JavaScript: the reference's logits under node, and refusals in one line."""

from __future__ import annotations

import functools
import re
import subprocess
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from micronet.export import web
from micronet.export.errors import ExportError
from micronet.export.targets import Options
from micronet.export.web import export
from micronet.packed.errors import PackedFileError
from micronet.packed.file import decode, encode
from micronet.packed.reference import predict
from micronet.packed.steps import Input, Pool, Step
from micronet.packed.steps.geometry import Geometry
from tests.support.configs import quantize_config
from tests.support.exports import INTEGERS, RELEASED, digest, released, sample, seen_by
from tests.support.hostile import hostile_file, opened, signed
from tests.support.images import random_images
from tests.support.javascript import in_node, tool
from tests.support.models import RESNET
from tests.support.packed import conv, general_file, linear, packed_network, tiny_files, weights
from tests.support.places import ROOT
from tests.support.thinning import thinned

ALTERED = 120


@functools.cache
def answers(name: str) -> dict[str, Any]:
    """What node says to 100 images, of a released file."""
    data = released(name)
    (found,) = in_node([(data, seen_by(decode(data), sample()))])
    return found


@pytest.mark.parametrize("name", thinned(INTEGERS, 6))
def test_a_released_file_has_its_logits_for_100_images(name):
    found = answers(name)
    assert "logits" in found, found
    assert digest(found["logits"]) == RELEASED[name]["answers_sha256"]
    assert found["labels"] == np.argmax(found["logits"], axis=1).tolist()
    model = decode(released(name))
    assert found["classes"] == list(model.class_names) and found["checked"]
    assert (max(found["passes"]) > 1) == bool(model.ends[0].choice)


@pytest.mark.slow
def test_hostile_files_are_refused_as_python_refuses_them_or_have_the_references_logits():
    sources = tiny_files()
    files = [*sources, *(hostile_file(sources, number, 9) for number in range(ALTERED))]
    cases: list[tuple[bytes, np.ndarray | None]] = []
    wanted = []
    for data in files:
        try:
            model = decode(data)
        except PackedFileError as error:
            cases.append((data, None))
            wanted.append(str(error))
        else:
            images = random_images(2, 3, model.image).numpy()
            cases.append((data, images))
            wanted.append(predict(model, images))
    for found, expected in zip(in_node(cases), wanted, strict=True):
        if isinstance(expected, str):
            assert set(found) == {"refused"}, (found, expected)
            assert len(found["refused"]) <= 300 and found["refused"].isprintable()
        else:
            assert np.array_equal(found.get("logits"), expected), found
    assert sum(not isinstance(one, str) for one in wanted) > 20


def heavy_file(layers: int) -> bytes:
    """Convolutions of 2 x 2 from 16 to 16 channels on an image of 1024 x 1024, each 2**30 multiplications."""
    side, codes = 1024, (np.zeros(16), np.full(16, 15))
    image = Input.of(8, (1, side, side))
    first = conv([[1]] * 16, input_range=(image.low, image.high), shape=(16, side, side))
    steps: list[Step] = [image, first]
    for place in range(1, layers + 1):
        square = weights(np.ones((16, 16, 2, 2), np.int8), codes)
        layer = conv([[1] * 16] * 16, place, input_range=codes, shape=(16, side - place, side - place))
        steps.append(replace(layer, weights=square))
    pooled = Pool.over(steps[-1], layers + 1, Geometry.tiles((side - layers, side - layers)), "pool")
    return encode([*steps, pooled, linear([[1] * 16], [0], layers + 2, (pooled.low, pooled.high))], None, "integer", {})


def test_a_file_of_floats_and_what_would_take_gigabytes_or_minutes_are_refused_in_a_line(tmp_path):
    packed_network(RESNET, quantize_config(method="half"), random_images(8), tmp_path / "half")
    halves = (tmp_path / "half").read_bytes()
    header, table, payload = opened(general_file())
    bomb = signed(header, "[" + "0," * 2_000_000, payload)
    deep = signed(header, "[" * 60_000, payload)
    many = signed(header, table | {"classes": ["a", "b"]}, payload)
    found = in_node((data, None) for data in (halves, bomb, deep, many, heavy_file(17), heavy_file(3)))
    assert [one.get("refused") for one in found] == [
        "computes in 16-bit floats, which this runner does not; the ONNX export does",
        f"its table is longer than {len(bomb) + 2**16} bytes",
        "its header or table is nested too deep",
        "classes: must be 3 names, one a logit, or none",
        "asks for 18265630129 operations an image, 17179869184 are the most here",
        None,
    ]
    with pytest.raises(ExportError, match="the browser runs integers, this model holds 16-bit floats; the target onnx"):
        export(decode(halves), halves, Options())


def test_bytes_of_all_kinds_are_refused_in_a_line():
    whole = general_file()
    wrong = b"", b"PK\3\4 no model", whole[:-1], whole[:400], whole + b"\0", b"\xff" * 100, bytes(100)
    for found in in_node((data, None) for data in wrong):
        assert set(found) == {"refused"} and found["refused"].isprintable() and len(found["refused"]) <= 300


def test_the_example_of_the_documents_runs(tmp_path):
    data = released("mnist")
    for name, content in export(decode(data), data, Options()).files.items():
        (tmp_path / name).write_bytes(content)
    (example,) = re.findall(r"```js\n(.*?)```", (ROOT / "docs/export.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "example.mjs").write_text(example)
    run = subprocess.run([tool("node"), "example.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    logits = predict(decode(data), np.zeros((1, 1, 28, 28), np.uint8))[0]
    assert run.stdout.startswith(f"{decode(data).class_names[logits.argmax()]} [") and str(logits[0]) in run.stdout


def test_a_wrong_digest_and_a_bit_that_flipped_are_noticed():
    data = bytearray(tiny_files()[0])
    data[-3] ^= 4
    (found,) = in_node([(bytes(data), None)])
    assert found == {"refused": "is damaged: its digest does not fit its content"}


def test_the_confidence_is_that_of_predict_and_null_where_the_file_says_nothing():
    scale = decode(released("mnist")).logit_scale
    logits = np.array(answers("mnist")["logits"]) * scale
    shares = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(answers("mnist")["confidences"], shares / shares.sum(1, keepdims=True), rtol=1e-12)
    assert answers("glance")["confidences"] == [None] * 100


def test_a_missing_tool_fails_with_the_line_that_gets_it():
    with pytest.raises(AssertionError, match="there is no nothing here; get it with: apt-get install chromium nodejs"):
        tool("nothing")


def test_a_file_too_large_for_a_page_is_a_line(monkeypatch):
    monkeypatch.setattr(web, "MOST_BYTES", 10)
    data = tiny_files()[0]
    with pytest.raises(ExportError, match="a packed file of .* bytes is too large for a page, 10 are the most"):
        export(decode(data), data, Options())
