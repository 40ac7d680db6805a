"""The pages of docs/: their Python runs, and README's exercise is the tutorial's."""

from __future__ import annotations

import re

import pytest

from tests.support.places import ROOT
from tests.support.walkthrough import steps


def programs(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_a_rule_book_of_one_s_own_prices_an_untrained_network_and_a_released_file(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (program,) = programs("docs/how-to/rule-book.md")
    exec(program, {})
    untrained, released = capsys.readouterr().out.splitlines()
    numbers = [[int(part.replace(",", "")) for part in re.findall(r"[\d,]*\d", line)] for line in (untrained, released)]
    assert untrained.startswith("untrained: ") and released.startswith("released: ")
    assert numbers[0][0] > numbers[1][0] > 16_000 and numbers[0][1] > numbers[1][1] > 100_000


def test_a_packed_file_answers_a_program_that_has_no_params(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (program,) = programs("docs/reference/python.md")
    exec(program, {})
    assert re.fullmatch(r"tensor\(\[\d\]\)\n", capsys.readouterr().out)


def test_the_exercise_of_the_readme_is_the_tutorial_s():
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Change a hyperparameter")[1].split("\n## ")[0]
    commands = [part.split("#")[0].strip() for _, line in steps(section) for part in line.split("&&")]
    tutorial = {text for kind, text in steps((ROOT / "docs/tutorial.md").read_text(encoding="utf-8")) if kind == "sh"}
    made = [command for command in commands if command and not command.startswith("git ")]
    compared = ".venv/bin/python -m dvc metrics diff"
    assert made == ["make use RECIPE=demo", "make repro", "make repro", compared, "make report"]
    assert set(made) < tutorial


def test_the_readme_commits_results_that_are_new_too():
    assert "commit -am" not in (ROOT / "README.md").read_text(encoding="utf-8")


def test_no_document_holds_a_place_that_was_left_to_fill():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "release").glob("*.md")]
    assert len(pages) > 25 and not [str(page) for page in pages if "@@" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize(
    "name", ["distillation", "pruning", "retraining", "quantization", "packing", "rule-books", "second-passes"]
)
def test_a_method_has_half_a_page_and_a_picture_that_a_command_draws(name):
    text = (ROOT / f"docs/explanation/{name}.md").read_text(encoding="utf-8")
    assert len(re.findall(r"\w+", text)) < 420
    (picture,) = re.findall(r"!\[[^\]]+\]\((\S+\.svg)\)", text)
    assert (ROOT / "docs/explanation" / picture).is_file()
