"""The user's own pictures, one folder per class: what there is, whether it has changed, and all of it as arrays.

    DATA.PATH/{train,test}/CLASS/**    or, with `data.test_share`,    DATA.PATH/CLASS/**

The folders' names are the classes, sorted by code points as in torchvision's ImageFolder. Folders inside a class are
walked. Hidden entries, and what operating systems leave in folders, are skipped; other files that are not pictures, and
links that lead out of the folder, are left out and reported. Nothing depends on the order in which a disk lists files.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from micronet.data.arrays import Arrays, DataError, Description
from micronet.data.decoding import DIGEST_BYTES, decode
from micronet.data.pictures import SUFFIXES
from micronet.data.progress import Report, progress_bar, silent
from micronet.data.splits import chosen
from micronet.data.wording import counted, named, named_within, only
from micronet.data_params import OVERLAP, overlap
from micronet.errors import shown
from micronet.files import reason

if TYPE_CHECKING:
    from micronet import params

NAME = "folder"  # of the dataset, whatever its content
PARTS = ("train", "test")
LEFT_BY_SYSTEMS = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"))
MOST_NAME = 100  # characters of a class name, which tables show
MOST_SHOWN = 10  # how many things are listed by name
PATH = 80  # characters of the folder's path in a message


class Picture(NamedTuple):
    """A picture in a folder."""

    name: str  # its path within the folder
    label: int
    size: int  # bytes
    modified: int  # nanoseconds


@dataclass
class Listing:
    """What a folder of pictures holds."""

    root: Path
    real: str  # its path with links resolved
    said: str  # its name in messages
    places: dict[str, str] = field(default_factory=dict)  # each part's folder in the root: "" for all in one
    classes: tuple[str, ...] = ()
    pictures: dict[str, list[Picture]] = field(default_factory=dict)  # by part
    others: Counter[str] = field(default_factory=Counter)  # files that are not pictures, by suffix
    links: list[str] = field(default_factory=list)  # those that lead out of the folder, to nothing, or in a circle
    beside: list[str] = field(default_factory=list)  # folders beside train/ and test/


def class_names(config: params.Data) -> tuple[str, ...]:
    """The classes of a folder in label order; no picture is looked at.

    Raises:
        DataError: there is no such folder, its layout is wrong, it has fewer than two classes, different ones in train/
            and test/, or names that cannot be told apart or shown.
    """
    return _classes_listed(config).classes


def check(config: params.Data) -> None:
    """Refuses what `read` and the split after it would refuse, as far as the file list shows; no picture is opened.

    Raises:
        DataError: as `read`.
    """
    listing = _complete(config)
    labels = np.array([picture.label for picture in _shared_out(config, listing)["train"]])
    chosen(labels, config.validation, config.seed, classes=listing.classes, key=config.validation_key)


def scan(config: params.Data) -> str:
    """A digest of the names, sizes and modification times of all pictures, in hexadecimal: shows whether one changed.

    Raises:
        DataError: as `class_names`.
    """
    listing = _listed(config)
    found = hashlib.sha256(repr(listing.classes).encode())
    for part, pictures in listing.pictures.items():
        for picture in pictures:
            found.update(repr((part, *picture)).encode())
    return found.hexdigest()


def read(config: params.Data, place: Path, report: Report = silent) -> tuple[Arrays, Description, dict[str, Any]]:
    """Decodes all pictures, on all cores.

    Args:
        place: a folder for the pixels, which the arrays map into memory; it must exist as long as they are used.
        report: takes one line at a time about what is left out, cannot be read, or is there twice.

    Returns:
        The arrays: the training images in an order that mixes the classes, as code that takes the first ones expects
        (calibration, whitening), the test images sorted by class and, within a class, by path; their description; and
        facts for the metrics, such as `broken_images`.

    Raises:
        DataError: as `class_names`; a class without pictures in a part; more broken ones than `data.most_broken`.
    """
    assert config.image is not None  # the params ensure it
    listing = _complete(config)
    _say_what_is_there(listing, report)
    shared = _shared_out(config, listing)
    shared["train"] = sorted(shared["train"], key=_drawn)
    parts = {
        part: _decoded(listing, pictures, place / f"{part}_images.bin", config.image, f"decoding {part}", report)
        for part, pictures in shared.items()
    }
    train, test = parts["train"], parts["test"]
    _check_broken(listing, [*sorted(train.broken), *test.broken], config.most_broken, report)
    _refuse_empty_classes(listing, {part: found.pictures for part, found in parts.items()}, "has none that can be read")
    facts = {
        "broken_images": len(train.broken) + len(test.broken),
        **_duplicates(train.digests, test.digests, report),
        "other_files": listing.others.total(),
        "links_left_out": len(listing.links),
    }
    shape = (config.image.channels, config.image.height, config.image.width)
    arrays = Arrays(train.images, train.labels(listing.classes), test.images, test.labels(listing.classes))
    return arrays, Description(NAME, shape, listing.classes), facts


def _drawn(picture: Picture) -> bytes:
    """The sort key that mixes the classes: decided by a picture's path, but unrelated to what the path says."""
    return hashlib.sha256(picture.name.encode("utf-8", "surrogateescape")).digest()


