"""The packed file: as the document says, small, read back whole or refused in one line."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from micronet.data.datasets import CLASSES
from micronet.packed.errors import PackedFileError
from micronet.packed.file import decode, encode, read
from micronet.packed.module import load_packed
from micronet.packed.packing import pack
from micronet.packed.reference import predict
from micronet.packed.steps import Conv
from micronet.packed.steps.scaling import Requantization
from tests.support.configs import quantize_config
from tests.support.generated_shapes import network
from tests.support.hostile import opened, resigned
from tests.support.images import random_images
from tests.support.models import CONVNET, GROUPED_DENSENET, MOBILENET, RESNET, calibrated
from tests.support.networks import settled
from tests.support.packed import IMAGES, gated_file, general_file, prepared_model, same, tiny_files
from tests.support.places import ROOT
from tests.support.thinning import thinned

FORMAT = (ROOT / "docs/format.md").read_text(encoding="utf-8")
DECODER, STEPS, EXAMPLE = re.findall(r"```python\n(.*?)```", FORMAT, re.DOTALL)


def test_the_worked_example_of_the_document_holds():
    exec(EXAMPLE, {})


def test_the_documents_decoder_is_at_most_60_lines():
    assert len(DECODER.splitlines()) <= 60


CASES = [
    (spec, changes, zeros)
    for spec in (RESNET, GROUPED_DENSENET, MOBILENET, CONVNET)
    for changes, zeros in (
        ({}, 0.0),
        ({"weight_bits": 3, "activation_bits": 2, "input_bits": 5}, 0.7),
        ({"weight_bits": 4, "activation_bits": 4, "per_channel": True, "flip_share": 0.2}, 0.9),
        ({"method": "binary_connect", "weight_bits": 1, "activation_bits": 4}, 0.0),
        ({"method": "binary_connect", "weight_bits": 1, "keep_first_and_last": False}, 0.6),
        ({"method": "half"}, 0.5),
    )
]


@pytest.mark.parametrize(("spec", "changes", "zeros"), thinned(CASES, 7))
def test_the_documents_decoder_gives_the_weights_bit_for_bit(spec, changes, zeros, tmp_path):
    quantize = quantize_config(**changes)
    prepared = prepared_model(spec, quantize, zeros)
    model = pack(prepared, tmp_path / "m", quantize=quantize, images=IMAGES)
    scope: dict = {}
    exec(DECODER, scope)
    steps, bits = scope["decode"]((tmp_path / "m").read_bytes())
    assert bits == model.payload_bits
    assert steps[-1].get("margin", 0) == model.flip_margin and bool(model.flip_margin) == ("flip_share" in changes)
    for found, step in zip(steps, model.steps, strict=True):
        constants = getattr(step, "scaling", step)
        if hasattr(step, "weights"):
            assert np.array_equal(found["weight"], step.weights.codes)
        for key in ("multiplier", "bias"):
            if getattr(constants, key, None) is not None:
                assert np.array_equal(found[key], getattr(constants, key))
        if isinstance(constants, Requantization):
            assert (found["shift"][0] + found.get("exponent", 0) == constants.shift).all()
    if changes.get("method") != "half":
        layers = [step for step in model.steps if isinstance(step, Conv) and step.name != "blocks.0.0.conv1"]
        trained = {name: module for name, module in prepared.named_modules() if hasattr(module, "quantizer")}
        # An interleaving behind a layer is in the order of its rows: compare rows as sets there.
        for step in layers:
            codes = trained[step.name].quantizer.codes(trained[step.name].weight)[0].numpy()
            assert sorted(map(bytes, codes.astype(np.int8))) == sorted(map(bytes, step.weights.codes))


def test_packing_twice_gives_the_same_bytes(small, tmp_path):
    quantize = quantize_config(weight_bits=4, activation_bits=4)
    prepared = prepared_model(RESNET, quantize, 0.5)
    pack(prepared, tmp_path / "again", quantize=quantize, metadata={"stage": "quantize"}, class_names=CLASSES)
    assert (tmp_path / "again").read_bytes() == small.read_bytes()


def test_the_safetensors_library_reads_the_file(small):
    with safetensors.safe_open(small, framework="np") as file:
        assert list(file.keys()) == ["payload"]
        assert 8 * len(file.get_tensor("payload")) == read(small).payload_bits


@pytest.mark.parametrize("fixture", ["small", "windowed", "flipping", "joined"])
def test_reading_back_gives_what_was_packed(fixture, request):
    small = request.getfixturevalue(fixture)
    model = read(small)
    said = {"class_names": model.class_names, "logit_scale": model.logit_scale}
    data = encode(model.steps, model.spec, model.arithmetic, model.metadata, **said)
    assert data == small.read_bytes()
    again = decode(data)
    for one, other in zip(model.steps, again.steps, strict=True):
        assert same(one, other)


@pytest.mark.parametrize(("key", "value"), [("classes", []), ("logit_scale", -7), ("logit_scale", 0.5)])
def test_what_version_5_brought_is_refused_in_an_older_one(small, key, value):
    def change(header, table, payload):
        table[key] = value

    with pytest.raises(PackedFileError, match=f"its table has {key}, which version 3 does not hold"):
        decode(resigned(small.read_bytes(), change))


def test_the_header_of_a_small_network_is_at_most_a_tenth(tmp_path):
    quantize = quantize_config(weight_bits=4, activation_bits=4)
    spec = {"name": "resnet", "blocks": [2, 2, 2], "widths": [16, 24, 32]}
    made = {"stage": "quantize", "validation_accuracy_percent": "90.12", "params_digest": "0123456789abcdef"}
    prepared = prepared_model(spec, quantize, 0.7)
    model = pack(prepared, tmp_path / "m", quantize=quantize, metadata=made, seen=IMAGES[:2])
    assert model.payload_bits / 8 < 20_000
    assert model.file_bytes - model.payload_bits / 8 <= 0.1 * model.file_bytes


def test_the_documents_decoder_reads_a_cascade(joined):
    scope: dict = {}
    exec(DECODER, scope)
    steps, bits = scope["decode"](joined.read_bytes())
    model = read(joined)
    assert bits == model.payload_bits
    found = [step for step in steps if step["op"] == "linear"]
    assert [step["margin"] for step in found] == [end.margin for end in model.ends]
    assert [step.get("logit_shift") for step in found] == [end.logit_shift for end in model.ends]
    for step, other in zip(steps, model.steps, strict=True):
        assert not hasattr(other, "weights") or np.array_equal(step["weight"], other.weights.codes)


def documented(data: bytes, images: np.ndarray) -> list[list[int]]:
    """The logits of images (N, C, H, W) as the document's own lines compute them."""
    scope: dict = {}
    exec(DECODER + STEPS, scope)
    steps = scope["decode"](data)[0]
    return [scope["logits"](steps, image).tolist() for image in images]


