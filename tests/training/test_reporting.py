"""The curve of a run as CSV, and what a person sees of it."""

from __future__ import annotations

import csv
import math
import os

import pytest
import torch

from micronet.files import FileError
from micronet.training import terminal
from micronet.training.reporting import EpochRow, Reporter, write_curve
from micronet.training.terminal import TerminalReporter
from tests.support.failures import full_disk
from tests.support.screens import Screen

HEADER = "epoch,learning_rate,train_loss,train_accuracy_percent,validation_loss,validation_accuracy_percent"
ROWS = [EpochRow(1, 0.1, 2.302585093, 10.0, 2.25, 12.5), EpochRow(2, 0.05, 1.5, 45.25, math.nan, math.nan)]


def screen(monkeypatch, *, live: bool) -> Screen:
    stream = Screen(live)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", stream)
    return stream


def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


# --- the CSV ---


def test_the_curve_has_a_header_and_a_row_an_epoch(tmp_path):
    write_curve(tmp_path / "curves/a.csv", ROWS)
    lines = (tmp_path / "curves/a.csv").read_text().splitlines()
    assert lines == [HEADER, "1,0.1,2.30259,10,2.25,12.5", "2,0.05,1.5,45.25,nan,nan"]


def test_a_run_without_epochs_has_a_header_alone(tmp_path):
    write_curve(tmp_path / "a.csv", [])
    assert (tmp_path / "a.csv").read_text() == HEADER + "\n"


