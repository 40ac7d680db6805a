"""What a dataset must contain, by checksum: CIFAR-10 and the sample of it in this repository, MNIST, CIFAR-100."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from micronet import params
from micronet.data.arrays import Arrays, DataError, sha256
from micronet.data.arrays import Description as Description
from micronet.data.manifest import MARKER, read_marker
from micronet.errors import shown

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (3, 32, 32)
PIXELS = 3072  # bytes an image, CHW
FOLDER = "folder"  # the name of a dataset of the user's own images
CIFAR100_CLASSES = tuple(
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm".split()
)


@dataclass(frozen=True)
class Dataset:
    """What a dataset must contain, by checksum: of the whole, and of the files that it is distributed in."""

    name: str
    title: str = "CIFAR-10"
    shape: tuple[int, int, int] = SHAPE
    classes: tuple[str, ...] = CLASSES
    train_images_sha256: str | None = None  # None: only the checksums of its files are known
    train_labels_sha256: str | None = None
    test_images_sha256: str | None = None
    test_labels_sha256: str | None = None
    binary_md5: Mapping[str, str] = field(default_factory=dict)  # of the batches of CIFAR-10's binary version
    python_md5: Mapping[str, str] = field(default_factory=dict)  # of the pickles of a python version
    files_md5: Mapping[str, str] = field(default_factory=dict)  # of MNIST's files, unpacked
    archive_md5: Mapping[str, str] = field(default_factory=dict)  # of what is downloaded: binary, python, npm

    def check(self, arrays: Arrays, where: str) -> None:
        """Raises `DataError`, naming where the arrays came from, if they are not those of the dataset."""
        for part in (one.name for one in fields(arrays)):
            wanted = getattr(self, f"{part}_sha256")
            if wanted and (got := sha256(getattr(arrays, part))) != wanted:
                raise DataError(f"{where}: {part} are not {self.name}'s: their sha256 is {got}, it must be {wanted}")


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
# The first 100 training and 50 test images of each class, in the original order (data/sample/make.py)
SAMPLE = Dataset(
    name="cifar10-sample",
    train_images_sha256="a867f997256a35f67b9321981f6243a2ea9e49a346a0290b31f26dd3c9435b28",
    train_labels_sha256="e759947fe69fe0f2bb22a97d325a470d61f7ec00ab59043c35b4534c888e05f3",
    test_images_sha256="9bc54919dd26fb31d13e41be1c4e91e9f757f0385e9adda3184bce27358ed42d",
    test_labels_sha256="ef05233573cbaa3aef37039dda9546f3232a1e96050a39502b89413dc8c9e952",
)


MNIST = Dataset(
    name="mnist",
    title="MNIST",
    shape=(1, 28, 28),
    classes=tuple("0123456789"),
    train_images_sha256="741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
    train_labels_sha256="1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
    test_images_sha256="6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
    test_labels_sha256="ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    files_md5={
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    archive_md5={
        "npm": "7e4bb4a11f04f25a4d8451161d5b2ade",
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
)
CIFAR100 = Dataset(
    name="cifar100",
    title="CIFAR-100",
    classes=CIFAR100_CLASSES,
    python_md5={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
    archive_md5={"python": "eb9058c3a382ffc7106e4002c42a8d85"},
)


def described(config: params.Data) -> Description:
    """The image shape and classes of a source, before anything is prepared; `source: folder` lists the class folders.

    Raises:
        DataError: the folder that the source names cannot be read, or is not here and not what was prepared.
    """
    if config.source == "folder" and config.image:
        shape = (config.image.channels, config.image.height, config.image.width)
        if prepared := stand_in(config):
            return Description(FOLDER, shape, tuple(prepared["manifest"]["classes"]))
        from micronet.data.folder import class_names

        return Description(FOLDER, shape, class_names(config))
    dataset = dataset_of(config.source)
    return Description(dataset.name, dataset.shape, dataset.classes)


def pictures(config: params.Data) -> Path | None:
    """The path of the pictures for `source: folder`; None for other sources, and if it is not on this machine."""
    if config.source != "folder" or not config.path:
        return None
    try:
        path = Path(config.path).expanduser()
        return path if os.path.lexists(path) else None
    except (OSError, RuntimeError, ValueError):
        return None


def origin(config: params.Data) -> dict[str, str]:
    """Where the pictures of `source: folder` are, as the marker of the prepared folder records it."""
    path = str(config.path)
    try:
        there = os.path.realpath(Path(path).expanduser())
        return {"path": path, "place": os.path.relpath(there, os.path.realpath(config.folder))}
    except (OSError, RuntimeError, ValueError):  # no home folder, no working directory
        return {"path": path}


def stand_in(config: params.Data) -> dict[str, Any] | None:
    """The marker of the prepared folder if that stands in for pictures that are not on this machine, else None.

    Raises:
        DataError: it was made from pictures other than those that `data.path` names.
    """
    if config.source != "folder" or pictures(config) is not None:
        return None
    marker = read_marker(Path(config.folder) / MARKER)
    if marker is None or marker["manifest"]["dataset"] != FOLDER:
        return None
    wanted, path = origin(config), marker.get("path")
    known = path is not None  # older markers lack it
    if known and path != wanted["path"] and ("place" not in marker or marker["place"] != wanted.get("place")):
        raise DataError(
            f"{shown(config.path, 80)}: there is no such folder, and {shown(config.folder, 40)} was prepared of "
            f"{shown(path, 70)}; data.path must name that one, or a folder that is here"
        )
    return marker


def standing_in(config: params.Data) -> str | None:
    """A line to report that prepared pictures stand in for a missing folder, else None. Raises `DataError`."""
    marker = stand_in(config)
    if marker is None:
        return None
    path, said = marker.get("path"), shown(config.path, 80)
    of = f"of {shown(path, 80)}" if path else "it does not say of which folder"
    return f"{said}: is not here; the pictures that were prepared in {shown(config.folder, 40)} count ({of})"


def dataset_of(source: str) -> Dataset:
    """The dataset that a value of `data.source` stands for, if its content is known."""
    return {"sample": SAMPLE, "mnist": MNIST, "cifar100": CIFAR100}.get(source, CIFAR10)
