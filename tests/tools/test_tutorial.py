"""docs/tutorial.md, command by command and edit by edit, in a fresh clone."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.places import ROOT
from tests.support.walkthrough import edited, shell, steps

GUIDE = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
REMOTE = (ROOT / "docs/how-to/your-remote.md").read_text(encoding="utf-8")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with the environment in its place, whose demo recipe trains on 200 images, an epoch a stage."""
    folder = tmp_path / "micronet"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    recipe = folder / "recipes/demo.yaml"
    text = re.sub(r"epochs: \d+", "epochs: 1", recipe.read_text(encoding="utf-8"))
    small = text.replace("threads: 2", "threads: 1").replace("validation_size: 200", "validation_size: 800")
    recipe.write_text(small, encoding="utf-8")
    for key, value in (("user.name", "nobody"), ("user.email", "nobody@example.invalid")):
        subprocess.run(["git", "-C", str(folder), "config", key, value], check=True)
    return folder


def test_an_edit_of_a_page_is_made_where_its_lines_stand_once(tmp_path):
    (tmp_path / "params.yaml").write_text("prune:\n  amount: 0.5\n")
    edited(tmp_path / "params.yaml", "-  amount: 0.5\n+  amount: 0.8\n")
    assert (tmp_path / "params.yaml").read_text() == "prune:\n  amount: 0.8\n"
    with pytest.raises(AssertionError):
        edited(tmp_path / "params.yaml", "-  amount: 0.5\n+  amount: 0.8\n")


@pytest.mark.slow
def test_the_tutorial_leads_from_a_clone_to_a_result_of_ones_own(clone):
    said: dict[str, str] = {}
    numbers: list[dict] = []
    for kind, text in steps(GUIDE):
        if kind == "diff":
            edited(clone / "params.yaml", text)
            continue
        said[text] = shell(clone, text)
        if text == "make repro":
            numbers.append(json.loads((clone / "metrics/prune.json").read_text()))
    assert [line for line in said if line.startswith("make")] == [
        "make demo",
        "make use RECIPE=demo",
        "make repro",
        "make compare A=HEAD~1 B=HEAD",
        "make report",
        "make export TO=web",
    ]
    before, after = (found["zero_weights"] / found["prunable_weights"] for found in numbers)
    assert (round(before, 2), round(after, 2)) == (0.5, 0.8)
    ran = re.findall(r"^Running stage '(\w+)'", said["make repro"], re.MULTILINE)
    assert ran == ["code", "prune", "retrain", "quantize", "score"] or ran == ["prune", "retrain", "quantize", "score"]
    assert "prune.amount" in said["make compare A=HEAD~1 B=HEAD"]
    assert "prune.amount" in said[".venv/bin/python -m dvc params diff"]
    for page in ("compare.html", "report.html", "export/web/index.html"):
        assert (clone / "build" / page).is_file()

    store = clone.parent / "micronet-store"
    for _, command in steps(REMOTE):
        shell(clone, command)
    shell(clone, ".venv/bin/python -m dvc push")
    assert len([path for path in store.rglob("*") if path.is_file()]) >= 6, "the checkpoints of the last run"
    changed = shell(clone, "git status --porcelain .dvc release")
    assert changed == "", "neither git nor the published cache knows of one's own remote"
