"""CIFAR-10 as it lies on disk: split, stored once as raw uint8 files, verified, mapped into memory.

`data/manifest.json` states what the files must hold, and nothing about the machine or the source.

    DATA.FOLDER/{train,validation,test}_{images,labels}.bin   uint8: (N, 3, 32, 32) and (N,)
    DATA.FOLDER/complete.json                                 written last: the folder is whole
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from micronet import params
from micronet.data.datasets import CLASSES, PIXELS, SHAPE, Arrays, DataError, Dataset, dataset_of, sha256
from micronet.data.images import Split, SplitName
from micronet.data.manifest import read_manifest, read_marker
from micronet.data.progress import Report, silent
from micronet.data.sources import fetch
from micronet.errors import shown
from micronet.files import FileError, checksum, reason, temporary_folder, write_json

MANIFEST = Path("data/manifest.json")
MARKER = "complete.json"
MAKE = "python stages/prepare_data.py"
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


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
        parts = np.array_split(plane, 10)
        counts = np.sum([np.bincount(part.reshape(-1), minlength=256) for part in parts], axis=0).tolist()
        total = sum(counts)
        first = sum(value * count for value, count in enumerate(counts))
        second = sum(value * value * count for value, count in enumerate(counts))
        means.append(round(first / total / 255, 8))
        deviations.append(round(((second * total - first * first) ** 0.5) / total / 255, 8))
    return means, deviations


def identity(config: params.Data, seed: int) -> dict[str, Any]:
    """What the params decide of the manifest. `training_images` is None when all are used; no manifest says that."""
    return {
        "dataset": dataset_of(config.source).name,
        "split_seed": seed,
        "validation_size": config.validation_size,
        "training_images": config.training_images,
    }


def _facts(images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    return {"images": len(labels), "images_sha256": sha256(images), "labels_sha256": sha256(labels)}


def _build(config: params.Data, seed: int, source: str, arrays: Arrays) -> dict[str, Any]:
    """Splits, describes and stores a dataset. Returns the manifest."""
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
        **{key: value for key, value in identity(config, seed).items() if value is not None},
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
    marker = {"source": source, "manifest": manifest, "validation_indices": held_out.tolist()}
    _put_in_place(Path(config.folder), splits, marker)
    return manifest


def _put_in_place(folder: Path, splits: dict[str, tuple[np.ndarray, np.ndarray]], marker: dict[str, Any]) -> None:
    """Writes the files of all splits beside the folder, then moves them into it."""
    try:
        with temporary_folder(folder) as temporary:
            for name, parts in splits.items():
                for kind, array in zip(("images", "labels"), parts, strict=True):
                    (temporary / f"{name}_{kind}.bin").write_bytes(np.ascontiguousarray(array).data)
            (temporary / MARKER).write_text(json.dumps(marker), encoding="utf-8")
            # file by file, the marker taken away first and put back last: a folder without it counts as damaged,
            # and what else the user keeps in the folder stays
            folder.mkdir(exist_ok=True)
            (folder / MARKER).unlink(missing_ok=True)
            for path in sorted(temporary.iterdir(), key=lambda path: path.name == MARKER):
                os.replace(path, folder / path.name)
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be written: {reason(error)}") from None


def _fault(folder: Path, manifest: dict[str, Any], verified: tuple[SplitName, ...]) -> str | None:
    """Why the folder is not what the manifest says, or None. Reads whole files of the `verified` splits only."""
    if not folder.is_dir():
        return "is missing"
    marker = read_marker(folder / MARKER)
    if marker is None:
        return "is not complete"
    if marker["manifest"] != manifest:
        return "holds another dataset or split"
    for name in SPLITS:
        facts = manifest["splits"][name]
        for kind, size in (("images", PIXELS), ("labels", 1)):
            path = folder / f"{name}_{kind}.bin"
            try:
                if not path.is_file() or path.stat().st_size != facts["images"] * size:
                    return f"is damaged ({path.name} is missing or has another size)"
                if name in verified and (got := checksum(path)) != facts[f"{kind}_sha256"]:
                    return f"is damaged ({path.name}: sha256 {got}, must be {facts[f'{kind}_sha256']})"
            except OSError as error:
                return f"is damaged ({path.name}: {reason(error)})"
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
    masks: tuple[tuple[SplitName, np.ndarray], ...] = (("train", ~held_out), ("validation", held_out))
    for name, mask in masks:
        images[mask], labels[mask] = parts[name, "images"].reshape(-1, PIXELS), parts[name, "labels"]
    arrays = Arrays(images, labels, parts["test", "images"].reshape(-1, PIXELS), parts["test", "labels"])
    try:
        arrays.check(dataset, str(folder))
    except DataError as error:
        raise ValueError(str(error)) from None
    return arrays


def _ready(config: params.Data, seed: int, report: Report) -> dict[str, Any]:
    """Makes the folder hold what the params ask for, from what it holds already or from a source; the manifest."""
    folder, wanted = Path(config.folder), identity(config, seed)
    dataset = dataset_of(config.source)
    marker = read_marker(folder / MARKER)
    if marker is not None:
        try:
            held = marker["manifest"]
            if held["dataset"] != dataset.name:  # not damage: never overwrite the whole with the sample
                name = shown(held["dataset"], 40)
                raise DataError(f"{folder}: holds {name}, set data.folder to another one for {dataset.name}")
            fault = _fault(folder, held, SPLITS)
            if fault is None:
                arrays = _restore(folder, marker, dataset)
                if all(held.get(key) == value for key, value in wanted.items()):
                    report(f"{folder}: already there, all checksums match")
                    return held
                report(f"{folder}: split anew with seed {seed} and {config.validation_size} validation images")
                return _build(config, seed, marker["source"], arrays)
        except (LookupError, ValueError, OSError) as error:
            fault = f"is damaged ({reason(error)})"
        report(f"{folder}: {fault}: rebuilding")
    else:
        report(f"{folder}: {'is not complete' if folder.is_dir() else 'is not there yet'}: building")
    source, arrays = fetch(config, report)
    manifest = _build(config, seed, source, arrays)
    report(f"{folder}: {dataset.name} from {source}, all checksums match")
    return manifest


def prepare(
    config: params.Data, seed: int, manifest_path: Path | str = MANIFEST, report: Report = silent
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
    write_json(manifest_path, manifest)
    metrics: dict[str, Any] = {f"{name}_images": manifest["splits"][name]["images"] for name in SPLITS}
    for index, channel in enumerate(("red", "green", "blue")):
        metrics[f"train_mean_{channel}"] = manifest["train_mean"][index]
        metrics[f"train_standard_deviation_{channel}"] = manifest["train_standard_deviation"][index]
    return metrics


def source_of(config: params.Data) -> str | None:
    """Which source served the prepared folder (`path`, `torchvision`, `npm`, `sample`), None before it is there."""
    marker = read_marker(Path(config.folder) / MARKER)
    return marker["source"] if marker else None


def open_split(
    config: params.Data, seed: int, name: SplitName, manifest_path: Path | str = MANIFEST, report: Report = silent
) -> Split:
    """Opens one split, verified by its checksums and mapped into memory.

    The folder is rebuilt when it is missing or damaged.

    Args:
        seed: of the validation split, as given to `prepare`.

    Raises:
        DataError: the manifest is damaged or of other params, or the data cannot be had.
    """
    import torch

    manifest_path, folder = Path(manifest_path), Path(config.folder)
    if not manifest_path.exists():
        raise DataError(f"{manifest_path}: there is no such file; `{MAKE}` makes it")
    try:
        manifest = read_manifest(manifest_path)
    except FileError as error:
        raise DataError(f"{error}; `{MAKE}` makes it anew") from None
    for key, value in identity(config, seed).items():
        if manifest.get(key) != value:
            found = shown(manifest.get(key), 60)
            raise DataError(f"{manifest_path}: {key} is {found}, the params say {value}: `{MAKE}` makes it anew")
    fault = _fault(folder, manifest, (name,))
    if fault and _ready(config, seed, report) != manifest:
        raise DataError(f"{manifest_path}: does not describe the verified data: `{MAKE}` makes it anew")
    count = manifest["splits"][name]["images"]
    # private mappings: what a caller writes into the tensor never reaches the file
    files = {kind: str(folder / f"{name}_{kind}.bin") for kind in ("images", "labels")}
    try:
        images = torch.from_file(files["images"], shared=False, size=count * PIXELS, dtype=torch.uint8)
        labels = torch.from_file(files["labels"], shared=False, size=count, dtype=torch.uint8)
    except RuntimeError as error:
        raise DataError(f"{folder}: cannot be mapped into memory ({reason(error)})") from None
    split = Split(images.reshape(count, *SHAPE), labels.long())
    return split.part(config.training_images) if name == "train" and config.training_images else split
