"""The two descriptions of a prepared dataset, `data/manifest.json` and the folder's `complete.json`, and their checks.

Both are checked in full when read: keys, types, and the form of checksums. A file with anything else counts as damaged.
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
    class_images: list[NonNegativeInt] | None = None  # per class, if the numbers differ


class Whole(Strict):
    """A dataset as it is distributed."""

    train: Facts
    test: Facts


class Splits(Strict):
    """The same images, as split here."""

    train: Facts
    validation: Facts
    test: Facts


class Manifest(Strict):
    """What the prepared files hold, independent of machine and source."""

    dataset: str
    split_seed: int
    validation_size: NonNegativeInt | None = None  # one of these two
    validation_share: FiniteFloat | None = None
    image_format: dict[str, int | str] | None = None  # source folder: the settings that decide the pixels
    test_share: FiniteFloat | None = None
    training_images: NonNegativeInt | None = None
    classes: list[str]
    image_shape: list[NonNegativeInt]
    train_mean: list[FiniteFloat]
    train_standard_deviation: list[FiniteFloat]
    whole: Whole
    splits: Splits


class Marker(Strict):
    """What a complete folder records: its manifest, its source, which training images are held out."""

    source: Literal["path", "torchvision", "npm", "sample", "folder"]
    manifest: Manifest
    validation_indices: list[Annotated[int, Field(ge=0, lt=2**31)]]
    scan: str | None = None  # source folder: digest of the pictures that these files were made from
    path: str | None = None  # where they were, as written in the params
    place: str | None = None  # the same relative to the prepared folder, so valid on every machine that has both
    most_broken: NonNegativeInt | None = None  # the limit at that time
    facts: dict[str, Any] | None = None  # what was found in the pictures


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, its keys in order. Raises `FileError` if it is missing, damaged or of another form."""
    return _read(path, Manifest)


def read_marker(path: Path) -> dict[str, Any] | None:
    """The marker of a folder; None if it is missing, damaged or of another form."""
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
