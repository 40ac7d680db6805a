"""README.md says what is: its numbers come from metrics/, its commands exist."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import results

from micronet.scoring.books import BOOKS
from tests.support.places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.release
def test_the_results_are_those_of_metrics():
    assert results.replaced(README, results.render(ROOT / "metrics")) == README


@pytest.mark.release
def test_the_account_of_trust_is_that_of_metrics():
    assert results.trust(ROOT / "metrics") == (ROOT / "docs/trust.md").read_text(encoding="utf-8")


def test_every_released_model_has_a_row_with_a_score_of_each_rule_book_and_the_command_that_measures_it():
    rows = [line.split(" | ") for line in README.splitlines() if re.match(r"\| `\w+` .*`make (score|verify)", line)]
    files = {path.stem for path in (ROOT / "release").glob("*.safetensors")}
    assert {row[0].strip("| `") for row in rows} == files | {"record"}
    assert all(len(row) == 5 + len(BOOKS) for row in rows)


def test_a_model_that_a_pipeline_has_made_is_that_of_its_folder(tmp_path):
    shutil.copytree(ROOT / "metrics", tmp_path / "metrics")
    folder = tmp_path / "pipelines/dense/metrics"
    folder.mkdir(parents=True)
    score = json.loads((ROOT / "metrics/dense/score.json").read_text())
    score |= {book.name: {"score": 0.1 + place} for place, book in enumerate(BOOKS)}
    (folder / "score.json").write_text(json.dumps(score))
    text = results.render(tmp_path / "metrics")
    assert "| 0.1000 | 1.1000 | 2.1000 | 3.1000 | 56,255 | `make verify NAME=dense` |" in text
    assert "`pipelines/dense/metrics/score.json`" in text and "`metrics/dense/score.json`" not in text


def test_the_first_page_stays_one():
    assert len(README.splitlines()) <= 120


def test_every_make_command_is_a_target():
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = set(re.findall(r"`?make ([a-z][a-z-]+)", README))
    assert named and named <= set(targets)


def test_every_recipe_is_in_the_table_and_every_place_exists():
    for recipe in (ROOT / "recipes").glob("*.yaml"):
        assert f"| `{recipe.stem}` |" in README
    for place in re.findall(r"^\| (`[^|]+) \|", README, re.MULTILINE):
        for name in re.findall(r"`([\w./]+/|[\w]+\.yaml)`", place):
            assert (ROOT / name).exists(), name
