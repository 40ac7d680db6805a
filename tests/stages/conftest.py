"""The pipeline, run twice: under DVC and without it."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from tests.support.pipeline import MADE, STAGES, dvc, executed, shrunk, succeed, write_params
from tests.support.places import ROOT


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which the pipeline ran once under DVC, from nothing."""
    folder = tmp_path_factory.mktemp("finished")
    for name in ("stages", "models", "networks", "micronet", "data/sample"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    write_params(folder, shrunk())
    assert dvc(folder, "init", "--no-scm", "-q").returncode == 0
    assert executed(dvc(folder, "repro")) == ["code", *STAGES]
    return folder


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the stages up to `quantize` ran once without DVC, by one worker for all of them.

    It is for reading.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "pipeline"
    folder.mkdir(exist_ok=True)
    made = folder.with_name("pipeline.made")
    with folder.with_name("pipeline.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            write_params(folder, shrunk())
            succeed(folder, "prepare_data", *MADE)
            made.touch()
    return folder


@pytest.fixture
def prepared(pipeline: Path, tmp_path: Path) -> Path:
    """A folder with params and prepared data, and no checkpoint."""
    write_params(tmp_path, shrunk())
    (tmp_path / "data").mkdir()
    for name in ("manifest.json", "cifar10-sample"):
        (tmp_path / "data" / name).symlink_to(pipeline / "data" / name)
    return tmp_path


@pytest.fixture
def resumed(pipeline: Path, prepared: Path) -> Path:
    """A folder in which every float checkpoint of the pipeline lies, for a stage to be run again."""
    (prepared / "checkpoints").mkdir()
    for stage, name in MADE.items():
        if stage != "quantize":
            (prepared / f"checkpoints/{name}.safetensors").symlink_to(pipeline / f"checkpoints/{name}.safetensors")
    return prepared