def pictures_in(folder: Path, report: Report = silent) -> list[Path]:
    """The pictures below any folder, sorted by path; links are followed as in a folder of classes.

    Raises:
        DataError: it cannot be read.
    """
    listing = Listing(folder, os.path.realpath(folder), shown(folder, PATH))
    found = [folder / picture.name for picture in sorted(_pictures(listing, "", 0))]
    _say_links(listing, report)
    return found


# What there is


def _opened(config: params.Data) -> Listing:
    """The folder that the params name. Raises `DataError` if there is none."""
    said = shown(config.path, PATH)
    try:
        root = Path(config.path or "").expanduser()
        mode = root.stat().st_mode
    except FileNotFoundError:
        where = "" if root.is_absolute() else f" in {shown(Path.cwd(), PATH)}"
        raise DataError(f"{said}: there is no such folder{where}; data.path names the one of the pictures") from None
    except (OSError, RuntimeError, ValueError) as error:  # no such home folder, a zero byte
        raise DataError(f"{said}: {reason(error)}") from None
    if not stat.S_ISDIR(mode):
        raise DataError(f"{said}: is no folder; data.path names the one of the pictures")
    if overlap(os.path.realpath(config.folder), os.path.realpath(root)):
        raise DataError(f"data.folder: {OVERLAP}")
    return Listing(root, os.path.realpath(root), said)


def _classes_listed(config: params.Data) -> Listing:
    """The classes of a folder, checked; the pictures are not listed yet."""
    listing = _opened(config)
    there = _folders(listing, "")
    if config.test_share is None:
        if any(part not in there for part in PARTS):
            left_out = _but_for(_unfollowed(listing, ("",), PARTS))
            raise DataError(f"{listing.said}: {_without_parts(there)}{left_out}")
        listing.places = {part: part for part in PARTS}
        listing.beside = [name for name in there if name not in PARTS]
    else:
        if all(part in there for part in PARTS):
            raise DataError(f"{listing.said}: has train/ and test/, so data.test_share must be left out")
        if len(there) == 1 and there[0] in PARTS:
            left_out = _but_for(_unfollowed(listing, ("",)))
            raise DataError(
                f"{listing.said}: has {there[0]}/ and no class beside it; data.path: "
                f"{shown(listing.root / there[0], 140)} would work, with data.test_share as it is{left_out}"
            )
        listing.places = {"": ""}
    classes = {part: there if part == "" else _folders(listing, place) for part, place in listing.places.items()}
    left_out = _but_for(_unfollowed(listing, listing.places.values()))
    for part, names in classes.items():
        _check_classes(f"{listing.said}/{part}".rstrip("/"), names, left_out)
    first, last = list(classes.values())[0], list(classes.values())[-1]
    if first != last:
        apart = " and ".join(filter(None, (only(first, last, "train"), only(last, first, "test"))))
        raise DataError(f"{listing.said}: train/ and test/ must have the same classes: {apart}{left_out}")
    listing.classes = tuple(first)
    return listing


