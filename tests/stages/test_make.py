"""The commands that people type, and the environment that they make."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
import repro

from tests.support.places import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

CONTRACT = {"score", "demo", "test", "env", "repro", "lint", "use", "help"}
LAPTOP, DEMO, EDITED = "seed: 1\n", "seed: 2\n", "seed: 3\n"


def targets() -> list[str]:
    return re.findall(r"^([A-Za-z][\w-]*):(?!=)", MAKEFILE, flags=re.MULTILINE)


def environment() -> dict[str, str]:
    """What the shell has, less what the `make` or the git hook that runs these tests may have added."""
    ours = {"MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "RECIPE", "FILE", "VENV", "PYTHON"}
    return {name: value for name, value in os.environ.items() if name not in ours and not name.startswith("GIT_")}


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", "-C", str(folder), *arguments]
    # What started the tests in the background may have left them deaf to Ctrl-C, which is passed on.
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, preexec_fn=hears)


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.invalid"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    subprocess.run(command, env=environment(), check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A committed repository with two recipes, `laptop` being the active one. It has no environment."""
    (tmp_path / "Makefile").write_text(MAKEFILE)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/laptop.yaml").write_text(LAPTOP)
    (tmp_path / "recipes/demo.yaml").write_text(DEMO)
    (tmp_path / "params.yaml").write_text(LAPTOP)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "start")
    return tmp_path


# --- help ---


def test_the_commands_of_the_contract_exist() -> None:
    assert CONTRACT <= set(targets())


def test_help_is_what_plain_make_prints() -> None:
    assert make(ROOT).stdout == make(ROOT, "help").stdout != ""


def test_help_begins_with_six_lines_and_lists_every_target_once_with_a_purpose_in_80_columns() -> None:
    said = make(ROOT, "help").stdout
    start, *groups = said.split("\n\n")
    heading, *six = start.splitlines()
    assert heading == "To start with:" and len(six) == 6
    assert all(line.split()[1] in targets() for line in six)
    listed = [line.split()[1:] for group in groups for line in group.splitlines() if line.startswith("  make ")]
    assert sorted(name for name, *_ in listed) == sorted(targets())
    assert all(purpose for _, *purpose in listed)
    assert all(len(line) < 80 for line in said.splitlines())


def test_helps_groups_are_the_headings_of_the_makefile_and_what_others_call_comes_last() -> None:
    groups = [group.splitlines()[0] for group in make(ROOT, "help").stdout.split("\n\n")[1:]]
    assert groups == re.findall(r"^# --- (.*) ---$", MAKEFILE, flags=re.MULTILINE)
    assert groups[-1] == "called by other targets"


def test_every_target_is_phony_so_that_no_file_of_its_name_switches_it_off() -> None:
    assert re.findall(r"^\.PHONY: ([\w-]+)$", MAKEFILE, flags=re.MULTILINE) == targets()


# --- the lock ---


def test_the_lock_names_no_place_to_download_from() -> None:
    assert not re.search(r"https?:|file:|--index|--extra-index|--find-links|@ ", LOCK)


def test_the_lock_pins_every_direct_dependency() -> None:
    direct = PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in direct}
    pinned = set(re.findall(r"^([\w-]+)==\d", LOCK, flags=re.MULTILINE))
    assert len(names) == len(direct)
    assert names <= pinned


def test_the_lock_holds_nothing_but_exact_versions() -> None:
    assert [line for line in LOCK.splitlines() if not re.match(r"[a-z0-9-]+==[\w.]+( ; .+)?$", line)] == []


# --- the environment ---


def test_an_environment_of_this_lock_is_left_alone(tmp_path: Path) -> None:
    copy_environment_files(tmp_path, lock_of_the_environment=LOCK)
    result = make(tmp_path, "env", "PYTHON=a-python-that-is-not-there")
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("installed", [None, LOCK + "another==1\n"], ids=["half-built", "of another lock"])
def test_any_other_environment_is_built_anew(tmp_path: Path, installed: str | None) -> None:
    copy_environment_files(tmp_path, lock_of_the_environment=installed)
    result = make(tmp_path, "env", "PYTHON=a-python-that-is-not-there")
    assert result.returncode == 2
    assert "a-python-that-is-not-there is not Python 3.11 or newer" in result.stderr


def test_a_python_that_is_too_old_is_refused_before_anything_is_deleted(tmp_path: Path) -> None:
    copy_environment_files(tmp_path, lock_of_the_environment=None)
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    assert "make env PYTHON=python3.11" in make(tmp_path, "env", f"PYTHON={old}").stderr
    assert (tmp_path / ".venv/bin/python").exists()


def copy_environment_files(folder: Path, lock_of_the_environment: str | None) -> None:
    """A project of a Makefile and a lock, with an environment that says it was built from the given lock."""
    (folder / "Makefile").write_text(MAKEFILE)
    (folder / "requirements.lock").write_text(LOCK)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").symlink_to(sys.executable)
    if lock_of_the_environment is not None:
        (folder / ".venv/installed.lock").write_text(lock_of_the_environment)


