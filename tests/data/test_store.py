"""The prepared folder: opened, kept, split anew, damaged, rebuilt."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from micronet import params
from micronet.data import store
from micronet.data.arrays import DataError
from micronet.data.datasets import CLASSES, PIXELS
from micronet.data.sources import fetch
from micronet.data.store import MARKER, SPLITS, identity, open_split, prepare
from micronet.files import temporary_folder
from tests.support.cifar import config_for, write_form
from tests.support.thinning import thinned


def take_source_away(config: params.Data) -> None:
    Path(config.path).rename(Path(config.path).with_name("gone"))


def test_splits_open_as_uint8_images_and_int64_labels(sample_data, sample_manifest):
    split = open_split(sample_data, "test", sample_manifest)
    assert (split.images.shape, split.images.dtype) == ((500, 3, 32, 32), torch.uint8)
    assert (split.labels.shape, split.labels.dtype, len(split)) == ((500,), torch.int64, 500)


def test_the_test_split_is_in_the_official_order(sample_data, sample_manifest):
    _, whole = fetch(sample_data)
    split = open_split(sample_data, "test", sample_manifest)
    assert np.array_equal(split.images.numpy().reshape(500, -1), whole.test_images)
    assert np.array_equal(split.labels.numpy(), whole.test_labels)


def test_writing_to_an_opened_split_does_not_change_the_file(prepared):
    config, manifest = prepared
    file = Path(config.folder) / "test_images.bin"
    before = file.read_bytes()
    open_split(config, "test", manifest).images.zero_()
    assert file.read_bytes() == before


def test_a_second_prepare_needs_no_source_and_gives_the_same_bytes(prepared):
    config, manifest = prepared
    first, files = manifest.read_bytes(), sorted(Path(config.folder).iterdir())
    times = [path.stat().st_mtime_ns for path in files]
    manifest.unlink()  # as DVC does before it runs a stage
    take_source_away(config)
    prepare(config, manifest)
    assert manifest.read_bytes() == first
    assert [path.stat().st_mtime_ns for path in files] == times


def test_a_part_of_the_training_split_is_named_by_the_manifest_and_has_every_class_by_its_share(prepared):
    config, manifest = prepared
    whole, said = open_split(config, "train", manifest), manifest.read_text()
    few = config.model_copy(update={"training_images": 100})
    with pytest.raises(DataError, match="training_images is None, the params say 100"):
        open_split(few, "train", manifest)
    prepare(few, manifest)
    part = open_split(few, "train", manifest)
    assert part.labels.bincount().tolist() == [10] * 10
    assert all(
        torch.equal(part.images[part.labels == label], whole.images[whole.labels == label][:10]) for label in range(10)
    )
    assert len(open_split(few, "validation", manifest)) == config.validation_size
    assert part.part(100) is part and len(part.part(99)) == 99
    prepare(config, manifest)
    assert manifest.read_text() == said and "training_images" not in said


def test_another_split_is_made_from_the_folder_without_a_source(prepared, tmp_path):
    config, manifest = prepared
    first = manifest.read_bytes()
    take_source_away(config)
    another = config.model_copy(update={"validation_size": 100, "seed": 5})
    prepare(another, manifest)
    assert len(open_split(another, "validation", manifest)) == 100
    prepare(config, manifest)
    assert manifest.read_bytes() == first


def damage_byte(folder: Path, name: str = "test_images.bin", place: int = 123) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)


def cut_short(folder: Path) -> None:
    path = folder / "train_images.bin"
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
    "marker missing": lambda folder: (folder / MARKER).unlink(),
    "marker half-written": lambda folder: (folder / MARKER).write_text('{"manifest": {'),
    "marker of another kind": lambda folder: (folder / MARKER).write_text('{"manifest": {"dataset": "cifar10"}}'),
    "file missing": lambda folder: (folder / "validation_labels.bin").unlink(),
    "file cut short": cut_short,
    "byte changed": damage_byte,
    "marker nested too deep": lambda folder: (folder / MARKER).write_text("[" * 100_000),
    "marker not text": lambda folder: (folder / MARKER).write_bytes(b"\xff\xfe{}"),
    "marker a list": lambda folder: (folder / MARKER).write_text("[]"),
    "label out of range": lambda folder: damage_byte(folder, "test_labels.bin"),
    "folder missing": lambda folder: folder.rename(folder.with_name("elsewhere")),
}


@pytest.mark.parametrize(
    "change",
    thinned(
        [
            {"source": ["npm"]},
            {"validation_indices": "none"},
            {"validation_indices": [10**30]},
            {"validation_indices": [-1]},
            {"validation_indices": [999_999]},
            {"manifest": []},
            {"manifest": {"dataset": 5}},
            {"more": 1},
        ],
        3,
        name=str,
    ),
)
def test_a_marker_of_another_form_is_rebuilt(change, prepared):
    config, manifest = prepared
    path = Path(config.folder) / MARKER
    before = path.read_bytes()
    path.write_text(json.dumps(json.loads(before) | change))
    prepare(config, manifest)
    assert path.read_bytes() == before


def test_a_flipped_byte_in_any_split_that_is_opened_is_noticed_said_and_mended(prepared):
    config, manifest = prepared
    folder = Path(config.folder)
    for name in SPLITS:
        for kind in ("images", "labels"):
            before = (folder / f"{name}_{kind}.bin").read_bytes()
            damage_byte(folder, f"{name}_{kind}.bin")
            lines: list[str] = []
            split = open_split(config, name, manifest, lines.append)
            assert f"{name}_{kind}.bin" in lines[0] and "rebuilding" in lines[0]
            assert (folder / f"{name}_{kind}.bin").read_bytes() == before
            assert int(split.labels.max()) == 9


def test_a_folder_in_the_place_of_a_file_is_one_line(prepared):
    config, manifest = prepared
    path = Path(config.folder) / "train_images.bin"
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"train_images\.bin: cannot be written: Is a directory"):
        open_split(config, "train", manifest)
    assert not list(Path(config.folder).parent.glob(".*"))


def test_a_file_that_cannot_be_read_is_rebuilt(prepared, monkeypatch):
    config, manifest = prepared

    def unreadable(path: Path, *_: object) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    lines: list[str] = []
    monkeypatch.setattr(store, "checksum", unreadable)
    open_split(config, "train", manifest, lines.append)
    assert "train_images.bin: Input/output error" in lines[0]


def test_what_a_killed_prepare_left_is_removed_by_the_next_and_what_a_running_one_writes_is_not(prepared):
    config, manifest = prepared
    folder = Path(config.folder)
    abandoned = folder.with_name(f".{folder.name}.0123abcd.part")
    abandoned.mkdir()
    (abandoned / "train_images.bin").write_bytes(b"half")
    with temporary_folder(folder) as running:
        assert not abandoned.exists()
        (folder / MARKER).unlink()
        prepare(config, manifest)
        assert running.is_dir()


@pytest.mark.parametrize("damage", thinned(DAMAGES, 2))
def test_a_damaged_folder_is_noticed_and_rebuilt(damage, prepared):
    config, manifest = prepared
    folder = Path(config.folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    DAMAGES[damage](folder)
    lines: list[str] = []
    open_split(config, "test", manifest, lines.append)
    assert "building" in lines[0]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not list(folder.parent.glob(".*"))


def test_a_changed_byte_without_a_source_is_an_error_and_not_data(prepared):
    config, manifest = prepared
    damage_byte(Path(config.folder))
    take_source_away(config)
    with pytest.raises(DataError, match="no source of CIFAR-10 worked"):
        open_split(config, "test", manifest)


def test_a_folder_that_agrees_with_itself_but_not_with_cifar10_is_rebuilt(prepared):
    config, manifest = prepared
    folder = Path(config.folder)
    damage_byte(folder)
    marker = json.loads((folder / MARKER).read_text())
    forged = hashlib.sha256((folder / "test_images.bin").read_bytes()).hexdigest()
    marker["manifest"]["splits"]["test"]["images_sha256"] = forged
    (folder / MARKER).write_text(json.dumps(marker))
    before = manifest.read_bytes()
    prepare(config, manifest)
    assert manifest.read_bytes() == before


@pytest.mark.parametrize("over_another_split", [False, True])
def test_a_build_that_breaks_off_leaves_no_marker_and_no_manifest(
    over_another_split, official, records, tmp_path, monkeypatch
):
    config = config_for(write_form(tmp_path / "files", records, "binary"), tmp_path / "cifar10")
    if over_another_split:
        prepare(config.model_copy(update={"seed": 1}), tmp_path / "other.json")
    replace, calls = os.replace, []

    def breaks(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", breaks)
    with pytest.raises(DataError, match="No space left on device"):
        prepare(config, tmp_path / "manifest.json")
    assert not (tmp_path / "cifar10" / MARKER).exists() and not (tmp_path / "manifest.json").exists()
    monkeypatch.setattr(os, "replace", replace)
    prepare(config, tmp_path / "manifest.json")
    assert len(open_split(config, "train", tmp_path / "manifest.json")) == 800


def test_what_else_lies_in_the_folder_stays(official, records, tmp_path):
    config = config_for(write_form(tmp_path / "files", records, "binary"), tmp_path / "cifar10")
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "notes.txt").write_text("mine")
    prepare(config, tmp_path / "manifest.json")
    assert (tmp_path / "cifar10" / "notes.txt").read_text() == "mine"


def test_a_folder_that_holds_the_whole_is_not_overwritten_by_the_sample(prepared, tmp_path):
    config, _ = prepared
    sample = params.Data(source="sample", folder=config.folder, validation_size=200)
    with pytest.raises(DataError, match="holds cifar10, set data.folder to another one for cifar10-sample"):
        prepare(sample, tmp_path / "other.json")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads resident memory as Linux states it")
def test_opening_a_split_maps_it_instead_of_reading_it(tmp_path):
    sums = (hashlib.sha256(bytes(50_000 * size)).hexdigest() for size in (PIXELS, 1))
    facts = dict(zip(("images", "images_sha256", "labels_sha256"), (50_000, *sums), strict=True))
    config = params.Data(source="auto", folder=str(tmp_path / "big"), validation_size=5000)
    manifest = {
        **identity(config),
        "classes": list(CLASSES),
        "image_shape": [3, 32, 32],
        "train_mean": [],
        "train_standard_deviation": [],
        "whole": {"train": facts, "test": facts},
        "splits": dict.fromkeys(SPLITS, facts),
    }
    (tmp_path / "big").mkdir()
    for name in SPLITS:
        for kind, size in (("images", PIXELS), ("labels", 1)):
            with (tmp_path / "big" / f"{name}_{kind}.bin").open("wb") as file:
                file.truncate(50_000 * size)
    (tmp_path / "big" / MARKER).write_text(
        json.dumps({"source": "path", "manifest": manifest, "validation_indices": []})
    )
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    split = open_split(config, "train", tmp_path / "manifest.json")
    assert len(split) == 50_000 and resident() - before < 50e6
