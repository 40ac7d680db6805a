"""Architectures for images of any allowed size, of one colour or three, and of any classes."""

from __future__ import annotations

import json

import pytest
import torch

import models

FAMILIES = [
    {"name": "resnet", "blocks": [1, 1], "widths": [4, 6]},
    {"name": "mobilenet", "blocks": [1, 1], "widths": [4, 6]},
    {"name": "densenet", "blocks": [1, 1], "growth_rate": 3},
    {"name": "convnet", "widths": [4, 6]},
]
NAMES = [spec["name"] for spec in FAMILIES]


@pytest.mark.parametrize("image", [(1, 8, 8), (3, 8, 21), (1, 33, 9), (3, 64, 40)])
@pytest.mark.parametrize("spec", FAMILIES, ids=NAMES)
def test_an_architecture_takes_images_of_any_size_colours_and_classes(spec, image):
    full = models.suited(spec, image=image, classes=3)
    model = models.build(json.loads(json.dumps(full)))
    models.fit(model, torch.randn(20, *image))
    logits = model(torch.randn(2, *image))
    assert logits.shape == (2, 3) and logits.isfinite().all()
    assert full["image"] == list(image) and model.spec == full


@pytest.mark.parametrize("spec", FAMILIES, ids=NAMES)
def test_the_image_of_cifar_10_is_left_out_of_a_spec_and_another_one_is_not(spec):
    plain = models.normalise(spec)
    assert "image" not in plain
    assert models.suited(spec, image=(3, 32, 32), classes=10) == plain
    assert models.normalise(spec | {"image": [3, 32, 32]}) == plain


@pytest.mark.parametrize(
    ("spec", "image", "line"),
    [
        (
            {"name": "resnet", "blocks": [1] * 5, "widths": [4] * 5},
            (3, 8, 8),
            "blocks: must have at most 4 items on images of 8 x 8 (got 5)",
        ),
        (
            {"name": "densenet", "blocks": [1] * 5, "growth_rate": 2},
            (1, 8, 200),
            "blocks: must have at most 4 items on images of 8 x 200 (got 5)",
        ),
        (
            {"name": "convnet", "widths": [4] * 3},
            (3, 8, 30),
            "widths: must have at most 2 items on images of 8 x 30 (got 3)",
        ),
        (
            {"name": "mobilenet", "blocks": [1] * 5, "widths": [4] * 5},
            (3, 8, 8),
            "strides: must hold at most 3 twos behind the first stage, on images of 8 x 8 (got 4)",
        ),
    ],
    ids=["resnet", "densenet", "convnet", "mobilenet"],
)
def test_a_map_that_gets_too_small_is_a_line_and_one_stage_less_works(spec, image, line):
    with pytest.raises(models.SpecError) as caught:
        models.suited(spec, image=image, classes=2)
    assert caught.value.faults == [line]
    less = {key: value[:-1] if isinstance(value, list) else value for key, value in spec.items()}
    model = models.build(models.suited(less, image=image, classes=2)).eval()
    assert model(torch.zeros(1, *image)).shape == (1, 2)


def test_large_images_leave_room_for_more_stages_than_small_ones():
    spec = {"name": "resnet", "blocks": [1] * 9, "widths": [1] * 9}
    assert models.suited(spec, image=(3, 256, 8), classes=2)["blocks"] == [1] * 9
    with pytest.raises(models.SpecError, match="blocks: must have at most 6 items"):
        models.suited(spec, classes=10)


@pytest.mark.parametrize("image", [[2, 32, 32], [3, 7, 32], [3, 32, 257], [3, 32], "3x32x32", [True, 32, 32]])
def test_an_image_that_nobody_has_is_refused(image):
    with pytest.raises(models.SpecError, match="^image"):
        models.check({"name": "resnet18", "image": image})


def test_a_spec_that_contradicts_the_data_is_refused_with_what_the_data_is():
    spec = {"name": "resnet18", "image": [3, 16, 16], "classes": 7}
    with pytest.raises(models.SpecError) as caught:
        models.suited(spec, image=(1, 28, 28), classes=10)
    assert caught.value.faults == [
        "image: must be [1, 28, 28], the channels, height and width of the data's images (got [3, 16, 16])",
        "classes: must be 10, the number of the data's labels (got 7)",
    ]


def test_networks_for_other_images_do_not_narrow_each_other():
    narrow, wide = {"name": "convnet", "widths": [4]}, {"name": "convnet", "widths": [8], "image": [3, 16, 16]}
    assert not models.narrows(narrow, wide) and models.narrows(narrow | {"image": [3, 16, 16]}, wide)
