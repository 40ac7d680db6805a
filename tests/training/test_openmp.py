"""Settings of OpenMP that torch never ends with, and what a stage settles of its process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from micronet.params import Engine
from micronet.training.hardware import machine
from micronet.training.interruption import stop_signals
from micronet.training.openmp import OVERRULED, ThreadsError, settle
from micronet.training.process import settled
from tests.support.places import ROOT


@pytest.mark.parametrize("threads", [0, 2, 64])
@pytest.mark.parametrize(
    ("name", "value"),
    [(name, f"{space}{value}{space}") for name, value in OVERRULED.items() for space in ("", " ")]
    + [("OMP_DYNAMIC", "TRUE")],
)
def test_a_setting_that_torch_hangs_with_is_removed_and_said(name, value, threads):
    environment = {name: value, "OTHER": "1"}
    (line,) = settle(environment, threads)
    assert environment == {"OTHER": "1"} and line.startswith(f"{name}={value.strip().lower()} is ignored: ")
    assert settle(environment, threads) == []


def test_fewer_threads_than_the_params_say_are_refused_with_the_way_out():
    for limit in ("1", " 1 ", "3"):
        with pytest.raises(
            ThreadsError, match=f"OMP_THREAD_LIMIT={limit.strip()} is below engine.threads: 4, .*unset it"
        ):
            settle({"OMP_THREAD_LIMIT": limit}, 4)


def test_where_torch_chooses_it_is_held_to_the_limit():
    for asked in ({}, {"OMP_NUM_THREADS": "8"}, {"OMP_NUM_THREADS": "8,2"}, {"OMP_NUM_THREADS": "many"}):
        environment = {"OMP_THREAD_LIMIT": "2", **asked}
        assert settle(environment, 0) == ["torch gets 2 threads, as OMP_THREAD_LIMIT says"]
        assert environment["OMP_NUM_THREADS"] == "2" and settle(environment, 0) == []


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, 2),
        ({"OMP_DYNAMIC": "true", "OMP_THREAD_LIMIT": "1", "OMP_MAX_ACTIVE_LEVELS": "0"}, 1),
        ({"OMP_DYNAMIC": "false"}, 2),
        ({"OMP_DYNAMIC": "1"}, 2),  # libgomp takes words alone
        ({"OMP_THREAD_LIMIT": "2"}, 2),
        ({"OMP_THREAD_LIMIT": "0"}, 2),
        ({"OMP_THREAD_LIMIT": "many"}, 2),
        ({"OMP_MAX_ACTIVE_LEVELS": "1"}, 2),
        ({"OMP_NUM_THREADS": "1", "OMP_THREAD_LIMIT": "2"}, 0),
    ],
)
def test_what_does_not_hang_is_left_alone(environment, threads):
    before = dict(environment)
    assert settle(environment, threads) == [] and environment == before


def test_a_program_that_has_loaded_torch_already_is_refused(monkeypatch):
    monkeypatch.setenv("OMP_DYNAMIC", "true")
    with pytest.raises(ThreadsError, match="OMP_DYNAMIC=true .*torch is loaded already, so unset it before"):
        machine(Engine(device="cpu", threads=2))


def test_settings_are_looked_at_before_torch_is_loaded():
    program = "import sys, micronet.training.process; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


@pytest.mark.slow
def test_training_ends_under_settings_that_torch_would_hang_with():
    program = """
import os, sys
from micronet.training.process import settled
with settled(2, print):
    import torch
    torch.set_num_threads(2)
    layer = torch.nn.Conv2d(3, 8, 3)
    for _ in range(3):
        layer(torch.ones(64, 3, 32, 32)).square().mean().backward()
print(torch.get_num_threads())
"""
    settings = {"OMP_DYNAMIC": "true", "OMP_MAX_ACTIVE_LEVELS": "0"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "2" and done.stdout.count("is ignored") == 2


# --- signals ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_end_a_process_end_a_stage_as_ctrl_c_does(number):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), settled(1, print):
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_closed_terminal_is_noted_by_a_run_unless_nohup_ignores_it():
    with stop_signals() as received:
        os.kill(os.getpid(), signal.SIGHUP)
    assert received == [signal.SIGHUP]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with settled(1, print), stop_signals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
        assert received == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stage_that_starts_with_closed_streams_gives_their_numbers_to_no_file(tmp_path):
    program = """
import os, sys
from micronet.training.process import settled
for number in (0, 1, 2):
    os.close(number)
sys.stdin = sys.stdout = sys.stderr = None
with settled(1, print), open(sys.argv[1], "w") as file:
    print("said", file=sys.stderr, flush=True)
    os.write(2, b"by C")
    file.write(str(file.fileno() > 2))
"""
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path / "file")], cwd=ROOT).returncode == 0
    assert (tmp_path / "file").read_text() == "True"
