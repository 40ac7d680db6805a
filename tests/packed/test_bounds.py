"""What a packed file may ask for at most, on both sides of every bound, and what reading one allocates."""

from __future__ import annotations

import tracemalloc

import pytest

from micronet.packed import limits
from micronet.packed.bits import MOST_BLOCK
from micronet.packed.errors import PackedFileError
from micronet.packed.file import decode, planned
from micronet.packed.packing import pack
from tests.support.configs import quantize_config
from tests.support.hostile import of_table
from tests.support.images import random_images
from tests.support.models import quantized, random_model

LINEAR = {"op": "linear", "shape": [2, 3]}
PLENTY = 1 << 26  # bytes of a payload, for tables whose channels and weights it need not bound


def conv(source: int, out: int, inputs: int, kernel: int = 1, **more) -> dict:
    return {"op": "conv", "from": [source], "shape": [out, inputs, kernel, kernel], **more}


def pooled(source: int, kernel: int = 32) -> dict:
    return {"op": "pool", "from": [source], "kernel": kernel}


def rows(*steps: dict) -> list[dict]:
    return [{"op": "input", "bits": 8}, *steps]


def ended(table: list[dict]) -> list[dict]:
    """The table with a linear step at its end."""
    return table if table[-1]["op"] == "linear" else [*table, pooled(0), LINEAR | {"from": [len(table)]}]


def a_map(channels: int) -> list[dict]:
    return rows(conv(0, channels, 3))


def padding(times: int) -> list[dict]:
    wide = conv(1, 1, 3 * times, 1024, padding=1023, stride=1024)
    return rows({"op": "concat", "from": [0] * times}, wide)


def columns(channels: int) -> list[dict]:
    return rows(conv(0, channels, 3), conv(1, 1, channels, 32, padding=31))


def weights(classes: int) -> list[dict]:
    """Two networks of one wide layer each."""
    steps = []
    for index, count in ((0, 1 << 12), (3, classes)):
        end = {"op": "linear", "from": [index + 2], "shape": [count, 1 << 13]}
        steps += [pooled(0), conv(index + 1, 1 << 13, 3), end]
    return rows(*steps)


def most_classes(count: int) -> list[dict]:
    return rows(pooled(0), {"op": "linear", "from": [1], "shape": [count, 3]})


def live_maps(count: int) -> list[dict]:
    return rows(*(conv(0, 1 << 14, 3) for _ in range(count)), *(pooled(1 + index) for index in range(count)))


def all_maps(count: int) -> list[dict]:
    return rows(conv(0, 1 << 14, 3), *({"op": "affine", "from": [1], "shape": [1 << 14]} for _ in range(count)))


def operations(count: int) -> list[dict]:
    wide = conv(0, 1 << 10, 3, 33, padding=32)
    return rows(wide, *(conv(1 + index, 1 << 10, 1 << 10) for index in range(count)))


def pools(count: int) -> list[dict]:
    return rows(conv(0, 1 << 14, 3), *(pooled(1) for _ in range(count)))


def networks(count: int) -> list[dict]:
    return rows(*(step for index in range(count) for step in (pooled(0), LINEAR | {"from": [2 * index + 1]})))


@pytest.mark.parametrize(
    ("table", "within", "message"),
    [
        (a_map, 1 << 14, "numbers in a map"),
        (padding, 1, "numbers in a map"),
        (columns, 16, "inputs of the dot products of an image"),
        (weights, (1 << 12) - 6, "weights"),
        (most_classes, 1 << 15, "classes"),
        (live_maps, 3, "numbers in the maps of an image at one time"),
        (all_maps, 61, "numbers in all maps of an image"),
        (operations, 12, "operations an image"),
        (pools, 4092, "operations an image"),
        (networks, 16, "networks"),
    ],
)
def test_a_table_is_refused_beyond_a_bound_and_not_within(table, within, message):
    planned(ended(table(within)), half=True, payload_bytes=PLENTY)
    with pytest.raises(PackedFileError, match=message):
        planned(ended(table(within + 1)), half=True, payload_bytes=PLENTY)


def refused(data: bytes, match: str) -> None:
    with pytest.raises(PackedFileError, match=match) as caught:
        decode(data)
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 300


def test_steps_are_read_up_to_their_bound():
    for count, message in ((4096, "its fields begin at bit 0"), (4097, "has 4097 steps, 2 to 4096 are possible")):
        refused(of_table(ended(rows(*[pooled(0, 1)] * (count - 3))), bytes(1 << 18)), message)


