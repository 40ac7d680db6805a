"""What the sections of a report say, from the committed run and from files of every sort."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from micronet.data.store import open_split
from micronet.params import parse
from report import against, answers, charts, labels, page
from report.context import NAMES, Context
from report.differences import recipe_digest, settings
from report.gathered import Run, gather
from report.parts import BUILDERS, part
from report.sources import Folder
from tests.support.colours import colours, contrast
from tests.support.places import ROOT
from tests.support.reports import PEERS, page_of_run, predictions
from tests.support.thinning import thinned

SCORE = json.loads((ROOT / "metrics/score.json").read_text())


@pytest.fixture(autouse=True)
def _without_the_library(monkeypatch):
    """Bundling it takes seconds; the tests in a browser have it."""
    monkeypatch.setattr(page, "vega", lambda: "")


@pytest.fixture(scope="module")
def found(run, context) -> dict:
    """All sections of the committed run."""
    return {name: part(name, run, context) for name in BUILDERS}


def cells(figure, *fields):
    """Columns of a figure's table."""
    places = [[column.field for column in figure.table.columns].index(name) for name in fields]
    return [tuple(row[place] for place in places) for row in figure.table.rows]


def test_the_committed_run_fills_every_section_but_the_one_of_seeds(run, found):
    assert run.faults == []
    assert [name for name, it in found.items() if it is None] == ([] if run.seeds else ["seeds"])
    assert [it["fault"] for it in found.values() if it and "fault" in it] == []
    head = found["headline"]
    assert head["accuracy"] == SCORE["test_accuracy_percent"]
    assert [(row["book"], row["score"]) for row in head["rows"]] == [(name, SCORE[name]["score"]) for name in NAMES]
    assert ("deck", "the slides", "0.035700") in cells(head["figure"], "book", "series", "score")
    assert [row[0] for row in cells(found["path"]["size"], "stage")] == [row["stage"] for row in run.path]
    assert [stage for stage, _, _ in found["curves"]["figures"]] == list(run.curves)
    assert found["provenance"]["packed"] == SCORE["packed"]["sha256"]


def test_records_that_are_of_another_run_than_the_results_are_named(run, context):
    packed = SCORE["packed"]["sha256"]
    records = {
        "train_teacher": {"checkpoint": "t"},
        "prune": {"checkpoint": "p", "made_of": {"checkpoints/teacher.safetensors": "t"}},
        "quantize": {
            "checkpoint": packed,
            "made_of": {"checkpoints/teacher.safetensors": "t", "data/manifest.json": "m"},
        },
    }

    def others(**changes: dict) -> list[str]:
        return part("provenance", Run(**{**vars(run), "records": records | changes}), context)["others"]

    assert others() == others(train_teacher={}) == others(prune={"checkpoint": "p", "made_of": {"x": [1]}}) == []
    assert others(train_teacher={"checkpoint": "u"}) == ["train_teacher"]
    assert others(quantize={"checkpoint": "q"}) == ["quantize"], "the score is of another packed file"
    assert part("provenance", run, context)["others"] == []


def test_what_the_layers_add_is_the_score_of_each_rule_book(found):
    assert found["layers"]["other"] == []
    for name in NAMES:
        rows = [row for row in cells(found["layers"]["figure"], "book", "score", "share") if row[0] == name]
        assert sum(float(score) for _, score, _ in rows) == pytest.approx(SCORE[name]["score"], rel=5e-3)
        assert sum(float(share) for _, _, share in rows) == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize("name", ["cascade", "mnist"])
def test_other_models_have_a_report_whose_layers_add_up_to_their_own_score(name, committed):
    other = gather(Folder(committed), name, model=name)
    found = part("layers", other, Context([other], PEERS, committed, page.texts()))
    assert found["other"] == []
    head = part("headline", other, Context([other], PEERS, committed, page.texts()))
    assert bool(head["peers"]) == (name != "mnist"), "scores relative to another network compare with nobody's"


