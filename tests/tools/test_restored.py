"""What DVC would restore, against dvc.lock."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import restored
import yaml
from restored import CACHE, LOCK, REMOTE, main

RIGHT, WRONG = b"weights " * 100, b"wEights " * 100
MODEL = Path("checkpoints/a.safetensors")
MD5 = hashlib.md5(RIGHT).hexdigest()
OBJECT, PUBLISHED = (folder / MD5[:2] / MD5[2:] for folder in (CACHE, REMOTE))


def put(**contents: bytes) -> None:
    for name, content in contents.items():
        path = {"here": MODEL, "cache": OBJECT, "remote": PUBLISHED}[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def found() -> dict[str, bool]:
    """Which of the three places has the file, and whether it is right."""
    places = {"here": MODEL, "cache": OBJECT, "remote": PUBLISHED}
    return {name: path.read_bytes() == RIGHT for name, path in places.items() if path.exists()}


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = {"path": str(MODEL), "hash": "md5", "md5": MD5, "size": len(RIGHT)}
    folder = {"path": "folder", "md5": MD5 + ".dir", "size": 1, "nfiles": 1}
    LOCK.write_text(
        yaml.safe_dump({"schema": "2.0", "stages": {"train": {"cmd": "x", "outs": [out, folder]}, "n": {}}})
    )


def test_what_is_right_everywhere_is_not_mentioned_nor_touched(capsys):
    put(here=RIGHT, cache=RIGHT, remote=RIGHT)
    before = MODEL.stat().st_mtime_ns
    assert main() == 0 and capsys.readouterr().err == "" and MODEL.stat().st_mtime_ns == before


def test_nothing_that_is_there_is_nothing_to_say(capsys):
    assert main() == 0 and capsys.readouterr().err == ""
    LOCK.unlink()
    assert main() == 0


@pytest.mark.parametrize("damaged", [WRONG, RIGHT[:-1], b""])
@pytest.mark.parametrize(
    ("others", "source"),
    [({"remote": RIGHT}, PUBLISHED), ({"here": RIGHT}, MODEL), ({"here": WRONG, "remote": RIGHT}, PUBLISHED)],
)
def test_a_damaged_object_is_replaced_by_a_copy_that_is_right(damaged, others, source, capsys):
    if others.get("here") == WRONG:
        others = others | {"here": damaged}  # checked out from the damaged object
    put(cache=damaged, **others)
    assert main() == 0
    assert f"{MODEL}: its copy in .dvc/cache was damaged; it is restored from {source}\n" in capsys.readouterr().err
    assert found() == {"cache": True, "here": True} | ({"remote": True} if "remote" in others else {})
    assert OBJECT.stat().st_mode & 0o777 == 0o444


def test_a_damaged_object_without_a_right_copy_is_removed_with_what_was_checked_out_from_it(capsys):
    put(cache=WRONG, here=WRONG)
    assert main() == 0 and found() == {}
    assert "was damaged and is removed; the stage makes it anew" in capsys.readouterr().err


def test_a_file_that_somebody_made_himself_is_kept_and_looked_at_again():
    put(here=b"mine", cache=WRONG, remote=RIGHT)
    restored.os.utime(MODEL, (1, 1))
    assert main() == 0
    assert MODEL.read_bytes() == b"mine" and MODEL.stat().st_mtime > 1 and found()["cache"]


def test_a_file_that_differs_here_alone_gets_another_date_so_that_dvc_looks_at_it():
    for places in ({"cache": RIGHT}, {}):
        put(here=WRONG, **places)
        restored.os.utime(MODEL, (1, 1))
        assert main() == 0 and MODEL.stat().st_mtime > 1


def test_a_damaged_published_object_is_an_error_with_the_way_out(capsys):
    put(remote=WRONG)
    assert main() == 1
    assert f"({MODEL}): is damaged; `git checkout -- release/cache` restores it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "stages: [",
        "[]",
        "stages: {a: {outs: [{path: x}]}}",
        "stages: {a: {outs: [{path: x, md5: zz, size: 1}]}}",
        "\xff",
        "",
    ],
)
def test_a_damaged_lock_is_one_line_with_the_way_out(text, capsys):
    LOCK.write_text(text, encoding="latin-1")
    assert main() == 1
    said = capsys.readouterr().err
    assert (
        said.startswith("make: dvc.lock: is damaged (")
        and "`git checkout -- dvc.lock`" in said
        and said.count("\n") == 1
    )
