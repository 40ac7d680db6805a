"""A family a file: its settings make full specs, are read without torch, and a new file is a new model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import models
from micronet import params
from tests.support import warm
from tests.support.places import ROOT

PLAIN = (
    '"groups": {"bottleneck": 1, "transition": 1, "stem": 1}, '
    '"interleave": {"bottleneck": false, "transition": false, "stem": false}, "classes": 10}'
)
FULL = [  # as JSON, because the search names a network by the text: the order of the keys counts
    ("densenet_cifar", '{"name": "densenet", "blocks": [6, 12, 24, 16], "growth_rate": 12, ' + PLAIN),
    ("densenet_small", '{"name": "densenet", "blocks": [6, 12, 24, 16], "growth_rate": 9, ' + PLAIN),
    ("densenet_tiny", '{"name": "densenet", "blocks": [6, 12, 24, 16], "growth_rate": 6, ' + PLAIN),
    ("densenet_nano", '{"name": "densenet", "blocks": [6, 12, 24, 16], "growth_rate": 4, ' + PLAIN),
    ("densenet121", '{"name": "densenet", "blocks": [6, 12, 24, 16], "growth_rate": 32, ' + PLAIN),
    ("densenet169", '{"name": "densenet", "blocks": [6, 12, 32, 32], "growth_rate": 32, ' + PLAIN),
    ("densenet161", '{"name": "densenet", "blocks": [6, 12, 36, 24], "growth_rate": 48, ' + PLAIN),
    ("densenet201", '{"name": "densenet", "blocks": [6, 12, 48, 32], "growth_rate": 32, ' + PLAIN),
    ("resnet18", '{"name": "resnet", "blocks": [2, 2, 2, 2], "widths": [64, 128, 256, 512], "classes": 10}'),
    (
        {"name": "densenet", "blocks": [2], "growth_rate": 3},
        '{"name": "densenet", "blocks": [2], "growth_rate": 3, ' + PLAIN,
    ),
    (
        {"name": "densenet_nano", "groups": {"bottleneck": 4}, "interleave": {"bottleneck": True}, "classes": 100},
        '{"name": "densenet", "blocks": [6, 12, 24, 16], "growth_rate": 4, '
        '"groups": {"bottleneck": 4, "transition": 1, "stem": 1}, '
        '"interleave": {"bottleneck": true, "transition": false, "stem": false}, "classes": 100}',
    ),
    (
        {
            "name": "densenet",
            "blocks": (2, 2),
            "growth_rate": 6,
            "groups": {"stem": 3, "bottleneck": 3, "transition": 2},
            "interleave": {"transition": True},
        },
        '{"name": "densenet", "blocks": [2, 2], "growth_rate": 6, '
        '"groups": {"bottleneck": 3, "transition": 2, "stem": 3}, '
        '"interleave": {"bottleneck": false, "transition": true, "stem": false}, "classes": 10}',
    ),
    (
        {"name": "resnet18", "widths": [8, 16, 32, 64]},
        '{"name": "resnet", "blocks": [2, 2, 2, 2], "widths": [8, 16, 32, 64], "classes": 10}',
    ),
    (
        {"name": "resnet", "blocks": [1, 2], "widths": [4, 8], "classes": 7},
        '{"name": "resnet", "blocks": [1, 2], "widths": [4, 8], "classes": 7}',
    ),
    (
        {"name": "mobilenet", "blocks": [1, 3, 2], "widths": [16, 28, 56]},
        '{"name": "mobilenet", "blocks": [1, 3, 2], "widths": [16, 28, 56], "strides": [1, 2, 2], '
        '"expansion": [3, 3, 3], "stem": 16, "stem_stride": 1, "head": 112, "classes": 10}',
    ),
    (
        {"name": "mobilenet", "blocks": [2], "widths": [8], "expansion": 6, "stem_stride": 2},
        '{"name": "mobilenet", "blocks": [2], "widths": [8], "strides": [1], '
        '"expansion": [6], "stem": 8, "stem_stride": 2, "head": 16, "classes": 10}',
    ),
    (
        {
            "classes": 3,
            "head": 80,
            "stem": 12,
            "expansion": (4, 1),
            "strides": [2, 2],
            "widths": [20, 32],
            "blocks": [2, 2],
            "name": "mobilenet",
        },
        '{"name": "mobilenet", "blocks": [2, 2], "widths": [20, 32], "strides": [2, 2], '
        '"expansion": [4, 1], "stem": 12, "stem_stride": 1, "head": 80, "classes": 3}',
    ),
    ({"name": "convnet", "widths": [64, 96, 64]}, '{"name": "convnet", "widths": [64, 96, 64], "classes": 10}'),
    ({"classes": 2, "widths": [1], "name": "convnet"}, '{"name": "convnet", "widths": [1], "classes": 2}'),
]

LINEAR = '''"""One linear layer over all pixels."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from models.settings import Classes, Settings


