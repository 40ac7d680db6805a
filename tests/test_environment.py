"""A Python without the packages is told in a line which environment to activate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from micronet import environment
from tests.support.places import ROOT
from tests.support.sources import facts, sources


def third_party(*folders: str) -> set[str]:
    """The first names of the modules that some folders import and that neither Python nor this repository has."""
    found = {module.split(".")[0] for path in sources(*folders) for _, module, _ in facts(path).imports}
    ours = {"micronet", "models", *(path.stem for path in (ROOT / "stages").glob("*.py"))}
    return found - set(sys.stdlib_module_names) - ours


def test_the_packages_that_are_looked_for_are_those_that_a_stage_or_the_pricing_imports():
    exports = {"onnx", "onnxruntime", "ml_dtypes", "jinja2"}  # which no stage needs
    with_pydantic, asked_for = {"pydantic_core"}, {"mlflow"}  # the latter by engine.log_to
    imported = third_party("micronet", "models", "stages") - exports - with_pydantic - asked_for
    assert imported == {name.split(".")[0] for name in environment.PACKAGES}


def test_this_environment_lacks_nothing():
    assert environment.fault(str(ROOT)) == ""


@pytest.mark.parametrize("built", [True, False], ids=["built", "not built"])
def test_what_is_lacking_is_a_line_that_says_what_to_activate(built, tmp_path, monkeypatch):
    monkeypatch.setitem(environment.PACKAGES, "no_such_module", "no-such-package")
    if built:
        (tmp_path / ".venv/bin").mkdir(parents=True)
        (tmp_path / ".venv/bin/activate").touch()
    said = environment.fault(str(tmp_path))
    assert "lacks no-such-package; " in said and len(said.splitlines()) == 1
    assert ("make env && " in said) is not built and "source .venv/bin/activate" in said


def test_an_old_python_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 2))
    assert "is older than 3.11" in environment.fault(str(tmp_path))


@pytest.mark.parametrize("script", ["stages/check.py", "stages/train_teacher.py", "tools/verify.py"])
def test_a_python_without_packages_ends_with_one_line_and_touches_nothing(script, tmp_path):
    bare = [sys.executable, "-S", str(ROOT / script)]  # without site-packages
    done = subprocess.run(bare, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{Path(script).stem}: this Python (") and "source .venv/bin/activate" in line
    assert list(tmp_path.iterdir()) == []
