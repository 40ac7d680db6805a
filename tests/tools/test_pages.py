"""`make report` and the page of `make compare`: where they read, what they write, and how they end."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import compare
import page
import pytest

from micronet.front import ArgumentError
from report import page as pages
from tests.support.places import ROOT


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder with a run's results, and the working directory; scripts of others are left out of pages."""
    monkeypatch.setattr(pages, "vega", lambda: "")
    for name in ("pipelines/mnist/metrics", "recipes"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pipelines/mnist/params.yaml", tmp_path / "pipelines/mnist")
    (tmp_path / "metrics").mkdir()
    for name in ("score.json", "prune.json", "path.csv"):
        shutil.copy(ROOT / "metrics" / name, tmp_path / "metrics")
    shutil.copy(ROOT / "recipes/demo.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def committed(folder: Path, tag: str) -> None:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.invalid"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", tag], ["tag", tag]):
        subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True)


@pytest.mark.slow
def test_a_report_names_its_recipe_and_marks_the_params_that_differ_from_a_revision(results, capsys):
    committed(results, "main")
    params = results / "params.yaml"
    params.write_text(params.read_text().replace("seed: 0", "seed: 7"))
    assert page.main(["--against", "main", "--out", "report.html"]) == 0
    text = Path("report.html").read_text()
    assert "The active params" in text and text.count('class="differs"') == 1
    assert "settings differ from those of <code>main</code>" in text and "-dirty" in text
    params.write_text((results / "recipes/demo.yaml").read_text())
    assert page.main(["--out", "report.html"]) == 0
    text = Path("report.html").read_text()
    assert (
        "Recipe demo" in text and "Nothing differs: all" in text and "settings are those of <code>HEAD</code>" in text
    )
    shutil.copytree("pipelines/mnist", "pipelines/newer")
    assert page.main(["--name", "newer", "--against", "main", "--out", "report.html"]) == 0
    assert "There is no params file at <code>main</code>" in Path("report.html").read_text()
    assert "report.html" in capsys.readouterr().out


def test_a_report_without_git_or_of_a_revision_that_there_is_not_says_so(results, capsys):
    assert page.main(["--out", "build/report.html", "--name", "mnist"]) == 0
    text = Path("build/report.html").read_text()
    assert "There is no params file at <code>HEAD</code>" in text and "is no git repository" in text
    assert page.main(["--against", "mian"]) == 2
    assert "there is no git repository here" in capsys.readouterr().err
    committed(results, "main")
    assert page.main(["--against", "mian"]) == 2
    assert "report: mian is no commit, tag or branch here" in capsys.readouterr().err
    assert page.main(["--name", "../metrics"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("report: NAME: ../metrics has no score")


def test_a_comparison_has_both_sides_and_what_differs(results, capsys):
    committed(results, "one")
    (results / "params.yaml").write_text((results / "recipes/demo.yaml").read_text().replace("seed: 0", "seed: 7"))
    (results / "metrics/prune.json").write_text('{"validation_accuracy_percent": 12.5}')
    committed(results, "two")
    compare.write_page("one", "two", results, Path("compare.html"))
    text = Path("compare.html").read_text()
    assert text.index("Both at a glance") < text.index('class="side"') and "Deck score</th>" in text
    assert text.count('class="side"') == 2 * len(pages.BUILDERS)
    assert "metrics/prune.validation_accuracy_percent" in text and text.count('class="differs"') == 1
    with pytest.raises(ArgumentError, match="three is no commit"):
        compare.write_page("one", "three", results, Path("compare.html"))