def test_accuracy_stands_over_score_for_this_model_its_path_releases_sweeps_other_models_and_others(run, found):
    rows = cells(found["against"]["figure"], "series", "label", "accuracy", "challenge")
    kinds = ["this model", "its path", "releases", "sweeps (validation)", "other models", "others' results"]
    assert list(dict.fromkeys(row[0] for row in rows)) == kinds and found["against"]["line"] == 90
    assert rows[0][2:] == (f"{SCORE['test_accuracy_percent']:.2f}", f"{SCORE['challenge']['score']:.6f}")
    others = {row[1] for row in rows if row[0] == "other models"}
    assert {"cascade", "dense"} <= others and not others & {"record", "mnist", "runs"}
    assert {row[1] for row in rows if row[0] == "others' results"} == {"the slides", "90 % and more"}


def test_a_model_of_other_data_stands_beside_no_release_and_no_sweep_of_cifar_10(run, context):
    reference = {"reference": {"name": "the teacher in 16 bits"}}
    other = Run(**{**vars(run), "score": SCORE | reference})
    rows = cells(part("against", other, context)["figure"], "series")
    assert {series for (series,) in rows} == {"this model", "its path"}
    written = page_of_run(other, context)
    assert "The releases and sweeps of this checkout are not shown" in written
    assert "variants of sweeps on validation images" not in written
    other = Run(
        "unscored", None, run.places, path=run.path, releases=run.releases, params={"data": {"source": "mnist"}}
    )
    assert {series for (series,) in cells(part("against", other, context)["figure"], "series")} == {"its path"}
    assert part("against", run, context)["of_other_data"] == []


@pytest.mark.parametrize("accuracies", [[36.6], [100.0, 99.99], [99.5, 99.0], [0.0], [], [1.0, 99.9], [91.0, 75.0]])
def test_an_axis_of_accuracies_has_ticks_wherever_it_lies(accuracies):
    (low, high), ticks = charts.error_ticks(accuracies)
    assert 3 <= len(ticks) <= 15 and low <= min(ticks) and max(ticks) <= high and ticks == sorted(set(ticks))
    assert all(low < max(100 - accuracy, 0.01) < high for accuracy in accuracies)
    assert charts.error_ticks([93.0, 50.0])[1] == [7, 10, 15, 20, 30, 50]
    assert charts.error_ticks([30.0, 40.0])[1] == [60, 65, 70]


def test_names_stand_beside_their_points_and_cover_neither_names_nor_points():
    points = [(0.0045, 8.6, "refined"), (0.0045, 8.9, "cascade"), (0.0046, 9.1, "dense"), (0.4, 7.0, "teacher")]
    found = labels.places([*points, (0.0001, 95.0, "")])
    assert set(found) == {"refined", "cascade", "dense", "teacher"}
    assert len({found[name] for name in ("refined", "cascade", "dense")}) == 3
    assert all(abs(right) == labels.GAP and abs(down) <= 20 for right, down, _ in found.values())
    assert found["teacher"][2] == labels.LEFT, "on its right it would leave the chart"
    assert labels.places([]) == {} and set(labels.places([(1, 1, "a")] * 9)) == {"a"}


def test_kinds_of_points_differ_in_shape_or_colour_and_only_drawn_ones_are_in_the_legend(run, context, found):
    looks = [(look.colour, look.shape) for look in against.LOOKS.values()]
    assert len(set(looks)) == len({colour for colour, _ in looks}) == len(looks)
    spec = found["against"]["figure"].spec
    values = [layer["encoding"]["color"]["legend"]["values"] for layer in spec["layer"] if "color" in layer["encoding"]]
    drawn = json.loads(values[0]["expr"].removesuffix("[book]"))
    assert "others' results" in drawn["deck"] and "others' results" not in drawn["challenge"]
    assert drawn["challenge"][0] == "this model"
    rows = cells(found["against"]["figure"], "series", "label", "accuracy")
    lowest = min(float(row[2]) for row in rows if row[0] != against.SWEEPS)
    assert found["against"]["least"] == lowest
    assert found["against"]["lower"] == sum(float(row[2]) < lowest for row in rows) > 0


