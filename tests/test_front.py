"""How commands end: an exit code of 0, 1, 2 or 130, and a line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from micronet.errors import MicronetError
from micronet.front import OF_MAKE, ArgumentError, front
from micronet.params import ParamsError
from report.errors import UnknownName
from tests.support.places import ROOT
from tests.support.thinning import thinned


class Stopped(MicronetError):
    exit_code = 130


def ended(error: BaseException | None, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit code and lines of a command `prune` whose work ends in an error."""

    def work() -> None:
        if error is not None:
            raise error

    code = front("prune", work)
    said = capsys.readouterr()
    assert said.out == ""
    return code, said.err.splitlines()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (None, 0, []),
        (MicronetError("x: is not there"), 1, [f"prune: x: is not there; {MicronetError.remedy}"]),
        (MicronetError("x: is not there; y makes it"), 1, ["prune: x: is not there; y makes it"]),
        (MicronetError("two\nlines"), 1, ["prune: two", "lines"]),
        (MicronetError("a\x1b[31m one"), 1, [f"prune: a\\x1b[31m one; {MicronetError.remedy}"]),
        (ParamsError(["p.yaml: a: bad", "p.yaml: b: bad"]), 2, ["p.yaml: a: bad", "p.yaml: b: bad"]),
        (ArgumentError("NAME: there is none"), 2, ["prune: NAME: there is none"]),
        (UnknownName("NAME: there is none"), 2, ["prune: NAME: there is none"]),
        (Stopped("the state is saved"), 130, ["prune: the state is saved"]),
        (KeyboardInterrupt(), 130, ["prune: stopped"]),
        (BrokenPipeError(), 1, []),
    ],
)
def test_what_was_foreseen_is_its_code_and_its_lines(capsys, error, code, lines):
    assert ended(error, capsys) == (code, lines)


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("x can't allocate memory: y")]
)
def test_memory_that_is_not_there_says_what_to_lower(capsys, error):
    code, (line,) = ended(error, capsys)
    assert code == 1 and line.startswith("prune: out of memory: a smaller batch_size or evaluation_batch_size")


def test_what_nobody_foresaw_is_a_line_and_a_traceback_in_a_file(tmp_path, capsys):
    code, (line,) = ended(IndexError("list\nindex " + "x" * 1000), capsys)
    assert code == 1 and len(line) <= 300
    assert line.startswith("prune: failed unexpectedly: IndexError: list index xxx")
    assert line.endswith("xxx (traceback: run/prune.traceback.txt)")
    assert "raise error" in (tmp_path / "run/prune.traceback.txt").read_text()


def test_code_that_ends_the_program_is_a_fault(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert front("prune", lambda: sys.exit(0)) == 1
    said = "prune: was ended by exit(0) in code that it ran (traceback: run/prune.traceback.txt)\n"
    assert capsys.readouterr().err == said


def test_a_traceback_that_cannot_be_kept_is_left_out(tmp_path, capsys):
    (tmp_path / "run").write_text("a file")
    assert ended(KeyError("x"), capsys) == (1, ["prune: failed unexpectedly: KeyError: 'x'"])


def command(words: str) -> list[str]:
    text = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from micronet.front import front, without_prompt; "
    return [sys.executable, "-c", text + words]


def test_a_reader_that_has_gone_is_told_nothing():
    out, into = os.pipe()
    os.close(out)
    words = "sys.exit(front('x', lambda: print('a line')))"
    done = subprocess.run(command(words), stdout=into, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(into)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_disk_that_is_full_is_a_line():
    line = "cannot be written (No space left on device); freeing some space would work\n"
    with open("/dev/full", "w") as full:
        words = "sys.exit(front('x', lambda: print('a line')))"
        done = subprocess.run(command(words), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "x: " + line)


def test_a_stopped_command_that_took_its_shells_place_ends_make_in_silence(tmp_path):
    """One that kept its shell is an error to make: that is what the shell is for."""
    (tmp_path / "stopped.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import os, subprocess\n"
        "from micronet.front import OF_MAKE, front\n"
        "def work():\n"
        "    print(OF_MAKE in os.environ)  # which what it starts would have too\n"
        "    raise KeyboardInterrupt\n"
        "sys.exit(front('x', work))\n"
    )
    command = f'exec "{sys.executable}" stopped.py; true\n'
    by_its_shell = f"export BASH_ENV := {ROOT}/tools/stopped.bash\nSHELL := bash\nkept:\n\t@exit 130\n"
    targets = f"placed:\n\t@{OF_MAKE}=1 {command}plain:\n\t@{command}"
    (tmp_path / "Makefile").write_text(targets)
    (tmp_path / "kept.mk").write_text(by_its_shell)

    def make(*words: str, starts: Callable[[], object] | None = None) -> subprocess.CompletedProcess[str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "BASH_ENV"))}
        whole = ["make", *words]
        return subprocess.run(
            whole, cwd=tmp_path, env=ours, capture_output=True, text=True, timeout=60, preexec_fn=starts
        )

    done = make("placed")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "False\n", "x: stopped\n")
    done = make("plain")
    assert done.returncode == 2 and "Error 130" in done.stderr
    done = make("-f", "kept.mk", "kept")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")

    def deaf() -> None:  # as what a script starts in its background
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    for target in ("kept", "placed"):
        (tmp_path / "all.mk").write_text(f"all: {target}\n\t@echo went on\ninclude kept.mk\ninclude Makefile\n")
        done = make("-f", "all.mk", "all", starts=deaf)
        assert done.returncode == 2 and "Error 130" in done.stderr and "went on" not in done.stdout


@pytest.mark.parametrize(
    ("command", "name"),
    thinned(
        [
            ("-m micronet.predict a b", "predict"),
            ("stages/prune.py", "prune"),
            ("stages/check.py", "check"),
            ("sweeps/run.py sweeps/demo.yaml", "sweep"),
            ("tools/compare.py a b", "make compare"),
            ("tools/doctor.py", "doctor"),
        ],
        4,
    ),
)
def test_an_argument_that_is_unknown_is_one_line_that_begins_with_the_command(command, name):
    words = [sys.executable, *command.split(), "--nonsense"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{name}: unrecognized arguments: --nonsense\n"


def test_every_command_has_such_a_parser():
    folders = ("micronet", "stages", "sweeps", "tools", "bench")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    assert not [path for path in files if "ArgumentParser(" in path.read_text() and path.name != "front.py"]


def test_every_tool_and_bench_refuses_arguments_that_it_does_not_know_instead_of_starting():
    scripts = [path for folder in ("tools", "bench", "stages", "sweeps") for path in (ROOT / folder).glob("*.py")]
    run = [path for path in scripts if '__name__ == "__main__"' in path.read_text()]
    assert len(run) > 40
    reads = ("parse_args(", "sys.argv", "arguments(", ".main(")
    assert [path.name for path in run if not any(name in path.read_text() for name in reads)] == []
    words = [sys.executable, "tools/released.py", "--nonsense"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "released: unrecognized arguments: --nonsense\n")


def test_recipes_that_become_a_sweep_say_so_to_it():
    lines = (ROOT / "Makefile").read_text().splitlines()
    recipes = [line for line in lines if "exec" in line and "sweeps/run.py" in line]
    assert len(recipes) == 3 and all(f"{OF_MAKE}=1 exec " in line for line in recipes)
