"""What stands around the code: links of documents, the workflow, the files that other programs read."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.support.places import ROOT, listed

DOCUMENTS = [name for name in listed() if name.endswith(".md")]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(document: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", document, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_of_a_document_leads_somewhere(name):
    prose = re.sub(r"```.*?```", "", text(name), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != "CHANGELOG.md"])  # which names what went
def test_every_make_target_that_a_document_names_exists(name):
    named = set(re.findall(r"`make ([a-z][a-z-]*)", text(name)))
    named |= set(re.findall(r"^make ([a-z][a-z-]*)", text(name), re.MULTILINE))
    assert named <= TARGETS


def test_the_version_that_is_cited_is_the_package_s():
    version = tomllib.loads(text("pyproject.toml"))["project"]["version"]
    cited = yaml.safe_load(text("CITATION.cff"))
    assert (cited["version"], cited["license"]) == (version, "MIT") and text("LICENSE").startswith("MIT License")


def test_the_workflow_runs_what_a_clean_checkout_must_pass_with_the_whole_history():
    (job,) = yaml.safe_load(text(".github/workflows/ci.yml"))["jobs"].values()
    assert any(step.get("run") == ".ci/run" for step in job["steps"])
    assert job["steps"][0]["with"] == {"fetch-depth": 0}
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)


def test_the_hooks_before_a_commit_are_the_linters_of_the_environment():
    (repository,) = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    assert repository["repo"] == "local"
    linted = set(re.findall(r'"\$\(PY\)" -m (\w+)', text("Makefile").split("lint: env")[1].split(".PHONY")[0]))
    for hook in repository["hooks"]:
        python, flag, module, *_ = hook["entry"].split()
        assert (python, flag) == (".venv/bin/python", "-m") and module in linted
        assert subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True).returncode == 0


def test_every_room_that_the_guide_for_contributors_names_is_there():
    named = re.findall(r"`([a-z_]+/[a-z_/.]*)`", text("CONTRIBUTING.md"))
    assert len(named) > 10
    for name in named:
        places = [ROOT / name, ROOT / "micronet" / name, *Path(ROOT).glob(f"micronet/{name}")]
        assert any(place.exists() for place in places), name


def test_the_workflow_of_the_site_builds_it_by_its_make_target_with_plain_actions():
    (job,) = yaml.safe_load(text(".github/workflows/pages.yml"))["jobs"].values()
    assert any(step.get("run") == "make site" for step in job["steps"])
    (upload,) = [step["with"]["path"] for step in job["steps"] if "upload-pages" in step.get("uses", "")]
    assert f"{upload}/index.html" in text("Makefile") and f"site_dir: {upload}" in text("mkdocs.yml")
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
