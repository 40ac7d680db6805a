"""pipelines/dvc.yaml: the root's stages for each recipe in its folder, and the cascade of two of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import models
from micronet import params
from tests.support import warm
from tests.support.pipeline import ENVIRONMENT, LIMIT, STAGES
from tests.support.places import ROOT

PIPELINES = ROOT / "pipelines"
GRAPH = yaml.safe_load((PIPELINES / "dvc.yaml").read_text())
VARS = {name: value for each in GRAPH["vars"] for name, value in each.items()}
BASE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
OF_THE_CASCADE = ["code_of_cascade", "join", "score_of_cascade"]
SHARED = {"micronet", "models", "networks", "stages", "data/sample"}  # of the repository, which all folders read


def moved(value: Any) -> Any:
    """What a stage of the root says, as a folder of pipelines/ says it."""
    if isinstance(value, list):
        return [moved(each) for each in value]
    if isinstance(value, dict):
        return {key: moved(each) for key, each in value.items()}
    if isinstance(value, str):
        value = value.replace("python stages/", "python ../../stages/")
        return f"../../{value}" if value in SHARED else value
    return value


@pytest.mark.parametrize("stage", BASE)
def test_a_stage_of_the_recipes_is_the_roots_in_another_folder(stage):
    found = dict(GRAPH["stages"][stage])
    over = {"prepare_data": "folders", "train_teacher": "teachers"}.get(stage, "recipes")
    assert found.pop("matrix") == {"recipe": f"${{{over}}}"} and found.pop("wdir") == "${item.recipe}"
    wanted = moved(BASE[stage])
    if stage != "code":
        # Uncached, else `dvc pull` fails on what release/cache lacks; the numbers and pictures of DVC are the root's.
        wanted["outs"] = [{out: {"cache": False}} for out in outputs(wanted)]
        wanted = {key: said for key, said in wanted.items() if key not in ("plots", "metrics")}
    assert found == wanted


def test_there_is_a_folder_with_params_for_each_recipe_and_each_takes_a_teacher_once():
    assert sorted(GRAPH["stages"]) == sorted([*BASE, "take_teacher", *OF_THE_CASCADE])
    assert VARS["folders"] == sorted([*VARS["recipes"], "cascade"])
    assert sorted(path.parent.name for path in PIPELINES.glob("*/params.yaml")) == VARS["folders"]
    taking = GRAPH["stages"]["take_teacher"]["matrix"]["recipe"]
    assert sorted(VARS["teachers"] + taking) == VARS["recipes"]
    record = params.load(ROOT / "recipes/record.yaml")
    for name in taking:
        sections = params.load(PIPELINES / name / "params.yaml")
        assert (sections.seed, sections.teacher) == (record.seed, record.teacher)


@pytest.mark.parametrize("name", VARS["folders"])
def test_all_recipes_read_the_one_prepared_dataset_of_their_data(name):
    data = params.load(PIPELINES / name / "params.yaml").data
    folder = os.path.normpath(PIPELINES / name / data.folder)
    assert folder == str(ROOT / "data" / {"mnist": "mnist"}.get(name, "cifar10"))
    assert data.model_copy(update={"folder": ""}) == params.load(ROOT / "recipes/deck.yaml").data.model_copy(
        update={"folder": "", "source": data.source}
    )


def recipe_of(path: Path, *, short: bool) -> dict[str, Any]:
    """A params file as a tree, without the place of its data; `short`: without the lengths of its schedules either."""
    tree = params.load(path).model_dump()
    del tree["data"]["folder"]
    for section in tree.values():
        if short and isinstance(section, dict) and "train" in section:
            section["train"] |= {"epochs": 0, "batch_size": 0, "max_batch_size": 0}
    return tree


@pytest.mark.parametrize("name", ["deck", "mnist"])
def test_a_recipe_that_is_released_too_differs_in_the_place_of_its_data_alone_and_the_decks_in_its_length(name):
    here, there = PIPELINES / name / "params.yaml", ROOT / f"recipes/{name}.yaml"
    assert recipe_of(here, short=name == "deck") == recipe_of(there, short=name == "deck")
    assert params.load(there).retrain.train.epochs >= params.load(here).retrain.train.epochs


def test_the_models_of_the_recipes_are_built_as_their_full_specs_say():
    for name in VARS["recipes"]:
        sections = params.load(PIPELINES / name / "params.yaml")
        for section in (sections.teacher, sections.student):
            models.check(models.normalise(section.model.spec()))


def test_the_cascade_names_its_networks_as_what_it_reads():
    join = GRAPH["stages"]["join"]
    files = re.findall(r"\S+/quantized.safetensors", join["cmd"])
    assert len(files) == len(VARS["shares"].split()) == 2 and set(files) < set(join["deps"])
    # a file of its own: of a link DVC reads nothing at another commit, and shows that as a change
    assert not (PIPELINES / "cascade/params.yaml").is_symlink()
    cascade, dense = ((PIPELINES / name / "params.yaml").read_text() for name in ("cascade", "dense"))
    assert cascade.partition("\nseed:")[2] == dense.partition("\nseed:")[2]


# --- under real DVC, with stages that take no time ---

TOY = """\
import hashlib, json, pathlib, sys
stage = pathlib.Path(__file__).stem
made = json.loads(pathlib.Path(__file__).with_name("made.json").read_text())
if stage == "code_digests":
    stage = "code_of_cascade" if "--cascade" in sys.argv else "code"
if stage == "score" and "--packed" in sys.argv:
    stage = "score_of_cascade"
