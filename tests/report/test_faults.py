"""Results that are damaged, or contradict each other, are lines on a page that is written all the same."""

from __future__ import annotations

import copy
import csv
import json

import pytest

from micronet.params import parse
from report import page, parts
from report.checked import value
from report.differences import recipe_digest
from report.errors import ReportError
from report.gathered import Run, gather
from report.parts import part
from report.sources import Folder
from tests.support.places import ROOT
from tests.support.reports import PEERS, page_of_run
from tests.support.thinning import thinned

SCORE = json.loads((ROOT / "metrics/score.json").read_text())
BAD = (None, "x", [1], {}, True, -1, float("nan"), float("inf"), 10**400)


@pytest.fixture(autouse=True)
def _without_the_library(monkeypatch):
    monkeypatch.setattr(page, "vega", lambda: "")


def changed(run: Run, **fields) -> Run:
    return Run(**{**vars(run), **fields})


def with_value(path: str, found: object) -> dict:
    """The committed score with another value under `group.key`, without the key where that is `...`."""
    score = copy.deepcopy(SCORE)
    *groups, key = path.split(".")
    place = score
    for name in groups:
        place = place[name]
    place.pop(key)
    if found is not ...:
        place[key] = found
    return score


NUMBERS = [
    "test_accuracy_percent", "packed.bytes", "packed.payload_bits", "one_pass.test_accuracy_percent",
    "one_pass.deck_score", "deck.score", "course.score_params",
]  # fmt: skip


@pytest.mark.parametrize("path", thinned(NUMBERS, 4))
def test_a_value_of_the_score_that_is_no_number_is_a_fault_of_its_section(path, run, context):
    absent = [] if path in ("one_pass.deck_score",) else [...]
    for bad in (*BAD, *absent):
        it = part("headline", changed(run, score=with_value(path, bad)), context)
        assert it is not None and path.rpartition(".")[2] in it["fault"] and len(it["fault"]) <= 200, bad


@pytest.mark.parametrize("key", thinned(["packed", "one_pass", "deck", "reference"], 2))
def test_a_group_of_the_score_that_is_none_is_a_fault_of_its_section(key, run, context):
    for bad in ("x", 3, [1], 10**400):
        it = part("headline", changed(run, score={**SCORE, key: bad}), context)
        assert it is not None and key in it["fault"], bad


@pytest.mark.slow
def test_the_page_of_a_damaged_score_is_written_with_the_fault_in_it(run, context):
    for path, bad in (("packed.payload_bits", ...), ("test_accuracy_percent", 10**400)):
        written = page_of_run(changed(run, score=with_value(path, bad)), context)
        assert path.rpartition(".")[2] in written and "Accuracy after each block" in written
        assert "These results cannot be shown" in written


def test_records_and_seeds_with_faulty_numbers_are_faults_of_their_sections(run, context):
    for bad in ("x", [1], True, -1, float("nan"), 10**400):
        for name in ("seconds", "peak_memory_bytes", "threads"):
            it = part("provenance", changed(run, records={"prune": {name: bad}}), context)
            assert it is not None and name in it["fault"]
        means = {"mean": {"challenge_score": bad}, "spread": {"challenge_score": 1}}
        other = changed(run, seeds={"params_digest": recipe_digest(parse(run.params)), "rows": [], **means})
        assert "challenge_score" in (part("seeds", other, context) or {})["fault"]
        stages = {**run.stages, "prune": {"validation_accuracy_percent": bad}}
        assert "validation_accuracy" in (part("path", changed(run, stages=stages), context) or {})["fault"]


@pytest.mark.slow
def test_a_template_that_cannot_be_filled_is_a_fault_of_its_section_alone(run, context, monkeypatch):
    monkeypatch.setitem(parts.BUILDERS, "seeds", lambda run, context: {"other": "", "stats": {}, "count": "x"})
    monkeypatch.setitem(
        parts.BUILDERS, "calibration", lambda run, context: {"error": 10**400, "mean": 1, "accuracy": 1}
    )
    written = page_of_run(run, context)
    assert written.count("These results cannot be shown") == 2 and "OverflowError" in written