def test_the_documents_steps_compute_the_logits_of_every_operation(small, windowed):
    general = general_file()
    tiny = tiny_files()[0]
    for data in (small.read_bytes(), windowed.read_bytes(), tiny, general, gated_file()):
        model = decode(data)
        images = np.random.default_rng(0).integers(0, 256, (2, *model.image)).astype(np.uint8)
        assert documented(data, images) == predict(model, images).tolist()


@pytest.mark.parametrize("number", range(2, 5))
def test_the_documents_steps_compute_networks_of_any_shape(number, tmp_path):
    chance = random.Random(number)
    model, image = network(chance)
    images = random_images(4, image=image)
    quantize = quantize_config(weight_bits=4, activation_bits=4)
    prepared = calibrated(settled(model, images), quantize, images, image).eval()
    packed = pack(prepared, tmp_path / "m", quantize=quantize)
    assert documented((tmp_path / "m").read_bytes(), images.numpy()) == predict(packed, images.numpy()).tolist()


def test_a_small_file_of_version_5_is_written_and_read_as_it_stands():
    data = general_file()
    model = decode(data)
    assert opened(data)[0]["version"] == 5
    assert (model.image, model.class_names, model.logit_scale) == ((1, 9, 12), ("Katze", "a b", "\u732b"), 0.03125)
    rows = opened(data)[1]["steps"]
    assert rows[0]["shape"] == [1, 9, 12] and rows[1]["shape"] == [2, 1, 1, 4]
    assert (rows[1]["stride"], rows[1]["padding"], rows[1]["dilation"]) == ([2, 1], [1, 3], [1, 2])
    assert rows[2] == {"op": "maximum", "from": [1], "kernel": [3, 2], "stride": [2, 1], "padding": 1}
    assert rows[3] == {"op": "pool", "from": [2], "kernel": [2, 3], "stride": [1, 2], "padding": [0, 1]}
    described = {"class_names": model.class_names, "logit_scale": model.logit_scale}
    assert encode(model.steps, model.spec, model.arithmetic, model.metadata, **described) == data


# Refusals


def test_a_missing_file_names_the_stage_that_makes_it_or_where_others_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PackedFileError, match="no such file; `python stages/quantize.py` makes it, or `make pull`"):
        load_packed("checkpoints/quantized.safetensors")
    with pytest.raises(PackedFileError, match="m: there is no such file; those in release/ would work"):
        load_packed(tmp_path / "m")


def test_a_plain_checkpoint_is_called_one(tmp_path):
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "m", {"micronet": json.dumps({"format": 1})})
    with pytest.raises(PackedFileError, match="is a checkpoint of plain weights, not a packed model"):
        load_packed(tmp_path / "m")


def test_a_pickle_is_refused(tmp_path):
    torch.save({"a": 1}, tmp_path / "m")
    with pytest.raises(PackedFileError, match="is a pickle"):
        load_packed(tmp_path / "m")


def test_a_flipped_bit_of_the_payload_is_noticed(small, tmp_path):
    data = bytearray(small.read_bytes())
    data[-100] ^= 1
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(PackedFileError, match="m: is damaged: its digest does not fit its content"):
        load_packed(tmp_path / "m")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("steps", -1, "flip"), 0, "flip: must be a whole number from 1 to 32"),
        (("steps", 1, "flip"), 4, "where there are no two integer logits"),
        (("steps", 1, "mask"), [5, 5], r"there is no mask of blocks \[5, 5\]"),
        (("steps", 1, "mask"), [2.0], r"there is no mask of blocks \[2.0\]"),
        (("steps", 1, "mask"), [True], "there is no mask of blocks"),
    ],
)
def test_a_table_that_states_what_there_is_not_is_refused(flipping, place, value, message):
    def change(header, table, payload):
        holder = table
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = value

    with pytest.raises(PackedFileError, match=message):
        decode(resigned(flipping.read_bytes(), change))


@pytest.mark.parametrize("version", [1, 2, 4, 6, True, "3"])
def test_a_file_of_another_version_is_refused(windowed, version):
    def change(header, table, payload):
        assert header["version"] == 3
        header["version"] = version

    with pytest.raises(PackedFileError, match="version"):
        decode(resigned(windowed.read_bytes(), change))
