"""What the tests of the report start from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from report.context import Context
from report.gathered import Run, gather
from report.page import texts
from report.sources import Folder
from tests.support.places import ROOT
from tests.support.reports import PEERS


@pytest.fixture(scope="session")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed results in a folder of their own, which is no repository."""
    folder = tmp_path_factory.mktemp("committed")
    shutil.copytree(ROOT / "metrics", folder / "metrics")
    shutil.copytree(ROOT / "pipelines", folder / "pipelines", ignore=shutil.ignore_patterns("checkpoints", "run"))
    for name in ("params.yaml", "recipes", "dvc.lock", "release"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data/manifest.json", folder / "data")
    return folder


@pytest.fixture(scope="session")
def run(committed: Path) -> Run:
    return gather(Folder(committed), "committed")


@pytest.fixture(scope="session")
def context(committed: Path, run: Run) -> Context:
    return Context([run], PEERS, committed, texts())
