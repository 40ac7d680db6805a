"""Every released file: readable bit for bit, with the logits, operations and scores that it was released with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from micronet import params
from micronet.data.images import normalise
from micronet.data.sources import fetch
from micronet.packed.file import decode, encode
from micronet.packed.module import PackedModule
from micronet.packed.reference import predict, witness
from micronet.scoring.books import BOOKS
from micronet.scoring.counting import operations
from tests.support.exports import FLOATS, INTEGERS, RELEASED, released
from tests.support.packed import check_witnessed
from tests.support.places import ROOT


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def of_integers(values: torch.Tensor) -> str:
    return sha256(np.ascontiguousarray(values.numpy().astype("<i8")).tobytes())


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """(100, 3, 32, 32) uint8: every fifth test image of the sample; a smaller network sees a corner of it."""
    arrays = fetch(params.Data(source="sample", validation_size=500))[1]
    return torch.from_numpy(arrays.test_images[::5].reshape(-1, 3, 32, 32).copy())


def test_all_released_files_are_held():
    files = {path.stem for path in (ROOT / "release").glob("*.safetensors")}
    replaced = {path.stem for path in Path(__file__).parent.glob("*.safetensors")}
    assert replaced and set(RELEASED) == files | replaced


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_file_is_written_again_bit_for_bit(name):
    data = released(name)
    model = decode(data)
    assert (sha256(data), model.payload_bits) == (RELEASED[name]["sha256"], RELEASED[name]["payload_bits"])
    said = {"class_names": model.class_names, "logit_scale": model.logit_scale}
    assert encode(model.steps, model.spec, model.arithmetic, model.metadata, **said) == data


@pytest.mark.parametrize("name", INTEGERS)
def test_a_released_file_has_the_logits_of_its_release_in_torch_and_in_numpy(name, pixels):
    module = PackedModule(decode(released(name)))
    channels, height, width = module.packed.image
    pixels = pixels[:, :channels, :height, :width].contiguous()
    images = normalise(pixels)
    logits = [of_integers(module.one_pass(images, number)) for number in range(len(module.packed.networks))]
    answers = module.look(images).logits
    assert logits == RELEASED[name]["logits_sha256"]
    assert of_integers(answers) == RELEASED[name]["answers_sha256"]
    assert np.array_equal(predict(module.packed, pixels[:6].numpy()), answers[:6].numpy())


@pytest.mark.parametrize("name", FLOATS)
def test_a_released_file_of_16_bit_floats_has_the_classes_of_its_release_and_nearly_its_logits(name, pixels):
    logits = PackedModule(decode(released(name))).look(normalise(pixels)).logits
    np.testing.assert_allclose(logits[0].numpy(), RELEASED[name]["logits"], atol=0.02)  # sums in the processor's order
    assert "".join(map(str, logits.argmax(1).tolist())) == RELEASED[name]["answers"]


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_file_has_the_operations_and_scores_of_its_release(name):
    model = decode(released(name))
    ops, once = operations(model), [1.0] * len(model.networks)
    counts = [[op.name, op.kind, op.network, op.multiplications, op.additions, op.storage_bits, op.rules] for op in ops]
    assert len(ops) == RELEASED[name]["operations"]
    assert sha256(json.dumps(counts).encode()) == RELEASED[name]["operations_sha256"]
    prices = {f"{book.name}_score": book.score(ops, once).score for book in BOOKS}
    assert prices == {key: RELEASED[name][key] for key in prices}
    assert prices["strict_score"] >= prices["challenge_score"]


@pytest.mark.slow
def test_a_released_file_counts_under_strict_rules_what_the_reference_does():
    model = decode(released("glance"))
    check_witnessed(operations(model), witness(model, np.zeros((1, 3, 32, 32), np.uint8))[1])
