"""Pictures of one's own, from their folder to a packed file: docs/your-images.md, command by command."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from pictures import CLASSES, write

from micronet import params, predict
from micronet.packed.file import read
from tests.support.pipeline import STAGES, succeed, write_params
from tests.support.places import ROOT
from tests.support.walkthrough import commands, copy, page, shell

COMMANDS = commands(page("your-images"))
(SECTION,) = re.findall(r"```yaml\n(.*?)```", page("your-images"), re.DOTALL)


def shrunk_recipe() -> dict[str, Any]:
    """The recipe as it stands, with smaller networks and short trainings, on one thread."""
    tree = params.read_yaml(ROOT / "recipes/folder.yaml")
    tree["engine"] = {"device": "cpu", "precision": "fp32", "threads": 1}
    for stage in ("teacher", "student"):
        tree[stage]["model"] = {"name": "resnet", "blocks": [1, 1], "widths": [4, 8]}
    for stage in ("teacher", "student", "distill", "prune", "retrain", "quantize"):
        tree[stage]["train"] |= {"epochs": 1, "batch_size": 16}
    return tree


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    copy(tmp_path)
    shell(tmp_path, "dvc init --no-scm -q")
    return tmp_path


def ran(said: str) -> list[str]:
    """The stages that `dvc repro` ran."""
    return re.findall(r"^Running stage '(\w+)'", said, re.MULTILINE)


@pytest.mark.slow
def test_every_command_of_the_guide_works_on_jpegs_of_64_x_48_pixels_under_dvc(checkout):
    pictures, use, check, repro, predict_folder, predict_one = COMMANDS
    assert "400 pictures to train with, 200 to test with" in shell(checkout, pictures)
    for part, most in (("train", 12), ("test", 6)):
        for path in (checkout / "data/pictures" / part).glob("*/*"):
            if int(path.stem) >= most:
                path.unlink()
    assert shell(checkout, use) == "params.yaml is now recipes/folder.yaml\n"
    section = yaml.safe_load(SECTION)["data"]
    assert set(section) < set(params.read_yaml(checkout / "params.yaml")["data"]), "the keys are in the recipe"
    write_params(checkout, shrunk_recipe() | {"data": section})
    shell(checkout, check)
    assert ran(shell(checkout, repro)) == ["code", *STAGES]
    packed = read(checkout / "checkpoints/quantized.safetensors")
    assert (packed.image, packed.class_names) == ((3, 48, 64), CLASSES)
    assert packed.metadata[predict.FIT] == "crop"
    metrics = json.loads((checkout / "metrics/prepare_data.json").read_text())
    assert metrics["test_images"] == 24 and metrics["train_images"] + metrics["validation_images"] == 48
    assert metrics["broken_images"] == metrics["duplicates_between_train_and_test"] == 0
    rows = re.findall(
        r"^ ?data/pictures/test/cat/\d{3}\.jpg +(\w+) +\d+\.\d\d %", shell(checkout, predict_folder), re.MULTILINE
    )
    assert len(rows) == 6 and set(rows) <= set(CLASSES)
    (answer,) = json.loads(shell(checkout, predict_one))
    assert answer["class"] in CLASSES and len(answer["top"]) == 2 and 0 < answer["confidence"] <= 1

    assert ran(shell(checkout, repro)) == []
    shutil.copy(checkout / "data/pictures/test/cat/000.jpg", checkout / "data/pictures/train/cat/added.jpg")
    assert "pictures have changed" in shell(checkout, "make fresh"), "which is what make repro begins with"
    assert "prepare_data" in ran(shell(checkout, "python -m dvc repro --dry"))
    splits = json.loads((checkout / "data/manifest.json").read_text())["splits"]
    assert splits["train"]["images"] + splits["validation"]["images"] == 49


@pytest.mark.slow
def test_grey_pictures_of_28_x_28_pixels_go_through_all_stages_without_dvc(tmp_path):
    write(tmp_path / "own", size=(28, 28), suffix=".png", grey=True, most={"train": 10, "test": 5})
    tree = shrunk_recipe()
    image = {"height": 28, "width": 28, "channels": 1, "fit": "pad"}
    tree["data"] |= {"path": "own", "image": image, "most_broken": 1}
    (tmp_path / "own/train/bird/000.png").write_text("no picture")
    write_params(tmp_path, tree)
    succeed(tmp_path, *STAGES)
    packed = read(tmp_path / "checkpoints/quantized.safetensors")
    assert (packed.image, packed.class_names, packed.metadata[predict.FIT]) == ((1, 28, 28), CLASSES, "pad")
    assert json.loads((tmp_path / "metrics/prepare_data.json").read_text())["broken_images"] == 1
    assert json.loads((tmp_path / "metrics/score.json").read_text())["test_accuracy_percent"] > 0