@pytest.mark.parametrize("code", [0, 3])
def test_an_environment_that_is_taken_away_in_the_middle_of_repro_ends_it_with_a_line(
    tmp_path: Path, code: int
) -> None:
    copy_environment_files(tmp_path, lock_of_the_environment=LOCK)
    python = tmp_path / ".venv/bin/python"
    python.unlink()
    python.write_text(f'#!/bin/sh\ncase "$*" in *repro.py*) rm -r "{python.parent.parent}"; exit {code};; esac\n')
    python.chmod(0o755)
    result = make(tmp_path, "repro")
    assert result.returncode == 2 and ".venv was taken away in the middle" in result.stderr


def test_repro_ends_as_dvc_does(tmp_path: Path) -> None:
    copy_environment_files(tmp_path, lock_of_the_environment=LOCK)
    python = tmp_path / ".venv/bin/python"
    python.unlink()
    for code in (0, 3):
        python.write_text(f'#!/bin/sh\ncase "$*" in *repro.py*) exit {code};; esac\n')
        python.chmod(0o755)
        assert make(tmp_path, "repro").returncode == (2 if code else 0)


def test_what_calls_dvc_clears_its_locks_away_before() -> None:
    texts = dict(re.findall(r"^([a-z][\w-]*:.*)\n((?:\t.*\n)+)", MAKEFILE, flags=re.MULTILINE))
    callers = [head for head, recipe in texts.items() if re.search(r"\$\(DVC\)|REPRO(DUCE)?\b|accept\.py", recipe)]
    assert len(callers) == 8
    assert [head.split(":")[0] for head in callers if " unlock" not in head] == ["demo"]  # which starts from nothing


def test_what_runs_stages_looks_before_whether_a_folder_of_pictures_has_changed() -> None:
    texts = dict(re.findall(r"^([a-z][\w-]*:.*)\n((?:\t.*\n)+)", MAKEFILE, flags=re.MULTILINE))
    callers = [head for head, recipe in texts.items() if "call REPRO" in recipe]
    assert len(callers) == 2 and all(" fresh" in head for head in callers)
    assert "stages/check.py --renew" in next(recipe for head, recipe in texts.items() if head.startswith("fresh:"))


# --- make use ---


def test_use_makes_the_recipe_the_active_params(checkout: Path) -> None:
    result = make(checkout, "use", "RECIPE=demo")
    assert result.returncode == 0, result.stderr
    assert (checkout / "params.yaml").read_text() == DEMO
    assert not (checkout / "params.yaml.new").exists()


def test_use_needs_no_environment(checkout: Path) -> None:
    make(checkout, "use", "RECIPE=demo")
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("name", ["nothing", "../params", "demo laptop", "demo.yaml"])
def test_use_of_an_unknown_recipe_lists_those_that_exist(checkout: Path, name: str) -> None:
    result = make(checkout, "use", f"RECIPE={name}")
    assert result.returncode == 2
    assert f"make use: there is no recipe '{name}'; name one of: demo laptop\n" in result.stderr
    assert (checkout / "params.yaml").read_text() == LAPTOP


def test_use_without_a_recipe_lists_those_that_exist(checkout: Path) -> None:
    result = make(checkout, "use")
    assert result.returncode == 2
    assert "make use: RECIPE is missing; name one of: demo laptop\n" in result.stderr


def test_use_refuses_to_overwrite_edits_that_are_not_committed(checkout: Path) -> None:
    (checkout / "params.yaml").write_text(EDITED)
    result = make(checkout, "use", "RECIPE=demo")
    assert result.returncode == 2
    assert "make use: params.yaml has edits that are not committed" in result.stderr
    assert (checkout / "params.yaml").read_text() == EDITED


def test_use_refuses_to_overwrite_params_that_git_has_never_seen(checkout: Path) -> None:
    git(checkout, "rm", "--quiet", "params.yaml")
    git(checkout, "commit", "--quiet", "-m", "no params")
    (checkout / "params.yaml").write_text(EDITED)
    assert make(checkout, "use", "RECIPE=demo").returncode == 2
    assert (checkout / "params.yaml").read_text() == EDITED


def test_use_overwrites_committed_edits(checkout: Path) -> None:
    (checkout / "params.yaml").write_text(EDITED)
    git(checkout, "commit", "--quiet", "-am", "edit")
    assert make(checkout, "use", "RECIPE=demo").returncode == 0
    assert (checkout / "params.yaml").read_text() == DEMO


def test_use_moves_on_from_another_recipe_without_a_commit(checkout: Path) -> None:
    assert make(checkout, "use", "RECIPE=demo").returncode == 0
    assert make(checkout, "use", "RECIPE=laptop").returncode == 0
    assert (checkout / "params.yaml").read_text() == LAPTOP


