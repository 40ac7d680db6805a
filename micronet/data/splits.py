"""Which images are held out: a part of each class, the same images on every machine.

In each class, those with the lowest sha256 of "SEED:NAME": no random number generator, as its stream could change
between versions. The name of an image is its index, which never changes in official datasets; the user's own pictures
have names of another kind, so that adding or removing one moves hardly any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from micronet.data.arrays import DataError
from micronet.errors import shown

MOST_NAMED = 5  # classes named in a message


def chosen(
    labels: np.ndarray,
    amount: int | float,
    seed: int,
    *,
    classes: Sequence[str],
    key: str = "data.validation_size",
    names: Sequence[str] | None = None,
) -> np.ndarray:
    """The indices of the images to hold out, sorted; every class keeps at least one image on each side.

    Args:
        labels: (N,) integers. amount: a float is a share of each class, rounded; an integer is a number of images,
            divided among the classes by size, the largest remainders rounded up. classes: names in label order.
            key: the params key, for messages. names: of the images; None: their indices.

    Returns:
        (M,) int64.

    Raises:
        DataError: a class has fewer than two images, or the number leaves a class without any on one side.
    """
    sizes = np.bincount(labels, minlength=len(classes)).tolist()
    few = [index for index, size in enumerate(sizes) if size < 2]
    if few:
        those = ", ".join(f"{shown(classes[index], 30)} ({sizes[index]})" for index in few[:MOST_NAMED])
        more = f" and {len(few) - MOST_NAMED} more" if len(few) > MOST_NAMED else ""
        raise DataError(
            f"{key}: needs 2 images of each class or more to split them; too few are of {those}{more}; "
            "more of them, or their folders taken away, would work"
        )
    if isinstance(amount, float):
        counts = [min(max(int(amount * size + 0.5), 1), size - 1) for size in sizes]
    else:
        counts = _by_number(sizes, amount, classes, key)
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    ranked: Sequence[object] = range(len(labels)) if names is None else names
    ranks = [hashlib.sha256(f"{seed}:{each}".encode("utf-8", "surrogateescape")).digest() for each in ranked]
    picked = [sorted(own.tolist(), key=ranks.__getitem__)[:count] for own, count in zip(members, counts, strict=True)]
    return np.array(sorted(index for part in picked for index in part), dtype=np.int64)


def _by_number(sizes: list[int], number: int, classes: Sequence[str], key: str) -> list[int]:
    """How many of each class, `number` in total: at least one, never all of a class. Raises `DataError`."""
    total = sum(sizes)
    if number > total - len(sizes):
        least = min(range(len(sizes)), key=sizes.__getitem__)
        raise DataError(
            f"{key}: {number} takes all {sizes[least]} images of {shown(classes[least], 40)}; "
            f"{total - len(sizes)} or fewer leave one of each class"
        )
    if number < len(sizes):
        raise DataError(f"{key}: {number} is less than one of each class; {len(sizes)} or more would do")
    # in exact integers: what a class is due, times `total`, and how far it is above or below that
    due = np.array([number * size for size in sizes], dtype=np.int64)
    most = np.array(sizes, dtype=np.int64) - 1
    counts = np.clip(due // total, 1, most)
    while (missing := number - int(counts.sum())) != 0:
        short = due - counts * total
        if missing > 0:
            counts[np.where(counts < most, short, np.iinfo(np.int64).min).argmax()] += 1
        else:
            counts[np.where(counts > 1, short, np.iinfo(np.int64).max).argmin()] -= 1
    return counts.tolist()
