"""The studies: what they plan, what a run does, what DVC makes of a failure, what the report dares to say."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from micronet import params
from micronet.files import write_atomically
from micronet.training.reporting import Reporter
from studies import collect, plan, run, sources
from tools import studies_table

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = (
    "growth_rate grouping augmentation distillation teacher_size pruning bits optimizer schedule learning_rate "
    "weight_decay batch_size"
).split()


@functools.cache
def tree() -> dict:
    return params.read_yaml(ROOT / "studies/studies.yaml")


def planned(change=lambda tree: None, budget: str = "small") -> plan.Plan:
    """The plan of the real studies after a change."""
    changed = copy.deepcopy(tree())
    change(changed)
    return plan.Plan(changed, {"budget": budget})


def faults(change) -> list[str]:
    with pytest.raises(params.ParamsError) as caught:
        planned(change)
    return caught.value.faults


# --- the plan ---


def test_there_is_a_study_for_every_question():
    assert list(planned().file.studies) == QUESTIONS


def test_the_small_budget_takes_at_most_four_hours():
    assert 1 < sum(planned().seconds().values()) / 3600 <= 4


def test_the_estimate_grows_with_the_images():
    def more(tree):
        tree["budgets"]["small"]["resnet"]["images"] *= 2

    assert planned(more).seconds()["augmentation"] > 1.5 * planned().seconds()["augmentation"]


def test_the_full_budget_is_sound_and_longer():
    assert sum(planned(budget="full").seconds().values()) > 20 * sum(planned().seconds().values())


def test_dense_networks_are_trained_only_where_the_question_is_about_them():
    found = planned()
    dense = {name for name, group in found.settings.items() for one in group.values() if one.model["name"] != "resnet"}
    assert dense == {"growth_rate", "grouping"}


def test_every_study_has_the_variants_that_the_deck_names():
    settings = planned().settings
    assert [one.model["growth_rate"] for one in settings["growth_rate"].values()] == [12, 9, 6, 4]
    assert [(one.quantize.method, one.quantize.weight_bits) for one in settings["bits"].values() if one.quantize] == [
        ("half", 8),
        ("lsq", 8),
        ("fx_int8", 8),
        ("lsq", 4),
        ("lsq", 3),
        ("lsq", 2),
        ("binary_connect", 1),
    ]
    assert {one.train.weight_decay for one in settings["weight_decay"].values()} == {5e-4, 1e-4, 0.0}
    methods = {one.prune.method for one in settings["pruning"].values() if one.prune}
    assert methods == {"one_shot", "iterative", "gradual", "soft"}


def test_a_cell_that_no_channels_fit_is_listed_with_the_reason():
    found = planned()
    assert found.absent["grouping"]["stem_2"] == (
        "groups.stem: 2 does not divide the channels of growth_rate 6; 1, 3 would"
    )
    assert "stem_2" not in found.variants("grouping") and "stem_3" in found.variants("grouping")


def test_a_misspelt_model_is_a_mistake_and_no_absent_cell():
    def misspell(tree):
        tree["studies"]["grouping"]["variants"]["stem_3"] = {"model": {"groups": {"stam": 3}}}

    assert faults(misspell) == [
        "studies/studies.yaml: grouping.variants.stem_3.model: groups.stam: no such key (there are bottleneck, "
        "transition, stem)"
    ]


def test_a_temperature_without_a_teacher_is_refused():
    def drop(tree):
        del tree["studies"]["distillation"]["variants"]["t4_a09"]["teacher"]

    assert faults(drop) == [
        "studies/studies.yaml: distillation.variants.t4_a09: temperature and alpha need a teacher "
        "(there are thin, wide, wider)"
    ]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"teacher": "huge", "temperature": 1.0}, "teacher: there is no 'huge' (there are thin, wide, wider)"),
        ({"teacher": "wide", "temperature": 0.0}, "temperature: Input should be greater than 0"),
        ({"prune": {"method": "guess", "amount": 0.5}}, "method: Input should be 'one_shot'"),
        ({"network": "resnet18"}, "network: there is no 'resnet18' (there are thin,"),
        ({"train": {"epoch": 3}}, "epoch: no such key"),
        ({"speed": 3}, "speed: no such key"),
    ],
)
def test_a_faulty_variant_is_named_in_one_line(change, text):
    def put(tree):
        tree["studies"]["distillation"]["variants"]["t1_a05"] = change

    (line,) = faults(put)
    assert line.startswith("studies/studies.yaml: ") and "t1_a05" in line and text in line


def test_an_unknown_budget_lists_those_that_exist():
    with pytest.raises(params.ParamsError, match=r"there is no 'huge' \(there are small, full\)"):
        planned(budget="huge")


def test_a_changed_setting_changes_the_digest_of_its_own_variant_only():
    def change(tree):
        tree["studies"]["pruning"]["variants"]["soft_80"]["prune"]["amount"] = 0.81

    before, after = planned().document["digests"], planned(change).document["digests"]
    changed = [(group, name) for group in before for name in before[group] if before[group][name] != after[group][name]]
    assert changed == [("pruning", "soft_80")]


def test_the_plan_in_the_repository_is_that_of_its_studies():
    assert (
        params.read_yaml(ROOT / "studies/plan.yaml")
        == plan.load(ROOT / "studies/studies.yaml", ROOT / "studies/params.yaml").document
    )


def test_dvc_runs_every_study_and_every_shared_network():
    stages = yaml.safe_load((ROOT / "studies/dvc.yaml").read_text())["stages"]
    found = planned()
    assert list(stages) == ["code", *found.groups, "collect"]
    for name in found.groups:
        assert stages[name]["matrix"] == {"variant": f"${{variants.{name}}}", "seed": f"${{seeds.{name}}}"}
        wanted = {f"teacher/{one.teacher}-0" for one in found.settings[name].values() if one.teacher}
        wanted |= {f"base/{one.start}-${{item.seed}}" for one in found.settings[name].values() if one.start}
        assert {dep for dep in stages[name]["deps"] if "runs/" in dep} == {
            f"metrics/studies/runs/{need}.json" for need in wanted
        }


def test_dvc_knows_the_code_that_decides_the_results():
    stages = yaml.safe_load((ROOT / "studies/dvc.yaml").read_text())["stages"]
    deps, found = stages["code"]["deps"], sources.digests(planned())
    assert [name for name in found if not any(name == dep or name.startswith(f"{dep}/") for dep in deps)] == []
    assert {"stages/dependencies.py", "studies/plan.py", "studies/sources.py", "studies/studies.yaml"} <= set(deps)
    assert not any(out for stage in stages.values() for out in stage["outs"] if isinstance(out, str))  # no cached ones


def test_what_is_planned_and_said_is_no_code_of_a_result():
    found = sources.digests(planned())
    assert {"studies/run.py", "micronet/training/loop.py", "micronet/packed/packing.py"} <= set(found)
    assert not {"studies/plan.py", "studies/sources.py", "micronet/training/reporting.py"} & set(found)
    assert not [name for name in found if name.startswith("stages/")]


# --- a run ---

TINY = {
    "budgets": {
        "tiny": {
            "short": {"images": 200, "epochs": 2, "seeds": [0]},
            "shared": {"images": 200, "epochs": 1, "seeds": [0]},
        }
    },
    "networks": {
        "thin": {
            "model": {"name": "resnet", "blocks": [1, 1], "widths": [8, 16]},
            "images_per_second": 1000,
            "train": {"batch_size": 50, "learning_rate": 0.05},
        }
    },
    "shared": {
        "teacher": {"size": "shared", "variants": {"thin": {"network": "thin"}}},
        "base": {"size": "shared", "variants": {"thin": {"network": "thin"}}},
    },
    "studies": {
        "rates": {
            "question": "How fast?",
            "deck": "Fast.",
            "size": "short",
            "reference": "slow",
            "common": {"network": "thin"},
            "variants": {"broken": {"train": {"learning_rate": 1e9}}, "slow": {}},
        },
        "widths": {
            "question": "How wide?",
            "size": "short",
            "reference": "plain",
            "common": {"network": "thin"},
            "variants": {
                "plain": {},
                "taught": {"teacher": "thin", "temperature": 2.0, "alpha": 0.5},
                "pruned": {"start": "thin", "prune": {"method": "gradual", "amount": 0.5}},
                "bits_8_fx": {"start": "thin", "quantize": {"method": "fx_int8", "calibration_images": 50}},
                "bits_2": {"start": "thin", "quantize": {"method": "lsq", "weight_bits": 2, "calibration_images": 50}},
            },
        },
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample_data, sample_manifest) -> Path:
    """A place with the tiny studies, the sample and a params file."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies/studies.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    (tmp_path / "studies/params.yaml").write_text("budget: tiny\nengine: {threads: 1, save_every_seconds: 0.0}\n")
    recipe = yaml.safe_load((ROOT / "recipes/demo.yaml").read_text())
    recipe["data"] |= {"folder": sample_data.folder, "validation_size": 200}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "data").mkdir()
    shutil.copy(sample_manifest, tmp_path / "data/manifest.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_run(group: str, variant: str, reporter: Reporter | None = None) -> run.Run:
    return run.Run(plan.load(), group, variant, 0, reporter or Reporter())


def test_a_run_writes_accuracy_both_scores_epochs_and_images(folder):
    assert run.work(a_run("rates", "slow")) == 0
    record = json.loads((folder / "metrics/studies/runs/rates/slow-0.json").read_text())
    assert 0 < record["validation_accuracy_percent"] < 100
    assert record["deck_score"] > 0 and record["challenge_score"] > 0
    assert (record["epochs"], record["images"], record["validation_images"]) == (2, 200, 200)
    assert list((folder / "run/studies/rates/slow-0").iterdir()) == [folder / "run/studies/rates/slow-0/lock"]


def test_a_run_never_opens_the_test_split(folder, monkeypatch):
    opened, original = [], torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda name, **kw: opened.append(Path(name).name) or original(name, **kw))
    run.perform(a_run("rates", "slow"))
    assert set(opened) == {
        "train_images.bin", "train_labels.bin", "validation_images.bin", "validation_labels.bin"
    }  # fmt: skip


