"""`python -m micronet.predict`: classes and confidences of pictures from a packed file alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from micronet import predict
from micronet.data.arrays import DataError
from micronet.data.images import normalise
from micronet.data.pictures import read as read_picture
from micronet.packed.file import read
from micronet.packed.module import load_packed
from micronet.packed.packing import pack
from tests.support.configs import quantize_config
from tests.support.models import RESNET, quantized
from tests.support.pictures import image_format, noise, write_picture
from tests.support.places import ROOT

NAMES = ("cat", "dog", "Katze [red] 猫")
IMAGE = (1, 24, 16)


def packed(path: Path, *, names: tuple[str, ...] = NAMES, **changes) -> Path:
    """A random network of three classes of grey images."""
    torch.manual_seed(0)
    model = models.build(RESNET | {"classes": 3, "image": list(IMAGE)})
    images = torch.randint(0, 256, (32, *IMAGE), dtype=torch.uint8)
    quantize = quantize_config(**changes)
    prepared = quantized(model, quantize, images, IMAGE)
    texts = {predict.FIT: "pad"}
    pack(prepared, path, quantize=quantize, images=images, metadata=texts, class_names=names)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("packed") / "own.safetensors")


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    """Three pictures of other sizes and colours than the network's."""
    return [str(write_picture(tmp_path / f"{n}.png", noise(20 + n, 40, n))) for n in range(3)]


