"""A folder of pictures: what counts as a class and a picture, in which order, and what is said of the rest."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from micronet import params
from micronet.data import decoding
from micronet.data.arrays import DataError
from micronet.data.folder import class_names, read, scan
from micronet.data.pictures import read as read_picture
from tests.support.pictures import image_format, noise, picture_folder, write_picture
from tests.support.places import ROOT


def config_of(path: Path | str, **changes: Any) -> params.Data:
    return params.Data(**({"source": "folder", "path": str(path), "image": image_format(10, 8)} | changes))


class Heard(list):
    """Lines that were reported."""

    def __call__(self, line: str) -> None:
        assert line.isprintable(), "a line must not move the cursor"
        self.append(line)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Four training and two test pictures each of cats and dogs."""
    return picture_folder(tmp_path / "pets")


def refusal(config: params.Data, place: Path | None = None) -> str:
    """The line with which a folder is refused."""
    with pytest.raises(DataError) as caught:
        class_names(config) if place is None else read(config, place)
    line = str(caught.value)
    assert line.isprintable() and len(line) <= 300
    return line


def mixed(names: list[str]) -> list[str]:
    """The names of training pictures in the order that they are stored in."""
    return sorted(names, key=lambda name: hashlib.sha256(f"train/{name}".encode()).digest())


def test_the_first_pictures_to_train_on_are_of_all_classes(tmp_path):
    for name in ("ant", "bee", "cat", "dog"):
        for number in range(50):
            write_picture(tmp_path / f"many/train/{name}/{number}.bmp", np.full((1, 1, 3), number, np.uint8))
        write_picture(tmp_path / f"many/test/{name}/0.bmp", np.zeros((1, 1, 3), np.uint8))
    arrays, _, _ = read(config_of(tmp_path / "many"), tmp_path)
    for first in (40, 100):
        assert np.bincount(arrays.train_labels[:first], minlength=4).min() >= first // 8


def test_all_pictures_are_read_those_of_the_test_in_the_order_of_classes_and_names(pets, tmp_path):
    write_picture(pets / "train/cat/deep/er/10.png", noise(10, 8, 99))
    heard = Heard()
    arrays, description, facts = read(config_of(pets), tmp_path, heard)
    assert description == type(description)("folder", (3, 10, 8), ("cat", "dog"))
    assert np.bincount(arrays.train_labels).tolist() == [5, 4] and arrays.train_labels.dtype == np.uint8
    assert arrays.test_labels.tolist() == [0, 0, 1, 1]
    names = [f"cat/{n}.png" for n in range(4)] + ["cat/deep/er/10.png"] + [f"dog/{n}.png" for n in range(4)]
    for row, label, name in zip(arrays.train_images, arrays.train_labels, mixed(names), strict=True):
        assert description.classes[label] == name.split("/")[0]
        assert (row == read_picture(pets / "train" / name, image_format(10, 8)).reshape(-1)).all(), name
    assert isinstance(arrays.train_images, np.memmap)
    assert set(facts.values()) == {0}
    assert heard == [
        f"{pets}/train: 9 pictures of 2 classes, 4 to 5 of each",
        f"{pets}/test: 4 pictures of 2 classes, 2 of each",
    ]


