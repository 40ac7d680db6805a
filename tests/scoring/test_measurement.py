"""What a release claims, measured: refusals and comparisons."""

from __future__ import annotations

import pytest
import torch

import models
from micronet.compress.quantization import prepare
from micronet.data.images import Split
from micronet.packed.module import load_packed
from micronet.packed.packing import pack
from micronet.packed.reference import margins, predict
from micronet.scoring.challenge import challenge_ops
from micronet.scoring.counting import operations
from micronet.scoring.deck import deck_flops
from micronet.scoring.measurement import differences, measure, passes, price
from micronet.scoring.records import CIFAR100, ScoreError
from tests.support.configs import quantize_config
from tests.support.images import random_split
from tests.support.models import WIDER, calibrated, new_model


@pytest.fixture(scope="module")
def hundred_classes(tmp_path_factory):
    """A packed model of 100 classes, and its path."""
    model = new_model(WIDER | {"classes": 100}).eval()
    quantize = quantize_config(weight_bits=4, activation_bits=4)
    path = tmp_path_factory.mktemp("packed") / "hundred.safetensors"
    pack(prepare(model, quantize), path, quantize=quantize)
    return load_packed(path), path


def test_a_class_count_that_does_not_fit_the_data_is_refused_in_one_line(hundred_classes):
    model, path = hundred_classes
    test = Split(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ScoreError, match="has 100 classes, CIFAR-10 has 10") as caught:
        measure(path, model, test)
    assert "\n" not in str(caught.value)


def test_a_packed_model_of_100_classes_is_priced_by_the_challenges_own_reference(hundred_classes):
    challenge = price(hundred_classes[0])["challenge"]
    assert challenge["score_params"] == pytest.approx(challenge["params"] / CIFAR100.parameters)


def test_a_difference_is_named_by_its_key_with_both_values():
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["a.b: claimed 1, measured 3"]


def test_a_key_that_only_one_side_has_is_a_difference():
    assert differences({"a": 1}, {}) == ["a: claimed 1, measured None"]


def test_a_claim_is_not_true_because_it_looks_so():
    claimed = {"text": "0.5", "flag": True, "nothing": None, "nan": float("nan"), "long": "x" * 1000, "many": [1, 2]}
    measured = {"text": 0.5, "flag": 1, "nan": 0.5, "long": 1, "many": 2, "\x1b": 1}
    lines = differences(claimed, measured)
    assert lines[:2] == ["\\x1b: claimed None, measured 1", "flag: claimed True, measured 1"]
    assert lines[3:] == [
        "many: claimed 2 values, measured 2",
        "nan: claimed nan, measured 0.5",
        "nothing: claimed null, measured None",
        "text: claimed '0.5', measured 0.5",
    ]
    assert len(lines[2]) < 120 and lines[2].startswith("long: claimed 'xxx")


def test_what_a_file_says_of_its_architecture_is_priced_without_memory_for_it(hundred_classes, monkeypatch):
    devices, build = [], models.build

    def noted(spec):
        devices.append(torch.empty(0).device.type)
        return build(spec)

    monkeypatch.setattr(models, "build", noted)
    price(hundred_classes[0])
    assert devices == ["meta"]


@pytest.fixture(scope="module")
def flipping(tmp_path_factory):
    """Paths of one sparse network packed with and without a second pass, and 60 images."""
    folder = tmp_path_factory.mktemp("packed")
    model = new_model(WIDER).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.mul_(torch.rand_like(parameter) < 0.2)
    split = random_split(60)
    for name, changes in (("twice", {"flip_share": 0.3}), ("once", {}), ("products", {"factored_sums": False})):
        quantize = quantize_config(weight_bits=3, activation_bits=4, **changes)
        prepared = calibrated(model, quantize, split.images)
        pack(prepared.eval(), folder / name, quantize=quantize, images=split.images[:40])
    return folder, split


def test_the_images_that_are_seen_twice_are_charged_twice_under_both_rules(flipping):
    folder, split = flipping
    model = load_packed(folder / "twice")
    found = measure(folder / "twice", model, split, batch_size=7)
    once = predict(load_packed(folder / "once").packed, split.images.numpy())
    again = margins(once) < model.packed.flip_margin
    assert 0 < again.sum() < 60
    assert found["flipped_images_percent"] == pytest.approx(100 * again.mean())
    assert passes(model, split) == pytest.approx([1 + again.mean()])
    ops = operations(model)
    assert found["challenge"]["ops"] == pytest.approx((1 + again.mean()) * sum(map(challenge_ops, ops)))
    assert found["deck"]["flops"] == int((1 + again.mean()) * sum(map(deck_flops, ops)))
    right = predict(model.packed, split.images.numpy()).argmax(1) == split.labels.numpy()
    assert found["test_accuracy_percent"] == pytest.approx(100 * right.mean())
    assert found["one_pass"]["test_accuracy_percent"] == pytest.approx(
        100 * (once.argmax(1) == split.labels.numpy()).mean()
    )
    assert found["one_pass"]["challenge_score"] < found["challenge"]["score"]


def test_a_model_without_a_margin_is_charged_once(flipping):
    folder, split = flipping
    model = load_packed(folder / "once")
    found = measure(folder / "once", model, split)
    assert found["flipped_images_percent"] == 0 and passes(model, split) == (1,)
    assert found["one_pass"]["challenge_score"] == found["challenge"]["score"]
    assert found["one_pass"]["test_accuracy_percent"] == found["test_accuracy_percent"]


def test_the_plain_price_is_that_of_a_bit_and_a_product_a_weight(flipping):
    folder, split = flipping
    plain = measure(folder / "twice", load_packed(folder / "twice"), split)["one_pass"]["plain_challenge_score"]
    model = load_packed(folder / "products")
    steps = [step for step in model.packed.steps if hasattr(step, "weights")]
    masks = sum(step.weights.codes.size for step in steps if step.weights.mask is not None)
    stored = sum(step.stored("weight") for step in steps)
    codes = sum(
        step.weights.bits * (step.weights.nonzeros if step.weights.mask is not None else step.weights.codes.size)
        for step in steps
    )
    saved = stored - codes - masks  # by blocks
    assert saved < 0
    challenge = price(model)["challenge"]
    wanted = challenge["score_ops"] + challenge["score_params"] * (1 - saved / model.packed.payload_bits)
    assert plain == pytest.approx(wanted, rel=1e-3)  # a payload is whole bytes
