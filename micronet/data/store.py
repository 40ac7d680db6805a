"""A dataset on disk: split, stored once as raw files, verified, mapped into memory.

`data/manifest.json` states what the files must hold, and nothing about the machine or the source. Images are written
and compared in pieces, so a dataset may be larger than memory.

    DATA.FOLDER/{train,validation,test}_{images,labels}.bin   uint8: (N, C, H, W) and (N,), uint16 above 256 classes
    DATA.FOLDER/complete.json                                 written last: the folder is whole
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from micronet import params
from micronet.data.arrays import DataError, Description, sha256
from micronet.data.datasets import FOLDER, dataset_of, described, origin, pictures, stand_in
from micronet.data.images import Split, SplitName
from micronet.data.manifest import MARKER, read_manifest, read_marker
from micronet.data.pieces import Joined, Rows, Written, image_digests, label_type, pixels_of, write_splits
from micronet.data.progress import Report, silent
from micronet.data.sources import fetch
from micronet.data.splits import chosen
from micronet.errors import shown
from micronet.files import FileError, checksum, reason, temporary_folder, write_atomically, write_json

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = Path("data/manifest.json")
MAKE = "python stages/prepare_data.py"
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
DECIDED = (
    "dataset",
    "split_seed",
    "validation_size",
    "validation_share",
    "training_images",
    "image_format",
    "test_share",
)
OF_PICTURES = ("scan", "path", "place", "most_broken", "facts")  # keys of the marker that a new split does not change
CHANNELS = {1: ("grey",), 3: ("red", "green", "blue")}
MOST_CLASSES = 1 << 16
# of mmap(2); Python before 3.13 lacks the name; this is its value on Linux for x86 and ARM
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def identity(config: params.Data) -> dict[str, Any]:
    """The part of the manifest that the params decide: the keys `DECIDED`."""
    own = config.source == "folder"
    decided = {
        "dataset": FOLDER if own else dataset_of(config.source).name,
        "split_seed": config.seed,
        "validation_size": config.validation_size,
        "validation_share": config.validation_share,
        "training_images": config.training_images,
        "image_format": config.image.model_dump() if config.image else None,
        "test_share": config.test_share,
    }
    return {key: value for key, value in decided.items() if value is not None}


class Whole:
    """A dataset in its original order, from a source or from a prepared folder."""

    def __init__(self, description: Description, train: tuple[Rows, np.ndarray], test: tuple[Rows, np.ndarray]):
        self.description = description
        self.train_images, self.train_labels = train
        self.test_images, self.test_labels = test

    @classmethod
    def held(cls, folder: Path, marker: dict[str, Any]) -> Whole:
        """Rejoins it from the splits of a folder.

        Raises:
            LookupError, OSError, ValueError: the folder is not what the marker says.
        """
        manifest = marker["manifest"]
        description = Description(manifest["dataset"], tuple(manifest["image_shape"]), tuple(manifest["classes"]))
        kind, pixels = label_type(len(description.classes)), pixels_of(description.shape)
        images = {name: np.memmap(folder / f"{name}_images.bin", np.uint8, "r").reshape(-1, pixels) for name in SPLITS}
        labels = {name: np.fromfile(folder / f"{name}_labels.bin", kind) for name in SPLITS}
        held_out = np.zeros(len(labels["train"]) + len(labels["validation"]), dtype=bool)
        held_out[marker["validation_indices"]] = True
        train_labels = np.empty(len(held_out), dtype=kind)
        train_labels[held_out], train_labels[~held_out] = labels["validation"], labels["train"]
        train = Joined(images["train"], images["validation"], held_out)
        return cls(description, (train, train_labels), (images["test"], labels["test"]))


def _build(config: params.Data, source: str, whole: Whole, more: dict[str, Any], report: Report) -> dict[str, Any]:
    """Splits, describes and stores a dataset; adds `more` to the marker. Returns the marker."""
    description, folder = whole.description, Path(config.folder)
    own = config.source == "folder"  # split by their pixels: neither renaming nor other pictures move one
    names = image_digests(whole.train_images, pixels_of(description.shape)) if own else None
    split: dict[str, Any] = {"classes": description.classes, "key": config.validation_key, "names": names}
    held_out = chosen(whole.train_labels, config.validation, config.seed, **split)
    mask = np.zeros(len(whole.train_labels), dtype=bool)
    mask[held_out] = True
    try:
        with temporary_folder(folder) as temporary:
            masks = {"train": ~mask, "validation": mask}
            train = write_splits(temporary, description, whole.train_images, whole.train_labels, masks, report)
            every = {"test": np.ones(len(whole.test_labels), dtype=bool)}
            test = write_splits(temporary, description, whole.test_images, whole.test_labels, every, report)
            marker = {
                "source": source,
                "manifest": {**identity(config), **_manifest(description, train, test)},
                "validation_indices": held_out.tolist(),
                **more,
            }
            (temporary / MARKER).write_text(json.dumps(marker), encoding="utf-8")
            _put_in_place(folder, temporary)
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be written: {reason(error)}") from None
    return marker


def _manifest(description: Description, train: Written, test: Written) -> dict[str, Any]:
    """What the manifest says about the images."""
    mean, deviation = train.statistics()
    return {
        "classes": list(description.classes),
        "image_shape": list(description.shape),
        "train_mean": mean,
        "train_standard_deviation": deviation,
        "whole": {"train": train.whole, "test": test.whole},
        "splits": {**train.splits, **test.splits},
    }


def _put_in_place(folder: Path, temporary: Path) -> None:
    """Moves the files of all splits into the folder. Raises `OSError`."""
    # file by file, with the marker removed first and put back last: a folder without it counts as damaged, and
    # anything else the user keeps in the folder stays
    folder.mkdir(exist_ok=True)
    (folder / MARKER).unlink(missing_ok=True)
    for path in sorted(temporary.iterdir(), key=lambda path: path.name == MARKER):
        os.replace(path, folder / path.name)


def _fault(folder: Path, manifest: dict[str, Any], verified: tuple[SplitName, ...]) -> str | None:
    """How the folder differs from the manifest, or None. Reads files in full only for the `verified` splits."""
    if not folder.is_dir():
        return "is missing"
    marker = read_marker(folder / MARKER)
    if marker is None:
        return "is not complete"
    if marker["manifest"] != manifest:
        return "holds another dataset or split"
    sizes = (
        ("images", pixels_of(manifest["image_shape"])),
        ("labels", np.dtype(label_type(len(manifest["classes"]))).itemsize),
    )
    for name in SPLITS:
        facts = manifest["splits"][name]
        for kind, size in sizes:
            path = folder / f"{name}_{kind}.bin"
            try:
                if not path.is_file() or path.stat().st_size != facts["images"] * size:
                    return f"is damaged ({path.name} is missing or has another size)"
                if name in verified and (got := checksum(path)) != facts[f"{kind}_sha256"]:
                    return f"is damaged ({path.name}: sha256 {got}, must be {facts[f'{kind}_sha256']})"
            except OSError as error:
                return f"is damaged ({path.name}: {reason(error)})"
    return None


def _check_whole(config: params.Data, whole: Whole, manifest: dict[str, Any]) -> None:
    """Raises `ValueError` if a folder that is consistent in itself does not hold the dataset in its order."""
    dataset = None if config.source == "folder" else dataset_of(config.source)
    for split in ("train", "test"):
        for kind in ("images", "labels"):
            official = getattr(dataset, f"{split}_{kind}_sha256", None)
            wanted = official or manifest["whole"][split][f"{kind}_sha256"]
            rows = getattr(whole, f"{split}_{kind}")
            got = rows.sha256() if isinstance(rows, Joined) else sha256(rows)
            if got != wanted:
                said = f"{split}_{kind} are not {manifest['dataset']}'s"
                raise ValueError(f"{said}: their sha256 is {got}, it must be {wanted}")


def _scan(config: params.Data) -> str | None:
    """The digest of the pictures of `source: folder`; None for other sources, and if they are not on this machine.

    Raises:
        DataError: the folder cannot be read, or is not here and is not the one that was prepared.
    """
    if pictures(config) is None:
        stand_in(config)
        return None
    from micronet.data.folder import scan

    return scan(config)


def changed(config: params.Data) -> bool:
    """Whether the pictures of `source: folder` have changed since they were prepared; False if either is not here.

    Quick: only names, sizes and times are compared, not the content.

    Raises:
        DataError: the folder of pictures cannot be read, or is not here and is not the one that was prepared.
    """
    if config.source != "folder" or (marker := read_marker(Path(config.folder) / MARKER)) is None:
        return False
    found = _scan(config)
    return found is not None and found != marker.get("scan")


def _outdated(config: params.Data, marker: dict[str, Any], scan: str | None) -> str | None:
    """Why an intact folder must be made again from the pictures; None if any new split can be made from the folder."""
    held, wanted = marker["manifest"], identity(config)
    if config.source != "folder":
        return None
    if scan is not None and scan != marker.get("scan"):
        return f"the pictures in {shown(config.path, 120)} have changed"
    for key in ("image_format", "test_share", *(("split_seed",) if config.test_share else ())):
        if held.get(key) != wanted.get(key):
            return f"{key} is another one"
    if config.most_broken < marker.get("most_broken", 0):
        return "fewer broken pictures are allowed"
    return None


def _ready(config: params.Data, report: Report) -> dict[str, Any]:
    """Makes the folder match the params, from its own content or from a source. Returns the marker."""
    folder, wanted = Path(config.folder), identity(config)
    marker, scan = read_marker(folder / MARKER), _scan(config)
    if marker is not None:
        try:
            held = marker["manifest"]
            if held["dataset"] != wanted["dataset"]:  # not damage: never overwrite the full dataset with the sample
                name = shown(held["dataset"], 40)
                raise DataError(f"{folder}: holds {name}, set data.folder to another one for {wanted['dataset']}")
            fault = _fault(folder, held, SPLITS)
            if fault is None:
                whole = Whole.held(folder, marker)
                _check_whole(config, whole, held)
                fault = _outdated(config, marker, scan)
            if fault is None:
                if _decided(held) == _decided(wanted):
                    report(f"{folder}: already there, all checksums match")
                    return _moved(config, marker, scan)
                report(f"{folder}: split anew with seed {config.seed} and {_held_out(config)}")
                more = {key: value for key, value in _moved(config, marker, scan).items() if key in OF_PICTURES}
                return _build(config, marker["source"], whole, more, report)
        except (LookupError, ValueError, OSError) as error:
            fault = f"is damaged ({reason(error)})"
        report(f"{folder}: {fault}: rebuilding")
    else:
        report(f"{folder}: {'is not complete' if folder.is_dir() else 'is not there yet'}: building")
    return _from_source(config, scan, report)


def _moved(config: params.Data, marker: dict[str, Any], scan: str | None) -> dict[str, Any]:
    """The marker of a correct folder, updated to name the place where the same pictures are now."""
    if scan is None or marker.items() >= origin(config).items():
        return marker
    marker = marker | origin(config)
    with suppress(FileError):  # a read-only disk: the images are correct all the same
        write_atomically(Path(config.folder) / MARKER, json.dumps(marker))
    return marker


def _from_source(config: params.Data, scan: str | None, report: Report) -> dict[str, Any]:
    """Fills the folder from the source in the params. Returns the marker."""
    folder = Path(config.folder)
    if config.source == "folder":
        marker = _from_pictures(config, scan, report)
        report(f"{folder}: the pictures in {shown(config.path, 120)}, {len(marker['manifest']['classes'])} classes")
    else:
        source, arrays = fetch(config, report)
        train, test = (arrays.train_images, arrays.train_labels), (arrays.test_images, arrays.test_labels)
        marker = _build(config, source, Whole(described(config), train, test), {}, report)
        report(f"{folder}: {marker['manifest']['dataset']} from {source}, all checksums match")
    return marker


def _from_pictures(config: params.Data, scan: str | None, report: Report) -> dict[str, Any]:
    from micronet.data.folder import read

    folder = Path(config.folder)
    try:
        with temporary_folder(folder) as place:
            arrays, description, facts = read(config, place, report)
            if not 2 <= len(description.classes) <= MOST_CLASSES:
                count = len(description.classes)
                raise DataError(f"{shown(config.path, 120)}: has {count} classes; 2 to {MOST_CLASSES:,} would work")
            train = (arrays.train_images, arrays.train_labels)
            whole = Whole(description, train, (arrays.test_images, arrays.test_labels))
            # scanned before reading, so that a picture added in between is noticed next time
            more = {"scan": scan, "most_broken": config.most_broken, "facts": facts, **origin(config)}
            return _build(config, "folder", whole, more, report)
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {reason(error)}") from None


def _decided(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: tree.get(key) for key in DECIDED}


def _held_out(config: params.Data) -> str:
    share = config.validation_share
    return f"{config.validation_size} validation images" if share is None else f"{share:.1%} validation images"


def prepare(config: params.Data, manifest_path: Path | str = MANIFEST, report: Report = silent) -> dict[str, Any]:
    """Makes the data folder and the manifest. A folder that is already correct is verified in full and kept.

    Args:
        report: takes one line at a time about what happens.

    Returns:
        Flat metrics: the size of each split, mean and standard deviation of the training pixels, and what was found
        in a folder of pictures.

    Raises:
        DataError: no source works, the given one is damaged, or the folder holds a different dataset.
    """
    marker = _ready(config, report)
    manifest = marker["manifest"]
    write_json(manifest_path, manifest)
    metrics: dict[str, Any] = {f"{name}_images": manifest["splits"][name]["images"] for name in SPLITS}
    for index, channel in enumerate(CHANNELS[manifest["image_shape"][0]]):
        metrics[f"train_mean_{channel}"] = manifest["train_mean"][index]
        metrics[f"train_standard_deviation_{channel}"] = manifest["train_standard_deviation"][index]
    return metrics | marker.get("facts", {})


def folder_fault(config: params.Data, manifest: dict[str, Any]) -> str | None:
    """How the prepared folder differs from a manifest, judged by file sizes; None if it does not."""
    return _fault(Path(config.folder), manifest, ())


def facts(config: params.Data) -> dict[str, Any]:
    """What was found in the folder of pictures during preparation; empty for other sources."""
    marker = read_marker(Path(config.folder) / MARKER)
    return marker.get("facts", {}) if marker else {}


def source_of(config: params.Data) -> str | None:
    """The source of the prepared folder (`path`, `npm`, `sample`, ...); None before it exists."""
    marker = read_marker(Path(config.folder) / MARKER)
    return marker["source"] if marker else None


def check_manifest(config: params.Data, manifest_path: Path | str = MANIFEST) -> dict[str, Any]:
    """The manifest for these params.

    Raises:
        DataError: it is missing, damaged, or for other params.
    """
    manifest_path = Path(manifest_path)
    if not manifest_path.exists():
        raise DataError(f"{manifest_path}: there is no such file; `{MAKE}` makes it")
    try:
        manifest = read_manifest(manifest_path)
    except FileError as error:
        raise DataError(f"{error}; `{MAKE}` makes it anew") from None
    wanted = _decided(identity(config))
    for key, value in _decided(manifest).items():
        if value != wanted[key]:
            found = shown(value, 60)
            said = shown(wanted[key], 60)
            raise DataError(f"{manifest_path}: {key} is {found}, the params say {said}: `{MAKE}` makes it anew")
    return manifest


def open_split(
    config: params.Data, name: SplitName, manifest_path: Path | str = MANIFEST, report: Report = silent
) -> Split:
    """Opens one split, verified by its checksums and mapped into memory.

    The folder is rebuilt if it is missing or damaged. If a folder of pictures is no longer on this machine, the
    prepared images stand in for it, as `datasets.standing_in` says.

    Raises:
        DataError: the manifest is damaged or for other params, the pictures have changed since they were prepared, are
            not here and differ from those that were prepared, or the data cannot be obtained.
    """
    import torch

    manifest_path, folder = Path(manifest_path), Path(config.folder)
    manifest = check_manifest(config, manifest_path)
    if changed(config):
        raise DataError(
            f"{shown(config.path, 120)}: the pictures have changed since they were prepared; "
            f"`make repro`, or `{MAKE}` and the stages after it, takes them as they are now"
        )
    fault = _fault(folder, manifest, (name,))
    if fault and _ready(config, report)["manifest"] != manifest:
        raise DataError(f"{manifest_path}: does not describe the verified data: `{MAKE}` makes it anew")
    shape, kind = manifest["image_shape"], label_type(len(manifest["classes"]))
    try:
        images = _mapped(folder / f"{name}_images.bin", torch.uint8)
        labels = torch.from_numpy(np.fromfile(folder / f"{name}_labels.bin", kind).astype(np.int64))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: cannot be mapped into memory ({reason(error)})") from None
    split = Split(images.reshape(-1, *shape), labels, tuple(manifest["classes"]), manifest["dataset"])
    return split.part(config.training_images) if name == "train" and config.training_images else split


def _mapped(path: Path, dtype: Any) -> Tensor:
    """The bytes of a file as a tensor; writing to it never changes the file. Raises `OSError`."""
    import torch

    # reserves no memory for possible writes: the file may be larger than the machine's memory
    flags = mmap.MAP_PRIVATE | NO_RESERVE
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return torch.frombuffer(memory, dtype=dtype)
