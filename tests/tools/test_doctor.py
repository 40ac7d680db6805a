"""`make doctor`: what is wrong is said with the command that mends it, and nothing else is."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import doctor
import pytest
import yaml

from micronet import params
from micronet.data import datasets, store
from micronet.data.arrays import DataError
from tests.support.configs import demo


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with params of the sample, and a cache and an environment of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    (tmp_path / "env").mkdir()
    (tmp_path / "env/installed.lock").write_bytes(doctor.LOCK.read_bytes())
    write_params(("data", {"source": "sample", "folder": "data/sample", "validation_size": 200}))
    return tmp_path


def write_params(*changes: tuple[str, Any]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(demo(*changes)))


def wrong() -> dict[str, tuple[str, str]]:
    """What is wrong, and what mends it."""
    found = list(doctor.findings("params.yaml"))
    assert doctor.main([]) == (1 if any(one.mend for one in found) else 0)
    return {one.name: (one.said, one.mend) for one in found if one.mend}


@pytest.fixture
def prepared() -> params.Data:
    config = params.load("params.yaml").data
    store.prepare(config)
    return config


def test_a_checkout_in_which_all_is_right_ends_with_0_and_names_the_data(prepared, place, capsys):
    (place / "cache/micronet").mkdir(parents=True)
    (place / "cache/micronet/archive.tgz").write_bytes(bytes(3_000_000))
    assert doctor.main([]) == 0
    said = capsys.readouterr().out
    assert "cifar10-sample, 10 classes, 3 x 32 x 32: 800 train, 200 validation, 500 test" in said
    assert "WRONG" not in said and "cache/micronet: 3 MB" in said


def test_data_that_are_not_there_yet_name_the_stage_that_makes_them():
    assert wrong()["manifest"][1] == "python stages/prepare_data.py"


def test_a_manifest_of_other_params_and_a_damaged_folder_are_told_apart(prepared):
    path = Path(prepared.folder) / "train_images.bin"
    path.write_bytes(path.read_bytes()[:-1])
    found = wrong()
    assert "is damaged" in found["data"][0] and found["data"][1] == "python stages/prepare_data.py"
    write_params(("data", {"source": "sample", "folder": "data/sample", "validation_size": 100}))
    assert "validation_size is 200" in wrong()["manifest"][0]


def test_faulty_params_an_old_environment_and_a_cache_in_the_way_are_each_a_line(prepared, place):
    write_params(("data.source", "magic"))
    (place / "env/installed.lock").write_text("another==1.0\n")
    (place / "cache").write_text("a file")
    found = wrong()
    assert set(found) == {"params", "environment", "cache"}
    assert found["environment"][1] == "make env" and found["params"][1] == "make check"
    assert "is no folder" in found["cache"][0] and "XDG_CACHE_HOME" in found["cache"][1]


def test_an_environment_of_ones_own_is_no_fault(prepared, place):
    (place / "env/installed.lock").unlink()
    assert wrong() == {}


def test_the_pictures_of_a_folder_are_counted_and_a_change_is_said(place, monkeypatch, capsys):
    pictures = ModuleType("micronet.data.folder")
    pictures.scan = lambda config: "now"
    monkeypatch.setitem(sys.modules, pictures.__name__, pictures)
    (place / "own").mkdir()
    image = {"height": 8, "width": 8}
    write_params(("data", {"source": "folder", "path": "own[red]", "folder": "data/own", "image": image}))
    (place / "own[red]").mkdir()
    manifest = {
        "dataset": "folder", "image_shape": [3, 8, 8], "classes": ["a", "b"],
        "splits": {name: {"images": 4} for name in store.SPLITS},
    }  # fmt: skip
    marker = {"manifest": manifest, "scan": "now", "facts": {"broken_images": 2}}
    monkeypatch.setattr(store, "check_manifest", lambda *_: manifest)
    monkeypatch.setattr(store, "_fault", lambda *_: None)
    for module in (store, datasets):
        monkeypatch.setattr(module, "read_marker", lambda path: marker)
    assert wrong() == {} and "own[red]: as they were prepared; broken_images 2" in capsys.readouterr().out
    marker["scan"] = "then"
    assert wrong()["pictures"] == (
        "own[red]: have changed since they were prepared",
        "python stages/prepare_data.py",
    )

    def unreadable(config: params.Data) -> str:
        raise DataError("own[red]: is a file")

    pictures.scan = unreadable
    assert wrong()["pictures"][0] == "own[red]: is a file"
    (place / "own[red]").rmdir()
    assert wrong() == {} and "own[red]: is not here; the pictures that were prepared" in capsys.readouterr().out
    marker["path"] = "other"
    assert "was prepared of other; data.path must name that one" in wrong()["pictures"][0]
    marker = None
    assert wrong()["pictures"][0] == "own[red]: is not here, and nothing was prepared of it"