def test_shared_networks_are_trained_once_and_what_is_quantized_is_measured_as_a_packed_file(folder, monkeypatch):
    priced, original = [], run._scores
    monkeypatch.setattr(run, "_scores", lambda model, **kw: priced.append(model) or original(model, **kw))
    for group in ("teacher", "base"):
        run.perform(a_run(group, "thin"))
    weights = folder / "run/studies/base/thin-0.safetensors"
    before = weights.stat().st_mtime_ns
    records = {name: run.perform(a_run("widths", name)) for name in ("plain", "taught", "pruned", "bits_2")}
    assert weights.stat().st_mtime_ns == before
    assert [type(model).__name__ for model in priced[2:]] == ["ResNet", "ResNet", "ResNet", "PackedModule"]
    assert len({record["validation_accuracy_percent"] for record in records.values()}) > 1
    assert records["pruned"]["challenge_score"] < 0.8 * records["plain"]["challenge_score"]
    assert records["bits_2"]["deck_score"] < records["plain"]["deck_score"]


@pytest.mark.slow
def test_fx_graph_mode_runs_as_a_variant(folder):
    run.perform(a_run("base", "thin"))
    records = [run.perform(a_run("widths", name)) for name in ("bits_8_fx", "bits_2")]
    assert records[0]["deck_score"] > records[1]["deck_score"]


