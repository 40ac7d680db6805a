"""What scores are relative to, and accuracies of classes that are not CIFAR-10's."""

from __future__ import annotations

import json

import pytest
import torch

import models
from micronet import params
from micronet.data.datasets import CLASSES
from micronet.data.images import Split
from micronet.scoring import __main__ as scoring
from micronet.scoring.books import BOOKS
from micronet.scoring.challenge import challenge_score
from micronet.scoring.counting import operations
from micronet.scoring.deck import deck_score
from micronet.scoring.measurement import _by_class
from micronet.scoring.records import CIFAR10, CIFAR100
from micronet.scoring.references import OF_CIFAR10, OF_CIFAR100, of_network, references
from micronet.scoring.tables import class_table, cost_table, relative_to, score_table
from tests.support.models import TINY
from tests.support.places import ROOT

SPEC = {"name": "resnet", "blocks": [1], "widths": [4], "image": [1, 20, 12], "classes": 3}
IMAGE = (1, 20, 12)


def nobody():
    raise AssertionError("no teacher is asked for")


def test_the_data_says_what_scores_are_relative_to_unless_params_do():
    given = params.Reference(operations=4e6, parameters=5e4)
    for source, wanted in (("auto", OF_CIFAR10), ("sample", OF_CIFAR10), ("cifar100", OF_CIFAR100)):
        assert references(source, None, nobody, IMAGE) == wanted
        found = references(source, given, nobody, IMAGE)
        assert (found.of["deck"].operations, found.of["course"].parameters) == (4e6, 5e4)
    assert (OF_CIFAR10.of["challenge"], OF_CIFAR100.of["deck"]) == (CIFAR10, CIFAR100)


@pytest.mark.parametrize("source", ["mnist", "folder"])
def test_other_data_is_relative_to_the_teacher_which_then_is_two(source):
    found = references(source, None, lambda: models.build(SPEC), IMAGE)
    ops = operations(models.build(SPEC).to("meta"), IMAGE, weight_bits=16)
    assert [book.score(ops, reference=found.of[book.name]).score for book in BOOKS] == [2.0] * 4
    assert relative_to(found) == "lower is better; relative to the teacher in 16 bits"
    assert relative_to(None) == relative_to(OF_CIFAR10) == "lower is better; the deck's group: 0.0357"


def test_uneven_classes_have_a_balanced_accuracy_and_a_class_without_images_none():
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    split = Split(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), labels, ("cat", "dog", "owl"))
    assert _by_class(torch.tensor([0, 0, 0, 1, 1, 0]), split) == {
        "balanced_accuracy_percent": 62.5,
        "class_accuracy_percent": {"cat": 75.0, "dog": 50.0, "owl": None},
    }
    even = torch.arange(10)
    assert _by_class(even, Split(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), even)) == {}


@pytest.mark.parametrize(
    ("dataset", "by_class"),
    [("folder", True), ("mnist", True), ("cifar10", False), ("cifar10-sample", False), (None, False)],
)
def test_the_data_and_not_the_names_of_its_classes_decides_whether_each_is_measured(dataset, by_class):
    labels = torch.arange(10).repeat(2)
    test = Split(torch.zeros(20, 3, 32, 32, dtype=torch.uint8), labels, CLASSES, dataset)
    found = _by_class(labels, test)
    of_each = {"balanced_accuracy_percent": 100.0, "class_accuracy_percent": dict.fromkeys(CLASSES, 100.0)}
    assert found == (of_each if by_class else {})
    assert _by_class(labels[:10], test.part(10)) == found


def test_a_hundred_classes_are_a_table_of_the_worst_ten():
    accuracies = {f"class [b]{index}": float(index) for index in range(100)}
    table = class_table(accuracies, dict.fromkeys(accuracies, 5))
    assert table.row_count == 10 and table.title == "The worst 10 of 100 classes"
    assert [str(cell) for cell in table.columns[0].cells][:2] == ["class [b]0", "class [b]1"]
    few = class_table({"a": None, "b": 1.0}, {"a": 0, "b": 2})
    assert list(few.columns[1].cells) == ["1.00 %", "-"]


def test_the_price_on_the_command_line_is_of_the_images_that_a_spec_or_a_packed_file_has(capsys):
    def priced(*words: str) -> dict:
        assert scoring.main([*words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    grey = priced("--spec", json.dumps(TINY | {"image": [1, 28, 28]}))
    assert grey == priced("--spec", json.dumps(TINY), "--image", "1", "28", "28") != priced("--spec", json.dumps(TINY))
    assert scoring.main(["--spec", json.dumps(TINY), "--classes", "0"]) == 2
    assert "classes: must be >= 1 (got 0)" in capsys.readouterr().err
    mnist = str(ROOT / "release/mnist.safetensors")
    network = models.build(models.suited("densenet_nano", image=(1, 28, 28), classes=10))
    against = of_network(network, (1, 28, 28), "x").of["challenge"]
    found = priced(mnist, "--reference", "densenet_nano")["challenge"]
    assert found["score_ops"] == pytest.approx(found["ops"] / against.operations)


def test_the_price_on_the_command_line_takes_images_classes_and_a_reference(capsys):
    spec = json.dumps({"name": "resnet", "blocks": [1], "widths": [4]})
    shape = ["--image", "1", "20", "12", "--classes", "3"]
    assert scoring.main(["--spec", spec, *shape, "--reference", "2000000,1000", "--json"]) == 0
    priced = json.loads(capsys.readouterr().out)
    ops = operations(models.build(SPEC).to("meta"), IMAGE)
    assert priced["deck"]["flops"] == deck_score(ops).flops
    assert priced["challenge"]["score_params"] == challenge_score(ops).params / 1000
    assert scoring.main(["resnet18", *shape, "--reference", "resnet18", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deck"]["score"] == 2.0


@pytest.mark.parametrize("given", ["1,x", "0,1", "1,inf", "alexnet"])
def test_a_reference_that_is_none_is_a_line(given, capsys):
    assert scoring.main(["resnet18", "--reference", given]) == 2
    said = capsys.readouterr().err
    assert said.startswith("scoring: --reference: ") and said.count("\n") == 1


def test_the_cost_of_a_student_is_a_table_that_names_its_reference():
    row = {"network": "x", "parameters": 5, "bits": "4/4", "bytes": 7, "macs": 9, "deck_score": 1.0}
    found = of_network(models.build(SPEC), IMAGE, "a [b]teacher")
    table = cost_table([row | {"challenge_score": 2.0}], found)
    assert "relative to a [b]teacher" in str(table.title) and table.row_count == 1


def test_a_title_is_never_broken_inside_of_what_scores_are_relative_to():
    found = references("folder", None, lambda: models.build(SPEC), IMAGE)
    title = str(score_table([], found).title)
    assert title == "Test accuracy, MicroNet score\n(lower is better; relative to the teacher in 16 bits)"
    assert "\n" not in str(score_table([]).title)