def test_a_stage_of_one_epoch_is_a_sentence_and_no_panel(run, context):
    other = Run("short", None, run.places, curves={"prune": run.curves["prune"][:1], "distill": run.curves["distill"]})
    figures = (part("curves", other, context) or {})["figures"]
    assert [(stage, shown is None) for stage, _, shown in figures] == [("prune", True), ("distill", False)]
    written = page_of_run(other, context)
    assert f"{float(run.curves['prune'][0]['validation_accuracy_percent']):.2f} % on validation images" in written


def test_a_model_that_there_is_not_names_those_that_there_are(committed):
    with pytest.raises(page.ReportError, match=r"NAME: nothing has no score in .*; cascade, deck, dense, .*mnist"):
        gather(Folder(committed), "", model="nothing")
    for name in ("runs", "../metrics", "mnist/../mnist", "."):
        with pytest.raises(page.ReportError, match="has no score"):
            gather(Folder(committed), "", model=name)


def test_weights_and_their_codes_are_those_of_the_file(found):
    found = found["sparsity"]
    rows = cells(found["figure"], "weights", "nonzeros", "bits")
    quantized = json.loads((ROOT / "metrics/quantize.json").read_text())
    assert sum(int(weights.replace(",", "")) for weights, _, _ in rows) == quantized["prunable_weights"]
    zeros = quantized["prunable_weights"] - quantized["zero_weights"]
    assert sum(int(count.replace(",", "")) for _, count, _ in rows) == zeros
    assert sum(int(count.replace(",", "")) for (count,) in cells(found["codes"], "count")) == zeros
    assert "0" not in {code for (code,) in cells(found["codes"], "code")}


@pytest.mark.parametrize(("correct", "images"), [(91.0, 10_000), (0.0, 20), (100.0, 20), (50.0, 1)])
def test_the_interval_is_wilsons(correct, images):
    from scipy.stats import binomtest  # which takes a second to load

    wanted = binomtest(round(correct / 100 * images), images).proportion_ci(0.95, "wilson") if correct != 50 else None
    low, high = answers.interval(correct, images)
    assert 0 <= low <= correct <= high <= 100
    if wanted:
        assert (low, high) == pytest.approx((100 * wanted.low, 100 * wanted.high), abs=1e-4)


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [(90.0, 10_000, 89.396, 90.573), (0.0, 10, 0.0, 27.753), (100.0, 10, 72.247, 100.0)],
)
def test_the_interval_has_the_ends_of_the_formula(correct, images, low, high):
    assert answers.interval(correct, images) == pytest.approx((low, high), abs=0.001)


def test_calibration_is_the_mean_gap_of_bins_weighted_by_their_images():
    rows = [answers.Answer(0, "a", "a", 95.0), answers.Answer(1, "a", "b", 95.0), answers.Answer(2, "a", "a", 60.0)]
    found, error = answers.calibration([*rows, answers.Answer(3, "a", "a", None)])
    assert [(row["from"], row["images"], row["confidence"], row["accuracy"]) for row in found] == [
        (50.0, 1, 60.0, 100.0), (90.0, 2, 95.0, 50.0),
    ]  # fmt: skip
    assert error == pytest.approx((1 * 40 + 2 * 45) / 3)
    assert answers.calibration([answers.Answer(0, "a", "a", None)]) is None


def test_the_class_that_is_found_least_often_may_be_one_that_is_never_found(run, context):
    said = [("cat", "dog")] * 10 + [("dog", "dog")] * 9 + [("dog", "cat")]
    rows = [dict(zip(answers.COLUMNS, (str(image), *one, "50"), strict=True)) for image, one in enumerate(said)]
    other = Run("blind", None, run.places, predictions=rows)
    assert "The class recognised least often is cat, 0.0 %" in page_of_run(other, context)
    other.predictions = [row for row in rows if row["actual"] == row["predicted"]]
    assert "recognised least often" not in page_of_run(other, context), "where nothing is wrong none is the worst"