def answers(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict]:
    """What is printed as JSON, with nothing on stderr."""
    assert predict.main([*map(str, arguments), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def float_shares(file: Path, pictures: list[str], fit: str) -> np.ndarray:
    """The softmax of the torch module's logits, (N, classes)."""
    module = load_packed(file)
    images = np.stack([read_picture(name, image_format(*IMAGE[1:], channels=1, fit=fit)) for name in pictures])
    look = module.look(normalise(torch.from_numpy(images)))
    logits = look.logits.double() * module.packed.logit_scale / look.passes[:, None]
    return logits.softmax(1).numpy()


@pytest.mark.parametrize("changes", [{}, {"flip_share": 0.5}, {"method": "half"}])
def test_class_and_confidence_are_the_softmax_of_what_the_module_says(changes, tmp_path, pictures, capsys):
    file = packed(tmp_path / "m", **changes)
    pictures += [str(write_picture(tmp_path / f"square{n}.png", noise(24, 16, n))) for n in range(6)]
    shares = float_shares(file, pictures, "pad")
    found = answers(capsys, file, *pictures, "--top", "2")
    assert [answer["picture"] for answer in found] == pictures
    for answer, row in zip(found, shares, strict=True):
        order = row.argsort()[::-1]
        assert answer["class"] == NAMES[order[0]] and answer["label"] == order[0]
        assert [candidate["class"] for candidate in answer["top"]] == [NAMES[label] for label in order[:2]]
        for candidate in answer["top"]:
            assert candidate["confidence"] == pytest.approx(row[candidate["label"]], abs=2e-6)
    assert len({answer["confidence"] for answer in found}) == len(pictures)
    if "flip_share" in changes:
        module, images = load_packed(file), [read_picture(p, predict.form_of(read(file), None)) for p in pictures]
        passes = module.look(normalise(torch.from_numpy(np.stack(images)))).passes
        assert set(passes.tolist()) == {1, 2}, "both ways are tested"


def test_pictures_come_to_the_networks_size_as_the_training_images_did_unless_told(file, pictures, capsys):
    said = {fit: answers(capsys, file, *pictures, *(("--fit", fit) if fit else ())) for fit in ("", "pad", "crop")}
    assert said[""] == said["pad"] != said["crop"]
    for answer, row in zip(said["crop"], float_shares(file, pictures, "crop"), strict=True):
        assert answer["confidence"] == pytest.approx(row.max(), abs=2e-6)


def test_all_classes_are_named_when_more_are_asked_for_and_shares_sum_to_one(file, pictures, capsys):
    top = answers(capsys, file, pictures[0], "--top", "99")[0]["top"]
    assert sorted(candidate["label"] for candidate in top) == [0, 1, 2]
    assert sum(candidate["confidence"] for candidate in top) == pytest.approx(1, abs=1e-5)


def test_a_folder_stands_for_its_pictures_in_order(file, tmp_path, capsys):
    for name in ("b/2.png", "b/1.JPG", "a.bmp"):
        write_picture(tmp_path / "in" / name, noise())
    (tmp_path / "in/notes.txt").write_text("no picture")
    (tmp_path / "in/.hidden.png").write_text("no picture")
    found = answers(capsys, file, tmp_path / "in", tmp_path / "in/a.bmp")
    assert [answer["picture"] for answer in found] == [
        f"{tmp_path}/in/{n}" for n in ("a.bmp", "b/1.JPG", "b/2.png", "a.bmp")
    ]
    (tmp_path / "empty").mkdir()
    assert predict.main([str(file), str(tmp_path / "empty")]) == 1
    assert capsys.readouterr() == ("", f"predict: {tmp_path}/empty: is a folder without pictures; {DataError.remedy}\n")


def test_more_pictures_than_lie_in_memory_at_once_are_answered_in_their_order(file, pictures, capsys, monkeypatch):
    together = answers(capsys, file, *pictures, *pictures)
    monkeypatch.setattr(predict, "TOGETHER", 2)
    assert answers(capsys, file, *pictures, *pictures) == together


def test_the_table_shows_names_as_they_are_and_no_markup(file, pictures, tmp_path, capsys):
    odd = write_picture(tmp_path / "new.png", noise()).rename(tmp_path / "[red]\n\x1b[31m.png")
    assert predict.main([str(file), pictures[0], str(odd), "--top", "3"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "[red]\\n\\x1b[31m.png" in out and "Katze [red] 猫" in out and "\x1b" not in out
    rows = [line.split() for line in out.splitlines() if "%" in line]
    assert len(rows) == 6 and sum(float(row[-2]) for row in rows[:3]) == pytest.approx(100, abs=0.03)


def test_a_picture_that_cannot_be_read_is_a_line_and_the_others_are_answered(file, pictures, tmp_path, capsys):
    (tmp_path / "text.png").write_text("text")
    names = [pictures[0], str(tmp_path / "text.png"), "gone\n.png", pictures[1]]
    assert predict.main([str(file), *names, "--json"]) == 1
    out, err = capsys.readouterr()
    reasons = ["is no picture in PNG, JPEG, WebP, BMP, GIF or TIFF", "cannot be read (No such file or directory)"]
    found = json.loads(out)
    assert [answer["picture"] for answer in found] == names
    assert [answer.get("error") for answer in found] == [None, *reasons, None]
    assert err.splitlines() == [f"predict: {tmp_path}/text.png: {reasons[0]}", f"predict: gone\\n.png: {reasons[1]}"]
    assert predict.main([str(file), *names[1:3]]) == 1
    assert capsys.readouterr().out == ""


def test_a_file_that_says_nothing_of_its_logits_gives_an_order_without_a_confidence(pictures, capsys):
    for name in ("cascade", "dense"):
        found = answers(capsys, ROOT / f"release/{name}.safetensors", *pictures)
        assert {answer["confidence"] for answer in found} == {None}
        images = np.stack([read_picture(picture, image_format(32, 32)) for picture in pictures])
        labels = load_packed(ROOT / f"release/{name}.safetensors")(normalise(torch.from_numpy(images))).argmax(1)
        assert [answer["label"] for answer in found] == labels.tolist()
        assert found[0]["class"] in (
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        )
    assert predict.main([str(ROOT / "release/dense.safetensors"), pictures[0]]) == 0
    assert "does not say what its logits are worth" in capsys.readouterr().out


def test_classes_without_names_are_numbered(tmp_path, pictures, capsys):
    file = packed(tmp_path / "m", names=())
    assert {answer["class"] for answer in answers(capsys, file, *pictures)} <= {"class 0", "class 1", "class 2"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nothing.safetensors", "a.png"], 1, "predict: nothing.safetensors: there is no such file"),
        ([str(ROOT / "README.md"), "a.png"], 1, "predict: "),
        (["file"], 2, "IMAGE"),
        (["file", "a.png", "--top", "0"], 2, "must be a whole number above 0 (got 0)"),
        (["file", "a.png", "--top", "many"], 2, "must be a whole number above 0 (got many)"),
        (["file", "a.png", "--fit", "squeeze"], 2, "invalid choice"),
    ],
)
def test_faulty_arguments_and_files_are_a_line_and_an_exit_code(arguments, code, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    try:
        got = predict.main(arguments)
    except SystemExit as end:
        got = end.code
    out, err = capsys.readouterr()
    assert (got, out) == (code, "") and said in err


def test_it_answers_without_loading_torch(file, pictures):
    program = "import sys; from micronet import predict; print(predict.main(sys.argv[1:]), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, file, *pictures], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False" and done.stderr == ""
