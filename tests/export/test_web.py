"""The runner in JavaScript: the reference's logits under node and in Chromium, and refusals in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from micronet.export import web
from micronet.export.errors import ExportError
from micronet.export.targets import Options, export
from micronet.packed.errors import PackedFileError
from micronet.packed.file import decode
from micronet.packed.reference import predict
from tests.support.configs import quantize_config
from tests.support.exports import RELEASED, digest, released, sample, seen_by
from tests.support.hostile import hostile_file, resigned
from tests.support.images import random_images
from tests.support.javascript import in_node, tool
from tests.support.models import RESNET
from tests.support.packed import general_file, packed_network, tiny_files

ALTERED = 200


@pytest.fixture(scope="module")
def answers() -> dict[str, dict[str, Any]]:
    """What node says to 100 images, by the name of a released file."""
    files = {name: released(name) for name in RELEASED}
    cases = [(data, seen_by(decode(data), sample())) for data in files.values()]
    return dict(zip(files, in_node(cases), strict=True))


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_file_has_its_logits_for_100_images(answers, name):
    found = answers[name]
    assert "logits" in found, found
    assert digest(found["logits"]) == RELEASED[name]["answers_sha256"]
    assert found["labels"] == np.argmax(found["logits"], axis=1).tolist()
    model = decode(released(name))
    assert found["classes"] == list(model.class_names) and found["checked"]
    assert (max(found["passes"]) > 1) == bool(model.ends[0].choice)


def test_hostile_files_are_refused_as_python_refuses_them_or_have_the_references_logits():
    files = [*tiny_files(), *(hostile_file(tiny_files(), number, 9) for number in range(ALTERED))]
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
    assert sum(not isinstance(one, str) for one in wanted) > 30


def test_a_file_of_floats_and_bytes_of_all_kinds_are_refused_in_a_line(tmp_path):
    quantize = quantize_config(method="half")
    packed_network(RESNET, quantize, random_images(8), tmp_path / "half")
    halves = (tmp_path / "half").read_bytes()
    whole = general_file()
    many = resigned(whole, lambda header, table, payload: table.update(classes=["a", "b"]))
    found = in_node(
        (data, None) for data in (halves, b"", b"PK\3\4 no model", whole[:-1], whole[:400], whole + b"\0", many)
    )
    assert [set(one) for one in found] == [{"refused"}] * 7
    lines = [one["refused"] for one in found]
    assert lines[0] == "computes in 16-bit floats, which this runner does not; the ONNX export does"
    assert lines[-1] == "classes: must be 3 names, one a logit, or none"
    with pytest.raises(ExportError, match="the browser runs integers, this model holds 16-bit floats; the target onnx"):
        export("web", decode(halves), halves, Options())


def test_a_wrong_digest_and_a_bit_that_flipped_are_noticed():
    data = bytearray(tiny_files()[0])
    data[-3] ^= 4
    (found,) = in_node([(bytes(data), None)])
    assert found == {"refused": "is damaged: its digest does not fit its content"}


def test_the_confidence_is_that_of_predict_and_null_where_the_file_says_nothing(answers):
    scale = decode(released("mnist")).logit_scale
    logits = np.array(answers["mnist"]["logits"]) * scale
    shares = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(answers["mnist"]["confidences"], shares / shares.sum(1, keepdims=True), rtol=1e-12)
    assert answers["cascade"]["confidences"] == answers["dense"]["confidences"] == [None] * 100


def test_a_missing_tool_fails_with_the_line_that_gets_it():
    with pytest.raises(AssertionError, match="there is no nothing here; get it with: apt-get install chromium nodejs"):
        tool("nothing")


def test_a_file_too_large_for_a_page_is_a_line(monkeypatch):
    monkeypatch.setattr(web, "MOST_BYTES", 10)
    data = tiny_files()[0]
    with pytest.raises(ExportError, match="a packed file of .* bytes is too large for a page, 10 are the most"):
        export("web", decode(data), data, Options())