class LinearSettings(Settings):
    """What a linear model may be asked for."""

    NAMED: ClassVar[dict[str, dict[str, Any]]] = {"linear_biased": {"bias": True}}

    bias: bool = Field(description="whether every class has a constant")
    classes: Classes = 10

    def build(self) -> Linear:
        return Linear(self)


from torch import Tensor, nn


class Linear(nn.Module):
    def __init__(self, settings: LinearSettings):
        super().__init__()
        self.classifier = nn.Linear(3 * 32 * 32, settings.classes, bias=settings.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x.flatten(1))
'''


def head_last(source: str) -> str:
    """The file with its import of torch above its settings."""
    head, module = source.split("from torch import Tensor, nn\n")
    opening, settings = head.split("class LinearSettings", 1)
    return f"{opening}from torch import Tensor, nn\n\n\nclass LinearSettings{settings}{module}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the architectures, nothing changed."""
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "micronet").symlink_to(ROOT / "micronet")
    return tmp_path


def printed(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def answers(code: str, folder: Path = ROOT) -> Any:
    """What Python code that starts in a folder prints, read as JSON."""
    return json.loads(printed([sys.executable, "-c", f"import json, sys, models\n{code}"], folder))


def answers_with_torch(code: str, folder: Path) -> Any:
    """The same of a Python that has torch already."""
    (folder / "asked.py").write_text(f"import json, sys, models\n{code}")
    return json.loads(printed([str(warm.folder() / "python"), "asked.py"], folder))


def released() -> dict[str, dict[str, Any]]:
    """The specs in the headers of all released files, by file and place."""
    found = {}
    for path in sorted((ROOT / "release").glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            spec = json.loads(file.metadata()["micronet"])["model"]
        found |= {f"{path.stem}-{place}": one for place, one in enumerate(spec.get("networks", [spec]))}
    return found


# --- full specs ---


@pytest.mark.parametrize(("spec", "full"), FULL)
def test_a_spec_is_completed_to_just_these_keys_and_values_in_this_order(spec, full):
    assert json.dumps(models.normalise(spec)) == full
    assert json.dumps(models.normalise(json.loads(full))) == full


def test_every_well_known_size_is_in_the_table():
    assert [spec for spec, _ in FULL if isinstance(spec, str)] == list(models.NAMED)


@pytest.mark.parametrize("name", released())
def test_the_spec_in_a_released_file_is_a_full_one(name):
    spec = released()[name]
    assert models.normalise(spec) == spec


def test_the_released_files_are_of_the_recipes_that_name_them():
    specs = released()
    for name in ("dense", "glance", "refined"):
        recipe = params.load(ROOT / f"metrics/{name}/params.yaml")
        assert models.normalise(recipe.student.model.spec()) == specs[f"{name}-0"]
    assert [specs["cascade-0"], specs["cascade-1"]] == [specs["glance-0"], specs["refined-0"]]


@pytest.mark.parametrize("recipe", sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml")))
def test_the_models_of_a_recipe_are_built_as_their_full_specs_say(recipe):
    sections = params.load(ROOT / f"recipes/{recipe}.yaml")
    for section in (sections.teacher, sections.student):
        with torch.device("meta"):
            model = models.build(section.model.spec())
        assert model.spec == models.normalise(section.model.spec())


# --- faults ---


def test_all_faults_of_a_spec_are_told_at_once():
    spec = {"name": "mobilenet", "widths": [0, 8, True], "stem_stride": 3, "expansion": [1, 17], "width": 1}
    with pytest.raises(models.SpecError) as caught:
        models.check(spec)
    assert caught.value.faults == [
        "blocks: is missing",
        "widths.0: must be >= 1 (got 0)",
        "widths.2: must be a whole number (got True)",
        "expansion.1: must be <= 16 (got 17)",
        "stem_stride: must be <= 2 (got 3)",
        "width: no such key (mobilenet takes blocks, widths, strides, expansion, stem, stem_stride, head, classes)",
    ]
    assert str(caught.value) == "; ".join(caught.value.faults)


@pytest.mark.parametrize("spec", [{"name": "convnet", "widths": [8], 3: 4}, {"name": "convnet", "widths": {8, 9}}])
def test_what_no_params_file_can_hold_is_refused_too(spec):
    with pytest.raises(models.SpecError):
        models.check(spec)


# --- files ---


def test_specs_are_checked_completed_and_compared_without_torch():
    code = (
        "for name in models.NAMED: models.check(name)\n"
        "full = models.normalise({'name': 'mobilenet', 'blocks': [1], 'widths': [8]})\n"
        "narrower = models.narrows({'name': 'convnet', 'widths': [4]}, {'name': 'convnet', 'widths': [8]})\n"
        "print(json.dumps([len(models.NAMED), full['head'], narrower, 'torch' in sys.modules]))"
    )
    assert answers(code) == [9, 16, True, False]


def test_a_new_file_is_a_new_model_and_nothing_else_changes(folder):
    (folder / "models/linear.py").write_text(LINEAR)
    check = (
        "def fault(spec):\n"
        "    try: models.check(spec)\n"
        "    except models.SpecError as error: return str(error)\n"
        "specs = ['linear_biased', {'name': 'linear', 'bias': False, 'classes': 3}]\n"
        "faulty = ['alexnet', {'name': 'linear', 'bias': 1}, {'name': 'linear_biased', 'width': 1}]\n"
        "answers = [[models.normalise(spec) for spec in specs], [fault(spec) for spec in faulty]]\n"
        "print(json.dumps([*answers, 'torch' in sys.modules]))"
    )
    specs, faults, torch_loaded = answers(check, folder)
    assert specs == [{"name": "linear", "bias": True, "classes": 10}, {"name": "linear", "bias": False, "classes": 3}]
    here = [*models.NAMED, "convnet", "densenet", "mobilenet", "resnet"]
    there = [*here[:8], "linear_biased", "resnet18", "convnet", "densenet", "linear", "mobilenet", "resnet"]
    assert faults == [
        f"name: there is no model 'alexnet' (there are {', '.join(there)})",
        "bias: must be true or false (got 1)",
        "width: no such key (linear_biased takes bias, classes)",
    ]
    assert not torch_loaded
    build = (
        "import torch\n"
        "model = models.build({'name': 'linear_biased', 'classes': 4})\n"
        "sizes = sorted(parameter.numel() for parameter in model.parameters())\n"
        "print(json.dumps([model.spec, sizes, list(model(torch.zeros(2, 3, 32, 32)).shape)]))"
    )
    built = answers_with_torch(build, folder)
    assert built == [{"name": "linear", "bias": True, "classes": 4}, [4, 4 * 3 * 32 * 32], [2, 4]]
    with pytest.raises(models.SpecError) as caught:
        models.check("alexnet")
    assert caught.value.faults == [f"name: there is no model 'alexnet' (there are {', '.join(here)})"]


def test_settings_below_the_import_of_torch_are_read_too(folder):
    (folder / "models/linear.py").write_text(head_last(LINEAR))
    code = (
        "model = models.build('linear_biased')\n"
        "narrow = models.narrows('linear_biased', model.spec)\n"
        "print(json.dumps([model.spec, narrow, type(model).__module__]))"
    )
    answer = answers_with_torch(code, folder)
    assert answer == [{"name": "linear", "bias": True, "classes": 10}, True, "models.linear"]


def test_a_file_without_settings_is_no_model():
    with pytest.raises(models.SpecError, match="there is no model 'layers'"):
        models.check("layers")


def with_files(folder: Path, files: dict[str, str]) -> list[str]:
    """What a copy of `models/` with these files more says of resnet18, and of their models."""
    for name, text in files.items():
        (folder / f"models/{name}.py").write_text(text)
    (folder / "asked.py").write_text(
        "import models\n"
        f"for name in {['resnet18', *files]}:\n"
        "    try: models.check(name); print('fits')\n"
        "    except models.SpecError as error: print(error)\n"
    )
    return printed([str(warm.folder() / "python"), "asked.py"], folder).splitlines()


SETTINGS = "from models.settings import Settings\n"


BROKEN = {
    "cut": ("class A(Settings:\n", "line 1: SyntaxError: "),
    "vague": (SETTINGS + "class A(Settings):\n    width: int = NARROW\n", "line 3: NameError: name 'NARROW'"),
    "bare": (SETTINGS + "class A(Settings):\n    classes: int = 10\n", "A: lacks build()"),
    "double": (
        SETTINGS + "class A(Settings):\n    pass\nclass B(Settings):\n    pass\n",
        "A and B: a family has one class of settings",
    ),
}


def test_a_broken_file_is_told_in_a_line_to_who_asks_for_its_model_and_hinders_no_other(folder):
    first, *others = with_files(folder, {name: text for name, (text, _) in BROKEN.items()})
    assert first == "fits"
    for line, (name, (_, said)) in zip(others, BROKEN.items(), strict=True):
        assert line.startswith(f"models/{name}.py: {said}")


def test_the_families_are_those_of_the_files_with_the_settings_that_build_them():
    helpers = {"arguments", "layers", "meta", "own", "settings"}
    files = {path.stem for path in (ROOT / "models").glob("[!_]*.py")} - helpers
    found = models.families()
    assert set(found) == files and all("classes" in settings.model_fields for settings in found.values())
    found.clear()
    assert models.families(), "whoever asks gets a dict of his own"


def test_a_name_that_two_files_claim_is_refused(folder):
    text = (
        SETTINGS + "class A(Settings):\n    NAMED = {'densenet_nano': {}}\n    classes: int = 10\n"
        "    def build(self):\n        return None\n"
    )
    first, second = with_files(folder, {"mine": text})
    assert first == second == "models/mine.py: NAMED: models/densenet.py has the name 'densenet_nano' already"
