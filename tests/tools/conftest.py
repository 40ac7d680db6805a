"""What the tests of several commands start from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from micronet import params
from tests.support.checkouts import release_into


@pytest.fixture(scope="session")
def released(
    sample_data: params.Data, sample_manifest: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict]:
    """A checkout as after `make score`, and the true score of its packed file."""
    folder = tmp_path_factory.mktemp("released")
    return folder, release_into(folder, sample_data, sample_manifest)


@pytest.fixture
def checkout(released: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `released`, and the working directory."""
    folder = tmp_path / "checkout"
    shutil.copytree(released[0], folder)
    monkeypatch.chdir(folder)
    return folder