def test_several_processes_give_what_one_gives_and_load_no_torch(pets, tmp_path, monkeypatch):
    (pets / "train/dog/broken.png").write_text("no")
    alone = read(config_of(pets, most_broken=1), tmp_path)[0].train_images.tobytes()
    monkeypatch.setattr(decoding, "FEW", 0)
    monkeypatch.setattr(decoding, "TOGETHER", 3)
    monkeypatch.setattr(decoding, "_cores", lambda: 2)
    (tmp_path / "other").mkdir()
    arrays, _, facts = read(config_of(pets, most_broken=1), tmp_path / "other")
    assert arrays.train_images.tobytes() == alone and facts["broken_images"] == 1
    program = (
        "import sys, micronet.data.decoding; print([name for name in ('torch', 'pydantic') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True) == "[]\n"


def test_a_share_of_each_class_is_kept_for_testing_where_the_classes_lie_in_the_folder(pets, tmp_path):
    config = config_of(pets / "train", test_share=0.25)
    arrays, _, _ = read(config, tmp_path)
    assert arrays.train_labels.tolist() == [0] * 3 + [1] * 3 and arrays.test_labels.tolist() == [0, 1]
    (tmp_path / "other").mkdir()
    again = read(config_of(pets / "train", test_share=0.25, seed=1), tmp_path / "other")[0]
    rows = {row.tobytes() for row in [*arrays.train_images, *arrays.test_images]}
    assert rows == {row.tobytes() for row in [*again.train_images, *again.test_images]} and len(rows) == 8
    assert again.test_images.tobytes() != arrays.test_images.tobytes()
    line = refusal(config_of(pets, test_share=0.5))
    assert line == f"{pets}: has train/ and test/, so data.test_share must be left out"
    (pets / "train/ant").mkdir()
    write_picture(pets / "train/ant/only.png", noise())
    assert "ant (1)" in refusal(config_of(pets / "train", test_share=0.25), tmp_path)


def test_more_than_256_classes_have_wider_labels(tmp_path):
    for number in range(257):
        for part in ("train", "test"):
            write_picture(tmp_path / f"many/{part}/{number:03}/a.bmp", np.full((1, 1, 3), number % 256, np.uint8))
    arrays, description, _ = read(config_of(tmp_path / "many"), tmp_path)
    assert arrays.train_labels.dtype == np.uint16 and sorted(arrays.train_labels.tolist()) == list(range(257))
    assert description.classes[256] == "256"


def test_what_is_hidden_or_left_by_systems_is_passed_over_and_other_files_are_said(pets, tmp_path):
    for name in (".DS_Store", "._0.png", "Thumbs.db", "desktop.ini", "__MACOSX/0.png", "@eaDir/0.png", ".git/0.png"):
        (pets / "train/cat" / name).parent.mkdir(exist_ok=True)
        (pets / "train/cat" / name).write_text("nothing")
    (pets / "__MACOSX").mkdir()
    heard = Heard()
    assert read(config_of(pets), tmp_path, heard)[2]["other_files"] == 0 and len(heard) == 2
    for name in ("train/cat/notes.txt", "train/dog/all.json", "train/cat/README", "test/loose.png", "train/cat/a.HEIC"):
        (pets / name).write_text("something")
    os.mkfifo(pets / "train/dog/pipe.png")
    (pets / "valid").mkdir()
    heard.clear()
    assert read(config_of(pets), tmp_path, heard)[2]["other_files"] == 6
    assert heard[2] == f"{pets}: left out what is beside train/ and test/: valid"
    assert heard[3].startswith(f"{pets}: left out 6 files in no class or of another kind (2 .png, ")
    assert "1 .heic" in heard[3] and "1 without a suffix" in heard[3]


def test_links_are_followed_inside_of_the_folder_and_said_where_they_lead_out(pets, tmp_path):
    write_picture(tmp_path / "outside/secret.png", noise(10, 8, 77))
    (pets / "train/cat/4.png").symlink_to("../../test/dog/0.png")
    (pets / "shared/emu").mkdir(parents=True)
    write_picture(pets / "shared/emu/0.png", noise(10, 8, 78))
    for part in ("train", "test"):
        (pets / part / "emu").symlink_to("../shared/emu")
    for name, target in (
        ("out.png", tmp_path / "outside/secret.png"),
        ("folder", tmp_path / "outside"),
        ("nothing.png", "nowhere"),
        ("circle", ".."),
        ("self", "self"),
        ("whole", "../.."),
    ):
        (pets / "train/cat" / name).symlink_to(target)
    (pets / "train/fox").symlink_to(tmp_path / "outside")
    heard = Heard()
    arrays, description, facts = read(config_of(pets), tmp_path, heard)
    assert description.classes == ("cat", "dog", "emu")
    assert np.bincount(arrays.train_labels).tolist() == [5, 4, 1]
    assert facts["links_left_out"] == 7 and facts["duplicates_between_train_and_test"] == 2
    said = next(line for line in heard if "left out 7 links" in line)
    assert said.startswith(f"{pets}: left out 7 links out of it, to nothing or in a circle: ")
    assert "train/cat/out.png" in said and "train/fox" in said
    assert noise(10, 8, 77).transpose(2, 0, 1).tobytes() not in {row.tobytes() for row in arrays.train_images}


def test_a_class_that_is_a_link_out_of_the_folder_is_said_in_a_line_of_its_own(pets, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "notes.txt").write_text("no class")
    for part in ("train", "test"):
        (pets / part / "fox").symlink_to(tmp_path / "outside")
        (pets / part / "owl").symlink_to(tmp_path / "gone")
        (pets / part / "notes.txt").symlink_to(tmp_path / "notes.txt")
    (pets / "fox").symlink_to(tmp_path / "outside")
    heard = Heard()
    _, description, facts = read(config_of(pets), tmp_path, heard)
    assert description.classes == ("cat", "dog") and facts["links_left_out"] == 7
    assert heard[2] == (
        f"{pets}: left out as classes, because links out of it are not followed: "
        "train/fox, train/owl, test/fox, test/owl; copies would do"
    )


@pytest.mark.parametrize(
    ("moved", "share", "said"),
    [
        (("train/dog",), None, "/train: has one class, cat; there must be two or more"),
        (("train/dog",), None, "two or more; links out of it are not followed: train/dog"),
        (("train/emu",), None, "emu only in test/; links out of it are not followed: train/emu"),
        (("train/dog", "train/emu", "test/cat", "test/emu"), None, "followed: train/dog, train/emu and 2 more"),
        (("train",), None, "has no train/ (it has test); one beside test/ with the same class"),
        (("train",), None, "to keep a share for testing; links out of it are not followed: train"),
        (("train",), 0.5, "with data.test_share as it is; links out of it are not followed: train"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_links_that_were_meant_as_classes(pets, tmp_path, moved, share, said):
    for part in ("train", "test"):
        (pets / part / "emu").mkdir()
    for number, place in enumerate(moved):
        (pets / place).rename(tmp_path / f"outside{number}")
        (pets / place).symlink_to(tmp_path / f"outside{number}")
    if moved == ("train/dog",):
        shutil.rmtree(pets / "train/emu")
    assert said in refusal(config_of(pets, test_share=share))


def test_two_folders_that_lead_into_each_other_end(pets, tmp_path):
    (pets / "train/cat/dogs").symlink_to("../dog")
    (pets / "train/dog/cats").symlink_to("../cat")
    arrays, _, facts = read(config_of(pets), tmp_path)
    assert np.bincount(arrays.train_labels).tolist() == [8, 8] and facts["links_left_out"] == 2


def test_pictures_that_cannot_be_read_are_named_and_left_out_up_to_the_most_that_are_allowed(pets, tmp_path):
    (pets / "train/cat/0.png").write_bytes(b"")
    (pets / "train/dog/1.png").write_text("text")
    whole = (pets / "test/dog/0.png").read_bytes()
    (pets / "test/dog/0.png").write_bytes(whole[: len(whole) // 2])
    heard = Heard()
    arrays, _, facts = read(config_of(pets, most_broken=3), tmp_path, heard)
    assert facts["broken_images"] == 3
    assert np.bincount(arrays.train_labels).tolist() == [3, 3] and arrays.test_labels.tolist() == [0, 0, 1]
    kept = [f"cat/{n}.png" for n in (1, 2, 3)] + [f"dog/{n}.png" for n in (0, 2, 3)]
    for row, name in zip(arrays.train_images, mixed(kept), strict=True):
        assert (row == read_picture(pets / "train" / name, image_format(10, 8)).reshape(-1)).all(), name
    assert heard[2:5] == [
        "train/cat/0.png: is empty",
        "train/dog/1.png: is no picture in PNG, JPEG, WebP, BMP, GIF or TIFF",
        heard[4],
    ]
    assert heard[4].startswith("test/dog/0.png: is damaged (")
    assert heard[5] == f"{pets}: left out 3 pictures that cannot be read (data.most_broken: 3)"
    line = refusal(config_of(pets, most_broken=2), tmp_path)
    assert line.startswith(f"{pets}: 3 cannot be read, data.most_broken allows 2; mend or remove them: train/cat/0.png")


def test_the_first_ten_of_many_broken_pictures_are_said_and_the_line_stays_short(pets, tmp_path):
    for number in range(14):
        (pets / f"train/cat/{'long' * 20}{number:02}\n\x1b[31m.jpg").write_text("no")
    heard = Heard()
    with pytest.raises(DataError) as caught:
        read(config_of(pets), tmp_path, heard)
    line = str(caught.value)
    assert len(line) <= 300 and line.isprintable() and "14 cannot be read" in line and line.endswith(" more")
    assert len([said for said in heard if "is no picture" in said]) == 10


def test_a_class_that_is_broken_altogether_is_named(pets, tmp_path):
    for path in (pets / "test/dog").iterdir():
        path.write_text("no")
    assert refusal(config_of(pets, most_broken=9), tmp_path) == f"{pets}/test: class dog has none that can be read"


def test_the_same_pixels_in_train_and_test_and_within_train_are_counted(pets, tmp_path):
    (pets / "test/cat/again.bmp").write_bytes((pets / "train/cat/0.png").read_bytes())
    (pets / "train/dog/again.png").write_bytes((pets / "train/cat/0.png").read_bytes())
    (pets / "train/dog/twice.png").write_bytes((pets / "train/cat/0.png").read_bytes())
    heard = Heard()
    facts = read(config_of(pets), tmp_path, heard)[2]
    assert facts["duplicates_between_train_and_test"] == 1 and facts["duplicates_within_train"] == 2
    assert heard[-2:] == [
        "1 test picture has the pixels of a training picture: what that measures is memory",
        "2 training pictures have the pixels of another one",
    ]


def test_names_may_have_spaces_line_ends_other_letters_and_bytes_that_are_no_text(pets, tmp_path):
    for number, name in enumerate(("a b.png", "a\nb.png", "ü–猫.PNG", "\udcff\udcfe.jpeg", "-n.png", "[red].png")):
        write_picture(tmp_path / "new.png", noise(10, 8, 50 + number)).rename(pets / "train/cat" / name)
    (pets / "train/dog").rename(pets / "train/Hund & Katze 猫")
    (pets / "test/dog").rename(pets / "test/Hund & Katze 猫")
    arrays, description, _ = read(config_of(pets), tmp_path)
    assert description.classes == ("Hund & Katze 猫", "cat")
    assert np.bincount(arrays.train_labels).tolist() == [4, 10]


def test_a_change_of_any_picture_changes_what_a_folder_is_known_by(pets):
    config, path = config_of(pets), pets / "train/cat/1.png"
    before = scan(config)
    assert before == scan(config) and len(before) == 64
    (pets / "train/cat/notes.txt").write_text("no picture")
    assert scan(config) == before
    state = path.stat()
    seen = {before}

    def is_another() -> bool:
        seen.add(scan(config))
        return len(seen) == changes

    for changes, change in enumerate(
        (
            lambda: os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1)),
            lambda: path.write_bytes(path.read_bytes() + b"\0"),
            lambda: path.rename(path.with_name("renamed.png")),
            lambda: path.with_name("renamed.png").rename(pets / "train/dog/renamed.png"),
            lambda: (pets / "train/dog/renamed.png").unlink(),
            lambda: [(pets / part / "dog").rename(pets / part / "wolf") for part in ("train", "test")],
        ),
        start=2,
    ):
        change()
        assert is_another(), changes


def test_a_folder_is_found_from_where_the_stage_runs_and_in_a_home(pets, monkeypatch):
    monkeypatch.chdir(pets.parent)
    assert class_names(config_of("pets")) == ("cat", "dog")
    assert refusal(config_of("cats")).startswith(f"cats: there is no such folder in {pets.parent}; data.path names")
    monkeypatch.setenv("HOME", str(pets.parent))
    assert class_names(config_of("~/pets")) == ("cat", "dog")


def wolf_in_test(pets: Path) -> None:
    (pets / "test/dog").rename(pets / "test/wolf")


def without(*names: str):
    def make(pets: Path) -> None:
        for name in names:
            shutil.rmtree(pets / "train" / name)
            shutil.rmtree(pets / "test" / name)

    return make


def twin_class(name: str, twin: str):
    def make(pets: Path) -> None:
        for part in ("train", "test"):
            (pets / part / name).mkdir(exist_ok=True)
            (pets / part / twin).mkdir()

    return make


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (wolf_in_test, ": train/ and test/ must have the same classes: dog only in train/ and wolf only in test/"),
        (lambda pets: (pets / "train").rename(pets / "Train"), ": has no train/ (it has Train, test); one"),
        (lambda pets: shutil.rmtree(pets / "test"), ": has no test/ (it has train); one beside train/"),
        (without("dog"), "/train: has one class, cat; there must be two or more"),
        (without("cat", "dog"), "/train: has no folders; it must have one for each class, with"),
        (lambda pets: (pets / "train/ant\n").mkdir(), "/train: the class folder ant\\n needs another name: of UTF-8"),
        (lambda pets: (pets / "train/\udcff").mkdir(), "/train: the class folder \\udcff needs another name: of UTF-8"),
        (lambda pets: (pets / ("train/" + "a" * 101)).mkdir(), "/train: the class folder aaa"),
        (twin_class("cat", "Cat"), "/train: the class folders 'Cat' and 'cat' differ in case or Unicode form alone"),
        (
            twin_class(unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")),
            "/train: the class folders 'e\\u0301' and '\\xe9' differ in case or Unicode form alone",
        ),
    ],
)  # fmt: skip
def test_a_folder_of_another_form_is_refused_in_a_line(change, line, pets):
    change(pets)
    assert refusal(config_of(pets)).startswith(f"{pets}{line}")


def test_a_class_without_pictures_is_named_before_anything_is_decoded(pets, tmp_path, monkeypatch):
    monkeypatch.setattr("micronet.data.folder.decode", lambda *_, **__: pytest.fail("decoded"))
    (pets / "train/ant").mkdir()
    (pets / "test/ant").mkdir()
    write_picture(pets / "test/ant/0.png", noise())
    (pets / "train/ant/notes.txt").write_text("none yet")
    line = f"{pets}/train: class ant has no pictures: put some in, or take the folder away"
    assert refusal(config_of(pets), tmp_path) == line


def test_what_is_no_folder_is_refused_in_a_line(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    assert refusal(config_of(tmp_path / "empty")).startswith(f"{tmp_path}/empty: has no train/ and test/; data.test_")
    assert "has no folders" in refusal(config_of(tmp_path / "empty", test_share=0.2))
    (tmp_path / "file").write_text("")
    assert refusal(config_of(tmp_path / "file")).startswith(f"{tmp_path}/file: is no folder; data.path")
    assert refusal(config_of(tmp_path / "file/below")).endswith("/file/below: Not a directory")

    def forbidden(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", forbidden)
    assert refusal(config_of(tmp_path / "empty")).endswith("/empty: Permission denied")


def test_a_process_that_is_killed_and_a_full_disk_are_said_in_a_line(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "micronet.data.decoding._decode", lambda task: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    assert refusal(config_of(pets), tmp_path) == f"{tmp_path}/train_images.bin: cannot be written: No space left"
    monkeypatch.undo()
    monkeypatch.setattr(decoding, "FEW", 0)
    monkeypatch.setattr(decoding, "_begin", end_at_once)
    assert refusal(config_of(pets), tmp_path) == f"{pets}: a process that decodes was killed; more memory would work"


def end_at_once() -> None:
    os._exit(9)