def test_channels_are_bounded_by_the_payload():
    payload = 1000
    within = (limits.most_channels(payload) - 3 - 3 - 2) // 3
    for times in (within, within + 1):
        table = ended(rows({"op": "concat", "from": [0] * times}))
        if times == within:
            assert planned(table, half=True, payload_bytes=payload).outlines[1].shape[0] == 3 * within
        else:
            with pytest.raises(PackedFileError, match=r"has more channels, [\d,]+, than 1,000 bytes can fill"):
                planned(table, half=True, payload_bytes=payload)


def test_weights_are_bounded_by_the_payload():
    payload = 100  # a bit of a mask can call nine weights zero
    for classes, message in ((MOST_BLOCK * 8 * payload // 3, None), (MOST_BLOCK * 8 * payload // 3 + 1, "a weight of")):
        table = rows(pooled(0), {"op": "linear", "from": [1], "shape": [classes, 3]})
        if message is None:
            planned(table, half=False, payload_bytes=payload)
        else:
            with pytest.raises(PackedFileError, match=message):
                planned(table, half=False, payload_bytes=payload)


@pytest.mark.parametrize(
    "table",
    [[], rows(), rows(LINEAR | {"from": [0]}), rows(pooled(0), LINEAR | {"from": [1], "shape": [0, 3]})],
    ids=["no steps", "an input alone", "no pool", "no classes"],
)
def test_a_network_of_nothing_is_refused(table):
    refused(of_table(table, b"1"), "steps|a linear step on a map|a weight of shape")


def test_resnet_18_on_images_of_256_pixels_would_lie_within_the_bounds():
    macs, widest_map, widest_columns, parameters = 36 << 30, 64 << 16, 9 * 64 << 16, 11_173_962
    assert macs < limits.MOST_OPERATIONS and widest_columns < limits.MOST_COLUMNS
    assert 3 * widest_map < limits.MOST_MAP and 5 * parameters < limits.MOST_WEIGHTS


def growing(steps: int) -> list[dict]:
    return rows(*(conv(index, 3, 3, 9, padding=8) for index in range(steps)), LINEAR | {"from": [steps]})


def doubling(steps: int) -> list[dict]:
    return rows(*({"op": "concat", "from": [i, i]} for i in range(steps)), LINEAR | {"from": [steps]})


@pytest.mark.parametrize(
    "data",
    [
        of_table(rows(conv(0, 2**20, 3, 2**10))),
        of_table(growing(600), bytes(10_000)),
        of_table(doubling(600)),
        of_table(rows({"op": "concat", "from": [0] * 2048}, LINEAR | {"from": [1]})),
        of_table(rows(conv(0, 4, 3, 3, padding=1000))),
        of_table(rows(conv(0, 10**4000, 3))),
    ],
    ids=["shape", "growing", "doubling", "wide", "padding", "number"],
)
def test_a_hostile_table_is_refused_within_a_small_multiple_of_its_size(data):
    refused(data, "step|more channels")
    assert _peak(data) < 128 * len(data) + 2**23


def _peak(data: bytes) -> int:
    tracemalloc.start()
    try:
        decode(data)
    except PackedFileError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def lying(bits: int, channels: int, groups: int, columns: int, kernel: int) -> bytes:
    """A file of so many zero bits, whose one convolution claims the largest weight that a mask of blocks allows."""
    count = MOST_BLOCK * bits // (columns * kernel**2) // groups * groups
    layer = conv(2, count, columns, kernel, groups=groups, at=0, weight=1, mask=[3, 3], sum=[1, 0], bits=[1, 0, 1])
    table = rows(pooled(0), {"op": "concat", "from": [1] * (channels // 3)}, layer | {"out": [4, 0]})
    return of_table([*table, LINEAR | {"from": [1]}], bytes(bits // 8))


@pytest.mark.parametrize(("channels", "groups", "columns"), [(3, 1, 3), (3, 3, 1), (3000, 1, 3000)])
def test_a_mask_that_calls_a_huge_weight_zero_allocates_a_few_hundred_times_the_file(channels, groups, columns):
    data = lying(8 * 2**14, channels, groups, columns, 1)
    refused(data, "more channels|the payload ends")
    assert _peak(data) < 400 * len(data) + 2**23  # the second: bounds are computed in chunks


def test_reading_a_sparse_file_allocates_a_small_multiple_of_its_size(tmp_path):
    spec, quantize = {"name": "resnet", "blocks": [1], "widths": [128]}, quantize_config(weight_bits=2)
    images = random_images(2)
    prepared = quantized(random_model(spec, 1, zeros=0.97), quantize, images)
    pack(prepared, tmp_path / "m", quantize=quantize, seen=images)
    data = (tmp_path / "m").read_bytes()
    assert _peak(data) < 128 * len(data)
