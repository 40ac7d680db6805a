"""What a packed model answers: its classes, and how sure it is of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from micronet.data.datasets import CLASSES
from micronet.data.images import Split, normalise
from micronet.packed.cascade import Cascade
from micronet.packed.module import PackedModule, load_packed
from micronet.packed.packing import pack
from micronet.scoring import answers
from tests.support.configs import quantize_config
from tests.support.images import random_split
from tests.support.models import TINY, new_model, quantized


@pytest.fixture(scope="module")
def twice(tmp_path_factory) -> PackedModule:
    """A packed network that sees some images mirrored too."""
    split = random_split(60)
    quantize = quantize_config(weight_bits=4, activation_bits=4, flip_share=0.3)
    path = tmp_path_factory.mktemp("packed") / "twice"
    told = {"images": split.images[:40], "class_names": CLASSES}  # the oldest version holds no scale of logits
    pack(quantized(new_model(TINY), quantize, split.images), path, quantize=quantize, **told)
    return load_packed(path)


def test_the_worth_of_logits_is_where_the_labels_are_likeliest():
    # three of four right, all by 7 units: the softmax should say 3/4, so 7 units are worth ln 3
    logits = torch.tensor([[7.0, 0.0]]).repeat(4, 1)
    assert answers.worth(logits.double(), torch.tensor([0, 0, 0, 1])) == pytest.approx(math.log(3) / 7)


@pytest.mark.parametrize(
    ("logits", "labels", "confidence"),
    [
        ([[5.0, 0.0]] * 3, [0, 0, 0], 1.0),  # never wrong
        ([[5.0, 0.0]] * 3, [1, 1, 1], 0.5),  # never right
        ([[5.0, 5.0]] * 3, [0, 1, 1], 0.5),  # says nothing
    ],
)
def test_logits_that_are_always_or_never_right_have_a_finite_worth(logits, labels, confidence):
    scale = answers.worth(torch.tensor(logits).double(), torch.tensor(labels))
    assert math.isfinite(scale)
    assert (torch.tensor(logits[0]) * scale).softmax(0).max().item() == pytest.approx(confidence)


def test_the_confidence_is_that_of_predict_where_the_file_says_what_a_logit_is_worth(twice):
    split = random_split(60)
    model = PackedModule(replace(twice.packed, logit_scale=0.01)).eval()
    found = answers.ask(model, split, 7)
    assert {1, 2} == set(found.passes.tolist())
    # nothing is fitted: that validation would be another one
    sure = answers.confidences(model, found, Split(split.images[:0], split.labels[:0]))
    for image in (int(found.passes.argmin()), int(found.passes.argmax())):
        mean = found.logits[image].double() / int(found.passes[image])
        assert sure[image].item() == pytest.approx((mean * 0.01).softmax(0).max().item())
    assert torch.equal(found.logits, model(normalise(split.images)))


def test_without_it_the_confidence_is_calibrated_on_validation_images(twice):
    test, validation = random_split(60), random_split(40)
    sure = answers.confidences(twice, answers.ask(twice, test), validation)
    said = answers.ask(twice, validation)
    scale = answers.worth(said.logits.double() / said.passes[:, None], validation.labels)
    found = answers.ask(twice, test)
    wanted = (found.logits.double() / found.passes[:, None] * scale).softmax(1).amax(1)
    assert torch.allclose(sure, wanted) and bool((sure >= 0.1 - 1e-9).all())


def test_every_way_through_a_cascade_has_a_worth_of_its_own(twice, tmp_path, monkeypatch):
    split = random_split(60)
    cascade = Cascade([replace(twice.packed, metadata={})] * 2, split.images, split.labels)
    cascade.write(tmp_path / "cascade", cascade.tune([0.5, 0.2]), {})
    model, fitted = load_packed(tmp_path / "cascade"), []
    monkeypatch.setattr(answers, "LEAST_A_WAY", 5)
    monkeypatch.setattr(answers, "worth", lambda logits, labels: fitted.append(len(labels)) or 0.01)
    found = answers.ask(model, split)
    sure = answers.confidences(model, found, split)
    ways = found.passes.bincount()[1:].tolist()
    assert len(ways) == 3 and min(ways) >= 5 and fitted == [60, *ways]
    assert torch.allclose(sure, (found.logits.double() * 0.01).softmax(1).amax(1))


def rows() -> list[dict[str, str]]:
    split = Split(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 1]), ("a,b", "cat"))
    said = answers.Answers(torch.tensor([[2, 1], [3, 1], [0, 4]]), torch.ones(3), torch.zeros(3, 2))
    return answers.table(said, torch.tensor([0.5, 0.98769, 1.0], dtype=torch.float64), split)


def test_a_row_names_the_image_its_class_the_answer_and_how_sure_it_is():
    assert [list(row.values()) for row in rows()] == [
        [0, "a,b", "a,b", "50.00"],
        [1, "cat", "a,b", "98.77"],
        [2, "cat", "cat", "100.00"],
    ]
    assert all(tuple(row) == answers.COLUMNS for row in rows())


def test_predictions_that_differ_are_a_line_a_column_and_the_last_bits_of_a_confidence_are_none():
    measured = rows()
    claimed = [{key: str(value) for key, value in row.items()} for row in measured]
    claimed[1]["confidence_percent"] = "98.78"
    assert list(answers.differences(claimed, measured)) == []
    claimed[0] |= {"predicted": "cat", "confidence_percent": "many"}
    claimed[1]["predicted"] = "\x1b[2J" + "x" * 1000
    del claimed[2]["actual"]
    lines = list(answers.differences(claimed, measured))
    assert lines == [
        "actual of 1 image, first of 2: claimed None, measured cat",
        "predicted of 2 images, first of 0: claimed cat, measured a,b",
        "confidence_percent of 1 image, first of 0: claimed many, measured 50.00",
    ]
    assert list(answers.differences(claimed[:2], measured))[0] == "claimed 2 images, measured 3"
