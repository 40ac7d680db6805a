"""The two descriptions of a prepared dataset, `data/manifest.json` and the folder's `complete.json`, read with care.

Both are checked whole when they are read: keys, types, and that a checksum is one. What holds anything else is damaged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, StringConstraints, ValidationError

from micronet.errors import shown
from micronet.files import FileError, read_bytes

MARKER = "complete.json"
Checksum = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Strict(BaseModel):
    """An object with these keys and no others, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Facts(Strict):
    """How many images, and the sha256 of their pixels and labels."""

    images: NonNegativeInt
    images_sha256: Checksum
    labels_sha256: Checksum
    class_images: list[NonNegativeInt] | None = None  # of each class, where that is not the same number


class Whole(Strict):
    """A dataset as it is distributed."""

    train: Facts
    test: Facts


class Splits(Strict):
    """The same images as they are used here."""

    train: Facts
    validation: Facts
    test: Facts


class Manifest(Strict):
    """What the prepared files hold: nothing of the machine, nothing of the source."""

    dataset: str
    split_seed: int
    validation_size: NonNegativeInt | None = None  # one of the two
    validation_share: FiniteFloat | None = None
    image_format: dict[str, int | str] | None = None  # source folder: what decides the images
    test_share: FiniteFloat | None = None
    training_images: NonNegativeInt | None = None
    classes: list[str]
    image_shape: list[NonNegativeInt]
    train_mean: list[FiniteFloat]
    train_standard_deviation: list[FiniteFloat]
    whole: Whole
    splits: Splits


class Marker(Strict):
    """What a whole folder says of itself: its manifest, who served it, which training images are held out."""

    source: Literal["path", "torchvision", "npm", "sample", "folder"]
    manifest: Manifest
    validation_indices: list[Annotated[int, Field(ge=0, lt=2**31)]]
    scan: str | None = None  # source folder: of the pictures that these files were made of
    path: str | None = None  # where they were, as the params said it
    place: str | None = None  # the same, seen from the prepared folder: on every machine that has both
    most_broken: NonNegativeInt | None = None  # that was allowed then
    facts: dict[str, Any] | None = None  # what was found


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, its keys in their order. Raises `FileError`: missing, damaged, of another form."""
    return _read(path, Manifest)


def read_marker(path: Path) -> dict[str, Any] | None:
    """What a folder says of itself; None when that is missing, damaged or of another form."""
    try:
        return _read(path, Marker)
    except FileError:
        return None


def _read(path: Path, form: type[Strict]) -> dict[str, Any]:
    try:
        return form.model_validate_json(read_bytes(path)).model_dump(exclude_none=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise FileError(f"{path}: is damaged ({shown(f'{key}: ' if key else '')}{shown(first['msg'], 120)})") from None