def test_a_shared_network_whose_file_is_gone_is_trained_again(folder):
    record = run.perform(a_run("base", "thin"))
    (folder / "run/studies/base/thin-0.safetensors").unlink()
    a_run("base", "thin").model()
    assert a_run("base", "thin").weights_sha256() == record["weights_sha256"]
    assert (folder / "run/studies/base/thin-0.safetensors").is_file()


def test_a_run_without_its_teacher_says_what_makes_it(folder, capsys):
    assert run.work(a_run("widths", "taught")) == 1
    assert "teacher/thin-0 is needed and has not run; `python studies/run.py teacher thin --seed 0` runs it" in (
        capsys.readouterr().err
    )


class Stopping(Reporter):
    """Ends the run after its first epoch, as Ctrl-C does."""

    def __init__(self):
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def epoch(self, row, seconds) -> None:
        if row.epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_record(folder):
    whole = run.perform(a_run("rates", "slow"))
    (folder / "metrics/studies/runs/rates/slow-0.json").unlink()
    assert run.work(a_run("rates", "slow", Stopping())) == 130
    assert not (folder / "metrics/studies/runs/rates/slow-0.json").exists()
    second = Stopping()
    second.epoch = lambda row, seconds: None
    assert run.perform(a_run("rates", "slow", second)) == whole
    assert any("going on after epoch 1" in line for line in second.said)


