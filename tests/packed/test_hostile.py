"""Any bytes give a model or one line, in bounded time and memory; what is read computes, and has a price."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from micronet.packed import limits
from micronet.packed.errors import PackedFileError
from micronet.packed.file import content, decode, read
from tests.support.hostile import framed, main, opened, resigned, signed
from tests.support.packed import tiny_files
from tests.support.thinning import thinned

KINDS = {"refused", "run in integers", "run in floats"}


@pytest.mark.parametrize("part", thinned(range(8), 8))
def test_250_of_2000_hostile_files_are_refused_in_one_line_or_run_alike_in_torch_and_numpy(part):
    became = main(250, tiny_files(), seed=part)
    assert set(became) <= KINDS
    assert became["refused"] > 100 and became["run in integers"] > 15


@pytest.mark.slow
def test_20000_hostile_files_of_every_kind_of_network_are_refused_in_one_line_or_run(small, windowed, flipping, joined):
    assert set(main(20_000, [path.read_bytes() for path in (small, windowed, flipping, joined)])) <= KINDS


def test_a_file_cut_off_at_any_byte_is_refused():
    data = tiny_files()[0]
    for end in range(len(data)):
        with pytest.raises(PackedFileError):
            decode(data[:end])


def test_every_length_of_a_header_is_refused_but_the_true_one():
    data = tiny_files()[0]
    true = int.from_bytes(data[:8], "little")
    for length in {*range(len(data) + 9), 2**31, 2**63, 2**64 - 1} - {true}:
        with pytest.raises(PackedFileError):
            decode(length.to_bytes(8, "little") + data[8:])


# What a header or a table may look like


def refused(data: bytes, match: str) -> None:
    with pytest.raises(PackedFileError, match=match) as caught:
        decode(data)
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 300


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


HEADER = '{"format": "micronet-packed", "version": 3, "model": null, "made": {}, '


@pytest.mark.parametrize(
    "text",
    ["", "{", "nul", nested(500), nested(200_000), '{"a": 1, "a": 1}', HEADER + '"version": 4}', "9" * 5000, "\ud800"],
)
def test_a_header_that_is_no_plain_json_is_refused(text):
    refused(framed(text, b"x"), "has no readable header")
    refused(len(text).to_bytes(8, "little") + text.encode(errors="surrogatepass"), "header|truncated")


def test_a_header_that_is_no_utf_8_is_refused():
    data = bytearray(tiny_files()[0])
    data[10] = 0xFF
    refused(bytes(data), "has no readable header")


@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]},
        {"dtype": "U8", "shape": [2, 2], "data_offsets": [0, 4]},
        {"dtype": "U8", "shape": [4.0], "data_offsets": [0, 4]},
        {"dtype": "U8", "shape": [4], "data_offsets": [0, 5]},
        {"dtype": "U8", "shape": [4], "data_offsets": [False, 4]},
        None,
    ],
)
def test_a_payload_of_another_type_or_size_is_refused(tensor):
    refused(framed(HEADER + '"table": ""}', b"1234", {"payload": tensor}), "the header states other ones")


@pytest.mark.parametrize("table", ["[" * 100_000, '{"steps": [], "steps": []}', '{"steps": 1}', "[]", "nul", ""])
def test_a_table_that_is_no_plain_json_is_refused(table):
    refused(signed({"format": "micronet-packed", "version": 3}, table, b""), "its table")


def test_a_deeply_nested_spec_is_refused_and_one_of_the_depth_that_is_allowed_is_read():
    def spec_of(depth):
        def change(header, table, payload):
            # The spec lies in the header, and the lists in the spec.
            header["model"] = {"name": "resnet", "more": json.loads(nested(depth))}

        return resigned(tiny_files()[0], change)

    assert decode(spec_of(limits.MOST_DEPTH - 2)).classes == 3
    refused(spec_of(limits.MOST_DEPTH - 1), "has no readable header")


def test_a_header_is_read_up_to_its_bound():
    bound = limits.MOST_HEADER_BYTES

    def made_of(size):
        return resigned(tiny_files()[0], lambda header, table, payload: header["made"].update(text="x" * size))

    free = bound - (int.from_bytes(made_of(0)[:8], "little"))
    assert decode(made_of(free)).metadata["text"] == "x" * free
    refused(made_of(free + 1), f"has a header of {bound + 1:,} bytes")


def test_a_table_is_inflated_up_to_64_kib_beyond_its_file():
    def filled(size):
        header, table, payload = opened(tiny_files()[0])
        text = json.dumps(table)
        return signed(header, text + " " * (size - len(text)), bytes(payload))

    most = limits.MOST_TABLE_BEYOND_FILE + len(filled(limits.MOST_TABLE_BEYOND_FILE))
    assert len(filled(most - 3)) + limits.MOST_TABLE_BEYOND_FILE >= most - 3
    assert decode(filled(most - 100)).classes == 3
    refused(filled(most + 100), "its table is longer than")
    refused(filled(50_000_000), "its table is longer than")


# Files that are none


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "empty").touch()
    for path in (
        tmp_path,
        tmp_path / "pipe",
        tmp_path / "loop",
        tmp_path / "empty",
        Path("/dev/zero"),
        "a\0b",
        "\ud800",
    ):
        with pytest.raises(PackedFileError) as caught:
            read(path)
        assert str(caught.value).isprintable() and len(str(caught.value)) <= 300


def test_a_name_with_escapes_is_shown_without_them(tmp_path):
    (tmp_path / "\x1b[2J\n").write_bytes(b"no model")
    with pytest.raises(PackedFileError, match=r"\\x1b\[2J\\n: is truncated") as caught:
        read(tmp_path / "\x1b[2J\n")
    assert str(caught.value).isprintable()


def test_a_file_is_read_up_to_its_bound_and_a_larger_one_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "m"
    path.write_bytes(tiny_files()[0])
    with path.open("r+b") as file:
        file.truncate(10 << 30)  # sparse
    with pytest.raises(PackedFileError, match="is larger than 268,435,456 bytes, so it is no packed model"):
        read(path)
    monkeypatch.setattr("micronet.packed.file.MOST_FILE_BYTES", 1000)
    for size in (1000, 1001):
        path.write_bytes(bytes(size))
        if size == 1000:
            assert len(content(path)) == 1000
        else:
            with pytest.raises(PackedFileError, match="is larger than"):
                content(path)


def test_the_same_number_gives_the_same_file():
    assert main(10, tiny_files(), seed=9) == main(10, tiny_files(), seed=9) != Counter()
