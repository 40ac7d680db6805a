"""What a killed DVC left in .dvc/tmp, and who is still at work."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import dvc_locks
import pytest
from dvc_locks import LockError, main, mend, others_here

EMPTY = {"write": {}, "read": {}}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    return Path(".dvc/tmp")


@pytest.fixture(params=["bin/dvc", "tools/repro.py", "dvc/__main__.py"])
def running(tmp_path, request):
    """The number of a process that is named like a DVC of this folder, or like what `make repro` runs it in."""
    script = tmp_path / request.param
    script.parent.mkdir()
    script.write_text("import time; print(flush=True); time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-I", str(script)], cwd=tmp_path, stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process.pid
    process.kill()
    process.communicate()


def entries(**numbers: int) -> dict:
    locks = {f"/{name}": {"pid": number, "cmd": "dvc repro"} for name, number in numbers.items()}
    return {"write": locks, "read": {path: [entry] for path, entry in locks.items()}}


@pytest.mark.parametrize("left", ["", "{", "[]", '{"read": 5}', '{"write": {"/a": 3}}', "[" * 100_000, "\xff"])
def test_a_lock_file_that_a_kill_left_damaged_is_mended_and_said_in_a_line(left, folder, capsys):
    (folder / "rwlock").write_text(left, encoding="latin-1")
    assert main() == 0
    said = capsys.readouterr().err
    assert said == "make: .dvc/tmp/rwlock: was left damaged by a DVC that was killed; it is mended\n"
    assert json.loads((folder / "rwlock").read_text()) == EMPTY
    assert mend() is None


def test_nothing_is_said_where_nothing_was_left(folder):
    assert mend() is None and list(folder.iterdir()) == []
    (folder / "rwlock").write_text(json.dumps(EMPTY))
    assert mend() is None


def test_entries_of_processes_that_have_ended_are_removed_and_those_of_a_running_dvc_stay(folder, running):
    (folder / "rwlock").write_text(json.dumps(entries(alive=running, dead=2**22 + 1, another=os.getpid())))
    assert mend() == ".dvc/tmp/rwlock: locks of processes that have ended are removed"
    assert json.loads((folder / "rwlock").read_text()) == entries(alive=running)
    assert mend() is None


def test_a_damaged_lock_file_is_left_to_a_dvc_that_runs_here(folder, running, capsys):
    (folder / "rwlock").write_text("")
    assert others_here() == [running] and main() == 1
    assert f"DVC runs here as process {running}; wait for it or stop it" in capsys.readouterr().err
    assert (folder / "rwlock").read_text() == ""


def test_a_dvc_of_another_checkout_is_no_obstacle(folder, running, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    folder.mkdir(parents=True)
    (folder / "rwlock").write_text("")
    assert "mended" in mend()


def test_a_lock_file_that_a_dvc_writes_now_is_left_to_it(folder):
    (folder / "rwlock").write_text("")
    with (folder / "rwlock.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        assert mend() is None
    assert (folder / "rwlock").read_text() == ""


@pytest.mark.parametrize("name", dvc_locks.FILES)
def test_a_folder_in_the_place_of_a_lock_is_one_line(name, folder):
    (folder / name).mkdir()
    with pytest.raises(LockError, match=f"{name} is a folder where DVC keeps a lock; remove it: rm -r"):
        mend()