def _without_parts(there: list[str]) -> str:
    """What a message says about a folder that lacks train/ or test/, or both."""
    lacking = [part for part in PARTS if part not in there]
    found = f" (it has {named(there, 2)})" if there else ""
    if len(lacking) == 1:
        (other,) = set(PARTS) - set(lacking)
        return (
            f"has no {lacking[0]}/{found}; one beside {other}/ with the same class folders would work, "
            f"or data.path at {other}/ itself and data.test_share, 0.2 say, to keep a share for testing"
        )
    return (
        f"has no train/ and test/{found}; data.test_share, 0.2 say, keeps a share of each "
        "class for testing where the classes lie in the folder itself"
    )


def _check_classes(said: str, names: list[str], left_out: str) -> None:
    """Raises `DataError` for names that cannot be classes. Args: left_out: what to say about links not followed."""
    if not names:
        must = "it must have one for each class, with the pictures of it inside"
        raise DataError(f"{said}: has no folders; {must}{left_out}")
    seen: dict[str, str] = {}
    for name in names:
        if not name.isprintable() or len(name) > MOST_NAME:
            raise DataError(
                f"{said}: the class folder {shown(name, 60)} needs another name: "
                f"of UTF-8, printable, at most {MOST_NAME} characters"
            )
        twin = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if twin != name:
            raise DataError(
                f"{said}: the class folders {ascii(twin)[:62]} and {ascii(name)[:62]} differ in case or Unicode form "
                "alone, which other systems take for one; rename or join them"
            )
    if len(names) == 1:
        raise DataError(f"{said}: has one class, {shown(names[0], 60)}; there must be two or more{left_out}")


def _unfollowed(listing: Listing, places: Iterable[str], names: Sequence[str] | None = None) -> list[str]:
    """The links that are not followed among the class folders, and so may be meant as classes.

    Args:
        places: folders in the root. names: only these are considered.
    """
    return [
        link
        for link in listing.links
        if os.path.dirname(link) in places
        and (names is None or os.path.basename(link) in names)
        and not os.path.isfile(listing.root / link)
    ]


def _but_for(links: Sequence[str]) -> str:
    """What an error says about links that are not followed."""
    return f"; links out of it are not followed: {named(links, 2)}" if links else ""


def _listed(config: params.Data) -> Listing:
    """All pictures of a folder."""
    listing = _classes_listed(config)
    for part, place in listing.places.items():
        listing.pictures[part] = [
            picture
            for label, name in enumerate(listing.classes)
            for picture in sorted(_pictures(listing, os.path.join(place, name), label))
        ]
        for entry in _entries(listing, place):
            if _kind(listing, entry, place, ()) == "file":
                _count_other(listing, entry.name)  # belongs to no class
    return listing


def _complete(config: params.Data) -> Listing:
    """All pictures of a folder, in which no class is empty."""
    listing = _listed(config)
    _refuse_empty_classes(listing, listing.pictures, "has no pictures: put some in, or take the folder away")
    return listing


def _folders(listing: Listing, place: str) -> list[str]:
    """The names of the folders in a folder, sorted."""
    return [entry.name for entry in _entries(listing, place) if _kind(listing, entry, place, ()) == "folder"]


