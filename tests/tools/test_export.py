"""`make export` and `make mcu`: whole folders or none, and a line for what cannot be."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import export
import mcu
import numpy as np
import pixels
import pytest
from PIL import Image

from micronet.data.datasets import CLASSES
from micronet.export.c import export as to_c
from micronet.export.errors import ExportError
from micronet.export.targets import Options
from micronet.packed.file import decode, read
from micronet.packed.reference import predict
from micronet.packed.steps import Conv
from micronet.predict import main as predict_pictures
from tests.support.hostile import opened, signed
from tests.support.packed import general_file, tiny_files
from tests.support.places import ROOT, entries, listed

MNIST = ROOT / "release/mnist.safetensors"


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small packed file; the working directory is that of the test."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(general_file())
    return path


def exported(*words: object) -> int:
    return export.main(["--to", "c", *map(str, words)])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    line = capsys.readouterr().err.strip()
    assert line.startswith("export: ") and "\n" not in line and len(line) <= 320 and line.isprintable(), line
    return line


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def before(packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, bytes]:
    """What build/ holds after a first export, which no compiler measured; what that said is read."""
    monkeypatch.setattr(export, "compiler", lambda: None)
    assert exported(packed) == 0
    capsys.readouterr()
    return content_of(Path("build"))


def test_the_table_says_what_the_compiled_c_takes(packed, capsys):
    assert exported(packed) == 0
    out = capsys.readouterr().out
    assert re.search(r"^ +code \(\S+ -Os, \w+\) +[\d,]+ bytes$", out, re.M)
    memory = re.search(r"memory for maps and sums +([\d,]+) bytes", out)
    assert memory and re.search(rf"static memory +{memory[1]} bytes", out)
    assert set(content_of(Path("build/export/c"))) == {"micronet.c", "micronet.h", "main.c", "export.json"}


def test_without_a_compiler_the_c_is_written_all_the_same(packed, capsys, monkeypatch):
    monkeypatch.setattr(export, "compiler", lambda: None)
    assert exported(packed) == 0
    assert "not measured: there is no C compiler here; gcc or clang would say" in capsys.readouterr().out
    assert Path("build/export/c/micronet.c").is_file()


def test_an_export_replaces_an_earlier_one_as_a_whole(packed, monkeypatch):
    monkeypatch.setattr(export, "compiler", lambda: None)
    assert exported("--name", "first", packed) == 0
    assert exported("--name", "second", packed) == 0
    assert set(content_of(Path("build/export/c"))) == {"second.c", "second.h", "main.c", "export.json"}
    assert entries(Path("build/export")) == ["c"], "nothing temporary is left"


def test_a_folder_that_no_export_made_is_left_alone(packed, capsys):
    Path("mine/c").mkdir(parents=True)
    Path("mine/c/thesis.tex").write_text("years")
    assert exported("--out", "mine", packed) == 1
    assert "no export made it; move it away, or name another OUT=" in one_line(capsys)
    Path("mine/c/export.json").write_text("[]")
    assert exported("--out", "mine", packed) == 1
    assert content_of(Path("mine")) == {"c/thesis.tex": b"years", "c/export.json": b"[]"}


def test_a_file_beside_the_exported_ones_keeps_the_folder_from_being_replaced(packed, before, capsys):
    Path("build/export/c/notes.txt").write_text("mine")
    assert exported(packed) == 1
    assert "holds notes.txt, which no export made; move it away" in one_line(capsys)
    assert content_of(Path("build")) == before | {"export/c/notes.txt": b"mine"}


def test_a_write_that_fails_leaves_what_stood_there(packed, before, capsys, monkeypatch):
    written, write = [], Path.write_bytes

    def failing(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", failing)
    assert exported(packed) == 1
    assert "No space left" in one_line(capsys)
    assert content_of(Path("build")) == before


def test_the_folder_before_comes_back_when_the_new_one_cannot_take_its_place(packed, before, capsys, monkeypatch):
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    assert exported(packed) == 1
    assert "cannot be written (Permission denied)" in one_line(capsys)
    assert content_of(Path("build")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.safetensors"], "missing.safetensors: there is no such file"),
        (["text"], "text: "),
        (["half"], "the file holds 16-bit floats"),
        (["model.safetensors", "--name", "for"], "'for' is no name for C"),
        (["model.safetensors", "--out", "model.safetensors"], "is no folder; move it away"),
        (["model.safetensors", "--out", "model.safetensors/below"], "is no folder; move it away"),
        (["\x1b[2J"], r"\x1b[2J: there is no such file"),
    ],
)
def test_what_cannot_be_exported_is_a_line_and_writes_nothing(words, message, packed, capsys):
    Path("text").write_text("no model")
    half_file(Path("half"))
    assert exported(*words) == 1
    assert message in one_line(capsys)
    assert not Path("build").exists()


def test_a_name_that_is_none_for_files_is_refused_before_anything_runs(packed, capsys):
    before = content_of(packed.parent)
    for name in ("../evil", "", "a/b", "/tmp/evil", ".hidden", "a\n", "-a", "a" * 101, "\x1b[2J"):
        for to in ("onnx", "web", "all"):
            assert export.main(["--to", to, f"--name={name}", str(packed)]) == 2, (name, to)
            assert "is no name for files; up to 100 letters, digits and _.- work" in one_line(capsys)
    assert content_of(packed.parent) == before


@pytest.mark.parametrize("name", ["a", "Net-2.1_b", "a" * 100])
def test_a_name_for_files_need_be_none_for_c(name, packed):
    assert export.main(["--to", "web", "--name", name, str(packed)]) == 0
    assert Path(f"build/export/web/{name}.safetensors").read_bytes() == packed.read_bytes()


def half_file(path: Path) -> None:
    """A file of 16-bit floats: an image and a layer on its sums of pixels, all of zeros."""
    header, _, _ = opened(tiny_files()[0])
    rows = [
        {"op": "input", "bits": 16},
        {"op": "maximum", "from": [0], "kernel": 32},
        {"op": "linear", "name": "l", "from": [1], "shape": [2, 3], "weight": 16, "sum": [0, 0], "at": 0},
    ]
    rows[2]["bits"] = [0, 0, 16]
    path.write_bytes(signed(header, {"arithmetic": "half", "bits": 128, "steps": rows}, bytes(16)))
    assert read(path).arithmetic == "half"


def test_a_target_that_there_is_not_is_named_with_those_that_there_are(packed, capsys):
    with pytest.raises(SystemExit) as caught:
        export.main(["--to", "java", str(packed)])
    assert caught.value.code == 2
    assert "choose from" in capsys.readouterr().err


def test_all_targets_that_can_are_written_when_one_cannot(packed, capsys, monkeypatch):
    def refusing(*_: object) -> None:
        raise ExportError("cannot say a product")

    monkeypatch.setattr(export, "TARGETS", {"c": export.TARGETS["c"], "other": lambda: refusing})
    monkeypatch.setattr(export, "compiler", lambda: None)
    assert export.main([str(packed)]) == 1
    assert one_line(capsys) == "export: other: cannot say a product"
    assert [path.name for path in Path("build/export").iterdir()] == ["c"]


# Microcontrollers


def test_the_boards_give_every_logit_of_the_reference(tmp_path):
    mcu.tools()
    data = tiny_files()[1]
    model = decode(data)
    images = np.random.default_rng(0).integers(0, 256, (3, *model.image), dtype=np.uint8)
    for index, board in enumerate(mcu.MACHINES.values()):
        folder = tmp_path / str(index)
        folder.mkdir()
        for file, text in to_c(model, data, Options()).files.items():
            (folder / file).write_bytes(text)
        found = mcu.run(board, folder, images, "size")
        assert np.array_equal(found.logits, predict(model, images))
        assert found.constants >= model.payload_bits // 8 and 500 < found.code < 20_000
        macs = sum(step.weights.nonzeros for step in model.steps if isinstance(step, Conv)) * 16
        assert all(macs < count < 1_000_000 for count in found.instructions)


def test_without_the_tools_a_line_says_how_to_get_them(monkeypatch, capsys):
    monkeypatch.setattr(mcu.shutil, "which", lambda name: None)
    assert mcu.main([str(MNIST)]) == 1
    line = capsys.readouterr().err.strip()
    assert "arm-none-eabi-gcc is not here" in line and "apt-get install -y gcc-arm-none-eabi" in line
    assert "\n" not in line and len(line) <= 300


@pytest.mark.parametrize("count", ["0", "101", "-1"])
def test_a_number_of_images_that_makes_no_sense_ends_with_2(count, capsys):
    with pytest.raises(SystemExit) as caught:
        mcu.main(["--images", count, str(MNIST)])
    assert caught.value.code == 2


@pytest.mark.slow
@pytest.mark.parametrize("optimize", ["size", "speed"])
def test_make_mcu_runs_50_images_of_every_small_release(optimize, capsys):
    for file in (MNIST, ROOT / "release/cascade.safetensors"):
        assert mcu.main(["--optimize", optimize, str(file)]) == 0
        assert capsys.readouterr().out.count("all logits equal the reference's") == 2


# The walk-through


WALK = re.findall(r"^    \$ (.*)$", (ROOT / "docs/export.md").read_text(encoding="utf-8"), re.M)
DEMO = "build/demo/checkpoints/quantized.safetensors"


def draw(path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def run_line(line: str, capsysbinary: pytest.CaptureFixture[bytes]) -> bytes:
    """What a line of the walk-through prints; Python runs in this process."""
    words, _, target = line.partition(" > ")
    name, *rest = words.split()
    capsysbinary.readouterr()
    if name == "make":
        given = dict(word.split("=", 1) for word in rest[1:])
        assert rest[0] == "export" and export.main(["--to", given["TO"], given["FILE"]]) == 0
    elif name == ".venv/bin/python":
        command = {"tools/pixels.py": pixels.main, "-m": predict_pictures}[rest[0]]
        assert command(rest[2:] if rest[0] == "-m" else rest[1:]) == 0
    else:
        return subprocess.run([shutil.which(name) or name, *rest], check=True, capture_output=True).stdout
    out = capsysbinary.readouterr().out
    if target:
        Path(target).write_bytes(out)
    return out


def test_the_walk_through_says_of_a_picture_what_predict_says(tmp_path, monkeypatch, capsysbinary):
    assert WALK[0] == "make demo" and len(WALK) == 6
    monkeypatch.chdir(tmp_path)
    Path(DEMO).parent.mkdir(parents=True)
    shutil.copy(MNIST, DEMO)
    draw(Path("picture.png"))
    said = [run_line(line, capsysbinary) for line in WALK[1:]]
    name, logits = said[3].decode().splitlines()
    model = read(DEMO)
    assert name in model.class_names and re.search(rf"picture.png +{name} ", said[4].decode())
    image = np.frombuffer(Path("build/picture.raw").read_bytes(), np.uint8).reshape(1, *model.image)
    assert list(map(int, logits.split())) == predict(model, image)[0].tolist()
    for wrong in (b"", bytes(783), bytes(785)):
        done = subprocess.run(["build/classify"], input=wrong, capture_output=True)
        assert done.returncode == 1 and done.stderr.startswith(b"classify: an image has 784 bytes, this file has ")
    assert subprocess.run(["build/classify", "missing"], capture_output=True).returncode == 2


@pytest.mark.slow
def test_the_whole_walk_through_runs_as_it_is_written(tmp_path):
    for name in listed():
        if not name.startswith("release/") and (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to((ROOT / ".venv").resolve())
    draw(tmp_path / "picture.png")
    script = "\n".join(["set -e", *WALK])
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert any(f"\n{name}\n" in done.stdout for name in CLASSES)


def test_a_picture_that_is_none_is_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("no picture")
    assert pixels.main([str(MNIST), "text.png", "--out", "image.raw"]) == 1
    line = capsys.readouterr().err.strip()
    assert line.startswith("pixels: text.png: ") and "\n" not in line and not Path("image.raw").exists()
