"""The section `data` of params.yaml: what each source takes and needs, and what it is when nothing is said."""

from __future__ import annotations

from typing import Any

import pytest

from micronet import params
from tests.support.configs import demo

IMAGE = {"height": 48, "width": 64}
FOLDER = {"source": "folder", "path": "pictures", "image": IMAGE}


def data_faults(section: dict[str, Any]) -> list[str]:
    try:
        params.parse(demo(("data", section)))
    except params.ParamsError as error:
        return [fault.removeprefix("params.yaml: data.") for fault in error.faults]
    return []


def test_params_of_before_keep_their_dump_and_their_digest():
    section = params.Data(source="auto")
    assert list(section.model_dump()) == ["source", "path", "folder", "validation_size", "timeout_seconds"]
    assert params.digest(section) == "2e0cd4253aca310d"


@pytest.mark.parametrize(
    ("section", "fault"),
    [
        (
            {"source": "folder", "image": IMAGE},
            "path: is missing; source folder needs it, the folder with the pictures",
        ),
        (
            {"source": "folder", "path": "x"},
            "image: is missing; source folder needs it, as in image: {height: 64, width: 64}",
        ),
        ({"source": "mnist", "image": IMAGE}, "image: source folder alone takes it (got source mnist)"),
        ({"source": "sample", "test_share": 0.5}, "test_share: source folder alone takes it (got source sample)"),
        ({"source": "cifar100", "most_broken": 3}, "most_broken: source folder alone takes it (got source cifar100)"),
        ({"source": "path"}, "source: path needs data.path, a folder or archive"),
        (FOLDER | {"image": {"height": 48}}, "image.width: is missing"),
        (FOLDER | {"image": IMAGE | {"height": 7}}, "image.height: must be >= 8 (got 7)"),
        (FOLDER | {"image": IMAGE | {"width": 257}}, "image.width: must be <= 256 (got 257)"),
        (FOLDER | {"image": IMAGE | {"channels": 4}}, "image.channels: must be 1 or 3 (got 4)"),
        (FOLDER | {"image": IMAGE | {"channels": True}}, "image.channels: must be a whole number (got True)"),
        (FOLDER | {"image": IMAGE | {"channels": 3.0}}, "image.channels: must be a whole number (got 3.0)"),
        (FOLDER | {"image": IMAGE | {"fit": "zoom"}}, "image.fit: must be 'stretch', 'crop' or 'pad' (got 'zoom')"),
        (FOLDER | {"test_share": 1.0}, "test_share: must be < 1 (got 1.0)"),
        (FOLDER | {"seed": -1}, "seed: must be >= 0 (got -1)"),
        (
            FOLDER | {"validation_size": 50, "validation_share": 0.1},
            "validation_size + validation_share: one of the two decides; leave the other out",
        ),
        ({"source": "auto", "validation_size": None}, "validation_size: must be a whole number (got None)"),
        (
            {"source": "auto", "validation_size": 4995},
            "validation_size: must be a multiple of 10, a stratified split (got 4995)",
        ),
        (
            {"source": "auto", "validation_size": 50_000},
            "validation_size: must be below the 50000 training images (got 50000)",
        ),
        (
            {"source": "sample", "validation_size": 1000},
            "validation_size: must be below the 1000 training images (got 1000)",
        ),
        (
            {"source": "mnist", "validation_size": 60_000},
            "validation_size: must be below the 60000 training images (got 60000)",
        ),
        (
            {"source": "mnist", "validation_size": 59_991},
            "validation_size: must be 10 to 59990, some of each class on both sides (got 59991)",
        ),
        (
            {"source": "cifar100", "validation_size": 50},
            "validation_size: must be a multiple of 100, a stratified split (got 50)",
        ),
    ],
)
def test_a_source_that_lacks_what_it_needs_or_has_what_it_cannot_use_is_one_fault(section, fault):
    assert data_faults(section) == [fault]


@pytest.mark.parametrize(
    ("section", "validation", "folder"),
    [
        ({"source": "auto"}, 5000, "data/cifar10"),
        ({"source": "auto", "validation_share": 0.2}, 0.2, "data/cifar10"),
        ({"source": "mnist", "validation_size": 4999}, 4999, "data/mnist"),
        ({"source": "cifar100", "folder": "elsewhere"}, 5000, "elsewhere"),
        (FOLDER, 0.1, "data/folder"),
        (FOLDER | {"validation_size": 7}, 7, "data/folder"),
        (FOLDER | {"validation_share": 0.25, "seed": 3, "test_share": 0.5, "most_broken": 4}, 0.25, "data/folder"),
    ],
)
def test_what_is_held_out_and_where_it_lies_has_a_default_for_each_source_and_survives_a_dump(
    section, validation, folder
):
    loaded = params.parse(demo(("data", section))).data
    assert (loaded.validation, loaded.folder) == (validation, folder)
    assert type(loaded.validation) is type(validation)
    assert params.Data(**loaded.model_dump(mode="json")) == loaded