def test_the_same_work_in_another_study_is_not_done_twice(folder):
    record = run.perform(a_run("rates", "slow"))

    def train(_):
        raise AssertionError("trained again")

    assert run.perform(a_run("widths", "plain"), train) == record
    with pytest.raises(AssertionError):
        run.perform(a_run("rates", "broken"), train)


def test_the_subset_holds_as_many_images_of_each_class():
    labels = torch.arange(1000) % 7 % 10
    split = run.subset(SimpleNamespace(images=torch.arange(1000), labels=torch.arange(1000) % 10), 100)
    assert split.labels.bincount().tolist() == [10] * 10
    assert run.subset(SimpleNamespace(images=labels, labels=labels), 1000).labels is labels


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nothing", "slow"], "there is no study 'nothing' (there are rates, widths)"),
        (["rates", "nothing"], "rates: there is no variant 'nothing' (there are broken, slow)"),
    ],
)
def test_an_unknown_study_or_variant_lists_those_that_exist(folder, capsys, arguments, text):
    kept = folder / "metrics/studies/runs/rates/slow-0.json"
    write_atomically(kept, "{}")
    assert run.main([*arguments, "--seed", "0"]) == 2
    assert capsys.readouterr().err == text + "\n"
    assert kept.read_text() == "{}"


