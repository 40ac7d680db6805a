"""Exported C: strict, within its arrays, and equal to the reference in every logit."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from micronet import params
from micronet.data.sources import fetch
from micronet.export.c import export
from micronet.export.errors import ExportError
from micronet.export.targets import Export, Options
from micronet.packed.errors import PackedFileError
from micronet.packed.file import decode, encode
from micronet.packed.model import PackedModel
from micronet.packed.reference import predict
from micronet.packed.steps import Conv, Linear
from micronet.scoring.packed_counts import packed_operations
from tests.support.compiled_c import STRICT, THOROUGH, Library, cc, check_together, tool, write_c
from tests.support.exports import INTEGERS, RELEASED, released
from tests.support.generated_steps import packed_file
from tests.support.hostile import hostile_file
from tests.support.packed import conv, general_file, hand_made, linear, tiny_files
from tests.support.thinning import thinned

RECORD = "record-2026-11-25"
OF_500_IMAGES = "15d407d9b5a1707601375123ae8cbb6b37152ac62cc560c3a55735fbdfe99893"
"""sha256 of the record's logits, int64, for the sample's 500 test images: what `reference.predict` gives."""


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """(500, 3, 32, 32) uint8, the sample's test images."""
    arrays = fetch(params.Data(source="sample", validation_size=500))[1]
    return arrays.test_images.reshape(-1, 3, 32, 32)