def test_writing_again_neither_skips_nor_doubles_a_row(tmp_path):
    for count in (1, 2, 1, 2):
        write_curve(tmp_path / "a.csv", ROWS[:count])
    with (tmp_path / "a.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def test_numbers_come_back_to_six_digits(tmp_path):
    row = EpochRow(7, 0.0123456789, 1234.56789, 99.9999, 1e-9, 33.3333333)
    write_curve(tmp_path / "a.csv", [row])
    with (tmp_path / "a.csv").open() as file:
        (read,) = csv.DictReader(file)
    for name, value in read.items():
        assert float(value) == pytest.approx(getattr(row, name), rel=1e-5)


def test_a_curve_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    write_curve(tmp_path / "a.csv", ROWS[:1])
    before = (tmp_path / "a.csv").read_text()

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(FileError, match="No space left on device"):
        write_curve(tmp_path / "a.csv", ROWS)
    assert (tmp_path / "a.csv").read_text() == before and len(list(tmp_path.iterdir())) == 1


# --- the terminal ---


def follow(reporter: Reporter) -> None:
    """Two epochs of 100 images, as a training loop reports them."""
    reporter.start(epochs=2, images=100, epoch=0)
    for row in ROWS:
        for images in (50, 100):
            reporter.step(epoch=row.epoch, images=images, loss=1.25)
        reporter.epoch(row, 12.34)
    reporter.stop()


def test_the_base_reporter_stays_silent(capsys):
    follow(Reporter())
    Reporter().say("hello")
    assert capsys.readouterr() == ("", "")


def test_elsewhere_than_on_a_terminal_there_is_one_plain_line_an_epoch(monkeypatch):
    stream = screen(monkeypatch, live=False)
    follow(TerminalReporter("distill"))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3 and "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()
    assert [line.split()[0] for line in lines[1:]] == ["1/2", "2/2"]


def test_the_first_step_which_may_compile_says_nothing_of_the_time_that_the_others_take(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    stream = screen(monkeypatch, live=True)
    reporter = TerminalReporter("distill")
    reporter.start(epochs=2, images=100, epoch=0)
    for images, seconds in ((10, 300.0), (20, 1.0), (30, 1.0)):
        now[0] += seconds
        reporter.step(epoch=1, images=images, loss=1.0)
    assert stream.getvalue().endswith("epoch 1/2   30 %  loss 1.000  10 images/s  0:17 left")


def test_the_epoch_table_has_the_decks_columns_aligned(monkeypatch):
    stream = screen(monkeypatch, live=False)
    follow(TerminalReporter("distill"))
    header, first, _ = stream.getvalue().splitlines()
    assert header.split() == "epoch lr train loss train acc. valid acc. seconds".split()
    assert first.split() == ["1/2", "0.10000", "2.3026", "10.00", "%", "12.50", "%", "12.3"]
    assert len(first) == len(header)


def test_a_run_that_has_nothing_left_prints_no_header(monkeypatch):
    stream = screen(monkeypatch, live=False)
    TerminalReporter("prune").start(epochs=0, images=100, epoch=0)
    TerminalReporter("prune").start(epochs=3, images=100, epoch=3)
    assert stream.getvalue() == ""


def test_a_terminal_shows_progress_speed_and_time_left_in_one_refreshing_line(monkeypatch):
    stream, now = screen(monkeypatch, live=True), clock(monkeypatch)
    reporter = TerminalReporter("train_student")
    reporter.start(epochs=3, images=1000, epoch=0)
    start = len(stream.getvalue())
    now[0] += 10.0
    reporter.step(epoch=1, images=500, loss=1.25)
    line = stream.getvalue()[start:]
    assert line == "\r\x1b[2Ktrain_student: epoch 1/3   50 %  loss 1.250  50 images/s  0:50 left"


def test_after_a_resume_speed_and_time_left_count_this_run_alone(monkeypatch):
    stream, now = screen(monkeypatch, live=True), clock(monkeypatch)
    reporter = TerminalReporter("train_student")
    reporter.start(epochs=4, images=1000, epoch=2)
    now[0] += 10.0
    reporter.step(epoch=3, images=1000, loss=1.0)
    assert stream.getvalue().endswith("epoch 3/4  100 %  loss 1.000  100 images/s  0:10 left")


def test_a_terminal_is_refreshed_five_times_a_second_and_not_at_every_step(monkeypatch):
    stream, now = screen(monkeypatch, live=True), clock(monkeypatch)
    reporter = TerminalReporter("train_student")
    reporter.start(epochs=1, images=1000, epoch=0)
    for step in range(100):
        now[0] += 0.01
        reporter.step(epoch=1, images=10 * (step + 1), loss=1.0)
    assert 4 <= stream.getvalue().count("\r") <= 6


def test_the_refreshing_line_is_gone_before_anything_else_is_printed(monkeypatch):
    stream = screen(monkeypatch, live=True)
    reporter = TerminalReporter("prune")
    reporter.start(epochs=1, images=100, epoch=0)
    reporter.step(epoch=1, images=50, loss=1.0)
    reporter.say("a remark")
    assert stream.getvalue().endswith("left\r\x1b[2Kprune: a remark\n")


def test_a_remark_names_the_stage(monkeypatch):
    stream = screen(monkeypatch, live=False)
    TerminalReporter("retrain").say("going on after epoch 1")
    assert stream.getvalue() == "retrain: going on after epoch 1\n"


@pytest.mark.parametrize("columns", ["1", "10", "20", "63"])
def test_below_the_tables_width_an_epoch_is_a_line_a_number(monkeypatch, columns):
    stream = screen(monkeypatch, live=False)
    monkeypatch.setenv("COLUMNS", columns)
    follow(TerminalReporter("distill"))
    lines = stream.getvalue().splitlines()
    assert lines[:6] == [
        "epoch 1/2",
        "  lr 0.10000",
        "  train loss 2.3026",
        "  train acc. 10.00 %",
        "  valid acc. 12.50 %",
        "  seconds 12.3",
    ]
    assert len(lines) == 12


@pytest.mark.parametrize("columns", ["64", "80", "200", "many", "0", "-5", ""])
def test_a_wide_terminal_and_columns_that_are_no_number_show_the_table(monkeypatch, columns):
    stream = screen(monkeypatch, live=False)
    monkeypatch.setenv("COLUMNS", columns)
    follow(TerminalReporter("distill"))
    assert len(stream.getvalue().splitlines()) == 3


def test_the_refreshing_line_never_wraps(monkeypatch):
    stream, now = screen(monkeypatch, live=True), clock(monkeypatch)
    monkeypatch.setenv("COLUMNS", "20")
    reporter = TerminalReporter("train_student")
    reporter.start(epochs=3, images=1000, epoch=0)
    now[0] += 10.0
    reporter.step(epoch=1, images=500, loss=1.25)
    assert stream.getvalue() == "\r\x1b[2Ktrain_student: epoc"


def test_a_dumb_terminal_gets_no_escape_codes(monkeypatch):
    stream = screen(monkeypatch, live=True)
    monkeypatch.setenv("TERM", "dumb")
    follow(TerminalReporter("distill"))
    assert "\x1b" not in stream.getvalue() and len(stream.getvalue().splitlines()) == 3


def test_a_terminal_that_is_gone_stops_no_run(monkeypatch):
    class Gone(Screen):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    for stream in (Gone(terminal=True), None):
        monkeypatch.setattr("sys.stderr", stream)
        follow(TerminalReporter("distill"))


def test_steps_that_become_much_slower_are_said_once_with_what_to_set(monkeypatch):
    stream, now = screen(monkeypatch, live=False), clock(monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    reporter = TerminalReporter("prune")
    reporter.start(epochs=1, images=1000, epoch=0)
    for seconds in [0.1] * 50 + [5.0] + [0.1] * 20 + [1.2] * 40:  # one save between them is none of it
        now[0] += seconds
        reporter.step(epoch=1, images=10, loss=1.0)
    said = [line for line in stream.getvalue().splitlines() if "steps take" in line]
    assert said == [
        "prune: steps take 12 times as long as at first: other programs use the processor; with engine.threads: 1 "
        "that costs far less"
    ]


@pytest.mark.parametrize(("threads", "seconds"), [(1, 1.2), (2, 0.4)])
def test_steps_that_are_as_fast_as_they_can_be_are_not_mentioned(monkeypatch, threads, seconds):
    stream, now = screen(monkeypatch, live=False), clock(monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    reporter = TerminalReporter("prune")
    reporter.start(epochs=2, images=1000, epoch=0)
    for each in [0.1] * 50 + [seconds] * 50:
        now[0] += each
        reporter.step(epoch=1, images=10, loss=1.0)
    assert "steps take" not in stream.getvalue()


# --- long work ---


def trained(monkeypatch, *, live: bool, steps: int, seconds: float) -> str:
    """What is seen of one epoch of so many steps."""
    stream, now = screen(monkeypatch, live=live), clock(monkeypatch)
    reporter = TerminalReporter("retrain")
    reporter.start(epochs=1, images=10 * steps, epoch=0)
    for step in range(steps):
        now[0] += seconds
        reporter.step(epoch=1, images=10 * (step + 1), loss=1.0)
    return stream.getvalue()


@pytest.mark.parametrize("live", [True, False])
def test_after_the_first_steps_it_is_said_once_how_long_all_will_take(live, monkeypatch):
    said = trained(monkeypatch, live=live, steps=600, seconds=1.0)
    assert said.count("retrain: 1 epochs will take about 10:00") == 1


def test_a_short_run_does_not_say_how_long_it_takes(monkeypatch):
    assert "will take" not in trained(monkeypatch, live=False, steps=100, seconds=0.1)


def test_a_long_epoch_says_now_and_then_how_far_it_is_where_nothing_is_redrawn(monkeypatch):
    lines = trained(monkeypatch, live=False, steps=600, seconds=1.0).splitlines()
    told = [line for line in lines if "left" in line]
    assert told[0] == "retrain: epoch 1/1    2 %  loss 1.000  10 images/s  9:45 left"
    assert 10 < len(told) < 30


def test_work_beside_the_steps_is_seen_too(monkeypatch):
    stream, now = screen(monkeypatch, live=False), clock(monkeypatch)
    with TerminalReporter("quantize").watch("calibration", 100, "images") as told:
        now[0] += 20.0
        told(50)
    assert stream.getvalue() == "quantize: calibration: 50 of 100 images, 0:20 left\n"
    with Reporter().watch("calibration", 100, "images") as told:
        told(50)


def test_the_epoch_table_and_its_rows_fit_80_columns(monkeypatch):
    stream = screen(monkeypatch, live=False)
    reporter = TerminalReporter("train_teacher")
    reporter.start(epochs=10_000, images=1, epoch=0)
    reporter.epoch(EpochRow(10_000, 0.1, 1234.5, 100.0, 2.25, 100.0), 12_345.6)
    assert all(len(line) <= 80 for line in stream.getvalue().splitlines())


def test_training_begins_with_which_stage_of_how_many_it_is_and_how_much_is_to_do(monkeypatch):
    stream = screen(monkeypatch, live=False)
    TerminalReporter("prune", "stage 5 of 8").start(epochs=4, images=800, epoch=1)
    assert stream.getvalue().splitlines()[0] == "prune: stage 5 of 8, 3 epochs of 800 images"
    stream = screen(monkeypatch, live=False)
    TerminalReporter("prune", "stage 5 of 8").start(epochs=0, images=800, epoch=0)
    assert stream.getvalue() == ""


def test_what_was_done_of_an_epoch_before_a_resume_is_no_speed_of_this_run(monkeypatch):
    stream, now = screen(monkeypatch, live=True), clock(monkeypatch)
    reporter = TerminalReporter("prune")
    reporter.start(epochs=2, images=1000, epoch=1, done=800)
    now[0] += 10.0
    reporter.step(epoch=2, images=900, loss=1.0)
    assert stream.getvalue().endswith("epoch 2/2   90 %  loss 1.000  10 images/s  0:10 left")