def test_mistakes_come_by_confidence_and_right_ones_by_doubt():
    sure = [10.0, 99.0, 50.0, 99.0, None]
    wrong = [answers.Answer(image, "a", "b", one) for image, one in enumerate(sure)]
    right = [answers.Answer(image + 10, "a", "a", one) for image, one in enumerate(sure)]
    assert [one.image for one in answers.most_confident_mistakes(wrong + right)] == [1, 3, 2, 0]
    assert [one.image for one in answers.least_sure_right_ones(wrong + right)] == [10, 12, 11, 13]


def test_pictures_are_those_of_the_test_split_and_none_of_another_class(sample_data, sample_manifest, tmp_path, run):
    test = open_split(sample_data, "test", manifest_path=sample_manifest)
    manifest, params = json.loads(sample_manifest.read_text()), {"data": sample_data.model_dump()}
    found = answers.Pictures(tmp_path, Run("tried", None, run.places, params=params, manifest=manifest))
    actual = test.classes[test.labels[7]]
    content = found.uri(7, actual)
    assert content is not None and content.startswith("data:image/png;base64,")
    decoded = Image.open(io.BytesIO(base64.b64decode(content.partition(",")[2])))
    assert np.array_equal(np.moveaxis(np.asarray(decoded), -1, 0), test.images[7].numpy())
    other = next(name for name in test.classes if name != actual)
    assert found.uri(7, other) is None and found.uri(10**9, actual) is None and found.uri(-1, actual) is None
    for params_of_another in (
        {"data": {**params["data"], "folder": str(tmp_path / "nowhere")}},
        {"data": {"source": "nothing"}},
        None,
    ):
        found = answers.Pictures(tmp_path, Run("tried", None, run.places, params=params_of_another, manifest=manifest))
        assert found.uri(7, actual) is None and not found.others


def test_answers_stand_beside_no_pictures_of_data_that_were_prepared_after_them(
    sample_data, sample_manifest, run, context
):
    """Of an older commit, whose manifest says so; and of the checkout, where only a record knows what was answered."""
    test = open_split(sample_data, "test", manifest_path=sample_manifest)
    manifest = json.loads(sample_manifest.read_text())
    rows = [
        {"image": str(image), "actual": actual, "predicted": actual, "confidence_percent": "50"}
        for image, actual in enumerate(test.classes[label] for label in test.labels)
    ]
    score = {**SCORE, "test_accuracy_percent": 100.0}
    record = {"checkpoint": SCORE["packed"]["sha256"], "made_of": {"data/manifest.json": "before"}}

    def page_with(**fields: object) -> str:
        known = {"params": {"data": sample_data.model_dump()}, "manifest": manifest, "manifest_sha256": "now"}
        found = {"predictions": rows, "score": score} | known | fields
        return page_of_run(Run("tried", None, run.places, **found), context)

    said = "is another dataset or split than that of these answers"
    for others in ({"manifest": {**manifest, "split_seed": 99}}, {"records": {"quantize": record}}):
        written = page_with(**others)
        assert said in written and 'alt="Test image' not in written
    for same in ({}, {"records": {"quantize": {**record, "checkpoint": "of another run"}}}):
        written = page_with(**same)
        assert said not in written and 'alt="Test image' in written