def test_use_writes_the_first_params_of_a_folder_that_has_none(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/demo.yaml").write_text(DEMO)
    shutil.copy(ROOT / "Makefile", tmp_path)
    assert make(tmp_path, "use", "RECIPE=demo").returncode == 0
    assert (tmp_path / "params.yaml").read_text() == DEMO


# --- what ends a command ---


def test_what_ctrl_c_stopped_has_the_last_word_and_make_ends_as_a_stopped_program(tmp_path: Path) -> None:
    """The stage's sentence is what is read last: neither DVC nor make calls it a fault."""
    copy_environment_files(tmp_path, lock_of_the_environment=LOCK)
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    python = tmp_path / ".venv/bin/python"
    python.unlink()
    said = "train_teacher: stopped in epoch 1; the same command goes on from here"
    python.write_text(f'#!/bin/sh\ncase "$*" in *repro.py*) echo "{said}" >&2; exit 130;; esac\n')
    python.chmod(0o755)
    result = make(tmp_path, "repro")
    assert result.stderr == f"{said}\n" and result.returncode == -signal.SIGINT


def test_a_recipe_that_fails_is_still_said_by_make(tmp_path: Path) -> None:
    copy_environment_files(tmp_path, lock_of_the_environment=LOCK)
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    python = tmp_path / ".venv/bin/python"
    python.unlink()
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    result = make(tmp_path, "test")
    assert result.returncode == 2 and "***" in result.stderr


@pytest.mark.parametrize("cause", ["failed to run: python stages/prune.py, exited with 130", "KeyboardInterrupt"])
def test_dvc_is_quiet_about_a_stage_that_was_stopped(cause: str) -> None:
    stopped, error = repro.Stopped(), RuntimeError("failed to reproduce 'prune'")
    error.__cause__ = KeyboardInterrupt() if cause == "KeyboardInterrupt" else RuntimeError(cause)
    record = logging.LogRecord("dvc", logging.ERROR, "", 0, "", (), (RuntimeError, error, None))
    assert not stopped.filter(record) and stopped.seen


def test_dvc_says_of_every_other_fault_what_it_says() -> None:
    stopped, error = repro.Stopped(), RuntimeError("failed to run: python stages/prune.py, exited with 1")
    record = logging.LogRecord("dvc", logging.ERROR, "", 0, "", (), (RuntimeError, error, None))
    assert stopped.filter(record) and not stopped.seen
    assert stopped.filter(logging.LogRecord("dvc", logging.INFO, "", 0, "a line", (), None))


def test_doctor_runs_where_there_is_no_environment_and_says_so(tmp_path: Path) -> None:
    """A broken .venv is what it shall find."""
    copy_environment_files(tmp_path, lock_of_the_environment=LOCK)
    python = tmp_path / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python3")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/doctor.py").write_text('print("looked by another Python")\n')
    assert make(tmp_path, "doctor", f"PYTHON={sys.executable}").stdout == "looked by another Python\n"
    assert "make doctor PYTHON=" in make(tmp_path, "doctor", "PYTHON=no-python").stderr


def test_without_a_repository_dvc_is_told_that_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(MAKEFILE + "\nshow:\n\t@echo $${DVC_SYSTEM_CONFIG_DIR:-none}\n")
    assert make(tmp_path, "show").stdout == f"{tmp_path}/tools/without_git\n"
    assert "no_scm = true" in (ROOT / "tools/without_git/config").read_text()
    git(tmp_path, "init", "--quiet")
    assert make(tmp_path, "show").stdout == "none\n"


def test_the_dvc_of_an_environment_finds_its_python_without_activation(tmp_path: Path) -> None:
    place = tmp_path / "of mine/bin"
    place.mkdir(parents=True)
    shutil.copy(ROOT / "tools/dvc.sh", place / "dvc")
    (place / "dvc").chmod(0o755)
    (place / "python").write_text('#!/bin/sh\necho "$*" "$(command -v python)"\n')
    (place / "python").chmod(0o755)
    (tmp_path / "link").symlink_to(place / "dvc")
    for dvc in (place / "dvc", tmp_path / "link"):
        done = subprocess.run([dvc, "repro"], env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, cwd="/")
        assert done.stdout == f"-m dvc repro {place}/python\n"


def test_demo_ends_by_saying_what_to_try_next_in_80_columns() -> None:
    recipe = MAKEFILE.split("\ndemo: env")[1].split(".PHONY")[0].rstrip().splitlines()
    assert recipe[-1] == "\tcat ../../tools/next.txt"
    said = (ROOT / "tools/next.txt").read_text()
    assert {"score", "use", "repro"} <= set(re.findall(r"make ([a-z]+)", said)) <= {*targets(), "use"}
    assert all((ROOT / f"recipes/{name}.yaml").is_file() for name in re.findall(r"RECIPE=(\w+)", said))
    assert all(len(line) <= 80 for line in said.splitlines())


def test_a_report_is_held_against_no_revision_by_itself_so_that_it_needs_no_repository(checkout):
    assert make(checkout, "-s", "--eval", 'said:;@echo "[$$AGAINST]"', "said").stdout == "[]\n"
