"""The state of a run: locked, whole, put aside when it is damaged or foreign."""

from __future__ import annotations

import hashlib
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from micronet.files import FileError
from micronet.training.state import ResumeState, StateError
from tests.support.failures import full_disk

CONTENT = {"epoch": 3, "weights": {"a": torch.arange(5.0)}, "rows": [{"loss": 0.5}], "none": None}


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kept(folder: Path, digest: str = "x") -> Path:
    """A saved state."""
    with ResumeState(folder, digest) as state:
        state.save(CONTENT)
        return state.path


def put_aside(folder: Path, digest: str = "x") -> str:
    """Why the state was put aside; asserts that it was, under its other name."""
    with ResumeState(folder, digest) as state:
        content, remark = state.load()
        assert content is None and not state.path.exists()
        assert state.path.with_name("state.refused").is_file()
        assert state.load() == (None, None)
    assert remark.startswith(str(state.path.with_name("state.refused"))) and remark.endswith("starting anew")
    assert "\n" not in remark
    return remark


def test_a_state_comes_back_as_it_was(tmp_path):
    kept(tmp_path)
    with ResumeState(tmp_path, "x") as state:
        content, remark = state.load()
    assert remark is None and torch.equal(content.pop("weights")["a"], torch.arange(5.0))
    assert content == {"epoch": 3, "rows": [{"loss": 0.5}], "none": None}


def test_without_a_state_there_is_nothing_to_say(tmp_path):
    with ResumeState(tmp_path, "x") as state:
        assert state.load() == (None, None)


def test_clearing_removes_the_state_and_not_the_lock(tmp_path):
    kept(tmp_path)
    with ResumeState(tmp_path, "x") as state:
        state.clear()
        assert state.load() == (None, None)
    assert entries(tmp_path) == ["lock"]


def test_a_state_of_other_params_is_removed(tmp_path):
    kept(tmp_path, "old")
    with ResumeState(tmp_path, "new") as state:
        assert state.load() == (None, None)
    assert not (tmp_path / "old").exists()


def test_a_second_trainer_in_the_same_process_is_refused(tmp_path):
    with ResumeState(tmp_path, "x"):
        with pytest.raises(StateError, match="another process is training this stage"), ResumeState(tmp_path, "x"):
            pass
    with ResumeState(tmp_path, "x"):  # and let in afterwards
        pass


def test_a_second_trainer_leaves_the_first_ones_state_alone(tmp_path):
    with ResumeState(tmp_path, "first") as state:
        state.save(CONTENT)
        with pytest.raises(StateError), ResumeState(tmp_path, "second"):
            pass
        assert state.load()[0]["epoch"] == 3


def test_the_lock_of_another_process_holds_until_that_one_is_killed(tmp_path):
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    other = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        with pytest.raises(StateError, match="another process"), ResumeState(tmp_path, "x"):
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()
    with ResumeState(tmp_path, "x"):
        pass


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_state_is_put_aside(tmp_path, share):
    path = kept(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    put_aside(tmp_path)


def test_a_state_of_another_version_is_put_aside(tmp_path):
    path = kept(tmp_path)
    path.write_bytes(path.read_bytes().replace(ResumeState.MAGIC, b"micronet-state-0"))
    assert "it is of another version" in put_aside(tmp_path)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_state_with_a_flipped_bit_is_put_aside(tmp_path, share, bit):
    path = kept(tmp_path)
    data = bytearray(path.read_bytes())
    data[int(share * len(data))] ^= 1 << bit
    path.write_bytes(data)
    put_aside(tmp_path)


def test_a_state_of_another_digest_is_put_aside(tmp_path):
    path = kept(tmp_path, "x")
    other = tmp_path / "two" / "y" / "state"
    other.parent.mkdir(parents=True)
    other.write_bytes(path.read_bytes())
    assert "it belongs to other params" in put_aside(tmp_path / "two", "y")


def test_a_state_with_code_in_it_is_put_aside_and_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = kept(tmp_path)
    torch.save({"digest": "x", "trap": Trap()}, tmp_path / "trap")
    data = (tmp_path / "trap").read_bytes()
    path.write_bytes(ResumeState.MAGIC + hashlib.sha256(data).digest() + struct.pack("<Q", len(data)) + data)
    put_aside(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_full_disk_keeps_the_state_of_before(tmp_path, monkeypatch):
    kept(tmp_path)

    with ResumeState(tmp_path, "x") as state:
        with monkeypatch.context() as patch, pytest.raises(FileError, match="No space left on device"):
            patch.setattr(os, "fsync", full_disk)
            state.save(CONTENT | {"epoch": 4})
        assert state.load()[0]["epoch"] == 3
        assert entries(state.path.parent) == ["state"]