def test_a_model_of_a_pipeline_has_its_pictures_and_the_command_that_prepares_them(
    sample_data, sample_manifest, tmp_path
):
    home = tmp_path / "pipelines/tried"
    (home / "metrics").mkdir(parents=True)
    (home / "data").mkdir()
    shutil.copy(sample_manifest, home / "data/manifest.json")
    test = open_split(sample_data, "test", manifest_path=sample_manifest)
    named = [test.classes[label] for label in test.labels]
    rows = "".join(f"{image},{name},{name},50\n" for image, name in enumerate(named))
    (home / "metrics/predictions.csv").write_text(f"{','.join(answers.COLUMNS)}\n{rows}")
    (home / "metrics/score.json").write_text(json.dumps({**SCORE, "test_accuracy_percent": 100.0}))
    place = sample_data.model_dump() | {"folder": "../../data/sample"}
    (home / "params.yaml").write_text(json.dumps({"data": place}))

    def written() -> str:
        tried = gather(Folder(tmp_path), "tried", model="tried")
        return page_of_run(tried, Context([tried], PEERS, tmp_path, page.texts()))

    assert "<code>cd pipelines/tried &amp;&amp; python ../../stages/prepare_data.py</code>" in written()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sample").symlink_to(sample_data.folder)
    assert 'alt="Test image' in written()
    (home / "metrics/runs").mkdir()
    for digest, is_shown in ((hashlib.sha256(sample_manifest.read_bytes()).hexdigest(), True), ("of others", False)):
        record = {"checkpoint": SCORE["packed"]["sha256"], "made_of": {"data/manifest.json": digest}}
        (home / "metrics/runs/quantize.json").write_text(json.dumps(record))
        assert ('alt="Test image' in written()) == is_shown, "what the record of the packed file says counts"


def test_an_empty_folder_has_a_page_with_a_sentence_in_every_section(tmp_path):
    empty = gather(Folder(tmp_path), "nothing")
    written = page_of_run(empty, Context([empty], PEERS, tmp_path, page.texts()), there=None)
    assert written.count('class="missing"') == len(BUILDERS) + 1 and 'class="plot"' not in written
    for said in (
        "make score",
        "make repro",
        "make pull",
        "predictions.csv",
        "make seeds N=3",
        "make use RECIPE=laptop",
    ):
        assert said in written


@pytest.mark.parametrize("content", thinned([b"{", b"[]", b"\xff\xfe", b"[[[[", b'{"packed": 3}', b"stage\n1,2\n"], 2))
def test_damaged_files_of_any_kind_are_lines_and_never_the_end_of_the_page(content, tmp_path):
    names = ("score.json", "prune.json", "path.csv", "predictions.csv", "seeds.json", "releases.csv", "runs/prune.json")
    for name in (
        *names,
        "curves/prune.csv",
        "sweeps/bits.csv",
        "../params.yaml",
        "../data/manifest.json",
        "../dvc.lock",
    ):
        place = tmp_path / "metrics" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    damaged = gather(Folder(tmp_path), "damaged")
    written = page_of_run(damaged, Context([damaged], PEERS, tmp_path, page.texts()), settings(damaged.params, None))
    assert all(len(fault) <= 300 and "\n" not in fault for fault in damaged.faults)
    assert written.count('class="missing"') >= len(BUILDERS)


def test_a_score_of_another_form_is_a_sentence_in_its_sections(run, context):
    odd = {"deck": 3, "test_accuracy_percent": "x", "reference": {"a": 1}, "cascade": {"images_percent": [1, 2, 3]}}
    for key, value in odd.items():
        other = Run(**{**vars(run), "score": {**SCORE, key: value}})
        found = [part(name, other, context) for name in ("headline", "layers")]
        faults = [it["fault"] for it in found if it and "fault" in it]
        assert faults and all(len(fault) <= 200 and "\n" not in fault for fault in faults), key


def test_foreign_text_is_never_markup(run, context):
    evil = '</script><img src=x onerror="alert(1)">{{ 1 }}\x1b[2J'
    rows = [{**row, "stage": evil} for row in run.path]
    answered = predictions(40, (evil, "b"))
    other = Run(evil, evil, run.places, faults=[evil], path=rows, curves={evil: run.curves["prune"][:2]})
    other.score = {**SCORE, "reference": {"name": evil}}
    other.predictions = list(
        csv.DictReader(answered.replace(evil, f'"{evil.replace(chr(34), chr(34) * 2)}"').splitlines())
    )
    right = sum(row["actual"] == row["predicted"] for row in other.predictions)
    other.score["test_accuracy_percent"] = 100 * right / len(other.predictions)
    assert "fault" not in (part("confusion", other, context) or {})
    written = page_of_run(other, context, settings({evil: evil}, {}), there=evil)
    assert "<img src=x" not in written and "\x1b" not in written
    assert written.count("</script>") == written.count("<script")


