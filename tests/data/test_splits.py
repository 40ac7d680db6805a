"""Which images are held out: of every class some, the same ones for ever."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micronet.data.arrays import DataError
from micronet.data.splits import chosen

EVEN = (np.arange(1000) % 10).astype(np.uint8)
TEN = tuple("abcdefghij")


def of_sizes(*sizes: int) -> np.ndarray:
    """Labels of classes of these sizes, mixed."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(0).permutation(labels).astype(np.uint8)


def counts(labels: np.ndarray, amount: int | float, seed: int = 0) -> list[int]:
    """How many are held out of each class."""
    classes = [f"class {index}" for index in range(int(labels.max()) + 1)]
    return np.bincount(labels[chosen(labels, amount, seed, classes=classes)], minlength=len(classes)).tolist()


def test_the_split_is_the_same_for_ever():
    held_out = chosen(EVEN, 50, 7, classes=TEN)
    expected = sorted(range(0, 1000, 10), key=lambda index: hashlib.sha256(b"7:%d" % index).hexdigest())[:5]
    assert [index for index in held_out if index % 10 == 0] == sorted(expected)
    assert held_out.tolist() == sorted(held_out.tolist()) and held_out.dtype == np.int64


def test_a_share_is_rounded_in_each_class_and_leaves_something_on_both_sides():
    labels = of_sizes(2, 3, 14, 15, 16, 1000)
    assert counts(labels, 0.1) == [1, 1, 1, 2, 2, 100]
    assert counts(labels, 0.99) == [1, 2, 13, 14, 15, 990]


def test_a_number_is_shared_by_size_with_the_largest_remainders_rounded_up():
    assert counts(of_sizes(50, 30, 20), 11) == [6, 3, 2]  # 5.5, 3.3, 2.2
    assert counts(of_sizes(1000, 1000, 2, 3), 100) == [49, 49, 1, 1]  # the small ones' one is the large ones' loss
    assert counts(of_sizes(4, 4, 4), 9) == [3, 3, 3]
    assert counts(EVEN, 13) == [2, 2, 2, 1, 1, 1, 1, 1, 1, 1]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=12), st.data())
def test_no_class_vanishes_from_either_side_and_the_number_is_kept(sizes, data):
    labels = of_sizes(*sizes)
    number = data.draw(st.integers(len(sizes), sum(sizes) - len(sizes)))
    held = counts(labels, number)
    assert sum(held) == number
    assert all(0 < one < size for one, size in zip(held, sizes, strict=True))
    share = data.draw(st.floats(0.001, 0.999))
    assert all(0 < one < size for one, size in zip(counts(labels, share), sizes, strict=True))


def test_another_seed_gives_another_split():
    assert not np.array_equal(chosen(EVEN, 50, 0, classes=TEN), chosen(EVEN, 50, 1, classes=TEN))


def test_an_image_that_is_added_moves_at_most_one_other_of_its_class():
    names = [f"cat/{number}.png" for number in range(100)]
    held = {names[index] for index in chosen(np.zeros(100, np.uint8), 0.2, 0, classes=("cat",), names=names)}
    more = sorted([*names, "cat/0a.png"])
    then = {more[index] for index in chosen(np.zeros(101, np.uint8), 0.2, 0, classes=("cat",), names=more)}
    assert len(held) == len(then) == 20 and len(held - then) <= 1
    expected = sorted(names, key=lambda name: hashlib.sha256(f"0:{name}".encode()).hexdigest())[:20]
    assert held == set(expected)


def test_a_validation_split_of_a_whole_class_is_refused():
    with pytest.raises(DataError, match="takes all 10 images of airplane; 90 or fewer leave one of each class"):
        chosen((np.arange(100) % 10).astype(np.uint8), 100, 0, classes=("airplane", *TEN[1:]))


def test_less_than_one_of_each_class_is_refused():
    with pytest.raises(DataError, match="data.validation_size: 9 is less than one of each class; 10 or more would do"):
        chosen(EVEN, 9, 0, classes=TEN)


@pytest.mark.parametrize("amount", [0.5, 3])
def test_a_class_with_too_few_images_is_named_in_a_line(amount):
    with pytest.raises(DataError) as caught:
        chosen(of_sizes(5, 1, 7), amount, 0, classes=("cat", "a\ndog" + "g" * 300, "cow"), key="data.test_share")
    said = str(caught.value)
    assert said.startswith("data.test_share: needs 2 images of each class") and r"a\ndog" in said and "(1)" in said
    assert "cat" not in said and said.isprintable() and len(said) < 300
    with pytest.raises(DataError, match=r"of c0 \(1\), c1 \(1\), c2 \(1\), c3 \(1\), c4 \(1\) and 2 more"):
        chosen(np.arange(7), amount, 0, classes=[f"c{index}" for index in range(7)])
