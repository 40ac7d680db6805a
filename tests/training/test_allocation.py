"""Memory that a step frees stays with the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from micronet.training.allocation import SETTINGS, keep_freed_memory
from tests.support.places import ROOT

# Prints whether memory is kept, then the page faults of three rounds of allocating 100 MB in each of two threads.
PROGRAM = """
import ctypes, os, resource, threading
from micronet.training.process import settled

def round():
    for _ in range(5):
        block = libc.malloc(20 << 20)
        ctypes.memset(block, 1, 20 << 20)
        blocks.append(block)
    while blocks:
        libc.free(blocks.pop())

libc, blocks = ctypes.CDLL(None), []
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
with settled(1, print):
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        round()
        thread = threading.Thread(target=round)
        thread.start()
        thread.join()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*(os.environ.get(name) for name in %r))
"""


def faults(environment):
    inherited = {name: value for name, value in os.environ.items() if name not in SETTINGS and name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM % (list(SETTINGS),)],
        cwd=ROOT, env=inherited | environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    *rounds, settings = done.stdout.splitlines()
    return [int(count) for count in rounds], settings


def test_the_system_is_asked_for_the_memory_of_a_step_once():
    (first, second, third), settings = faults({})
    assert first > 20_000 and second < 500 and third < 500, "100 MB are 25,600 pages"
    assert settings == f"{2**62} 0 1", "what ranks inherit"


@pytest.mark.parametrize("own", [{"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}])
def test_settings_of_the_users_own_are_left_alone(own):
    (_, second, third), settings = faults(own)
    assert second > 20_000 and third > 20_000
    assert settings == f"None None {own.get('MALLOC_ARENA_MAX')}"


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    environment = {}
    assert keep_freed_memory(environment) is False and environment == {}