def test_a_damaged_score_of_another_model_leaves_that_model_out_and_says_so(run, context):
    others = {**run.others, "broken": with_value("deck.score", "x")}
    others["broken"]["test_accuracy_percent"] = 80.0
    it = part("against", changed(run, others=others), context)
    assert it is not None and it["left_out"] == ["broken (deck.score is 'x', no number)"]
    assert {"dense", "cascade"} <= {row[1] for row in it["figure"].table.rows}


def test_a_value_is_what_the_file_says():
    assert value({"a": {"b": 3}}, "a.b") == 3 and value({"a": 0.5}, "a") == 0.5
    for content in ({"a": {"b": "3"}}, {"a": 3}, {}, {"a": {"b": -0.1}}):
        with pytest.raises(ReportError, match="a"):
            value(content, "a.b")


def contradictions(run: Run) -> dict[str, list[dict[str, str]]]:
    rows = run.predictions
    flipped = [{**row, "predicted": row["actual"]} if place < 500 else row for place, row in enumerate(rows)]
    strange = [{**rows[0], "predicted": "unicorn"}, *rows[1:]]
    return {
        "has 9,999 images, 10,000 were tested": rows[1:],
        "has an image twice": [rows[1], *rows[1:]],
        "is right in": flipped,
        "names unicorn, which is no class": strange,
    }


@pytest.mark.slow
def test_answers_that_contradict_the_score_are_a_line_and_give_no_interval_of_their_own(run, context):
    for said, rows in contradictions(run).items():
        other = changed(run, predictions=rows)
        for name in ("confusion", "calibration", "mistakes"):
            assert said in (part(name, other, context) or {})["fault"]
        head = part("headline", other, context)
        assert head is not None and said in head["contradiction"]
        assert (head["accuracy"], head["images"]) == (SCORE["test_accuracy_percent"], 10_000)
    assert (part("headline", run, context) or {})["contradiction"] == ""
    unknown = changed(run, predictions=run.predictions[:100], stages={}, manifest=None)
    head = part("headline", unknown, context)
    assert head is not None and head["contradiction"] and head["interval"] is None
    assert said_on_page(unknown, context, "The answers do not match this score")


def said_on_page(run: Run, context: parts.Context, said: str) -> bool:
    return said in page_of_run(run, context)


@pytest.mark.slow
def test_a_model_without_a_packed_file_is_not_told_of_the_roots(committed):
    for name, way in (("folder", "make use RECIPE=folder"), ("mnist", "")):
        other = gather(Folder(committed), name, model=name)
        assert other.faults == [], "the file of the root is none of this model's"
        context = parts.Context([other], PEERS, committed, page.texts())
        assert said_on_page(other, context, way)
        assert (other.model is None) == (name == "folder")
    assert not said_on_page(other, context, "make pull")


def test_the_released_file_is_called_so_and_not_by_its_place_in_the_cache(run, context):
    assert run.model is not None and run.packed_path == ""
    written = page_of_run(run, context)
    assert "the released file, and runs" in written and "release/cache" not in written


def test_a_file_that_is_here_and_was_not_priced_is_not_said_to_be_missing(run, context):
    said = "This file has not been priced; <code>make score</code> does it"
    assert said_on_page(changed(run, score=None), context, said)
    assert not said_on_page(changed(run, score=None, model=None), context, said)


def test_a_checkpoint_of_more_than_a_million_parameters_is_one_of_16_bits(run, context):
    table = (part("path", run, context) or {})["size"].table
    sizes = {row[0]: row[3] for row in table.rows}
    wanted = {row["stage"]: int(row["parameters"]) for row in run.path}
    assert sizes["teacher"] == f"{2 * wanted['teacher']:,}" and sizes["student"] == f"{4 * wanted['student']:,}"


def test_the_committed_answers_are_those_of_the_committed_score(run):
    rows = list(csv.DictReader((ROOT / "metrics/predictions.csv").open()))
    right = sum(row["actual"] == row["predicted"] for row in rows)
    assert round(100 * right / len(rows), 2) == SCORE["test_accuracy_percent"] and len(rows) == run.test_images