@pytest.fixture(scope="module")
def fast_record(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(released(RECORD), tmp_path_factory.mktemp("record"), "speed")


def sha256(logits: np.ndarray) -> str:
    return hashlib.sha256(logits.astype("<i8").tobytes()).hexdigest()


def exported(data: bytes, **options: object) -> Export:
    return export(decode(data), data, Options(**options))  # type: ignore[arg-type]


def corner(pixels: np.ndarray, model: PackedModel) -> np.ndarray:
    """Images of the size that a model takes."""
    channels, height, width = model.image
    return pixels[:, :channels, :height, :width]


# Equal to the reference


def test_c_for_speed_gives_every_logit_of_the_record_for_500_images(fast_record, pixels):
    assert sha256(fast_record.logits(pixels)) == OF_500_IMAGES


def test_c_for_size_gives_the_same_logits(fast_record, pixels, tmp_path):
    packed = Library(released(RECORD), tmp_path, "size", ["-O1"])
    assert np.array_equal(packed.logits(pixels[:12]), fast_record.logits(pixels[:12]))


@pytest.mark.parametrize(("name", "optimize"), thinned([("mnist", "size"), ("cascade", "speed")], 2))
def test_c_of_a_release_gives_the_logits_that_it_was_released_with(name, optimize, pixels, tmp_path):
    library = Library(released(name), tmp_path, optimize, ["-O1"])
    assert sha256(library.logits(corner(pixels[::5], library.model))) == RELEASED[name]["answers_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("optimize", ["size", "speed"])
@pytest.mark.parametrize("name", INTEGERS)
def test_c_of_every_release_gives_every_logit_of_10000_images(name, optimize, pixels, tmp_path):
    library = Library(released(name), tmp_path, optimize, ["-O3"])
    shifted = [np.roll(pixels, (down, right), (2, 3)) for down in range(4) for right in range(5)]
    images = np.ascontiguousarray(corner(np.concatenate(shifted), library.model))
    assert len(images) == 10_000
    assert np.array_equal(library.logits(images), predict(library.model, images))


# Within its arrays, whatever the file says


def hostile_models(first: int) -> Iterator[bytes]:
    """Hostile files that decode to models in integers, from a number on."""
    sources, number = tiny_files(), first
    while True:
        data = hostile_file(sources, number)
        number += 1
        try:
            if decode(data).arithmetic == "integer":
                yield data
        except PackedFileError:
            pass


def test_c_of_small_and_of_hostile_files_stays_in_its_arrays_and_equals_the_reference(tmp_path):
    hostile = hostile_models(0)
    files = [*tiny_files(), *(next(hostile) for _ in range(2)), *map(packed_file, range(2))]
    check_together(files, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_c_of_1000_hostile_files_stays_in_its_arrays(part, tmp_path):
    hostile = hostile_models(100_000 * (part + 1))
    check_together([next(hostile) for _ in range(50)], tmp_path, THOROUGH)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_c_of_1000_random_networks_stays_in_its_arrays(part, tmp_path):
    check_together([packed_file(number) for number in range(1000 + 50 * part, 1050 + 50 * part)], tmp_path, THOROUGH)


@pytest.mark.parametrize("optimize", ["size", "speed"])
def test_clang_has_nothing_to_say_either(optimize, tmp_path):
    for data in tiny_files()[2:]:
        write_c(data, tmp_path, optimize=optimize)
        cc("clang", *STRICT, "-fsyntax-only", tmp_path / "micronet.c")
    cc("clang", *STRICT, "-fsyntax-only", tmp_path / "main.c")


@pytest.mark.parametrize("optimize", ["size", "speed"])
def test_c_has_no_float_no_heap_and_no_library(optimize):
    for data in (*tiny_files(), packed_file(3)):
        text = exported(data, optimize=optimize).files[Path("micronet.c")].decode()
        assert set(re.findall(r"#include\s+(\S+)", text)) == {'"micronet.h"', "<string.h>"}
        assert not re.search(r"\b(float|double|malloc|free|printf)\b", re.sub(r"/\*.*?\*/", "", text, flags=re.S))


# What it costs


def number(table: list[tuple[str, str]], what: str) -> int:
    return int(re.sub(r"\D", "", dict(table)[what].split(" and ")[0]))


def test_constants_for_size_are_the_payload_that_the_scorer_charges():
    for name in (RECORD, "mnist"):
        data = released(name)
        assert number(exported(data).table, "constants") == decode(data).payload_bits // 8


def test_memory_is_what_the_compiler_reserves(tmp_path):
    for index, data in enumerate(tiny_files()[2:4]):
        model = write_c(data, tmp_path, optimize="size")
        cc("gcc", "-std=c99", "-c", "-o", tmp_path / "model.o", tmp_path / "micronet.c")
        said = subprocess.run(
            [tool("size"), "-A", "-d", tmp_path / "model.o"], capture_output=True, text=True, check=True
        )
        reserved = int(re.search(r"^\.bss\s+(\d+)", said.stdout, re.M)[1])  # type: ignore[index]
        # An alignment may lie between the arena and the logits of a further pass.
        assert 0 <= reserved - number(exported(data).table, "memory for maps and sums") < 32, (index, model.networks)


def plain(model: PackedModel) -> bytes:
    """The file of the same network whose sums are taken one by one."""
    steps = [
        replace(step, weights=replace(step.weights, factored=False)) if isinstance(step, Conv | Linear) else step
        for step in model.steps
    ]
    return encode(steps, model.spec, "integer", {})


def test_multiplications_are_those_that_c_does_and_that_the_scorer_counts(tmp_path):
    stem = conv([[3, 0, -2], [1, 1, 0], [-3, 2, 1]], name="stem")
    codes = np.zeros(3), np.full(3, 15)
    last = linear([[1, 2, 0], [-1, 0, 3], [0, 3, 1]], [5, -7, 0], 1, codes)
    last = replace(last, weights=replace(last.weights, codes=np.resize(last.weights.codes, (3, 3, 32, 32))))
    wide = last.weights.sums(stem)
    last = replace(last, weights=replace(last.weights, accumulator_bits=int(wide.bits.max())))
    data = plain(hand_made(stem, last))
    model = write_c(data, tmp_path, optimize="size")
    said = number(exported(data).table, "multiplications a pass")
    scored = sum(count for each in packed_operations(model) for _, count in each.multiplications)
    assert said == scored == number(exported(data).table, "as the scorer counts")
    text = (tmp_path / "micronet.c").read_text()
    for factor in ("(uint32_t)code *", "+= code *", "* multiplier"):
        assert factor in text
        counted = re.sub(r"(\(uint32_t\)code|code|multiplier)", r"(multiplications++, \1)", factor)
        text = text.replace(factor, counted)
    (tmp_path / "counted.c").write_text("static unsigned long multiplications;\n" + text)
    main = f'#include "counted.c"\nint main(void) {{ static uint8_t i[{3 * 32 * 32}]; static int32_t l[3];'
    (tmp_path / "run.c").write_text(main + f" micronet_classify(i, l); return multiplications != {said}; }}")
    cc("gcc", "-std=c99", "-o", tmp_path / "run", tmp_path / "run.c")
    assert subprocess.run([tmp_path / "run"]).returncode == 0


def test_the_plan_stands_in_the_source_and_takes_no_more_than_what_is_live():
    data = released(RECORD)
    found = exported(data)
    assert number(found.table, "memory for maps and sums") < number(found.table, "of it in use at one time") + 64
    lines = re.findall(r"^ \* +(\d+) - (\d+) +(\d+) - (\d+) +(.*)$", found.files[Path("micronet.c")].decode(), re.M)
    assert [line[4] for line in lines if line[4].startswith("map 0")] == ["map 0, input0"]
    places = [tuple(map(int, line[:4])) for line in lines]
    for index, (start, end, born, dies) in enumerate(places):
        for other in places[:index]:
            apart = end < other[0] or other[1] < start or dies < other[2] or other[3] < born
            assert apart, (lines[index], other)


# Names


NAMES = [
    'a "b" \\ ??/ ??=',
    "*/ int x; /*",
    "%s%n",
    "猫 🐈 é",
    "\\x41\\",
    "x" * 255,
    "int",
    " ",
]


def test_names_of_classes_come_out_as_they_are_whatever_is_in_them(tmp_path):
    data = named_file(NAMES)
    library = Library(data, tmp_path, "size", ["-O0"])
    assert library.names == list(library.model.class_names) == NAMES
    write_c(data, tmp_path, optimize="speed")
    cc("clang", *STRICT, "-Wtrigraphs", "-fsyntax-only", tmp_path / "micronet.c", tmp_path / "main.c")


def named_file(names: list[str]) -> bytes:
    """A file whose classes have these names."""
    model = decode(general_file())
    last = model.steps[-1]
    assert isinstance(last, Linear)
    codes = np.resize(last.weights.codes, (len(names), *last.weights.codes.shape[1:]))
    weights = replace(last.weights, codes=codes)
    bits = int(weights.sums(model.steps[last.inputs[0]]).bits.max())
    bias = np.resize(last.bias, len(names))
    last = replace(last, weights=replace(weights, accumulator_bits=bits), bias=bias, shape=(len(names), 1, 1))
    return encode([*model.steps[:-1], last], None, "integer", {}, class_names=names)


@pytest.mark.parametrize("name", ["", "int", "1st", "Net", "a-b", "../x", "x" * 41, "a\nb", "é"])
def test_a_name_that_c_does_not_allow_is_refused_with_one_that_it_does(name):
    with pytest.raises(ExportError, match="is no name for C; .* works, as in: micronet") as caught:
        exported(tiny_files()[0], name=name)
    assert len(str(caught.value)) <= 300 and str(caught.value).isprintable()


def test_steps_whose_names_could_end_a_comment_cannot(tmp_path):
    model = decode(tiny_files()[0])
    steps = [replace(step, name="*/ #error x ??/") if isinstance(step, Conv) else step for step in model.steps]
    data = encode(steps, None, "integer", {})
    write_c(data, tmp_path, optimize="size")
    assert b"#error" not in (tmp_path / "micronet.c").read_bytes()
    cc("gcc", *STRICT, "-fsyntax-only", tmp_path / "micronet.c")


def test_floats_are_refused_with_what_would_work():
    data = tiny_files()[0]
    model = replace(decode(data), arithmetic="half")
    with pytest.raises(ExportError, match="16-bit floats.*TO=onnx works"):
        export(model, data, Options())
