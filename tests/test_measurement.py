"""What a release claims, measured: refusals and comparisons."""

from __future__ import annotations

import pytest
import torch

import models
from micronet.data import Split
from micronet.measurement import differences, measure, price
from micronet.packing import load_packed, pack
from micronet.params import Quantize, Train
from micronet.quantization import prepare
from micronet.scoring import REFERENCE_100_PARAMETERS, ScoreError


@pytest.fixture(scope="module")
def hundred_classes(tmp_path_factory):
    """A packed model of 100 classes, and its path."""
    torch.manual_seed(0)
    model = models.build({"name": "resnet", "blocks": [1], "widths": [8], "classes": 100}).eval()
    quantize = Quantize(weight_bits=4, activation_bits=4, train=Train(epochs=0, learning_rate=0.1))
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
    assert challenge["score_params"] == pytest.approx(challenge["params"] / REFERENCE_100_PARAMETERS)


def test_a_difference_is_named_by_its_key_with_both_values():
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["a.b: claimed 1, measured 3"]


def test_a_key_that_only_one_side_has_is_a_difference():
    assert differences({"a": 1}, {}) == ["a: claimed 1, measured None"]
