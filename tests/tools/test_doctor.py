"""`make doctor`: what is wrong is said with the command that mends it, and nothing else is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import doctor
import pytest
import yaml

from micronet import params
from micronet.data import datasets, store
from micronet.data.arrays import DataError
from tests.support.configs import demo
from tests.support.places import ROOT

PREPARE = f"{sys.executable} stages/prepare_data.py"
PINS = [line.split(" ;")[0].split("==") for line in doctor.LOCK.read_text().splitlines()]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with params of the sample, and a cache and an environment of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    monkeypatch.setattr(doctor, "_version", dict(PINS).get)
    (tmp_path / "env").mkdir()
    (tmp_path / "env/installed.lock").write_bytes(doctor.LOCK.read_bytes())
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / "release/cache").mkdir(parents=True)
    shutil.copy(ROOT / ".dvc/config", tmp_path / ".dvc")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
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
def prepared(place: Path, sample_data: params.Data, sample_manifest: Path) -> params.Data:
    shutil.copytree(sample_data.folder, place / "data/sample")
    shutil.copy(sample_manifest, place / "data/manifest.json")
    return params.load("params.yaml").data


def test_a_checkout_in_which_all_is_right_ends_with_0_and_names_the_data(prepared, place, capsys):
    (place / "cache/micronet").mkdir(parents=True)
    (place / "cache/micronet/archive.tgz").write_bytes(bytes(3_000_000))
    assert doctor.main([]) == 0
    said = capsys.readouterr().out
    assert "cifar10-sample, 10 classes, 3 x 32 x 32: 800 train, 200 validation, 500 test" in said
    assert "WRONG" not in said and "cache/micronet: 3 MB" in said


def test_data_that_nobody_has_fetched_yet_are_no_fault(capsys):
    assert wrong() == {} and "data/sample: not yet; make score fetches what it needs" in capsys.readouterr().out


def test_data_without_a_manifest_name_the_stage_that_makes_it_in_a_shell_of_no_environment(
    prepared, place, monkeypatch
):
    (place / "data/manifest.json").unlink()
    assert wrong()["manifest"][1] == PREPARE
    monkeypatch.setattr(sys, "executable", str(place / ".venv/bin/python"))
    assert wrong()["manifest"][1] == ".venv/bin/python stages/prepare_data.py"
    assert "`.venv/bin/python stages/prepare_data.py` makes it" in wrong()["manifest"][0]


def test_a_manifest_of_other_params_and_a_damaged_folder_are_told_apart(prepared):
    path = Path(prepared.folder) / "train_images.bin"
    path.write_bytes(path.read_bytes()[:-1])
    found = wrong()
    assert "is damaged" in found["data"][0] and found["data"][1] == PREPARE
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
    assert wrong()["pictures"] == ("own[red]: is not here", "set data.path in params.yaml")
    (place / "own[red]").mkdir()
    assert wrong() == {}
    (place / "data/own").mkdir(parents=True)
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
        PREPARE,
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


# --- ten faults, planted ---


def an_old_python(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))


def a_package_that_is_gone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", {name: pin for name, pin in PINS if name != "safetensors"}.get)


def images_cut_short(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place / "data/sample/train_images.bin"
    path.write_bytes(path.read_bytes()[:-1])


def a_file_for_the_cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "cache").write_text("a file")


def a_remote_that_is_gone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / ".dvc/config.local").write_text("['remote \"mine\"']\n    url = ../of mine\n")


def a_default_that_is_no_remote(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / ".dvc/config.local").write_text("[core]\n    remote = gone\n")


def a_config_without_the_published_remote(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / ".dvc/config").write_text("[core]\n    analytics = false\n")


def a_published_remote_elsewhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / ".dvc/config").write_text("['remote \"release\"']\n    url = /nonexistent\n")


def a_config_of_ones_own_that_is_damaged(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / ".dvc/config.local").write_text("[core\n")


def a_lock_of_a_dvc_that_was_killed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / ".dvc/tmp/rwlock").touch()


def a_full_disk(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000_000))


def a_gpu_that_is_not_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params(
        ("data", {"source": "sample", "folder": "data/sample", "validation_size": 200}),
        ("engine.device", "cuda"),
    )
    monkeypatch.setattr(doctor, "visible_gpus", list)


def a_clock_that_goes_back(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tomorrow = time.time() + 86_400
    os.utime(place / "params.yaml", (tomorrow, tomorrow))


def a_repository_without_objects(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / ".git").mkdir()
    (place / ".git/HEAD").write_text("nonsense")


PLANTED: list[tuple[Callable[[Path, pytest.MonkeyPatch], None], str, str, str]] = [
    (an_old_python, "python", "3.11 or newer", "make env PYTHON=python3.11"),
    (a_package_that_is_gone, "environment", "has not safetensors", "rm {place}/env/installed.lock && make env"),
    (images_cut_short, "data", "is damaged", PREPARE),
    (a_file_for_the_cache, "cache", "is no folder", "export XDG_CACHE_HOME=A_FOLDER_OF_YOURS"),
    (a_remote_that_is_gone, "remote", "mine (of mine): cannot be read", "mkdir -p 'of mine'"),
    (a_lock_of_a_dvc_that_was_killed, "locks", "rwlock: was left damaged", "make unlock"),
    (a_full_disk, "disk", "0.0 GB are free", f"make clean; {sys.executable} -m dvc gc --workspace"),
    (a_gpu_that_is_not_there, "gpu", "there is no GPU here", "set engine.device: auto in params.yaml"),
    (a_clock_that_goes_back, "clock", "params.yaml is from the future", "touch params.yaml"),
    (a_repository_without_objects, "git", ".git: is damaged", "git fsck says where; a fresh clone would work"),
]


@pytest.mark.parametrize(("plant", "name", "said", "mend"), PLANTED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_fault_is_found_alone_with_the_command_that_mends_it(
    plant, name, said, mend, prepared, place, monkeypatch
):
    plant(place, monkeypatch)
    found = wrong()
    assert list(found) == [name] and said in found[name][0]
    assert found[name][1] == mend.format(place=place)


def test_ten_faults_at_once_are_each_found(prepared, place, monkeypatch, capsys):
    for plant, *_ in PLANTED:
        plant(place, monkeypatch)
    assert sorted(wrong()) == sorted(name for _, name, *_ in PLANTED)
    assert capsys.readouterr().out.endswith("doctor: 10 of 15 are wrong\n")


@pytest.mark.parametrize(
    ("plant", "said", "mend"),
    [
        (
            a_default_that_is_no_remote,
            "gone, the default, is no remote",
            f"{sys.executable} -m dvc remote default --unset --local",
        ),
        (a_config_without_the_published_remote, "does not know the published one", "git checkout -- .dvc/config"),
        (a_published_remote_elsewhere, "release (/nonexistent): cannot be read", "git checkout -- .dvc/config"),
        (a_config_of_ones_own_that_is_damaged, ".dvc/config.local: cannot be read", "rm .dvc/config.local"),
    ],
)
def test_remotes_that_the_config_lacks_are_named(plant, said, mend, prepared, place, monkeypatch):
    plant(place, monkeypatch)
    found = wrong()
    assert list(found) == ["remote"] and said in found["remote"][0] and found["remote"][1] == mend


@pytest.mark.parametrize("plant", [a_remote_that_is_gone, a_clock_that_goes_back], ids=lambda plant: plant.__name__)
def test_the_command_that_is_named_mends_it(plant, prepared, place, monkeypatch):
    plant(place, monkeypatch)
    ((_, mend),) = wrong().values()
    subprocess.run(mend, shell=True, cwd=place, check=True)
    assert wrong() == {}


def test_files_of_the_repository_that_are_damaged_or_gone_are_each_found_and_git_restores_them(
    prepared, place, monkeypatch
):
    lock = place / "requirements.lock"
    monkeypatch.setattr(doctor, "LOCK", lock)
    found = wrong()
    assert list(found) == ["environment"] and found["environment"][1] == "git checkout -- requirements.lock"
    shutil.copy(ROOT / "requirements.lock", lock)
    (place / "metrics").mkdir()
    named = {"pipeline": "dvc.yaml", "results": "metrics/score.json", "dvc cache": "dvc.lock"}
    for path in named.values():
        (place / path).write_text("{}")
    for words in (["init", "-q"], ["add", "-f", "dvc.yaml", "dvc.lock", "metrics"]):
        subprocess.run(["git", *words], cwd=place, check=True)
    monkeypatch.setattr(doctor, "git", lambda: iter(()))
    for path in named.values():
        (place / path).write_text("{ no")
    assert {name: mend for name, (_, mend) in wrong().items()} == {
        name: f"git checkout -- {path}" for name, path in named.items()
    }
    (place / "dvc.yaml").unlink()
    assert wrong()["pipeline"] == ("dvc.yaml: there is no such file", "git checkout -- dvc.yaml")


def test_one_of_a_thing_is_said_in_the_singular():
    assert [doctor.counted(count, "changed file") for count in (0, 1, 2)] == [
        "0 changed files",
        "1 changed file",
        "2 changed files",
    ]


def test_looking_at_locks_changes_nothing_and_a_mended_one_is_right(place):
    lock = place / ".dvc/tmp/rwlock"
    lock.write_text("{")
    assert doctor.dvc_locks.look()[1] == "make unlock" and lock.read_text() == "{"
    doctor.dvc_locks.mend()
    assert doctor.dvc_locks.look() == ("", "")


def test_where_packages_are_missing_the_rest_is_looked_at_all_the_same(place, monkeypatch, capsys):
    def without_pydantic(path: str) -> None:
        raise ModuleNotFoundError("No module named 'pydantic'")

    monkeypatch.setattr(doctor, "params_and_data", without_pydantic)
    found = {one.name: one for one in doctor.findings("params.yaml")}
    assert found["params"].mark == "-" and {"disk", "clock", "git", "locks"} <= set(found)


@pytest.mark.parametrize("columns", [40, 80, 300])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost(columns, prepared, place, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    a_lock_of_a_dvc_that_was_killed(place, monkeypatch)
    monkeypatch.setattr(sys, "executable", "python3.11")
    doctor.main([])
    said = capsys.readouterr().out
    words = [word for line in said.splitlines() for word in line.split()]
    assert "mend it with: make unlock" in " ".join(words)
    assert all(len(line) < columns or len(line.split()) <= 3 for line in said.splitlines())
