"""Where a report finds its files: a folder, a revision, the published cache; and which params differ."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess

import pytest

from report.differences import settings
from report.errors import ReportError
from report.gathered import PACKED, gather
from report.sources import Folder, revision, state
from tests.support.places import ROOT


@pytest.fixture
def repository(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.invalid"]
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True)

    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/quantize.json").write_text('{"epochs": 3}')
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "one"), ("tag", "one")):
        git(*words)
    return tmp_path


def test_a_revision_is_read_as_it_was_and_a_folder_as_it_is(repository):
    (repository / "metrics/quantize.json").write_text('{"epochs": 4}')
    found = gather(revision(repository, "one"), "one")
    assert (found.stages["quantize"], found.params) == ({"epochs": 3}, {"seed": 1})
    assert gather(Folder(repository), "now").stages["quantize"] == {"epochs": 4}
    assert state(repository).endswith("-dirty")


def test_what_is_no_revision_or_no_repository_is_none(repository, tmp_path_factory):
    assert revision(repository, "nothing") is revision(repository, "--help") is revision(repository, "a\0b") is None
    inside = repository / "inside"
    inside.mkdir()
    assert state(inside) is revision(inside, "one") is None, "a repository around a folder is another's"
    alone = tmp_path_factory.mktemp("alone")
    assert state(alone) is revision(alone, "HEAD") is None


def test_the_packed_file_is_found_in_the_published_cache_and_only_if_it_is_the_one_that_was_scored(tmp_path):
    data = (ROOT / "release/glance.safetensors").read_bytes()
    digest = hashlib.md5(data).hexdigest()
    place = tmp_path / f"release/cache/files/md5/{digest[:2]}/{digest[2:]}"
    place.parent.mkdir(parents=True)
    place.write_bytes(data)
    (tmp_path / "dvc.lock").write_text(
        f"schema: '2.0'\nstages:\n  quantize:\n    cmd: x\n    outs: [{{path: {PACKED}, md5: {digest}}}]\n"
    )
    (tmp_path / "metrics").mkdir()
    score = {"packed": {"sha256": hashlib.sha256(data).hexdigest()}}
    (tmp_path / "metrics/score.json").write_text(json.dumps(score))
    found = gather(Folder(tmp_path), "tried")
    assert found.model is not None and found.packed == data and found.faults == []
    other = tmp_path / PACKED
    other.parent.mkdir()
    shutil.copy(ROOT / "release/mnist.safetensors", other)
    assert gather(Folder(tmp_path), "tried").packed == data, "a file of other params does not stand for it"
    place.unlink()
    found = gather(Folder(tmp_path), "tried")
    assert found.model is None and found.faults == [
        f"{PACKED}: is another file than the one that metrics/score.json names"
    ]


def test_a_file_that_is_too_large_or_too_deep_or_a_pipe_is_not_read(tmp_path):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/prune.json").write_text("[" * 100_000)
    with (tmp_path / "metrics/score.json").open("wb") as file:
        file.truncate(1 << 27)
    os.mkfifo(tmp_path / "metrics/path.csv")
    found = gather(Folder(tmp_path), "tried")
    assert found.score is None and found.faults[0] == "metrics/score.json: is larger than any result"
    assert found.stages == {} and found.faults[1].startswith("metrics/prune.json: cannot be read (maximum recursion")
    with pytest.raises(ReportError):
        Folder(tmp_path).content("metrics/score.json")


def test_settings_differ_by_value_and_kind_and_by_being_there():
    here = {"seed": 1, "a": {"b": True, "c": 1.0}, "only": "here"}
    there = {"seed": 1, "a": {"b": 1, "c": 1.0}, "other": None}
    found = {row.name: (row.here, row.there, row.differs) for row in settings(here, there)}
    assert found == {
        "seed": ("1", "1", False),
        "a.b": ("True", "1", True),
        "a.c": ("1", "1", False),
        "only": ("here", "-", True),
        "other": ("-", "None", True),
    }
    assert not any(row.differs for row in settings(here, None)), (
        "where there is nothing to compare with, nothing differs"
    )
