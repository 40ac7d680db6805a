"""Documents are templates filled from metrics/: what is there is what is said, what is not there is one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from statistics import fmean

import documents
import measured
import performance
import pytest
import results
import seeds
import studies
from _tool import ToolError, read_csv, read_json

from micronet import params as parameters
from sweeps import rows
from sweeps.rows import Row
from tests.support.places import ROOT
from tests.support.thinning import thinned

METRICS = ROOT / "metrics"


def committed(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_committed_account_of_speed_is_that_of_the_metrics():
    assert performance.render(METRICS) == committed("docs/performance.md")


def test_the_committed_account_of_reliability_is_that_of_the_metrics_which_hold_no_fault():
    assert measured.render("reliability", METRICS) == committed("docs/reliability.md")
    found = read_json(METRICS / "reliability.json", "make reliability")
    assert not any(found[part]["faults"] for part in ("params", "packed_tiny", "packed_released", "networks", "stages"))
    assert found["kills"]["same_bytes"] == found["kills"]["runs"]


def test_the_committed_account_of_the_studies_is_that_of_their_tables():
    assert studies.render(METRICS / "sweeps") == committed("docs/studies.md")


def test_the_committed_account_of_scale_is_that_of_the_metrics_measured_or_not(tmp_path):
    assert measured.render("scale", METRICS) == committed("docs/scale.md")
    content = {"empty_tasks_per_second": 900.0, "speedup": 1.9}
    content |= {name: {"seconds": 100.0, "rows": 24, "done": 24, "twice": 0} for name in ("one", "two", "killed")}
    (tmp_path / "bench_scale.json").write_text(json.dumps(content))
    said = (
        "1.90 times as long. When the second node was killed after a third of the rows, 24 of 24 rows still arrived, 0"
    )
    assert said in measured.render("scale", tmp_path)


def test_a_study_compares_rows_of_one_code_and_says_how_many_it_leaves_out(tmp_path):
    shutil.copytree(METRICS / "sweeps", tmp_path / "sweeps")
    path = tmp_path / "sweeps/optimizer.csv"
    found = rows.read(path)
    assert len({row.code_digest for row in found}) == 1, "the table is of one code before"
    today = dataclasses.replace(found[0], code_digest="today", metrics=found[0].metrics | {studies.METRIC: 99.0})
    rows.write(path, [today, *found[1:]], list(found[0].metrics))
    said = studies.render(tmp_path / "sweeps").split("Study `optimizer`")[1].split("\n## ")[0]
    assert (
        f"1 of {len(found)} rows of its table are of other code, data or budget and are left out; "
        "`make sweep SPEC=sweeps/optimizer.yaml BUDGET=small` brings them up to date."
    ) in said
    mean = fmean(row.metrics[studies.METRIC] for row in found[1:] if row.variant == found[0].variant)
    assert f"| {found[0].variant} | {mean:.2f} | 2 |" in said


@pytest.mark.release
def test_the_headline_is_the_mean_of_seeds_that_are_of_these_params_and_else_one_seeds(tmp_path):
    shutil.copytree(METRICS, tmp_path / "metrics")
    path = tmp_path / "metrics/seeds.json"
    path.unlink(missing_ok=True)
    params = parameters.load(ROOT / "params.yaml")
    one = "10,000 test images, one seed each;"
    assert one in results.render(tmp_path / "metrics")
    names = ("accuracy_percent", "validation_accuracy_percent", "challenge_score", "other_score")
    found = [
        Row("base", seed, "done", dict(zip(names, (90.0 + seed, 91.0 + seed, 0.002 + seed / 1000, 0.5), strict=True)))
        for seed in (0, 1, 2)
    ]

    def said(rows: list[Row], digest: str) -> str:
        path.write_text(json.dumps(seeds.summary(rows, digest)))
        return results.render(tmp_path / "metrics")

    several = said(found, seeds.recipe_digest(params))
    assert (
        one not in several
        and (
            "`record` over 3 seeds, mean and standard deviation: 91.00 % ± 1.00 of the test images, "
            "92.00 % ± 1.00 of the validation images, challenge score 0.0030 ± 0.0010, other score 0.5000 ± 0.0000. "
        )
        in several
    )
    assert f"The file is that of seed {params.seed}" in several
    assert one in said(found[:2], seeds.recipe_digest(params)), "two are too few"
    assert one in said(found, "of other params")


def test_a_gpu_has_its_own_part_once_it_was_measured(tmp_path):
    shutil.copytree(METRICS, tmp_path / "metrics")
    for name in ("bench", "profile"):
        shutil.copy(METRICS / f"{name}.json", tmp_path / f"metrics/{name}_gpu.json")
    before, after = committed("docs/performance.md").split("\n## On a GPU\n")
    assert "Not measured yet" in after
    head, tail = performance.render(tmp_path / "metrics").split("\n# On a GPU\n")
    assert head == before
    for title in ("## Against the loop that everybody copies", "## Where the time goes"):
        assert title + before.split(title)[1].split("\n## ")[0] in tail
    (tmp_path / "metrics/profile_gpu.json").unlink()
    with pytest.raises(ToolError, match=r"profile_gpu.json: there is no such file; `make gpu-check` makes it"):
        performance.render(tmp_path / "metrics")


def test_a_number_that_is_not_there_is_one_line_that_names_the_file(tmp_path, capsys, monkeypatch):
    (tmp_path / "docs").mkdir()
    shutil.copytree(METRICS, tmp_path / "metrics")
    path = tmp_path / "metrics/bench_startup.json"
    content = json.loads(path.read_text())
    del content["help_seconds"]
    path.write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    assert performance.main() == 1
    assert capsys.readouterr().err == (
        "performance: metrics/bench_startup.json: has no 'help_seconds'; `make bench` makes it anew\n"
    )
    assert not (tmp_path / "docs/performance.md").exists()


def test_a_number_deep_inside_of_a_file_is_named_too(tmp_path):
    shutil.copytree(METRICS, tmp_path / "metrics")
    path = tmp_path / "metrics/dense/score.json"
    content = json.loads(path.read_text())
    del content["packed"]["bytes"]
    path.write_text(json.dumps(content))
    with pytest.raises(ToolError, match=r"metrics/dense/score.json: has no 'bytes'"):
        results.render(tmp_path / "metrics")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("One.\n{{ nothing }}\n", "doc.md.j2:2: 'nothing' is undefined"),
        ("{{ facts.two }}\n", "doc.md.j2:1: 'dict object' has no attribute 'two'"),
        ("\n\n{{ facts.one|percent }}\n", "doc.md.j2:3: could not convert string to float: 'many'"),
        ("{{ facts.none|percent }}\n", "doc.md.j2:1: float() argument must be a string or a real number"),
        ("{% if %}", "doc.md.j2:1: Expected an expression"),
        ("{{ 1|nothing }}", "doc.md.j2:1: No filter named 'nothing'"),
    ],
)
def test_a_template_that_cannot_be_filled_is_one_line_that_names_its_line(tmp_path, template, message):
    (tmp_path / "doc.md.j2").write_text(template)
    with pytest.raises(ToolError) as raised:
        documents.render("doc", {"facts": {"one": "many", "none": None}}, tmp_path)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_numbers_are_written_as_people_read_them(tmp_path):
    (tmp_path / "doc.md.j2").write_text(
        "{{ 28782|thousands }} {{ '1234567'|thousands }} {{ 91.366|percent }} {{ '91.366'|percent(1) }} "
        "{{ none|percent(missing='-') }} {{ 0.0023734|score }} {{ 0.0023734|score(6) }} {{ '0.700'|share }} "
        "{{ 0.250|short }} {{ 4.0|short }} {{ 1.956|signed }} {{ -1.956|signed(1) }} "
        "{{ 1|counted('epoch') }} {{ 8000|counted('epoch') }}"
    )
    assert documents.render("doc", {}, tmp_path) == (
        "28,782 1,234,567 91.37 % 91.4 % - 0.0024 0.002373 70% 0.25 4 +1.96 -2.0 1 epoch 8,000 epochs\n"
    )


def test_a_table_gives_text_and_the_numbers_that_are_asked_for(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("name,one,two\n1,2.5,x\n2,,y\n")
    rows = read_csv(path, "make it", ("one",))
    assert rows == [{"name": "1", "one": 2.5, "two": "x"}, {"name": "2", "one": None, "two": "y"}]
    with pytest.raises(ToolError, match="table.csv: has no 'three'; `make it` makes it anew"):
        _ = rows[0]["three"]
    with pytest.raises(ToolError, match=r"table.csv: has no column 'three'"):
        read_csv(path, "make it", ("three",))
    with pytest.raises(ToolError, match=r"table.csv: cannot be read \(could not convert .*'x'\); `make it` makes it"):
        read_csv(path, "make it", ("two",))
    with pytest.raises(ToolError, match=r"none.csv: there is no such file; `make it` makes it"):
        read_csv(tmp_path / "none.csv", "make it")


@pytest.mark.parametrize(
    ("content", "message"), [("{", "cannot be read as JSON"), ("[1]", "holds no JSON object"), (None, "no such file")]
)
def test_a_file_that_is_no_json_object_is_named(tmp_path, content, message):
    path = tmp_path / "some.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ToolError, match=f"some.json: .*{message}.*`make it` makes it"):
        read_json(path, "make it")


@pytest.mark.parametrize(
    "command", thinned(["verify", "model_card", "record", "average", "unpack", "cascade", "plots"], 5)
)
def test_help_is_answered_without_what_takes_seconds_to_start(command):
    run = [sys.executable, "-X", "importtime", f"tools/{command}.py", "--help"]
    found = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    imported = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert found.stdout.startswith("usage: ") and "argparse" in imported
    assert not {"torch", "scipy", "matplotlib"} & imported
