"""The state of a run: locked, whole, put aside when it is damaged or foreign."""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import io
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
from torch import nn

from micronet.compress.pruning import FixedMask
from micronet.files import FileError
from micronet.training.run import Run
from micronet.training.state import ResumeState, StateError
from tests.support.configs import MACHINE, train_config
from tests.support.failures import full_disk
from tests.support.images import bright_split
from tests.support.models import new_model
from tests.support.places import entries
from tests.support.thinning import thinned

CONTENT = {"epoch": 3, "weights": {"a": torch.arange(5.0)}, "rows": [{"loss": 0.5}], "none": None}


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


def test_the_newest_states_of_other_params_stay_for_who_goes_back_to_them_and_older_ones_are_removed(tmp_path):
    names = ["oldest", "older", "old", "last"]
    for name in names:
        kept(tmp_path, name)
    for age, name in enumerate(reversed(names)):
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    with ResumeState(tmp_path, "new") as state:
        assert state.load() == (None, None)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["last", "old", "older"]
    with ResumeState(tmp_path, "last") as state:
        assert state.load()[0] is not None, "the same params find theirs again"


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


# --- places ---


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder.write_text("mine"), "stage is no folder; move it away"),
        (lambda folder: folder.symlink_to("nothing"), "stage is a link to nothing; move it away"),
        (lambda folder: (folder / "lock").mkdir(parents=True), "lock: cannot be written .Is a directory"),
        (lambda folder: (folder / "x/state").mkdir(parents=True), "state is a folder; move it away"),
        (lambda folder: (folder.mkdir(), (folder / "x").write_text("mine")), "x is no folder; move it away"),
    ],
)
def test_what_stands_in_the_place_of_the_state_is_one_line_before_any_training(make, said, tmp_path):
    make(tmp_path / "stage")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StateError, match=said), ResumeState(tmp_path / "stage", "x"):
        pass
    assert set(before) <= set(tmp_path.rglob("*"))


def test_a_disk_without_locks_is_one_line(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StateError, match="cannot be locked .No locks available"), ResumeState(tmp_path, "x"):
        pass


def test_a_state_that_cannot_be_read_is_put_aside(tmp_path, monkeypatch):
    kept(tmp_path)

    def broken(_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", broken)
    assert "Input/output error" in put_aside(tmp_path)


# --- content ---


def run_of(optimizer: str = "sgd", spec: dict | None = None) -> tuple[nn.Module, dict]:
    model = new_model(spec) if spec else new_model()
    config = train_config(epochs=2, optimizer=optimizer, learning_rate=0.01, ema_decay=0.9)
    data = {"training": bright_split(32), "validation": bright_split(8)}
    return model, {"config": config, "machine": MACHINE, "seed": 1, **data}


@functools.cache
def snapshot(optimizer: str = "sgd") -> bytes:
    """What a run saves in the middle of its second epoch."""
    model, arguments = run_of(optimizer)
    run = Run(model, arguments["config"], arguments["training"], MACHINE, 1, constraint=FixedMask(model))
    for indices in run.remaining_batches():
        run.train_step(indices)
    run.end_epoch(arguments["validation"], 8)
    run.train_step(run.remaining_batches()[0])
    buffer = io.BytesIO()
    torch.save(run.snapshot(), buffer)
    return buffer.getvalue()


def of_another_optimizer(saved: dict) -> None:
    saved["optimizer"] = torch.load(io.BytesIO(snapshot("adam")))["optimizer"]


def changed(path: str, value: object):
    """Puts a value in the place that a path of keys names."""

    def change(saved: dict) -> None:
        *keys, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        for key in keys:
            saved = saved[key]
        saved[last] = value

    return change


def cut(tensors: dict) -> None:
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 4)
    tensors[name] = tensors[name][:1].clone()


CONTENTS = {
    "a key gone": lambda saved: saved.pop("generator"),
    "a key more": changed("more", 1),
    "a weight gone": lambda saved: saved["model"].popitem(),
    "a weight of another shape": lambda saved: cut(saved["model"]),
    "an average of another shape": lambda saved: cut(saved["average"]["model"]),
    "no average": changed("average", None),
    "weights of another type": lambda saved: saved["model"].update(
        {name: tensor.double() for name, tensor in saved["model"].items()}
    ),
    "weights that are no table": changed("model", [1, 2]),
    "an optimizer of another kind": of_another_optimizer,
    "an optimizer without its state": lambda saved: saved["optimizer"]["state"].clear(),
    "a buffer of another shape": changed("optimizer/state/0/momentum_buffer", torch.zeros(1)),
    "a buffer that is text": changed("optimizer/state/0", "momentum"),
    "a group gone": lambda saved: saved["optimizer"]["param_groups"].pop(),
    "other parameters": changed("optimizer/param_groups/0/params/0", 999),
    "text for an epoch": changed("epoch", "1"),
    "an epoch too many": changed("epoch", 3),
    "a step below zero": changed("step_in_epoch", -1),
    "a truth for a number": changed("images_seen", True),
    "endless seconds": changed("seconds", float("inf")),
    "batches of another size": changed("batch_size", 7),
    "a rate below zero": changed("peak", -0.1),
    "a row more": lambda saved: saved["rows"].append(saved["rows"][0]),
    "a row of other columns": changed("rows/0", {"epoch": 1}),
    "text in a row": changed("rows/0/train_loss", "low"),
    "a mask gone": lambda saved: saved["constraint"].popitem(),
    "a mask of nothing": changed("constraint/nothing", torch.ones(1)),
    "a generator of zeros": lambda saved: saved["generator"].zero_(),
    "totals that are a number": changed("totals", 1.0),
}


@pytest.mark.parametrize("change", thinned(CONTENTS, 3))
def test_a_state_that_is_whole_and_of_another_content_is_put_aside_and_changes_nothing(change, tmp_path):
    saved = torch.load(io.BytesIO(snapshot()))
    CONTENTS[change](saved)
    model, arguments = run_of()
    run = Run(model, arguments["config"], arguments["training"], MACHINE, 1, constraint=FixedMask(model))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with ResumeState(tmp_path, "x") as state:
        state.save(saved)
        content, remark = state.load(run.restore)
        assert content is None and state.path.with_name("state.refused").is_file()
    assert "resume state put aside, it" in remark and remark.isprintable()
    assert (run.epoch, run.step_in_epoch, run.rows) == (0, 0, []) and not run.optimizer.state
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_state_that_fits_is_taken_over(optimizer, tmp_path):
    model, arguments = run_of(optimizer)
    run = Run(model, arguments["config"], arguments["training"], MACHINE, 1, constraint=FixedMask(model))
    with ResumeState(tmp_path, "x") as state:
        state.save(torch.load(io.BytesIO(snapshot(optimizer))))
        content, remark = state.load(run.restore)
    assert content and remark is None and (run.epoch, run.step_in_epoch) == (1, 1)
