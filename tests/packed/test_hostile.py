"""Fuzzing: any bytes give a model or one line, in bounded time and memory."""

from __future__ import annotations

import base64
import copy
import json
import tracemalloc
import zlib

import pytest
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as hypothesis_settings

from micronet.packed.bits import MOST_BLOCK
from micronet.packed.errors import PackedFileError
from micronet.packed.file import VERSION, _digest, decode
from micronet.packed.packing import pack
from tests.support.configs import quantize_config
from tests.support.hostile import resigned
from tests.support.packed import prepared_model


def survives(data: bytes) -> None:
    try:
        decode(data)
    except PackedFileError as error:
        assert "\n" not in str(error) and len(str(error)) < 400


def leaves(tree, path=()):
    """Paths of all values inside nested lists and dicts."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


HOSTILE = strategies.one_of(
    strategies.sampled_from(
        [-1, 0, 1, 2, 16, 2**16, 2**31, 2**63, 10**30, 1.5, None, True, "conv", [], {}, [2**20] * 4]
    ),
    strategies.integers(-10, 70),
    strategies.lists(strategies.integers(-2, 70), max_size=5),
)


def _damage(data: bytes, draw) -> bytes:
    """Bits flipped, bytes cut off, inserted or repeated."""
    damaged = bytearray(data)
    for _ in range(draw(strategies.integers(1, 4))):
        place = draw(strategies.integers(0, max(0, len(damaged) - 1)))
        how = draw(strategies.sampled_from(["flip", "cut", "insert", "repeat", "length"]))
        if how == "flip" and damaged:
            damaged[place] ^= 1 << draw(strategies.integers(0, 7))
        elif how == "cut":
            del damaged[place:]
        elif how == "insert":
            damaged[place:place] = draw(strategies.binary(max_size=20))
        elif how == "repeat":
            damaged[place:place] = damaged[place : place + 100]
        else:
            damaged[:8] = draw(strategies.integers(0, 2**64 - 1)).to_bytes(8, "little")
    return bytes(damaged)


def _rewrite(data: bytes, draw) -> bytes:
    """Values of the table replaced by hostile ones, payload bits flipped, all of it signed."""

    def change(header, table, payload):
        for _ in range(draw(strategies.integers(1, 4))):
            where = draw(strategies.sampled_from(["table", "table", "header", "payload", "step"]))
            if where == "payload":
                payload[draw(strategies.integers(0, len(payload) - 1))] ^= 1 << draw(strategies.integers(0, 7))
            elif where == "step" and table.get("steps"):
                steps = table["steps"]
                index = draw(strategies.integers(0, len(steps) - 1))
                other = draw(strategies.integers(0, len(steps) - 1))
                steps[index] = copy.deepcopy(steps[other])
            else:
                tree = table if where == "table" else header
                path = draw(strategies.sampled_from(sorted(leaves(tree), key=str)))
                for key in path[:-1]:
                    tree = tree[key]
                tree[path[-1]] = copy.deepcopy(draw(HOSTILE))  # never one object at two places

    return resigned(data, change)


def fuzz(data: strategies.DataObject, source: bytes) -> None:
    how = data.draw(strategies.sampled_from([_damage, _rewrite]))
    try:
        hostile = how(source, data.draw)
    except (TypeError, KeyError, AttributeError, ValueError):
        return  # a second change found its place gone
    survives(hostile)


RELAXED = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@given(data=strategies.data())
@hypothesis_settings(max_examples=500, derandomize=True, **RELAXED)
def test_500_damaged_or_hostile_files_are_read_or_refused_in_one_line(small, data):
    fuzz(data, small.read_bytes())


@given(data=strategies.data())
@hypothesis_settings(max_examples=200, derandomize=True, **RELAXED)
def test_200_damaged_or_hostile_files_with_windows_are_read_or_refused_in_one_line(windowed, data):
    fuzz(data, windowed.read_bytes())


@given(data=strategies.data())
@hypothesis_settings(max_examples=200, derandomize=True, **RELAXED)
def test_200_damaged_or_hostile_cascades_are_read_or_refused_in_one_line(joined, data):
    fuzz(data, joined.read_bytes())


@given(data=strategies.data())
@hypothesis_settings(max_examples=200, derandomize=True, **RELAXED)
def test_200_damaged_or_hostile_files_with_masks_of_blocks_are_read_or_refused_in_one_line(flipping, data):
    fuzz(data, flipping.read_bytes())


@pytest.mark.slow
@given(data=strategies.data())
@hypothesis_settings(max_examples=10_000, **RELAXED)
def test_10_000_damaged_or_hostile_files_are_read_or_refused_in_one_line(small, data):
    fuzz(data, small.read_bytes())


def _peak(data: bytes) -> int:
    tracemalloc.start()
    try:
        survives(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def huge_shape(header, table, payload):
    table["steps"][1]["shape"] = [2**20, 3, 2**10, 2**10]


def doubling_concatenations(header, table, payload):
    table["steps"] = table["steps"][:1] + [{"op": "concat", "from": [i, i]} for i in range(4000)] + table["steps"][-1:]


def wide_concatenation(header, table, payload):
    table["steps"] = table["steps"][:2] + [{"op": "concat", "from": [1] * 4096}] + table["steps"][-1:]


def inflating_table(header, table, payload):
    table["steps"] += [{"op": " " * 50_000_000}]


def huge_padding(header, table, payload):
    table["steps"][1] |= {"padding": 1000}


@pytest.mark.parametrize(
    "change", [huge_shape, doubling_concatenations, wide_concatenation, inflating_table, huge_padding]
)
def test_a_hostile_file_is_refused_within_a_small_multiple_of_its_size(small, change):
    data = resigned(small.read_bytes(), change)
    with pytest.raises(PackedFileError):
        decode(data)
    assert _peak(data) < 128 * len(data) + 2**20


def hostile(bits: int, channels: int, groups: int, columns: int, kernel: int) -> bytes:
    """A file of so many zero bits, whose one convolution claims the largest weight that a mask of blocks allows."""
    rows = [{"op": "input", "bits": 8}, {"op": "concat", "from": [0] * (channels // 3)}]
    count = MOST_BLOCK * bits // (columns * kernel**2) // groups * groups
    layer = {"op": "conv", "from": [1], "shape": [count, columns, kernel, kernel], "groups": groups, "at": 0}
    layer |= {"weight": 1, "mask": [3, 3], "sum": [1, 0], "bits": [1, 0, 1], "out": [4, 0]}
    table = {"arithmetic": "integer", "bits": bits, "steps": [*rows, layer, {"op": "linear"}]}
    header = {"format": "micronet-packed", "version": VERSION, "model": None, "made": {}}
    header["table"] = base64.b85encode(zlib.compress(json.dumps(table).encode())).decode()
    payload = bytes(bits // 8)
    header["digest"] = _digest(header, payload)
    tensor = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    text = json.dumps({"__metadata__": {"micronet": json.dumps(header)}, "payload": tensor}).encode()
    return len(text).to_bytes(8, "little") + text + payload


@pytest.mark.parametrize(
    ("channels", "groups", "columns", "kernel"), [(3, 1, 3, 1), (3, 3, 1, 1), (3, 1, 3, 3), (3000, 1, 3000, 1)]
)
def test_a_mask_that_calls_a_huge_weight_zero_allocates_a_few_hundred_times_the_file(channels, groups, columns, kernel):
    data = hostile(8 * 2**15, channels, groups, columns, kernel)
    with pytest.raises(PackedFileError):
        decode(data)
    assert _peak(data) < 400 * len(data) + 2**23  # the second: bounds are computed in chunks


def test_reading_a_sparse_file_allocates_a_small_multiple_of_its_size(tmp_path):
    spec = {"name": "resnet", "blocks": [1], "widths": [128]}
    prepared = prepared_model(spec, quantize_config(weight_bits=2), 0.97)
    pack(prepared, tmp_path / "m", quantize=quantize_config())
    data = (tmp_path / "m").read_bytes()
    assert _peak(data) < 128 * len(data)
