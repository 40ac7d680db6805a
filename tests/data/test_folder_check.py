"""What the list of a folder's pictures tells before one of them is opened, and faults whose way out must lead out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from micronet import params
from micronet.data import folder
from micronet.data.arrays import DataError
from micronet.data.store import prepare
from tests.support.configs import demo
from tests.support.pictures import image_format, noise, picture_folder, write_picture


def config_of(path: Path | str, place: Path, **changes: Any) -> params.Data:
    own = {"source": "folder", "path": str(path), "image": image_format(10, 8), "folder": str(place)}
    return params.Data(**own | changes)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Four training and two test pictures each of cats and dogs."""
    return picture_folder(tmp_path / "pets")


def refusal(action: Any, *given: Any) -> str:
    with pytest.raises(DataError) as caught:
        action(*given)
    line = str(caught.value)
    assert line.isprintable() and len(line) <= 300
    return line


def one_picture(pets: Path) -> None:
    for path in sorted((pets / "train/dog").iterdir())[1:]:
        path.unlink()


def no_picture(pets: Path) -> None:
    for path in (pets / "test/dog").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("change", "given", "said"),
    [
        (one_picture, {}, "data.validation_share: needs 2 images of each class or more to split them; too few"),
        (one_picture, {"validation_size": 2}, "data.validation_size: needs 2 images of each class"),
        (lambda pets: None, {"validation_size": 8}, "data.validation_size: 8 takes all 4 images of cat; 6 or fewer"),
        (no_picture, {}, "{pets}/test: class dog has no pictures: put some in, or take the folder away"),
    ],
)  # fmt: skip
def test_the_list_alone_tells_what_preparing_would_refuse_in_the_same_words(pets, tmp_path, change, given, said):
    change(pets)
    config = config_of(pets, tmp_path / "out", **given)
    line = refusal(folder.check, config)
    assert line.startswith(said.format(pets=pets))
    assert line == refusal(prepare, config, tmp_path / "manifest.json")


def test_a_class_that_its_test_pictures_leave_too_small_is_named_by_the_list(pets, tmp_path):
    config = config_of(pets / "test", tmp_path / "out", test_share=0.5)  # two of each
    assert "data.validation_share: needs 2 images of each class" in refusal(folder.check, config)


def test_a_folder_that_can_be_prepared_passes_and_no_picture_of_it_is_opened(pets, tmp_path, monkeypatch):
    monkeypatch.setattr("micronet.data.folder.decode", lambda *_, **__: pytest.fail("decoded"))
    folder.check(config_of(pets, tmp_path / "out"))


def test_what_is_said_of_a_folder_with_train_alone_leads_to_one_that_works(pets, tmp_path):
    shutil.rmtree(pets / "test")
    place = tmp_path / "out"
    assert "data.path at train/ itself and data.test_share" in refusal(folder.check, config_of(pets, place))
    line = refusal(folder.check, config_of(pets, place, test_share=0.3))
    assert line == (
        f"{pets}: has train/ and no class beside it; data.path: {pets}/train would work, with data.test_share as it is"
    )
    folder.check(config_of(pets / "train", place, test_share=0.3))


@pytest.mark.parametrize(
    ("path", "place"), [("pets", "pets"), ("pets", "pets/prepared"), ("data/pets", "data"), ("./pets", "x/../pets")]
)
def test_pixels_are_not_put_among_the_pictures_nor_around_them(path, place):
    section = {"source": "folder", "path": path, "folder": place, "image": {"height": 8, "width": 8}}
    with pytest.raises(params.ParamsError) as caught:
        params.parse(demo(("data", section)))
    (fault,) = caught.value.faults
    assert (
        fault.startswith("params.yaml: data.folder: must be apart from the pictures in data.path") and len(fault) <= 300
    )


def test_pixels_are_not_put_among_the_pictures_through_a_link_either(pets, tmp_path):
    (tmp_path / "link").symlink_to(pets)
    line = refusal(folder.check, config_of(pets, tmp_path / "link/prepared"))
    assert line.startswith("data.folder: must be apart from the pictures in data.path")
    assert not (pets / "prepared").exists()


def test_one_thing_is_said_as_one_and_one_broken_picture_is_one_line(pets, tmp_path):
    (pets / "train/cat/notes.txt").write_text("")
    (pets / "train/cat/away.png").symlink_to(tmp_path)
    write_picture(pets / "train/cat/9.png", noise(10, 8, 0))
    (pets / "train/dog/9.png").write_text("text")
    heard: list[str] = []
    line = refusal(folder.read, config_of(pets, tmp_path / "out"), tmp_path, heard.append)
    assert line.startswith(f"{pets}: train/dog/9.png: is no picture in ") and line.endswith(
        "most_broken to 1 to leave it out"
    )
    assert not any("9.png" in said for said in heard), "one fault, one line"
    folder.read(config_of(pets, tmp_path / "out", most_broken=1), tmp_path, heard.append)
    assert f"{pets}: left out 1 file in no class or of another kind (1 .txt)" in heard
    assert f"{pets}: left out 1 link out of it, to nothing or in a circle: train/cat/away.png" in heard
    assert f"{pets}: left out 1 picture that cannot be read (data.most_broken: 1)" in heard
    assert "1 training picture has the pixels of another one" in heard
