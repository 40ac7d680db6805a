"""The split, and the manifest that states it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from micronet.data.arrays import DataError
from micronet.data.datasets import SAMPLE
from micronet.data.sources import fetch
from micronet.data.store import SPLITS, open_split, prepare, source_of
from micronet.files import FileError
from tests.support.cifar import config_for, write_archive, write_form
from tests.support.thinning import thinned


def test_the_split_is_stratified_and_disjoint(sample_data, sample_manifest):
    train, validation = (open_split(sample_data, name, sample_manifest) for name in ("train", "validation"))
    assert validation.labels.bincount().tolist() == [20] * 10
    assert train.labels.bincount().tolist() == [80] * 10
    seen = {image.numpy().tobytes() for image in train.images}
    assert len(seen) == 800 and not any(image.numpy().tobytes() in seen for image in validation.images)


@pytest.mark.parametrize("key, changes", [("split_seed", {"seed": 1}), ("validation_size", {"validation_size": 100})])
def test_a_manifest_of_other_params_is_refused_with_the_way_out(key, changes, prepared):
    config, manifest = prepared
    with pytest.raises(DataError, match=f"{key} is .* stages/prepare_data.py"):
        open_split(config.model_copy(update=changes), "train", manifest)


def test_a_missing_manifest_names_the_stage_that_makes_it(sample_data, tmp_path):
    with pytest.raises(DataError, match="stages/prepare_data.py` makes it"):
        open_split(sample_data, "train", tmp_path / "none.json")


def without(tree: dict, *keys: str) -> dict:
    return {key: value for key, value in tree.items() if key not in keys}


DAMAGES = {
    "sections gone": lambda tree: json.dumps(without(tree, "splits", "whole")),
    "a split gone": lambda tree: json.dumps(tree | {"splits": without(tree["splits"], "test")}),
    "text for a number": lambda tree: json.dumps(tree | {"validation_size": "200"}),
    "a float for a number": lambda tree: json.dumps(tree | {"validation_size": 200.5}),
    "no checksum": lambda tree: json.dumps(tree).replace(tree["splits"]["train"]["labels_sha256"], "\x1b[31m\nred"),
    "a key more": lambda tree: json.dumps(tree | {"more": 1}),
    "nested too deep": lambda tree: '{"splits": ' * 100_000,
    "a list": lambda tree: json.dumps([tree]),
    "no text": lambda tree: b"\xff\xfe" + json.dumps(tree).encode(),
    "empty": lambda tree: "",
    "a huge number": lambda tree: json.dumps(tree).replace("200", "9" * 5000, 1),
}


@pytest.mark.parametrize("damage", thinned(DAMAGES, 2))
def test_a_malformed_manifest_is_one_line_with_the_way_out_and_prepare_mends_it(damage, prepared):
    config, manifest = prepared
    before = manifest.read_bytes()
    damaged = DAMAGES[damage](json.loads(before))
    manifest.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    with pytest.raises(DataError) as caught:
        open_split(config, "train", manifest)
    said = str(caught.value)
    assert said.startswith(str(manifest)) and said.endswith("`python stages/prepare_data.py` makes it anew")
    assert said.isprintable() and len(said.removeprefix(str(manifest))) < 250
    prepare(config, manifest)
    assert manifest.read_bytes() == before


def test_a_folder_in_the_place_of_the_manifest_is_one_line(prepared):
    config, manifest = prepared
    manifest.unlink()
    manifest.mkdir()
    with pytest.raises(DataError, match="Is a directory"):
        open_split(config, "train", manifest)
    with pytest.raises(FileError, match="is a folder; move it away"):
        prepare(config, manifest)


def test_the_manifest_is_the_same_wherever_and_from_whatever_it_was_made(prepared, records, tmp_path):
    _, manifest = prepared
    archive = write_archive(write_form(tmp_path / "sheets", records, "sheets"), tmp_path / "other.tgz")
    prepare(config_for(archive, tmp_path / "elsewhere"), tmp_path / "second.json")
    assert (tmp_path / "second.json").read_bytes() == manifest.read_bytes()
    tree = json.loads(manifest.read_text())
    assert set(tree) == {
        "dataset", "split_seed", "validation_size", "classes", "image_shape", "train_mean",
        "train_standard_deviation", "whole", "splits",
    }  # fmt: skip


def test_the_manifest_has_the_checksum_of_every_split(sample_data, sample_manifest):
    tree = json.loads(sample_manifest.read_text())
    assert tree["dataset"] == "cifar10-sample"
    for name in SPLITS:
        for kind in ("images", "labels"):
            content = (Path(sample_data.folder) / f"{name}_{kind}.bin").read_bytes()
            assert tree["splits"][name][f"{kind}_sha256"] == hashlib.sha256(content).hexdigest()
    assert tree["whole"]["train"]["images_sha256"] == SAMPLE.train_images_sha256
    assert tree["whole"]["test"]["labels_sha256"] == SAMPLE.test_labels_sha256


def test_mean_and_deviation_are_per_pixel(sample_data, sample_manifest):
    _, whole = fetch(sample_data)
    pixels = whole.train_images.reshape(-1, 3, 1024) / 255
    tree = json.loads(sample_manifest.read_text())
    assert tree["train_mean"] == pytest.approx(pixels.mean((0, 2)), abs=1e-8)
    assert tree["train_standard_deviation"] == pytest.approx(pixels.std((0, 2)), abs=1e-8)


def test_prepare_returns_flat_metrics_and_the_source_is_known(sample_data, sample_manifest, tmp_path):
    metrics = prepare(sample_data, tmp_path / "manifest.json")
    assert (metrics["train_images"], metrics["validation_images"], metrics["test_images"]) == (800, 200, 500)
    assert all(isinstance(value, int | float) for value in metrics.values())
    assert source_of(sample_data) == "sample"
