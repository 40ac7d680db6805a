"""How far long work is: a bar on a terminal, a line now and then elsewhere, nothing for short work."""

from __future__ import annotations

import pytest

from micronet.data import progress
from tests.support.screens import Screen


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return time


def work(now: list[float], seconds: float, title: str = "calibration") -> list[str]:
    """Ten parts of ten images, a tenth of the time each; what is said."""
    said: list[str] = []
    with progress.progress_bar(title, 100, "images", said.append) as told:
        for done in range(10, 101, 10):
            now[0] += seconds / 10
            told(done)
    return said


def test_elsewhere_than_on_a_terminal_there_is_a_line_now_and_then_with_the_time_left(now, monkeypatch):
    stream = Screen(False)
    monkeypatch.setattr("sys.stderr", stream)
    assert work(now, 100) == [
        "calibration: 20 of 100 images, 1:20 left",
        "calibration: 40 of 100 images, 1:00 left",
        "calibration: 60 of 100 images, 0:40 left",
        "calibration: 80 of 100 images, 0:20 left",
        "calibration: 100 of 100 images, 0:00 left",
    ]
    assert stream.getvalue() == ""


def test_short_work_says_nothing(now, monkeypatch):
    for terminal in (False, True):
        stream = Screen(terminal)
        monkeypatch.setattr("sys.stderr", stream)
        assert work(now, 0.4) == [] and stream.getvalue() == ""


@pytest.mark.parametrize("columns", ["80", "40"])
def test_a_terminal_shows_title_bar_share_and_time_left_in_one_line(columns, now, monkeypatch):
    stream = Screen(True)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", columns)
    assert work(now, 100, "the teacher [red] answers") == []
    seen = stream.getvalue().replace("\x1b[2K", "\r").split("\r")
    (halfway,) = {line for line in seen if " 50 %" in line} or {""}
    if columns == "80":
        assert halfway.startswith("the teacher [red] answers ") and halfway.rstrip().endswith("50 % 0:50 left")
    assert all(len(line.rstrip("\n")) <= int(columns) for line in seen if "\x1b" not in line)


def test_a_terminal_that_is_gone_stops_no_work(now, monkeypatch):
    class Gone(Screen):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("sys.stderr", Gone(True))
    work(now, 100)


def test_what_is_counted_comes_through_as_it_was():
    told: list[int] = []
    assert list(progress.counted([[1, 2], [3], []], told.append)) == [[1, 2], [3], []]
    assert told == [2, 3, 3]
