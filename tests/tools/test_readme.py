"""README.md says what is: its numbers come from metrics/, its commands exist."""

from __future__ import annotations

import re

import results

from tests.support.places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_results_are_those_of_metrics():
    assert results.replaced(README, results.render(ROOT / "metrics")) == README


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
