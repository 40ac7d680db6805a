"""Files that are whole or absent: what is written, what is read, and in which words both fail."""

from __future__ import annotations

import hashlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from micronet.files import (
    FileError,
    check_place,
    checksum,
    read_csv,
    read_json,
    write_atomically,
    write_csv,
    write_json,
)
from tests.support.failures import full_disk
from tests.support.places import ROOT, entries

# --- writing ---


@pytest.mark.parametrize("content", ["two\nlines, ünïcode\n", b"\x00\xff"])
def test_what_is_written_is_what_lies_there_in_a_folder_that_is_made(tmp_path, content):
    path = tmp_path / "new" / "folder" / "a"
    write_atomically(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert path.stat().st_mode & 0o777 == 0o644 and entries(path.parent) == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(FileError) as caught:
        write_json(path, {"new": 2})
    assert str(caught.value) == f"{path}: cannot be written (No space left on device); what stood there is intact"
    assert json.loads(path.read_text()) == {"old": 1} and entries(tmp_path) == ["a.json"]


def test_an_interrupted_write_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1} and entries(tmp_path) == ["a.json"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileError, match="cannot be written"):
        write_json(tmp_path / "file" / "a.json", {})


def test_what_stands_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    for path, what in (
        ("file/a/b", "file is no folder"),
        ("link/a", "link is a link to nothing"),
        ("folder", "folder is a folder"),
    ):
        with pytest.raises(FileError) as caught:
            write_json(tmp_path / path, {})
        why = f"({tmp_path}/{what}; move it away); what stood there is intact"
        assert str(caught.value) == f"{tmp_path / path}: cannot be written {why}"
    assert entries(tmp_path) == ["file", "folder", "link"] and (tmp_path / "file").read_text() == "mine"


def test_a_place_for_results_is_looked_at_before_anything_is_made(tmp_path, monkeypatch):
    (tmp_path / "metrics").write_text("mine")
    (tmp_path / "checkpoints").symlink_to(tmp_path / "nothing")
    for path, what in (("metrics/curves", "metrics is no folder"), ("checkpoints", "checkpoints is a link to nothing")):
        with pytest.raises(FileError, match=f"results cannot be written there .*{what}; move it away"):
            check_place(tmp_path / path)
    check_place(tmp_path / "new/folder")
    assert entries(tmp_path) == ["checkpoints", "metrics"]
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(FileError, match=f"{tmp_path} is read-only"):
        check_place(tmp_path / "new/folder")


def test_a_file_larger_than_the_system_allows_is_one_line(tmp_path):
    write_json(tmp_path / "a", {})
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.raises(FileError, match="File too large"):
            write_atomically(tmp_path / "a", bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert entries(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "{}\n"


# --- two writers ---


def test_what_a_killed_writer_left_is_removed_by_the_next_writer_of_that_file(tmp_path):
    program = "import os, signal, sys; from micronet import files\n"
    program += "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    program += "files.write_atomically(sys.argv[1], 'half')"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.json")], cwd=ROOT)
    (left,) = entries(tmp_path)
    assert left.startswith(".a.json.")
    write_json(tmp_path / "b.json", {})
    assert entries(tmp_path) == [left, "b.json"]
    write_json(tmp_path / "a.json", {})
    assert entries(tmp_path) == ["a.json", "b.json"]


def test_a_file_that_somebody_writes_now_is_left_to_him(tmp_path, monkeypatch):
    replace, wrote = os.replace, []

    def meanwhile(source, target):
        monkeypatch.setattr(os, "replace", replace)
        write_json(tmp_path / "a.json", {"second": 2})
        wrote.append(Path(source).exists())
        replace(source, target)

    monkeypatch.setattr(os, "replace", meanwhile)
    write_json(tmp_path / "a.json", {"first": 1})
    assert wrote == [True] and entries(tmp_path) == ["a.json"] and read_json(tmp_path / "a.json") == {"first": 1}


def test_many_writers_at_once_leave_one_whole_file(tmp_path):
    contents = [letter * 20_000 for letter in "abcdefgh"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: [write_atomically(tmp_path / "a", content) for _ in range(5)], contents))
    assert entries(tmp_path) == ["a"] and (tmp_path / "a").read_text() in contents


def test_json_has_a_key_a_line(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1, "b": [2.5, None]})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 1,\n  "b": [\n    2.5,\n    null\n  ]\n}\n'


# --- tables ---


def test_a_table_has_a_line_of_names_and_a_line_a_row(tmp_path):
    write_csv(tmp_path / "a.csv", ["name", "value"], [{"name": "x, y", "value": 1 / 3}, {"name": None}])
    assert (tmp_path / "a.csv").read_text() == 'name,value\n"x, y",0.3333333333333333\n,\n'


def test_digits_shorten_floats_and_nothing_else(tmp_path):
    row = {"float": 1 / 3, "nan": math.nan, "integer": 12345678, "truth": True, "text": "0.33333333"}
    write_csv(tmp_path / "a.csv", list(row), [row], digits=6)
    assert (tmp_path / "a.csv").read_text().splitlines()[1] == "0.333333,nan,12345678,True,0.33333333"


def test_a_value_without_a_column_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="'colour'"):
        write_csv(tmp_path / "a.csv", ["name"], [{"name": "x", "colour": "red"}])
    assert entries(tmp_path) == []


def test_a_table_comes_back_as_text(tmp_path):
    write_csv(tmp_path / "a.csv", ["name", "value"], [{"name": "two\nlines", "value": 2}])
    assert read_csv(tmp_path / "a.csv") == [{"name": "two\nlines", "value": "2"}]


# --- reading ---


def test_an_object_comes_back_as_it_was(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, None], "b": {"c": 0.1}})
    assert read_json(tmp_path / "a.json") == {"a": [1, None], "b": {"c": 0.1}}


@pytest.mark.parametrize("read", [read_json, read_csv])
def test_what_cannot_be_read_is_one_line_with_the_reason(tmp_path, read):
    (tmp_path / "damaged").write_bytes(b"\xff\xfe{")
    for name, reason in (("none", "No such file or directory"), (".", "Is a directory"), ("damaged", "can't decode")):
        with pytest.raises(FileError, match=f"cannot be read .*{reason}") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_text_that_is_no_json_is_one_line(tmp_path):
    (tmp_path / "a.json").write_text('{"half": ')
    with pytest.raises(FileError, match=r"a\.json: cannot be read \(Expecting value: line 1"):
        read_json(tmp_path / "a.json")


def test_json_that_is_nested_too_deep_is_one_line(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(FileError, match=r"a\.json: cannot be read \(it is nested too deep\)"):
        read_json(tmp_path / "a.json")


def test_a_checksum_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert checksum(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert checksum(tmp_path / "a", "md5") == "900150983cd24fb0d6963f7d28e17f72"


def test_files_are_written_without_starting_torch():
    program = "import sys, micronet.files, micronet.params; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_nothing_else_puts_a_file_in_its_place_by_hand():
    """But for the folders of data and of downloads, whose files come out of one that is temporary."""
    rooms = [ROOT / name for name in ("micronet", "stages", "sweeps", "tools")]
    found = [
        path.relative_to(ROOT).as_posix()
        for room in rooms
        for path in sorted(room.rglob("*.py"))
        if "os.replace(" in path.read_text(encoding="utf-8")
    ]
    assert found == ["micronet/data/cache.py", "micronet/data/store.py", "micronet/files.py"]