def test_a_faulty_study_file_ends_with_2_and_leaves_everything(folder, capsys):
    changed = json.loads(json.dumps(TINY))
    del changed["studies"]["widths"]["variants"]["taught"]["teacher"]
    (folder / "studies/studies.yaml").write_text(yaml.safe_dump(changed))
    failed = folder / "metrics/studies/runs/rates/slow-0.json"
    write_atomically(failed, '{"failure": "x", "log": "y"}')
    assert plan.main(["--retry"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert failed.exists() and not plan.PLAN.exists()


def test_a_plan_that_is_older_than_the_studies_is_refused(folder, capsys):
    assert plan.main([]) == 0
    (folder / "studies/params.yaml").write_text("budget: tiny\nengine: {threads: 2}\n")
    assert run.main(["rates", "slow", "--seed", "0"]) == 2
    assert "studies/plan.yaml: is older than the studies; `python studies/plan.py` writes it" in capsys.readouterr().err


def test_a_run_that_is_killed_is_recorded_and_retry_forgets_failures_only(folder, monkeypatch, capfd):
    original = subprocess.Popen
    suicide = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(run.subprocess, "Popen", lambda command: original(suicide))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert run.guarded(a_run("rates", "broken")) == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    record = folder / "metrics/studies/runs/rates/broken-0.json"
    assert json.loads(record.read_text())["failure"] == "ended by signal 9"
    kept = folder / "metrics/studies/runs/rates/slow-0.json"
    write_atomically(kept, '{"validation_accuracy_percent": 50.0}')
    assert plan.forget_failures() == [record.relative_to(folder)]
    assert kept.exists() and not record.exists()


# --- under DVC ---


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}", "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_a_variant_that_fails_is_reported_and_the_others_finish(folder):
    for name in ("stages", "models", "micronet", "data/sample"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("plan.py", "run.py", "collect.py", "sources.py"):
        shutil.copy(ROOT / "studies" / name, folder / "studies")
    stages = yaml.safe_load((ROOT / "studies/dvc.yaml").read_text())
    text = json.dumps(stages["stages"]["optimizer"]).replace("optimizer", "rates")
    stages["stages"] = {
        "code": stages["stages"]["code"],
        "rates": json.loads(text),
        "collect": stages["stages"]["collect"] | {"matrix": {"study": ["rates"]}},
    }
    (folder / "studies/dvc.yaml").write_text(yaml.safe_dump(stages))
    assert plan.main([]) == 0
    assert dvc(folder, "init", "--no-scm", "-q").returncode == 0
    first = dvc(folder, "repro", "studies/dvc.yaml")
    assert first.returncode == 0, first.stdout + first.stderr
    log = "logs/studies/rates/broken-0.log"
    assert "rates/broken-0: failed: the loss is " in first.stderr and f"its log: {log}" in first.stderr
    assert (folder / log).read_text().splitlines()[-1].startswith("failed: the loss is ")
    rows = studies_table.read(folder / "metrics/studies/rates.csv")
    assert [row["variant"] for row in rows] == ["broken", "slow"]
    assert [bool(row["validation_accuracy_percent"]) for row in rows] == [False, True]
    assert rows[0]["failure"].endswith(f"log: {log}")
    for kind in ("png", "svg"):
        assert (folder / f"docs/plots/studies/rates.{kind}").stat().st_size > 1000


# --- the report ---


def a_table(*variants: tuple[str, list[float]], images: int = 10_000) -> list[dict[str, str]]:
    """A made-up table: the accuracies of each variant's seeds."""
    return [
        dict(
            variant=name, seed=str(seed), validation_accuracy_percent=str(accuracy), deck_score="0.1",
            challenge_score="0.2", epochs="4", images=str(images), validation_images="5000", budget="small", failure="",
        )
        for name, accuracies in variants
        for seed, accuracy in enumerate(accuracies)
    ]  # fmt: skip


def study(reference: str = "a", deck: str | None = "It says so.") -> plan.Study:
    fields = {"question": "Which?", "size": "resnet", "reference": reference, "variants": {"a": {}}}
    return plan.Study.model_validate(fields | ({"deck": deck} if deck else {}))


def report(rows, **settings) -> str:
    return studies_table.section("choice", study(**settings), {}, rows)


def test_a_difference_below_the_spread_of_seeds_cannot_be_told():
    text = report(a_table(("a", [60.0, 64.0, 62.0]), ("b", [61.0, 66.0, 63.0])))
    assert "**Cannot tell.**" in text and "| b | 63.33 | 5.00 | 0.1000 | 0.2000 | cannot tell: +1.33," in text
    assert "10,000 training images, 4 epochs and 5,000 validation images are too few" in text


def test_a_difference_above_the_spread_of_seeds_is_told():
    text = report(a_table(("a", [60.0, 60.2, 60.1]), ("b", [70.0, 70.2, 70.1]), ("c", [50.0, 50.1, 49.9])))
    assert (
        "Better than `a`: `b`; worse: `c`." in text and "better by 10.00" in text and "cannot tell" not in text.lower()
    )


def test_a_difference_within_the_sampling_error_of_the_validation_images_cannot_be_told():
    text = report(a_table(("a", [60.0, 60.0, 60.0]), ("b", [61.0, 61.0, 61.0])))
    assert "cannot tell: +1.00, chance alone makes ±1.9" in text


def test_scores_that_an_older_format_counted_are_said_to_be_so():
    rows = a_table(("a", [60.0, 60.0]), ("b", [61.0, 61.0]))
    assert "version" not in report(rows) and "version" not in report([row | {"packed_version": "3"} for row in rows])
    text = report([rows[0], rows[1], *(row | {"packed_version": "2"} for row in rows[2:])])
    assert "Scores of packed files are as version 2 of the format counted them; version 3 counts less." in text


def test_one_seed_cannot_tell_anything():
    assert "cannot tell: +20.00, and one seed has no spread" in report(a_table(("a", [50.0]), ("b", [70.0])))


def test_networks_that_learned_nothing_cannot_tell_anything():
    text = report(a_table(("a", [10.0, 10.0]), ("b", [16.0, 16.0]), images=200))
    assert "cannot tell: no variant is far from the 10 % of guessing, the images are too few" in text


def test_more_comparisons_ask_for_more():
    def needed(count: int) -> float:
        variants = [(f"v{index}", [60.0, 61.0]) for index in range(count)]
        found = studies_table.measured(a_table(*variants))
        # as many degrees of freedom either way, so that only the number of comparisons differs
        return studies_table.needed_difference(found["v1"], found["v0"], found)

    seen = studies_table.student_t(0.9875, 10) / studies_table.student_t(0.975, 10)
    assert seen == pytest.approx(2.634 / 2.228, rel=0.01)
    assert needed(2) > 0 and needed(20) > 0


@pytest.mark.parametrize(
    ("probability", "freedom", "wanted"), [(0.975, 4, 2.776), (0.975, 24, 2.064), (0.99, 8, 2.896)]
)
def test_students_t_is_that_of_the_tables(probability, freedom, wanted):
    assert studies_table.student_t(probability, freedom) == pytest.approx(wanted, rel=0.01)


def test_the_report_says_what_the_deck_claims_and_when_it_claims_nothing():
    rows = a_table(("a", [60.0, 60.2]))
    assert "The deck: It says so." in report(rows) and "The deck: claims nothing." in report(rows, deck=None)


def test_a_failed_reference_leaves_nothing_to_compare_with():
    failed = a_table(("a", [60.0]))
    failed[0] |= {"validation_accuracy_percent": "", "failure": "the loss is nan; log: logs/a.log"}
    text = report(failed + a_table(("b", [61.0, 61.5])))
    assert "Cannot tell: the reference `a` failed." in text
    assert "- `a`, seed 0: the loss is nan; log: logs/a.log" in text


def test_the_report_names_the_budget_the_absent_cells_and_what_was_not_measured():
    found = planned()
    tables = {name: None for name in found.file.studies} | {
        "grouping": a_table(("ungrouped", [60.0, 60.2]), ("stem_3", [60.1, 60.3]))
    }
    text = studies_table.render(found, tables)
    assert "Budget `small`: 10,000 training images, 4 epochs, 2 seeds, 5,000 validation images." in text
    assert "- `stem_2`: groups.stem: 2 does not divide the channels of growth_rate 6; 1, 3 would" in text
    assert text.count("Not measured yet: `make study NAME=") == len(QUESTIONS) - 1
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        one.question for one in found.file.studies.values()
    ]


def test_the_same_rows_give_the_same_plot(tmp_path):
    rows = [{"variant": "a", "validation_accuracy_percent": 60.0}, {"variant": "b", "failure": "x"}]
    for name in ("first", "second"):
        collect.write_plot(tmp_path / name, "Which?", rows)
    for kind in ("png", "svg"):
        assert (tmp_path / f"first.{kind}").read_bytes() == (tmp_path / f"second.{kind}").read_bytes()