outs, deps, sections = made[stage]
text = pathlib.Path("params.yaml").read_text().splitlines()
seen = [line for line in text if line.split(":")[0] in sections] + [
    pathlib.Path(dep).read_bytes().hex() for dep in deps if not dep.startswith("../../") and pathlib.Path(dep).is_file()
]
for out in outs:
    path = pathlib.Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(repr([out, seen]).encode()).hexdigest()
    path.write_text(json.dumps({"x": int(digest[:6], 16)}) if stage not in ("code", "code_of_cascade") else "{}")
"""
SECTIONS = ("seed", "data", "engine", "teacher", "student", "distill", "prune", "retrain", "quantize", "score")


def outputs(stage: dict[str, Any]) -> list[str]:
    each = [item for kind in ("outs", "plots", "metrics") for item in stage.get(kind, [])]
    return [next(iter(item)) if isinstance(item, dict) else item for item in each]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """Both graphs as they are, with toys for scripts, and params of a line a section."""
    folder = tmp_path_factory.mktemp("toy")
    graphs = BASE | GRAPH["stages"]
    made = {
        name: (outputs(stage), [dep for dep in stage["deps"] if dep != "params.yaml"], stage.get("params", []))
        for name, stage in graphs.items()
    }
    for name in ("micronet", "models", "networks", "stages", "data/sample"):
        (folder / name).mkdir(parents=True)
        (folder / name / "kept").write_text(name)
    (folder / "stages/made.json").write_text(json.dumps(made))
    for name in (*STAGES, "join", "take_teacher", "code_digests"):
        (folder / f"stages/{name}.py").write_text(TOY)
    (folder / "stages/check.py").write_text("")
    text = "".join(f"{section}: 0\n" for section in SECTIONS)
    (folder / "params.yaml").write_text(text)
    # no two folders have the same params: DVC would know the results of the first
    for name in VARS["folders"]:
        (folder / "pipelines" / name).mkdir(parents=True)
        same = "dense" if name == "cascade" else name
        (folder / f"pipelines/{name}/params.yaml").write_text(text.replace("0", same))
    shutil.copy(ROOT / "dvc.yaml", folder)
    shutil.copy(PIPELINES / "dvc.yaml", folder / "pipelines")
    done = dvc(folder, "init", "--no-scm", "--quiet")
    assert done.returncode == 0, done.stderr
    return folder


def dvc(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """DVC, whose stages run a Python that has loaded nothing: the toys need no more."""
    environment = ENVIRONMENT | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{ENVIRONMENT['PATH']}"}
    command = [str(warm.folder("dvc") / "python"), "-m", "dvc", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT)


def executed(folder: Path, *words: str) -> set[str]:
    """The stages that a command of DVC ran."""
    done = dvc(folder, *words)
    assert done.returncode == 0, done.stderr
    return {name.removeprefix("pipelines/dvc.yaml:") for name in re.findall(r"Running stage '(.+)'", done.stdout)}


def listed(folder: Path, *targets: str) -> set[str]:
    """The files of metrics that DVC shows numbers of."""
    done = dvc(folder, "metrics", "show", "--json", *targets)
    assert done.returncode == 0, done.stderr
    found = next(iter(json.loads(done.stdout).values()))["data"]
    return {os.path.normpath(path) for path, said in found.items() if said["data"]}


@pytest.mark.slow
def test_a_model_is_made_with_what_it_needs_and_the_root_stays_apart(toy):
    glance = executed(toy, "repro", "pipelines/dvc.yaml:score@glance")
    of_the_root = {"code", "prepare_data", "train_teacher"}
    assert of_the_root | {"take_teacher@glance", "score@glance"} < glance
    assert not {"distill@dense", "train_teacher@deck", "join", "train_student"} & glance
    rest = executed(toy, "repro", "pipelines/dvc.yaml")
    assert {"join", "score_of_cascade", "score@dense", "score@deck", "score@mnist"} < rest
    assert not rest & glance and not rest & set(BASE)
    assert executed(toy, "repro", "pipelines/dvc.yaml") == set()
    assert executed(toy, "repro", "dvc.yaml") == set(BASE) - of_the_root
    assert listed(toy) == {"metrics/summary.json"}, "the root's numbers are not lost among those of other models"
    wanted = {f"pipelines/{name}/metrics/summary.json" for name in VARS["folders"]}
    assert listed(toy, *wanted) == wanted


@pytest.mark.slow
def test_a_changed_front_network_reruns_it_and_the_join_alone(toy):
    executed(toy, "repro", "pipelines/dvc.yaml")
    path = toy / "pipelines/glance/params.yaml"
    path.write_text(path.read_text().replace("quantize: glance", "quantize: 1"))
    changed = executed(toy, "repro", "pipelines/dvc.yaml")
    assert changed == {"code@glance", "quantize@glance", "score@glance", "join", "score_of_cascade"}
    graph = toy / "pipelines/dvc.yaml"
    graph.write_text(graph.read_text().replace(VARS["shares"], "0.5 0.02"))
    assert executed(toy, "repro", "pipelines/dvc.yaml") == {"join"}, "its file is the same: the toy reads no shares"


def test_git_keeps_what_the_folders_say_and_ignores_what_they_hold(tmp_path):
    kept = ["data/manifest.json", "metrics/score.json", "metrics/runs/prune.json", "code/prune.json", "params.yaml"]
    dropped = ["checkpoints/teacher.safetensors", "run/prune/lock"]
    paths = [f"pipelines/dense/{name}" for name in (*kept, *dropped)]
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)  # the checkout may be an archive's
    shutil.copy(ROOT / ".gitignore", tmp_path)
    command = ["git", "-C", str(tmp_path), "check-ignore", "--no-index", *paths]
    found = subprocess.run(command, capture_output=True, text=True).stdout.split()
    assert found == [f"pipelines/dense/{name}" for name in dropped]
