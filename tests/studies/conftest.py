"""A place in which studies run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests.support.configs import demo
from tests.support.pipeline import write_params
from tests.support.studies import TINY


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample_data, sample_manifest) -> Path:
    """A place with the tiny studies, the sample and a params file."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies/studies.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    (tmp_path / "studies/params.yaml").write_text("budget: tiny\nengine: {threads: 1, save_every_seconds: 0.0}\n")
    write_params(tmp_path, demo(("data.folder", sample_data.folder), ("data.validation_size", 200)))
    (tmp_path / "data").mkdir()
    shutil.copy(sample_manifest, tmp_path / "data/manifest.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path
