"""A folder of pictures in the store: of any shape and number of classes, prepared anew when it has changed.

The module that reads pictures is a stand-in here: one that makes them up.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from micronet import params
from micronet.data import pieces
from micronet.data.arrays import Arrays, DataError, Description
from micronet.data.datasets import described, standing_in
from micronet.data.pieces import Joined
from micronet.data.store import MARKER, _mapped, changed, open_split, prepare
from micronet.errors import shown
from tests.support.checkouts import change
from tests.support.places import ROOT

sys.path.insert(0, str(ROOT / "stages"))

import check  # noqa: E402 - they stand among the stage scripts
import job  # noqa: E402


@dataclass
class Pictures:
    """What the stand-in finds in the folder."""

    classes: tuple[str, ...] = ("cat", "cow", "dog")
    train: tuple[int, ...] = (12, 7, 3)  # images of each class
    facts: dict[str, Any] = field(default_factory=lambda: {"broken_images": 1})
    state: str = "first"
    reads: int = 0

    def read(self, config: params.Data, place: Path, report: Any) -> tuple[Arrays, Description, dict[str, Any]]:
        self.reads += 1
        shape = (config.image.channels, config.image.height, config.image.width)
        parts: list[np.ndarray] = []
        for name, sizes in (("train", self.train), ("test", [2] * len(self.classes))):
            labels = np.repeat(np.arange(len(sizes)), sizes)
            images = np.memmap(place / f"{name}.raw", np.uint8, "w+", shape=(len(labels), int(np.prod(shape))))
            images[:] = np.random.default_rng(len(self.state)).integers(0, 256, images.shape, np.uint8)
            parts += [images, labels]
        return Arrays(*parts), Description("folder", shape, self.classes), self.facts

    def scan(self, config: params.Data) -> str:
        return self.state

    def check(self, config: params.Data) -> None:
        """There is nothing to find."""

    def class_names(self, config: params.Data) -> tuple[str, ...]:
        if not Path(config.path).is_dir():
            raise DataError(f"{config.path}: there is no such folder")
        return self.classes


@pytest.fixture
def found(monkeypatch) -> Pictures:
    pictures, module = Pictures(), ModuleType("micronet.data.folder")
    for name in ("read", "scan", "class_names", "check"):
        setattr(module, name, getattr(pictures, name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return pictures


@pytest.fixture
def config(tmp_path) -> params.Data:
    (tmp_path / "pictures").mkdir()
    image = params.ImageFormat(height=9, width=14)
    return params.Data(
        source="folder", path=str(tmp_path / "pictures"), folder=str(tmp_path / "out/own"), image=image,
        validation_size=5,
    )  # fmt: skip


def test_images_of_any_shape_come_back_with_their_labels_and_the_names_of_the_classes(config, found, tmp_path):
    metrics = prepare(config, tmp_path / "m.json")
    assert metrics["train_images"] == 17 and metrics["broken_images"] == 1 and "train_mean_blue" in metrics
    whole, description, _ = found.read(config, tmp_path, None)
    assert described(config) == description
    split = open_split(config, "test", tmp_path / "m.json")
    assert split.images.shape == (6, 3, 9, 14) and split.classes == found.classes and split.dataset == "folder"
    assert np.array_equal(split.images.numpy().reshape(6, -1), whole.test_images)
    both = [open_split(config, name, tmp_path / "m.json") for name in ("train", "validation")]
    rows = torch.cat([split.images for split in both]).reshape(22, -1).tolist()
    assert sorted(rows) == sorted(whole.train_images.tolist())
    assert both[1].labels.bincount().tolist() == [3, 1, 1]


def test_the_manifest_says_the_format_the_shape_and_how_uneven_the_classes_are(config, found, tmp_path):
    prepare(config, tmp_path / "m.json")
    manifest = json.loads((tmp_path / "m.json").read_text())
    assert manifest["image_format"] == {"height": 9, "width": 14, "channels": 3, "fit": "crop"}
    assert (manifest["dataset"], manifest["image_shape"]) == ("folder", [3, 9, 14])
    assert manifest["whole"]["train"]["class_images"] == [12, 7, 3]
    assert "class_images" not in manifest["splits"]["test"], "two of each"
    assert str(tmp_path) not in json.dumps(manifest)


def test_a_grey_image_has_one_mean(config, found, tmp_path):
    grey = config.model_copy(update={"image": params.ImageFormat(height=8, width=8, channels=1)})
    metrics = prepare(grey, tmp_path / "m.json")
    assert "train_mean_grey" in metrics and "train_mean_red" not in metrics
    assert open_split(grey, "train", tmp_path / "m.json").images.shape[1:] == (1, 8, 8)


def test_labels_of_more_than_256_classes_are_kept_whole(config, found, tmp_path):
    found.classes, found.train = tuple(f"c{index:03}" for index in range(300)), (2,) * 300
    many = config.model_copy(update={"validation_size": None, "validation_share": 0.5})
    prepare(many, tmp_path / "m.json")
    assert open_split(many, "validation", tmp_path / "m.json").labels.tolist() == list(range(300))
    prepare(many.model_copy(update={"seed": 1}), tmp_path / "m.json")
    assert found.reads == 1, "the labels come back from the files"


def test_the_pieces_that_a_set_is_written_in_change_nothing(config, found, tmp_path, monkeypatch):
    prepare(config, tmp_path / "m.json")
    monkeypatch.setattr(pieces, "PIECE", 1000)  # two images
    small = config.model_copy(update={"folder": str(tmp_path / "out/small")})
    prepare(small, tmp_path / "small.json")
    assert (tmp_path / "small.json").read_bytes() == (tmp_path / "m.json").read_bytes()
    for path in Path(config.folder).iterdir():
        assert (Path(small.folder) / path.name).read_bytes() == path.read_bytes()
    again = small.model_copy(update={"seed": 3})
    prepare(again, tmp_path / "small.json")
    prepare(small, tmp_path / "small.json")
    assert (tmp_path / "small.json").read_bytes() == (tmp_path / "m.json").read_bytes() and found.reads == 2


def test_nothing_of_what_was_read_stays_beside_the_folder(config, found, tmp_path):
    prepare(config, tmp_path / "m.json")
    assert [path.name for path in Path(config.folder).parent.iterdir()] == ["own"]


def test_a_changed_folder_is_noticed_and_prepared_anew(config, found, tmp_path):
    prepare(config, tmp_path / "m.json")
    before = (tmp_path / "m.json").read_bytes()
    assert not changed(config)
    found.state = "another"
    assert changed(config)
    with pytest.raises(DataError, match="the pictures have changed since they were prepared; `make repro`") as caught:
        open_split(config, "train", tmp_path / "m.json")
    assert "python stages/prepare_data.py" in str(caught.value)
    lines: list[str] = []
    prepare(config, tmp_path / "m.json", lines.append)
    assert "have changed: rebuilding" in lines[0] and (tmp_path / "m.json").read_bytes() != before
    assert len(open_split(config, "train", tmp_path / "m.json")) == 17 and found.reads == 2


def test_the_check_before_dvc_prepares_a_changed_folder_anew_and_nothing_else(config, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    networks = ModuleType("consistency")
    networks.inconsistencies = lambda loaded: []
    monkeypatch.setitem(sys.modules, "consistency", networks)
    monkeypatch.setattr(check, "validate", lambda path: SimpleNamespace(data=config))
    check.check("params.yaml", renew=True)
    assert found.reads == 0, "the pipeline does that"
    prepare(config, "data/manifest.json")
    before = Path("data/manifest.json").read_bytes()
    check.check("params.yaml", renew=True)
    assert found.reads == 1
    found.state = "another"
    check.check("params.yaml", renew=True)
    assert found.reads == 2 and Path("data/manifest.json").read_bytes() != before


def test_a_folder_that_is_gone_leaves_what_was_prepared_of_it(config, found, tmp_path):
    prepare(config, tmp_path / "m.json")
    Path(config.path).rmdir()
    found.state = "nobody asks"
    prepare(config, tmp_path / "m.json")
    assert described(config) == Description("folder", (3, 9, 14), found.classes)
    assert len(open_split(config, "validation", tmp_path / "m.json")) == 5
    prepare(config.model_copy(update={"validation_size": 6}), tmp_path / "m.json")
    assert found.reads == 1


def moved(config: params.Data, path: object) -> params.Data:
    return config.model_copy(update={"path": str(path)})


def test_a_mistyped_folder_is_refused_instead_of_what_was_prepared_of_another(config, found, tmp_path):
    prepare(config, tmp_path / "m.json")
    before = {path.name: path.read_bytes() for path in Path(config.folder).iterdir()}
    wrong = moved(config, tmp_path / "pictuers")
    for use in (
        lambda: described(wrong),
        lambda: changed(wrong),
        lambda: standing_in(wrong),
        lambda: prepare(wrong, tmp_path / "m.json"),
        lambda: prepare(wrong.model_copy(update={"seed": 5}), tmp_path / "m.json"),
        lambda: open_split(wrong, "train", tmp_path / "m.json"),
    ):
        with pytest.raises(DataError) as caught:
            use()
        line = str(caught.value)
        assert line.startswith(shown(tmp_path / "pictuers", 80) + ": there is no such folder, and ")
        assert line.endswith("; data.path must name that one, or a folder that is here") and len(line) <= 300
    assert {path.name: path.read_bytes() for path in Path(config.folder).iterdir()} == before and found.reads == 1


@pytest.mark.parametrize("said", ["pictures", "./pictures/", "../{name}/pictures", "{place}/pictures"])
def test_another_spelling_of_the_same_folder_is_the_same(said, config, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(config, "m.json")
    Path(config.path).rmdir()
    there = moved(config, said.format(name=tmp_path.name, place=tmp_path))
    assert len(open_split(there, "train", "m.json")) == 17 and "is not here" in standing_in(there)


def test_what_was_prepared_counts_on_another_machine_which_has_other_folders(config, found, tmp_path, monkeypatch):
    for path in ("data/pictures", "/mnt/elsewhere/pictures"):
        for home in ("here", "there"):
            (tmp_path / home / "deeper").mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tmp_path / "here")
        Path("data/pictures").mkdir(parents=True)
        prepare(config.model_copy(update={"path": "data/pictures", "folder": "data/own"}), "m.json")
        change(Path("data/own") / MARKER, "path", value=path)
        shutil.copytree("data/own", tmp_path / "there/data/own")
        monkeypatch.chdir(tmp_path / "there")
        there = config.model_copy(update={"path": path, "folder": "data/own"})
        lines: list[str] = []
        prepare(there, "m.json", lines.append)
        assert lines == ["data/own: already there, all checksums match"]
        count = "is not here; the pictures that were prepared in data/own count"
        assert standing_in(there) == f"{path}: {count} (of {path})"
        monkeypatch.chdir("deeper")
        if path == "data/pictures":
            assert standing_in(there.model_copy(update={"path": "../data/pictures", "folder": "../data/own"}))
        for home in ("here", "there"):
            shutil.rmtree(tmp_path / home / "data")


def test_a_folder_that_has_moved_is_known_by_its_new_place(config, found, tmp_path):
    prepare(config, tmp_path / "m.json")
    manifest = (tmp_path / "m.json").read_bytes()
    there = moved(config, Path(config.path).rename(tmp_path / "cars"))
    prepare(there, tmp_path / "m.json")
    (tmp_path / "cars").rmdir()
    assert "is not here" in standing_in(there) and found.reads == 1
    with pytest.raises(DataError, match="was prepared of"):
        described(config)
    prepare(there.model_copy(update={"seed": 9}), tmp_path / "m.json")  # split anew of itself
    assert "is not here" in standing_in(there) and str(tmp_path) not in manifest.decode()


def test_a_marker_that_does_not_say_its_folder_goes_on_and_that_is_said(config, found, tmp_path):
    prepare(config, tmp_path / "m.json")
    marker = Path(config.folder) / MARKER
    tree = json.loads(marker.read_text())
    marker.write_text(json.dumps({key: value for key, value in tree.items() if key not in ("path", "place")}))
    prepare(config, tmp_path / "m.json")
    assert json.loads(marker.read_text()) == tree, "the folder is here, so it can be said"
    marker.write_text(json.dumps({key: value for key, value in tree.items() if key not in ("path", "place")}))
    Path(config.path).rmdir()
    assert len(open_split(moved(config, "cars"), "train", tmp_path / "m.json")) == 17
    assert standing_in(moved(config, "cars")).startswith("cars: is not here; the pictures that were prepared in ")
    assert "it does not say of which folder" in standing_in(config)


def test_a_stage_and_the_check_say_that_what_was_prepared_stands_for_the_folder(
    config, found, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    prepare(config, "data/manifest.json")
    lines: list[str] = []
    monkeypatch.setattr(
        job, "run", lambda script, text, started, *_: started(loaded, None, SimpleNamespace(say=lines.append, place=""))
    )
    networks = ModuleType("consistency")
    networks.inconsistencies = lambda loaded: []
    monkeypatch.setitem(sys.modules, "consistency", networks)
    loaded = SimpleNamespace(data=config)
    monkeypatch.setattr(check, "validate", lambda path: loaded)

    def said() -> list[str]:
        lines.clear()
        job.Job.main("score.py", "", lambda job: None)
        check.check("params.yaml", quiet=True)
        return [*lines, *capsys.readouterr().err.splitlines()]

    assert said() == []
    Path(config.path).rmdir()
    line = standing_in(config)
    assert said() == [line, f"check: {line}"]
    loaded.data = moved(config, "cars")
    with pytest.raises(DataError, match="cars: there is no such folder, and "):
        job.Job.main("score.py", "", lambda job: None)
    with pytest.raises(DataError, match="cars: there is no such folder, and "):
        check.check("params.yaml", quiet=True)


@pytest.mark.parametrize(
    ("changes", "read_again"),
    [
        ({"image": params.ImageFormat(height=9, width=14, fit="pad")}, True),
        ({"image": params.ImageFormat(height=14, width=9)}, True),
        ({"test_share": 0.25}, True),
        ({"most_broken": 1}, True),  # once two were allowed: there may be two
        ({"most_broken": 7}, False),
        ({"validation_size": 6}, False),
        ({"validation_size": None, "validation_share": 0.5}, False),
        ({"seed": 4}, False),
        ({"timeout_seconds": 5.0}, False),
    ],
    ids=str,
)
def test_the_pictures_are_read_again_where_the_params_change_what_becomes_of_them(
    changes, read_again, config, found, tmp_path
):
    config = config.model_copy(update={"most_broken": 2})
    prepare(config, tmp_path / "m.json")
    prepare(config.model_copy(update=changes), tmp_path / "m.json")
    assert found.reads == 1 + read_again
    open_split(config.model_copy(update=changes), "train", tmp_path / "m.json")


def test_pictures_are_held_out_by_their_pixels_wherever_they_stand(config, found, tmp_path, monkeypatch):
    config = config.model_copy(update={"validation_size": None, "validation_share": 0.3})

    def held_out() -> set[bytes]:
        prepare(config, tmp_path / "m.json")
        return {image.numpy().tobytes() for image in open_split(config, "validation", tmp_path / "m.json").images}

    before, read_in_order = held_out(), found.read

    def reversed_order(config: params.Data, place: Path, report: Any) -> tuple[Arrays, Description, dict[str, Any]]:
        arrays, description, facts = read_in_order(config, place, report)
        turned = np.memmap(place / "turned.raw", np.uint8, "w+", shape=arrays.train_images.shape)
        turned[:] = arrays.train_images[::-1]
        return replace(arrays, train_images=turned, train_labels=arrays.train_labels[::-1]), description, facts

    monkeypatch.setattr(sys.modules["micronet.data.folder"], "read", reversed_order)
    found.state = "third"  # as many letters: the same pixels
    assert held_out() == before and found.reads == 2


def test_another_seed_draws_another_test_split_where_the_test_split_is_drawn(config, found, tmp_path):
    config = config.model_copy(update={"test_share": 0.25})
    prepare(config, tmp_path / "m.json")
    prepare(config.model_copy(update={"seed": 1}), tmp_path / "m.json")
    assert found.reads == 2


def test_a_share_of_before_and_another_format_are_refused_until_they_are_prepared(config, found, tmp_path):
    prepare(config.model_copy(update={"test_share": 0.25}), tmp_path / "m.json")
    with pytest.raises(DataError, match=r"test_share is 0.25, the params say None: `python stages/prepare_data.py`"):
        open_split(config, "train", tmp_path / "m.json")


def test_a_damaged_file_is_made_of_the_pictures_again(config, found, tmp_path):
    prepare(config, tmp_path / "m.json")
    path = Path(config.folder) / "train_images.bin"
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    open_split(config, "train", tmp_path / "m.json")
    assert path.read_bytes() == before and found.reads == 2


def test_images_that_agree_with_themselves_but_are_in_another_order_are_made_again(config, found, tmp_path):
    prepare(config, tmp_path / "m.json")
    marker = Path(config.folder) / MARKER
    tree = json.loads(marker.read_text())
    tree["validation_indices"] = list(range(5))
    marker.write_text(json.dumps(tree))
    prepare(config, tmp_path / "m.json")
    assert found.reads == 2


def test_pictures_take_nobody_elses_place(config, found, tmp_path, sample_data):
    held = config.model_copy(update={"folder": sample_data.folder})
    with pytest.raises(DataError, match="holds cifar10-sample, set data.folder to another one for folder"):
        prepare(held, tmp_path / "m.json")


def test_one_class_is_refused_in_a_line(config, found, tmp_path):
    found.classes, found.train = ("cat",), (9,)
    with pytest.raises(DataError, match=r"pictures: has 1 class"):
        prepare(config, tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists() and not (Path(config.folder) / MARKER).exists()


def test_images_of_two_splits_come_in_their_order_slice_by_slice():
    images = np.arange(40, dtype=np.uint8).reshape(10, 4)
    mask = np.isin(np.arange(10), [0, 3, 4, 9])
    joined = Joined(images[~mask], images[mask], mask)
    assert len(joined) == 10
    for start in range(10):
        for stop in range(start, 11):
            assert np.array_equal(joined[start:stop], images[start:stop])
    with pytest.raises(ValueError, match="not as many"):
        Joined(images[~mask], images[mask], ~mask)


def test_a_file_larger_than_the_memory_can_be_mapped(tmp_path):
    size = 1 << 42
    with (tmp_path / "huge.bin").open("wb") as file:
        try:
            file.truncate(size)
        except OSError:  # a disk whose files are smaller
            size = 1 << 34
            file.truncate(size)
    mapped = _mapped(tmp_path / "huge.bin", torch.uint8)
    assert len(mapped) == size and int(mapped[-1]) == 0
