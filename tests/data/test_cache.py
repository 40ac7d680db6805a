"""What was downloaded is kept once a user: verified, whole or absent, also for two at once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from micronet.data import cache as cache_module
from micronet.data.arrays import DataError
from micronet.data.cache import cache_folder, is_kept, kept

CONTENT = {"one.gz": b"the first", "two.gz": b"the second"}
SUMS = {name: hashlib.md5(content).hexdigest() for name, content in CONTENT.items()}


class Download:
    """In the place of a program that fetches files: into a folder below the one that it is given."""

    def __init__(self, content: dict[str, bytes] = CONTENT, seconds: float = 0.0):
        self.content, self.seconds, self.times = content, seconds, 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        time.sleep(self.seconds)
        (folder / "raw").mkdir()
        for name, content in self.content.items():
            (folder / "raw" / name).write_bytes(content)


def read(download: Download, lines: list[str] | None = None, timeout: float = 10.0) -> dict[str, bytes]:
    said = lines if lines is not None else []
    with kept(SUMS, download, timeout, said.append) as found:
        return {name: path.read_bytes() for name, path in found.items()}


@pytest.mark.parametrize(
    ("variable", "place"),
    [("/x/cache", "/x/cache/micronet"), ("", "/home/me/.cache/micronet"), ("here", "/home/me/.cache/micronet")],
)
def test_the_place_is_the_one_that_the_desktop_specification_says(variable, place, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", variable)
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder() == Path(place)


def test_what_was_downloaded_once_is_not_downloaded_again(cache):
    download = Download()
    assert not is_kept(SUMS) and read(download) == CONTENT and is_kept(SUMS)
    assert read(download) == CONTENT and download.times == 1
    assert {path.name for path in cache.iterdir() if not path.name.startswith(".")} == set(CONTENT)
    assert not list(cache.glob("*.part")) and not list(cache.glob(".*.part"))


def test_a_damaged_file_is_thrown_away_and_fetched_again(cache):
    download, lines = Download(), []
    read(download)
    (cache / "two.gz").write_bytes(b"the secona")
    assert read(download, lines) == CONTENT and download.times == 2
    assert lines[0] == f"{cache / 'two.gz'}: is damaged: fetched again"


def test_what_is_not_official_is_used_and_not_kept(cache):
    other = CONTENT | {"two.gz": b"another version"}
    assert read(Download(other)) == other
    assert not is_kept(SUMS) and not is_kept(["one.gz"])


def test_a_download_that_leaves_a_file_out_is_an_error_and_leaves_nothing(cache):
    with pytest.raises(DataError, match=r"the download left no two\.gz"):
        read(Download({"one.gz": CONTENT["one.gz"]}))
    assert [path.name for path in cache.iterdir()] == [".one.gz.lock"]


def test_a_place_that_cannot_be_written_is_said_and_done_without(cache):
    cache.write_text("a file")
    download, lines = Download(), []
    assert read(download, lines) == read(download) == CONTENT and download.times == 2
    assert lines == [f"{cache}: cannot be written (File exists); what is downloaded is not kept"]


def test_somebody_without_a_home_does_without(monkeypatch):
    monkeypatch.setattr(cache_module, "cache_folder", lambda: None)
    lines: list[str] = []
    assert read(Download(), lines) == CONTENT
    assert lines == ["the cache: cannot be written (there is no home folder); what is downloaded is not kept"]


@pytest.mark.skipif(os.geteuid() != 0, reason="looks for what an unreadable file does, which only a folder is for root")
def test_a_folder_in_the_place_of_a_file_is_done_without(cache):
    (cache / "one.gz").mkdir(parents=True)
    assert read(Download()) == CONTENT


def test_two_at_once_download_once(cache):
    download, lines = Download(seconds=0.3), []
    results: list[dict[str, bytes]] = []
    users = [threading.Thread(target=lambda: results.append(read(download, lines))) for _ in range(3)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert results == [CONTENT] * 3 and download.times == 1
    assert "another process downloads the same: waiting for it" in lines


def test_who_has_waited_too_long_fetches_it_himself(cache):
    cache.mkdir()
    with (cache / ".one.gz.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert read(Download(), timeout=0.2) == CONTENT


def test_the_lock_of_a_killed_process_holds_nobody_up(cache):
    cache.mkdir()
    (cache / ".one.gz.lock").touch()
    (cache / ".download.0123abcd.part").mkdir()
    start = time.monotonic()
    assert read(Download()) == CONTENT and time.monotonic() - start < 5
    assert not (cache / ".download.0123abcd.part").exists()