def _entries(listing: Listing, place: str) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden, sorted by name. Raises `DataError`."""
    try:
        with os.scandir(listing.root / place) as entries:
            found = [entry for entry in entries if entry.name[0] != "." and entry.name.lower() not in LEFT_BY_SYSTEMS]
    except OSError as error:
        raise DataError(f"{shown(listing.root / place, 2 * PATH)}: {reason(error)}") from None
    return sorted(found, key=lambda entry: entry.name)


def _kind(listing: Listing, entry: os.DirEntry[str], place: str, above: tuple[str, ...]) -> str | None:
    """`folder`, `file`, or `special`; None for a link that is not followed, which is recorded in the listing.

    Args:
        above: the folders above it in the walk, with links resolved.
    """
    try:
        if entry.is_symlink():
            target = os.path.realpath(entry.path)
            inside = target.startswith(os.path.join(listing.real, ""))
            circle = any(os.path.join(one, "").startswith(os.path.join(target, "")) for one in above)
            if not inside or circle or not os.path.exists(target):
                name = os.path.join(place, entry.name)
                listing.links += [name] if name not in listing.links else []
                return None
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "special"
    except OSError as error:
        raise DataError(f"{shown(entry.path, 2 * PATH)}: {reason(error)}") from None


def _pictures(listing: Listing, place: str, label: int) -> Iterator[Picture]:
    """The pictures below a class folder, in arbitrary order."""
    waiting: list[tuple[str, tuple[str, ...]]] = [(place, (os.path.realpath(listing.root / place),))]
    while waiting:
        place, above = waiting.pop()
        for entry in _entries(listing, place):
            name, kind = os.path.join(place, entry.name), _kind(listing, entry, place, above)
            if kind == "folder":
                waiting.append((name, (*above, os.path.realpath(entry.path))))
            elif kind == "file" and os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                try:
                    state = entry.stat()
                except OSError as error:
                    raise DataError(f"{shown(entry.path, 2 * PATH)}: {reason(error)}") from None
                yield Picture(name, label, state.st_size, state.st_mtime_ns)
            elif kind is not None:
                _count_other(listing, entry.name)


def _count_other(listing: Listing, name: str) -> None:
    listing.others[os.path.splitext(name)[1].lower() or "without a suffix"] += 1


def _say_what_is_there(listing: Listing, report: Report) -> None:
    """Reports how many pictures there are, and what is left out."""
    for part, pictures in listing.pictures.items():
        sizes = Counter(picture.label for picture in pictures)
        least, most = min(sizes.values()), max(sizes.values())
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        where = f"{listing.said}/{part}".rstrip("/")
        report(f"{where}: {counted(len(pictures), 'picture')} of {len(listing.classes)} classes, {each} of each")
    if links := _unfollowed(listing, listing.places.values()):
        listed = named(links, MOST_SHOWN)
        report(
            f"{listing.said}: left out as classes, because links out of it are not followed: {listed}; copies would do"
        )
    if listing.beside:
        report(f"{listing.said}: left out what is beside train/ and test/: {named(listing.beside)}")
    if listing.others:
        kinds = ", ".join(f"{count} {shown(kind, 20)}" for kind, count in listing.others.most_common(5))
        files = counted(listing.others.total(), "file")
        report(f"{listing.said}: left out {files} in no class or of another kind ({kinds})")
    _say_links(listing, report)


def _say_links(listing: Listing, report: Report) -> None:
    if listing.links:
        listed = named(listing.links, MOST_SHOWN)
        links = counted(len(listing.links), "link")
        report(f"{listing.said}: left out {links} out of it, to nothing or in a circle: {listed}")


def _refuse_empty_classes(listing: Listing, parts: dict[str, list[Picture]], fault: str) -> None:
    """Raises `DataError` for a class without pictures."""
    for part, pictures in parts.items():
        there = {picture.label for picture in pictures}
        empty = [name for label, name in enumerate(listing.classes) if label not in there]
        if empty:
            where = f"{listing.said}/{part}".rstrip("/")
            more = f" ({len(empty)} classes are so)" if len(empty) > 1 else ""
            raise DataError(f"{where}: class {shown(empty[0], 60)} {fault}{more}")


# All of it as arrays


def _shared_out(config: params.Data, listing: Listing) -> dict[str, list[Picture]]:
    """The pictures of train and test. Raises `DataError` if a class has too few."""
    if config.test_share is None:
        return listing.pictures
    pictures = listing.pictures[""]
    labels, names = np.array([picture.label for picture in pictures]), [picture.name for picture in pictures]
    tested = np.zeros(len(pictures), bool)
    share, seed = config.test_share, config.seed
    tested[chosen(labels, share, seed, classes=listing.classes, key="data.test_share", names=names)] = True
    return {
        part: [picture for picture, is_tested in zip(pictures, tested, strict=True) if is_tested == (part == "test")]
        for part in PARTS
    }


@dataclass(frozen=True)
class _Decoded:
    """The pictures of a part that can be read, in order, and those that cannot."""

    pictures: list[Picture]
    images: np.ndarray  # (N, C*H*W) uint8, mapped from disk
    digests: np.ndarray  # (N,) one per picture, of its pixels
    broken: list[tuple[str, str]]  # names and reasons

    def labels(self, classes: Sequence[str]) -> np.ndarray:
        """(N,) in the smallest unsigned integer type that holds them."""
        return np.array([picture.label for picture in self.pictures], np.min_scalar_type(len(classes) - 1))


def _decoded(
    listing: Listing, pictures: list[Picture], file: Path, image: params.ImageFormat, title: str, report: Report
) -> _Decoded:
    """Decodes the pictures of a part into a file. Raises `DataError` if that fails."""
    names, size = [picture.name for picture in pictures], sum(picture.size for picture in pictures)
    row = image.channels * image.height * image.width
    try:
        with progress_bar(title, len(names), "pictures", report) as update:
            found = decode(listing.root, names, file, image, size=size, update=update)
        kept = [number for number, result in enumerate(found) if isinstance(result, bytes)]
        _keep_rows(file, row, kept)
    except OSError as error:
        raise DataError(f"{file}: cannot be written: {reason(error)}") from None
    except BrokenProcessPool:
        raise DataError(f"{listing.said}: a process that decodes was killed; more memory would work") from None
    return _Decoded(
        [pictures[number] for number in kept],
        np.memmap(file, np.uint8, "r", shape=(len(kept), row)) if kept else np.empty((0, row), np.uint8),
        np.array([result for result in found if isinstance(result, bytes)], f"V{DIGEST_BYTES}"),
        [(name, result) for name, result in zip(names, found, strict=True) if isinstance(result, str)],
    )


def _keep_rows(file: Path, row: int, kept: Sequence[int]) -> None:
    """Keeps only the rows of a file, `row` bytes each, whose indices are in `kept`, in ascending order."""
    with open(file, "r+b") as pixels:
        for to, number in enumerate(kept):
            if to != number:
                pixels.seek(number * row)
                content = pixels.read(row)
                pixels.seek(to * row)
                pixels.write(content)
        pixels.truncate(len(kept) * row)


def _check_broken(listing: Listing, broken: list[tuple[str, str]], most: int, report: Report) -> None:
    """Reports the pictures that cannot be read. Raises `DataError` if there are more than allowed."""
    if len(broken) == 1 and most == 0:
        ((name, why),) = broken
        way = "mend or remove it, or set data.most_broken to 1 to leave it out"
        raise DataError(f"{listing.said}: {shown(name, PATH)}: {shown(why, PATH)}; {way}")
    for name, why in broken[:MOST_SHOWN]:
        report(f"{shown(name, 2 * PATH)}: {why}")
    if not broken:
        return
    if len(broken) <= most:
        report(
            f"{listing.said}: left out {counted(len(broken), 'picture')} that cannot be read (data.most_broken: {most})"
        )
        return
    said = f"{listing.said}: {len(broken)} cannot be read, data.most_broken allows {most}; mend or remove them"
    listed = named_within([name for name, _ in broken[:MOST_SHOWN]], len(broken), 250 - len(said))
    raise DataError(f"{said}: {listed}")


def _duplicates(train: np.ndarray, test: np.ndarray, report: Report) -> dict[str, int]:
    """Counts duplicate pictures, for the metrics, by the digests of their pixels, (N,) each."""
    known = np.unique(train)
    both = int(np.isin(test, known).sum())
    within = len(train) - len(known)
    if both:
        have = "has" if both == 1 else "have"
        report(f"{counted(both, 'test picture')} {have} the pixels of a training picture: what that measures is memory")
    if within:
        have = "has" if within == 1 else "have"
        report(f"{counted(within, 'training picture')} {have} the pixels of another one")
    return {"duplicates_between_train_and_test": both, "duplicates_within_train": within}
