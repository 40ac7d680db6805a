"""How params are read: as DVC reads them, and in one line where they cannot be."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import load_yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from micronet import params
from tests.support.places import ROOT


def as_dvc_reads(path: Path) -> Any:
    try:
        return load_yaml(str(path))
    except Exception:
        return "refused"


def as_we_read(path: Path) -> Any:
    """DVC takes an empty file for an empty mapping."""
    try:
        return params.read_yaml(path) or {}
    except params.ParamsError:
        return "refused"


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "params.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fault(path: Path) -> str:
    """The one line that reading ends with, without the folder."""
    with pytest.raises(params.ParamsError) as caught:
        params.read_yaml(path)
    (line,) = caught.value.faults
    assert "\n" not in line and caught.value.exit_code == 2
    return line.replace(str(path), path.name)


def same(one: Any, two: Any) -> bool:
    """Equal and of the same type; NaN is like NaN."""
    if isinstance(one, dict) and isinstance(two, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    both_nan = isinstance(one, float) and isinstance(two, float) and math.isnan(one) and math.isnan(two)
    return both_nan or (type(one) is type(two) and one == two)


# --- scalars ---


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1E5", 1e5), (".5", 0.5), ("1.", 1.0), ("-.5", -0.5), ("+5", 5), ("1.e3", 1000.0)]
    + [("yes", "yes"), ("on", "on"), ("off", "off"), ("n", "n"), ("True", True), ("~", None), ("1:30", "1:30")]
    + [(".inf", math.inf), ("e3", "e3"), ("1.2.3", "1.2.3"), ("nan", "nan"), (".NaN", math.nan), ("'5'", "5")]
    + [("010", 10), ("08", 8), ("0o17", 15), ("0x1F", 31), ("0b11", 3), ("1_000", 1000), ("1.5_0", 1.5)]
    + [(".5e+1", 5.0), ("-0o17", -15), ("0b12", "0b12"), ("+", "+"), ("null", None), ("NO", "NO"), ("FALSE", False)],
)
def test_a_scalar_is_what_dvc_reads(tmp_path, text, value):
    path = written(tmp_path, f"key: {text}\n")
    assert same(as_we_read(path), {"key": value}) and same(as_dvc_reads(path), {"key": value})


NUMBER_LIKE = st.one_of(
    st.integers().map(str),
    st.floats().map(lambda value: repr(value).replace("inf", ".inf").replace("nan", ".nan")),
    st.floats(allow_nan=False, allow_infinity=False).map("{:.3e}".format),
    st.from_regex(r"[-+]?[0-9_]{0,4}\.?[0-9_]{0,3}([eE][-+]?[0-9]{1,2})?", fullmatch=True),
    st.from_regex(r"[-+]?0[xob]?[0-9a-fA-F]{1,4}", fullmatch=True),
    st.sampled_from("yes no on off y n true True TRUE false null Null NULL ~ .inf -.inf .Inf .nan .NaN .5e1".split()),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(NUMBER_LIKE)
@example("1e-3")
@example("1_000")
@example("0o17")
@example("010")
def test_number_like_scalars_are_what_dvc_reads(tmp_path, text):
    path = written(tmp_path, f"key: {text}\n")
    assert same(as_we_read(path), as_dvc_reads(path)), (text, as_we_read(path), as_dvc_reads(path))


# --- files ---


@pytest.mark.parametrize(
    ("content", "tree"),
    [
        (b"", {}),
        (b"# nothing\n", {}),
        (b"\xef\xbb\xbfseed: 1\n", {"seed": 1}),
        (b"a: 1\r\nb: two\r\n", {"a": 1, "b": "two"}),
        (b"a: &x {b: 1}\nc: *x\n", {"a": {"b": 1}, "c": {"b": 1}}),
        (b"a: &x {b: 1}\nc:\n  <<: *x\n  d: 2\n", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        (b"a: &x {b: 1}\nc:\n  <<: *x\n  b: 2\n", {"a": {"b": 1}, "c": {"b": 2}}),
        (b"x: &x {b: 1}\ny: &y {b: 2, e: 3}\nc:\n  <<: [*x, *y]\n",
         {"x": {"b": 1}, "y": {"b": 2, "e": 3}, "c": {"b": 1, "e": 3}}),
    ],
    ids=["empty", "comment", "bom", "crlf", "anchor", "merge", "merge with a key of its own", "merge of two"],
)  # fmt: skip
def test_a_file_is_what_dvc_reads(tmp_path, content, tree):
    path = written(tmp_path, content)
    assert as_we_read(path) == tree == as_dvc_reads(path)


SETTINGS = sorted(path for place in ("recipes", "s*", "pipelines/*") for path in ROOT.glob(f"{place}/*.yaml"))


@pytest.mark.parametrize("path", SETTINGS, ids=lambda p: p.name)
def test_every_file_of_settings_in_the_repository_is_what_dvc_reads(path):
    assert same(as_we_read(path), as_dvc_reads(path)) and as_we_read(path) != "refused"


REFUSED = {
    "a: [1\n": "while parsing a flow sequence, expected ',' or ']', but got '<stream end>' (line 2)",
    "a: b: c\n": "mapping values are not allowed here (line 1)",
    "\tseed: 0\n": "while scanning for the next token, found character '\\t' that cannot start any token (line 1)",
    "a: !!python/object:os.system {}\n": "could not determine a constructor for the tag "
    "'tag:yaml.org,2002:python/object:os.system' (line 1)",
    "a: *x\n": "found undefined alias 'x' (line 1)",
    "a: 1\n---\nb: 2\n": "expected a single document in the stream, but found another document (line 2)",
    "a: !!bool x\n": "'x' is no bool (line 1)",
    "a: !!float x\n": "'x' is no float (could not convert string to float: 'x') (line 1)",
    "b: 1\na: !!int ''\n": "'' is no int (line 2)",
    "a: 2020-13-45\n": "'2020-13-45' is no timestamp (month must be in 1..12) (line 1)",
    "a: \x07\n": 'unacceptable character #x0007: special characters are not allowed in "<unicode string>", position 3',
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.items(), ids=map(repr, REFUSED))
def test_what_is_not_yaml_is_one_line(tmp_path, text, reason):
    path = written(tmp_path, text)
    assert fault(path) == f"params.yaml: not readable as YAML: {reason}"
    assert as_dvc_reads(path) == "refused"


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [("seed: 0\nseed: 1\n", "seed", 2), ("teacher: {train: {epochs: 0, epochs: 1}}\n", "epochs", 1)],
)
def test_a_key_given_twice_is_refused(tmp_path, text, key, line):
    path = written(tmp_path, text)
    twice = f'found duplicate key "{key}" with value "1" (original value: "0") (line {line})'
    assert fault(path) == f"params.yaml: not readable as YAML: while constructing a mapping, {twice}"
    assert as_dvc_reads(path) == "refused"


def test_bytes_that_are_not_text_are_one_line(tmp_path):
    reason = "'utf-8' codec can't decode byte 0xff in position 6: invalid start byte"
    assert fault(written(tmp_path, b"seed: \xff\xfe\n")) == f"params.yaml: not readable as YAML: {reason}"


def test_brackets_without_end_are_one_line(tmp_path):
    assert fault(written(tmp_path, "[" * 500)).startswith("params.yaml: not readable as YAML: ")


def test_what_a_reader_changes_another_does_not_see_and_a_changed_file_is_read_anew(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: {b: [1]}\n")
    as_we_read(path)["a"]["b"].append(2)
    assert as_we_read(path) == {"a": {"b": [1]}}
    path.write_text("a: {b: [3]}\n")
    assert as_we_read(path) == {"a": {"b": [3]}}


def test_a_missing_file_says_how_to_make_one(tmp_path):
    found = fault(tmp_path / "params.yaml")
    assert found == "params.yaml: there is no such file (`make use RECIPE=laptop` makes it)"


MERGES = [
    "x: &x {b: 1, c: 2}\nd: {<<: *x}\n",
    "x: &x {b: 1, c: 2}\nd: {c: 3, <<: *x, b: 4}\n",
    "x: &x {b: 1}\ny: &y {b: 2, e: 3}\nd: {<<: [*x, *y], f: 4}\n",
    "x: &x {b: 1}\ny: &y {b: 2, e: 3}\nd: {<<: [*y, *x], b: 5}\n",
    "x: &x {b: 1}\ny: &y {<<: *x, c: 2}\nd: {<<: *y, b: 3}\n",
    "d:\n  <<: &t {b: 1, c: 2}\n  c: 3\ne: *t\n",
    "x: &x {b: {c: 1}}\nd: {<<: *x, b: {e: 1}}\n",
    "d: {<<: []}\n",
    "d: {<<: [1]}\n",
    "d: {<<: 3}\n",
    "x: &x {b: 1}\nd: {<<: *x, <<: *x}\n",
    "x: &x {b: 1}\nd: {<<: *x, b: 2, b: 3}\n",
    "a: &a 1\nb: &a 2\nc: *a\n",
]


@pytest.mark.parametrize("text", MERGES)
def test_merged_keys_are_what_dvc_reads(tmp_path, text):
    path = written(tmp_path, text)
    assert same(as_we_read(path), as_dvc_reads(path))


# --- more than settings have ---


LOOP = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGED = "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a0: &a0 [x]\n" + LOOP, "more than 10,000 values, with what the aliases stand for (line 5)"),
        ("a0: &a0 {x: 1}\n" + MERGED, "more than 10,000 values, with what the aliases stand for (line 5)"),
        ("a: &a [*a]\n", "an alias refers to what it stands in (line 1)"),
        ("a: &a {<<: *a}\n", "an alias refers to what it stands in (line 1)"),
        ("- " * 200_000, "nested more than 40 levels deep (line 1)"),
        ("a: " + "[" * 100_000, "nested more than 40 levels deep (line 1)"),
        (f"a: {'9' * 5000}\n", f"'{'9' * 26}…{'9' * 13}' is no int (more than 3,000 digits) (line 1)"),
        (f"a: 0x{'f' * 5000}\n", f"'0x{'f' * 24}…{'f' * 13}' is no int (more than 3,000 digits) (line 1)"),
    ],
)
def test_more_than_settings_have_is_refused_at_once(tmp_path, text, reason):
    began = time.process_time()
    assert fault(written(tmp_path, text)) == f"params.yaml: not readable as YAML: {reason}"
    assert time.process_time() - began < 1


def test_more_keys_than_settings_have_are_refused_while_they_are_read(tmp_path):
    text = "".join(f"k{number}: 1\n" for number in range(40_000))
    began = time.process_time()
    assert fault(written(tmp_path, text)) == "params.yaml: not readable as YAML: more than 10,000 values (line 5000)"
    assert time.process_time() - began < 3


def test_a_file_longer_than_settings_are_is_not_read(tmp_path):
    said = fault(written(tmp_path, "a: " + "x" * 10_000_000))
    assert said == "params.yaml: cannot be read (longer than 1,000,000 bytes, which no settings are)"


# --- places ---


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    regular = "cannot be read (not a regular file; one with settings would work)"
    assert fault(tmp_path / "pipe") == f"pipe: {regular}"
    assert fault(Path("/dev/zero")).endswith(regular)
    assert fault(tmp_path / "loop") == "loop: cannot be read (Too many levels of symbolic links)"
    assert fault(tmp_path / ("x" * 300)).endswith(" cannot be read (File name too long)")
    assert fault(tmp_path / "a\0b").endswith(" cannot be read (embedded null byte)")
    assert "a\\nb: there is no such file" in fault(tmp_path / "a\nb")
    assert "cannot be read" in fault(tmp_path / "a\ud800b")


def test_a_folder_is_one_line(tmp_path):
    assert fault(tmp_path) == f"{tmp_path.name}: cannot be read (Is a directory)"
