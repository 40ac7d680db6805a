"""dvc.yaml against the code: a stage's deps are what decides its result, no more and no less."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from micronet import params
from micronet.scoring import answers
from micronet.training.checkpoint import MADE_BY
from micronet.training.reporting import EpochRow
from stages.dependencies import ARCHITECTURES
from tests.support.pipeline import STAGES as ORDER
from tests.support.places import ROOT

GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = GRAPH["stages"]
NOT_STAGES = {"common", "dependencies", "job", "trainer", "taught", "check", "consistency", "costs", "validation"}

CHECKPOINTS = {  # what each stage reads
    "prepare_data": (),
    "train_teacher": (),
    "train_student": (),
    "distill": ("teacher", "student"),
    "prune": ("teacher", "distilled"),
    "retrain": ("teacher", "pruned"),
    "quantize": ("teacher", "retrained"),
    "score": ("teacher", "student", "distilled", "pruned", "retrained", "quantized"),
}
SECTIONS = {  # which params decide its result
    "prepare_data": {"data"},
    "train_teacher": {"seed", "engine", "teacher"},
    "train_student": {"seed", "engine", "student"},
    "distill": {"seed", "engine", "distill"},
    "prune": {"seed", "engine", "prune"},
    "retrain": {"seed", "engine", "retrain"},
    "quantize": {"seed", "engine", "quantize"},
    "score": {"score"},
}


def checkpoint(name: str) -> str:
    return f"checkpoints/{name}.safetensors"


def script(stage: str) -> Path:
    return ROOT / "stages" / f"{stage}.py"


def outputs(stage: str, kind: str) -> dict[str, dict]:
    """`outs`, `metrics` or `plots` of a stage by path, with their settings."""
    found: dict[str, dict] = {}
    for item in STAGES[stage].get(kind, []):
        found |= item if isinstance(item, dict) else {item: {}}
    return found


def inputs_in_script(stage: str) -> tuple[str, tuple[str, ...]] | None:
    """Section and input checkpoints of the script's `job.resumable(...)`."""
    for node in ast.walk(ast.parse(script(stage).read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "resumable":
            keywords = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
            return ast.literal_eval(node.args[0]), keywords.get("inputs", ())
    return None


def test_the_stages_are_those_of_the_contract_in_order():
    assert list(STAGES) == ["code", *ORDER]


def test_every_stage_has_a_script_and_every_script_a_stage():
    scripts = {path.stem for path in (ROOT / "stages").glob("*.py")} - NOT_STAGES
    assert scripts == {"code_digests", "join", "take_teacher", *ORDER}  # two are stages of pipelines/dvc.yaml


def test_no_script_stands_in_the_way_of_a_module_of_python():
    # `python stages/NAME.py` finds the neighbours of the script first, before the standard library
    assert not {path.stem for path in (ROOT / "stages").glob("*.py")} & sys.stdlib_module_names


def test_the_first_stage_names_the_code_of_every_other_from_the_folders_and_the_networks():
    assert list(ARCHITECTURES) == ORDER
    code = STAGES["code"]
    assert code["deps"] == ["micronet", "models", "networks", "params.yaml", "stages"]
    assert list(outputs("code", "outs")) == [f"code/{stage}.json" for stage in ORDER]
    assert set(code) == {"cmd", "deps", "outs"}


def test_the_first_stage_checks_the_params_before_dvc_removes_any_output():
    assert STAGES["code"]["cmd"] == "python stages/check.py --quiet && python stages/code_digests.py"
    assert all(settings["persist"] for settings in outputs("code", "outs").values()), "else they are what it removes"
    assert all(f"code/{stage}.json" in STAGES[stage]["deps"] for stage in ORDER)


@pytest.mark.parametrize("stage", ORDER)
def test_a_stage_runs_its_script_and_nothing_else(stage):
    assert STAGES[stage]["cmd"] == f"python stages/{stage}.py"


@pytest.mark.parametrize("stage", ORDER)
def test_the_deps_are_the_code_and_the_inputs(stage):
    inputs = {"data/sample" if stage == "prepare_data" else "data/manifest.json"}
    inputs |= {checkpoint(name) for name in CHECKPOINTS[stage]}
    assert set(STAGES[stage]["deps"]) == {f"code/{stage}.json"} | inputs


@pytest.mark.parametrize("stage", STAGES)
def test_no_dep_is_given_twice_and_each_exists_or_is_made_by_an_earlier_stage(stage):
    deps, order = STAGES[stage]["deps"], list(STAGES)
    made = {path for earlier in order[: order.index(stage)] for path in outputs(earlier, "outs")}
    assert len(deps) == len(set(deps))
    assert [dep for dep in deps if dep not in made and not (ROOT / dep).exists()] == []


@pytest.mark.parametrize("stage", [name for name in ORDER if name not in ("prepare_data", "score")])
def test_a_script_names_the_inputs_and_the_section_that_dvc_compares(stage):
    section, inputs = inputs_in_script(stage)
    assert inputs == CHECKPOINTS[stage]
    assert {"seed", "engine", section} == SECTIONS[stage]


@pytest.mark.parametrize("stage", ORDER)
def test_the_params_are_the_stages_own_sections(stage):
    assert set(STAGES[stage]["params"]) == SECTIONS[stage]


def test_every_section_belongs_to_some_stage():
    assert set().union(*SECTIONS.values()) == set(params.Params.model_fields)


@pytest.mark.parametrize("stage", ORDER)
def test_the_outputs_are_those_of_the_contract(stage):
    made = {checkpoint(name) for name, maker in MADE_BY.items() if maker == stage}
    assert set(outputs(stage, "outs")) == (made or ({"data/manifest.json"} if stage == "prepare_data" else set()))
    tables = {"prepare_data": set(), "score": {"metrics/path.csv", "metrics/predictions.csv"}}
    assert set(outputs(stage, "plots")) == tables.get(stage, {f"metrics/curves/{stage}.csv"}) | {
        f"metrics/{stage}.json"
    }


def test_the_metrics_are_the_few_numbers_that_a_person_compares():
    found = {path: settings for stage in STAGES for path, settings in outputs(stage, "metrics").items()}
    assert found == {"metrics/summary.json": {"cache": False}}


def test_every_plot_has_a_title_and_labels_and_draws_columns_that_stages_write():
    columns = {f"metrics/curves/{stage}.csv": {field.name for field in fields(EpochRow)} for stage in MADE_BY.values()}
    columns["metrics/predictions.csv"] = set(answers.COLUMNS)
    columns["metrics/path.csv"] = {"challenge_score", "test_accuracy_percent"}
    for stage in ORDER:
        tables = {path: settings for path, settings in outputs(stage, "plots").items() if path.endswith(".csv")}
        for path, settings in tables.items():
            assert {settings["x"], settings["y"]} <= columns[path] and {"title", "y_label"} <= set(settings)
    for plot in GRAPH["plots"]:
        ((_, settings),) = plot.items()
        assert set(settings["y"]) == {path for path in columns if "/curves/" in path}
        assert all({settings["x"], column} <= columns[path] for path, column in settings["y"].items())
        assert {"title", "x_label", "y_label"} <= set(settings)


def test_every_artifact_is_a_checkpoint_with_type_labels_and_description():
    for graph in (GRAPH, yaml.safe_load((ROOT / "pipelines/dvc.yaml").read_text())):
        for name, artifact in graph["artifacts"].items():
            assert re.fullmatch("[a-z][a-z0-9-]*", name) and artifact["type"] == "model"
            assert artifact["labels"] and artifact["desc"]
            assert re.search(r"(^|/)checkpoints/(\w+)\.safetensors$", artifact["path"])[2] in MADE_BY
    assert {artifact["path"] for artifact in GRAPH["artifacts"].values()} >= {checkpoint("quantized")}


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_are_cached_and_what_lies_in_git_is_not(stage):
    for path, settings in outputs(stage, "outs").items():
        assert settings.get("cache", True) == path.startswith("checkpoints/")
    for kind in ("metrics", "plots"):
        assert all(settings["cache"] is False for settings in outputs(stage, kind).values())


def test_what_differs_from_run_to_run_is_declared_nowhere():
    assert "metrics/runs" not in (ROOT / "dvc.yaml").read_text().replace("# ", "")


def test_nothing_switches_the_run_cache_off_or_keeps_stale_models():
    for stage, settings in STAGES.items():
        assert not {"always_changed", "frozen"} & set(settings)
        kinds = [str(settings.get(kind, "")) for kind in ("outs", "metrics", "plots")]
        assert stage == "code" or all("persist" not in said for said in kinds)
        if stage not in ("code", "prepare_data"):  # which take no time
            assert all(cached.get("cache", True) for cached in outputs(stage, "outs").values())


# --- what git and DVC walk past ---


def ignored(folder: Path, rules: Path, *paths: str) -> set[str]:
    """Which of the paths the rules ignore, by git's own reading of them."""
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    (folder / ".gitignore").write_text(rules.read_text())
    command = ["git", "-C", str(folder), "check-ignore", "--no-index", *paths]
    return set(subprocess.run(command, capture_output=True, text=True).stdout.split())


def in_git() -> set[str]:
    kept = {"dvc.yaml", "dvc.lock", "params.yaml", "data/manifest.json", "data/sample/train_images.png"}
    kept |= {f"metrics/{stage}.json" for stage in ORDER} | {f"metrics/runs/{stage}.json" for stage in ORDER}
    kept |= {path for stage in STAGES for kind in ("outs", "metrics", "plots") for path in outputs(stage, kind)} - {
        checkpoint(name) for name in MADE_BY
    }
    return kept | {"release/cache/files/md5/ab/cdef"}


def test_git_keeps_metrics_and_manifest_and_ignores_data_checkpoints_and_resume_state(tmp_path):
    binary = {checkpoint(name) for name in MADE_BY} | {"run/prune/lock", "data/cifar10/train_images.bin"}
    binary |= {"data/cifar10-sample/train_images.bin", ".venv/bin/python", "build/demo/dvc.yaml"}
    assert ignored(tmp_path, ROOT / ".gitignore", *in_git(), *binary) == binary


def test_dvc_walks_past_data_environment_and_resume_state_and_sees_every_dep_and_output(tmp_path):
    seen = {dep for stage in STAGES for dep in STAGES[stage]["deps"]} | {"micronet/data/store.py", "stages/prune.py"}
    seen |= {path for stage in STAGES for kind in ("outs", "metrics", "plots") for path in outputs(stage, kind)}
    skipped = {"micronet/data/__pycache__/store.pyc"}
    skipped |= {"data/cifar10/train_images.bin", ".venv/bin/python", "run/prune/lock", "build/demo/dvc.yaml"}
    assert ignored(tmp_path, ROOT / ".dvcignore", *seen, *skipped) == skipped


def test_published_checkpoints_are_not_touched_by_line_endings():
    rules = [line.split() for line in (ROOT / ".gitattributes").read_text().splitlines()]
    assert ["release/cache/**", "-text"] in rules and [".dvc/cache/**", "-text"] in rules


# --- what is published ---


def test_the_published_remote_lies_in_the_repository_and_nothing_is_pushed_to_it_unless_it_is_named():
    config = configparser.ConfigParser()
    config.read_string((ROOT / ".dvc/config").read_text().replace("\t", ""))
    assert config["'remote \"release\"'"]["url"] == "../release/cache"
    assert "remote" not in config["core"]


def test_a_clone_has_in_its_cache_what_is_published():
    def held(folder: str) -> list[str]:
        """The files below a folder as git has them: kind, content, path."""
        command = ["git", "-C", str(ROOT / folder), "ls-files", "--stage", "files"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()

    assert held(".dvc/cache") == held("release/cache") != []
