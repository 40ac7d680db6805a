"""Documents are written from released results alone, and the counts in them are those of the metrics."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import results
from _tool import ToolError
from released import SCORE, check_released

from tests.support import release
from tests.support.places import ROOT


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A checkout whose dvc.lock names a packed model that release/cache holds."""
    packed = b"the packed model"
    md5 = hashlib.md5(packed).hexdigest()
    entry = {"path": "checkpoints/quantized.safetensors", "md5": md5, "size": len(packed)}
    (tmp_path / "dvc.lock").write_text(json.dumps({"stages": {"quantize": {"outs": [entry]}}}))
    place = tmp_path / "release/cache/files/md5" / md5[:2]
    place.mkdir(parents=True)
    (place / md5[2:]).write_bytes(packed)
    (tmp_path / "metrics").mkdir()
    (tmp_path / SCORE).write_text(json.dumps({"packed": {"sha256": hashlib.sha256(packed).hexdigest()}}))
    return tmp_path


def test_what_release_cache_holds_may_be_written_about(released):
    check_released(released)


def test_a_trial_on_a_branch_is_refused_with_what_would_work(released):
    lock = released / "dvc.lock"
    before = lock.read_text()
    lock.write_text(before.replace(hashlib.md5(b"the packed model").hexdigest(), "0" * 32))
    with pytest.raises(ToolError, match="make release") as refused:
        check_released(released)
    assert len(str(refused.value)) < 300
    lock.write_text(before)
    (released / SCORE).write_text(json.dumps({"packed": {"sha256": "0" * 64}}))
    with pytest.raises(ToolError, match="after `git commit`, `git switch`"):
        check_released(released)


def test_the_number_of_test_images_is_that_of_the_metrics(tmp_path):
    shutil.copytree(ROOT / "metrics", tmp_path / "metrics", ignore=shutil.ignore_patterns("sweeps"))
    path = tmp_path / "metrics/prepare_data.json"
    for number, said in ((10_000, "10,000"), (500, "500")):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"test_images": number}))
        assert f"the {said} test images" in results.render(tmp_path / "metrics")


def test_the_tests_of_the_release_run_where_params_and_metrics_are_the_releases(released):
    lock = json.loads((released / "dvc.lock").read_text())
    lock["stages"]["quantize"]["params"] = {"params.yaml": {"seed": 0, "quantize": {"weight_bits": 3}}}
    (released / "dvc.lock").write_text(json.dumps(lock))
    (released / "params.yaml").write_text("seed: 0\nquantize: {weight_bits: 3}\nscore: {}\n")
    assert release.is_here(released)
    (released / "params.yaml").write_text("seed: 0\nquantize: {weight_bits: 4}\nscore: {}\n")
    assert not release.is_here(released)
    (released / "params.yaml").unlink()
    assert not release.is_here(released)