def test_a_model_without_params_is_told_where_they_would_be_and_not_to_overwrite_the_roots(committed, tmp_path):
    for source, model, place, way in (
        (committed, "folder", "metrics/folder/params.yaml", "<code>recipes/folder.yaml</code>"),
        (tmp_path, "mine", "metrics/mine/params.yaml", "there of the params that made these results would be shown"),
        (tmp_path, "", "params.yaml", "make use RECIPE=laptop"),
    ):
        (tmp_path / "metrics/mine").mkdir(parents=True, exist_ok=True)
        (tmp_path / "metrics/mine/score.json").write_text(json.dumps(SCORE))
        other = gather(Folder(source), "tried", model=model)
        written = page_of_run(other, Context([other], PEERS, source, page.texts()))
        assert f"There is no <code>{place}</code> that can be read here; " in written and way in written
        assert ("make use RECIPE=laptop" in written) == (model == "")


def test_answers_without_a_confidence_have_no_calibration_and_no_order(run, context):
    rows = [{**row, "confidence_percent": ""} for row in run.predictions]
    other = Run("unsure", None, run.places, predictions=rows)
    written = page_of_run(other, context)
    assert written.count("does not say how sure the model is") == 2
    assert part("confusion", other, context)["figure"] is not None


def test_seeds_of_another_recipe_are_none_of_this_run(run, context):
    seeds = {
        "params_digest": recipe_digest(parse(run.params)),
        "mean": {"challenge_score": 0.002},
        "spread": {"challenge_score": 0.0001},
        "rows": [{"seed": seed, "challenge_score": 0.002, "validation_accuracy_percent": 91.0} for seed in (0, 1)],
    }

    def written(**fields: object) -> str:
        return page_of_run(Run(**{**vars(run), "seeds": seeds, **fields}), context)

    mine = written(params={**run.params, "seed": 7})
    assert "Mean and standard deviation of 2 seeds" in mine and "0.00200 ± 0.00010" in mine, "a seed is no recipe"
    for fields, said in (
        ({"params": {**run.params, "prune": {**run.params["prune"], "amount": 0.31}}}, "is from other params than"),
        ({"seeds": {**seeds, "params_digest": "x"}}, "is from other params than"),
        ({"params": None}, "cannot be read as current params"),
    ):
        other = written(**fields)
        assert said in other and "<code>make seeds</code> makes it anew" in other
        assert "0.00200 ± 0.00010" not in other


def test_a_matrix_of_many_classes_is_a_table_of_the_largest_confusions(run, context):
    names = tuple(f"class {number}" for number in range(60))
    rows = [
        dict(zip(answers.COLUMNS, line.split(","), strict=True)) for line in predictions(600, names).splitlines()[1:]
    ]
    found = part("confusion", Run("many", None, run.places, predictions=rows), context)
    assert found["figure"] is None and 0 < len(found["table"].rows) <= 20


def test_a_chart_has_no_numbers_of_its_own_beside_the_table(found):
    for content in found.values():
        for figure in _figures(content):
            text = json.dumps(figure.spec)
            assert figure.table.rows and '"values": [{' not in text.replace('"values": [{"x": 0, "y": 0}', "")
            assert figure.spec["description"].endswith("The numbers are in the table below.")


def _figures(content):
    for value in (content or {}).values():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, tuple):
                one = one[-1]
            if hasattr(one, "spec"):
                yield one


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_can_be_told_from_what_they_stand_on(scheme):
    found = colours((page.FOLDER / "style.css").read_text(), scheme)
    # WCAG 2.2, AA: 4.5 of text, 3 of what else has to be seen
    assert all(contrast(found[ink], found[on]) >= 4.5 for ink in ("ink", "quiet") for on in ("paper", "raised", "mark"))
    marks = ("main", "second", "third", "fourth", "strong", "focus")
    assert [name for name in marks if contrast(found[name], found["paper"]) < 3] == []
