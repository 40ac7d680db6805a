"""Networks of the user's own: what their spec may hold, how their file runs, what goes wrong in a line."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from models import own
from tests.support.places import ROOT

NET = """
from typing import Literal

import torch
from torch import nn

from blocks import Block


class Net(nn.Module):
    def __init__(
        self,
        widths: tuple[int, ...] = (4, 8),
        rate: float = 0.5,
        mode: Literal["a", "b"] = "a",
        image: tuple[int, int, int] = (3, 32, 32),
        classes: int = 10,
    ):
        super().__init__()
        assert isinstance(widths, tuple)
        self.body = Block(image[0], widths[0])
        self.classifier = nn.Linear(widths[0], classes)

    def forward(self, x):
        return self.classifier(self.body(x).mean((2, 3)))


class Plain:
    pass


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        raise RuntimeError("on purpose")


class Bare(nn.Module):
    def __init__(self, classes: int):
        self.classes = classes


class Derived(Net):
    pass
"""
BLOCKS = """
from torch import nn


class Block(nn.Sequential):
    def __init__(self, channels, width):
        super().__init__(nn.Conv2d(channels, width, 3), nn.ReLU())
"""


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of networks, with one of two files."""
    folder = tmp_path / "networks"
    folder.mkdir()
    (folder / "net.py").write_text(NET)
    (folder / "blocks.py").write_text(BLOCKS)
    monkeypatch.setattr(own, "NETWORKS", folder)
    return folder


def spec(kind: str = "Net", file: str = "net.py", **settings: Any) -> dict[str, Any]:
    return {"file": file, "class": kind, "settings": settings}


def faults(asked: Any, act: Any = models.normalise) -> list[str]:
    with pytest.raises(models.SpecError) as caught:
        act(asked)
    assert all("\n" not in fault and len(fault) <= 300 for fault in caught.value.faults)
    return caught.value.faults


# --- specs ---


def test_a_spec_is_completed_with_what_the_constructor_has_by_itself(networks):
    full = {"widths": [4, 8], "rate": 0.5, "mode": "a", "image": [3, 32, 32], "classes": 10}
    for file in ("net.py", "networks/net.py", str(networks / "net.py")):
        assert models.normalise(spec(file=file)) == spec(file="networks/net.py", **full)
    assert models.normalise(spec("Derived", widths=[2]))["settings"] == full | {"widths": [2]}


def test_image_and_classes_come_from_the_data_and_contradict_nobody(networks):
    found = models.suited(spec(), image=(1, 28, 40), classes=7)["settings"]
    assert (found["image"], found["classes"]) == ([1, 28, 40], 7)
    asked = spec(classes=3)
    lines = faults(asked, lambda one: models.suited(one, image=(1, 28, 40), classes=7))
    assert lines == ["settings.classes: must be 7, that of the data (got 3)"]


def test_settings_are_held_against_the_types_of_the_constructor(networks):
    assert faults(spec(width=3, rate=True, mode="c", widths=[1, "a"])) == [
        "settings.widths.1: must be a whole number (got 'a')",
        "settings.rate: must be a number (got True)",
        "settings.mode: must be 'a' or 'b' (got 'c')",
        "settings.width: no such key (Net takes widths, rate, mode, image, classes)",
    ]
    assert faults(spec("Bare")) == ["settings.classes: is missing"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"file": "net.py"}, "class: is missing"),
        ({"file": 3, "class": "Net"}, "file: must be the path of a Python file"),
        ({"file": "net.py", "class": "No Name"}, "class: must be the name of a class"),
        ({"file": "net.py", "class": "Net", "settings": [1]}, "settings: must be a section with keys"),
        ({"file": "net.py", "class": "Net", "name": "resnet18"}, "name: no such key"),
        ({"file": "../net.py", "class": "Net"}, "leads out of networks/"),
        ({"file": "gone.py", "class": "Net"}, "there is no such file (in networks/ there are blocks.py, net.py)"),
        ({"file": "net.py", "class": "Nix"}, "no class 'Nix' in the file (it has Net, Plain"),
    ],
)
def test_a_spec_that_names_nothing_says_what_would_work(networks, asked, said):
    (line,) = faults(asked)
    assert said in line


def test_what_a_files_text_tells_is_known_without_torch(networks):
    code = (
        "import sys; from pathlib import Path; import models; from models import own\n"
        f"own.NETWORKS = Path({str(networks)!r})\n"
        "models.suited({'file': 'net.py', 'class': 'Net'}, classes=3)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False\n", "")


# --- running a file ---


def test_a_network_is_built_copied_and_pickled_and_its_file_runs_once(networks):
    model = models.build(models.suited(spec(widths=[5]), image=(1, 16, 16), classes=3))
    again = models.build(model.spec)
    assert type(again) is type(model) and again.spec == model.spec
    images = torch.randn(2, 1, 16, 16)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(images), model(images)) and twin(images).shape == (2, 3)


@pytest.mark.parametrize(
    "line",
    [
        "from blocks import Block",
        "from .blocks import Block",
        "from networks.blocks import Block",
        "import blocks; Block = blocks.Block",
        "import blocks as b; Block = b.Block",
        "from . import blocks; Block = blocks.Block",
        "from networks import blocks; Block = blocks.Block",
        "import networks.blocks; Block = networks.blocks.Block",
    ],
)
def test_neighbours_are_imported_however_that_is_written(networks, line):
    (networks / "net.py").write_text(NET.replace("from blocks import Block", line))
    assert models.build(spec())(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert [path.name for path in own.files(spec())] == ["net.py", "blocks.py"]


def test_a_changed_file_or_neighbour_runs_anew(networks):
    before = models.build(spec())
    (networks / "blocks.py").write_text(BLOCKS.replace("nn.ReLU()", "nn.ReLU(), nn.Identity()"))
    assert (len(before.body), len(models.build(spec()).body)) == (2, 3)


def test_two_folders_with_neighbours_of_one_name_do_not_meet(networks, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "net.py").write_text(NET)
    (other / "blocks.py").write_text(BLOCKS.replace("nn.ReLU()", "nn.Tanh()"))
    first, second = models.build(spec()), models.build(spec(file=str(other / "net.py")))
    assert [type(model.body[1]).__name__ for model in (first, second)] == ["ReLU", "Tanh"]


def test_a_file_elsewhere_that_only_weights_name_does_not_run(networks, tmp_path):
    elsewhere = tmp_path / "elsewhere.py"
    elsewhere.write_text("raise SystemExit('ran')")
    with pytest.raises(models.SpecError, match="in networks/ it would be known here"):
        models.check_known(spec(file=str(elsewhere)))
    models.check_known(spec())


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        (
            "import nothing_there\nclass Net: pass",
            "Net",
            "line 1: ModuleNotFoundError: No module named 'nothing_there'",
        ),
        ("x = = 3", "Net", "file: networks/net.py: line 1: is no Python: invalid syntax"),
        ("import sys\nsys.exit(3)\nclass Net: pass", "Net", "networks/net.py: line 2: SystemExit: 3"),
        (
            "from blocks import Nothing\nclass Net: pass",
            "Net",
            "networks/net.py: line 1: ImportError: cannot import name",
        ),
        ("from .. import blocks\nclass Net: pass", "Net", "leads out of its folder"),
        (
            "import importlib\nblocks = importlib.import_module('blocks')\nclass Net: pass",
            "Net",
            "line 2: import_module",
        ),
        (
            "__import__('blocks')\nclass Net: pass",
            "Net",
            "line 1: __import__(...) runs code that nobody sees",
        ),
        ("\0", "Net", "networks/net.py"),
        (NET, "Plain", "Plain of networks/net.py is no torch.nn.Module; a class of that would work"),
        (NET, "Failing", "networks/net.py: line 35: RuntimeError: on purpose"),
        (NET, "Net", "networks/net.py: line 21: IndexError: tuple index out of range"),
    ],
)
def test_what_a_file_does_wrong_is_a_line_with_its_place(networks, text, kind, said):
    (networks / "net.py").write_text(text)
    settings = {"widths": []} if text is NET and kind == "Net" else {}
    (line,) = faults(spec(kind, **settings), models.build)
    assert said in line


def test_a_module_without_super_init_is_a_line(networks):
    (line,) = faults(spec("Bare", classes=3), models.build)
    assert "AttributeError" in line


@pytest.mark.parametrize(
    ("annotation", "wrong", "line", "right"),
    [
        ("int | str", [1], "settings.w: must be int or str (got [1])", "a"),
        ("int | str | None", [1], "settings.w: must be int or str or null (got [1])", None),
        ("list[int | str]", [1, [2]], "settings.w.1: must be int or str (got [2])", [1, "b"]),
        ("int | tuple[int, ...]", ["a"], "settings.w: must be int or tuple[int, ...] (got ['a'])", [1, 2, 3]),
        ("dict[str, int | list[int]]", {"a": "b"}, "settings.w.a: must be int or list[int] (got 'b')", {"a": [1]}),
        ("Literal[1, 3]", True, "settings.w: must be 1 or 3 (got True)", 3),
        ("Literal[1, 3]", 1.0, "settings.w: must be 1 or 3 (got 1.0)", 1),
        ("Literal[True, 'auto']", 1, "settings.w: must be True or 'auto' (got 1)", True),
        ("Literal['auto'] | int", True, "settings.w: must be 'auto' or int (got True)", "auto"),
    ],
)  # fmt: skip
def test_a_setting_of_several_types_is_one_line_and_true_is_no_number(networks, annotation, wrong, line, right):
    source = f"class Net(nn.Module):\n    def __init__(self, w: {annotation}):\n        super().__init__()\n"
    (networks / "net.py").write_text(f"from typing import Literal\n\nfrom torch import nn\n\n\n{source}")
    assert faults(spec(w=wrong)) == [line]
    assert models.normalise(spec(w=right))["settings"] == {"w": right}


def test_a_setting_may_be_an_entry_of_an_enumeration_of_the_file(networks):
    source = "import enum\nfrom torch import nn\n\n\nclass Kind(enum.Enum):\n    A = 'a'\n\n\n"
    source += "class Net(nn.Module):\n    def __init__(self, mode: Kind | int):\n        super().__init__()\n"
    (networks / "net.py").write_text(f"{source}        assert mode is Kind.A\n")
    models.build(spec(mode="a"))


def test_types_that_only_the_file_knows_are_checked_when_it_runs(networks):
    source = "from typing import Literal\nfrom torch import nn\nKind = Literal['a', 'b']\n\n\n"
    source += "class Net(nn.Linear):\n    def __init__(self, mode: Kind):\n        super().__init__(1, 1)\n"
    (networks / "net.py").write_text(source.replace("'", '"'))
    models.check(spec(mode="c"))
    assert faults(spec(mode="c"), models.build) == ["settings.mode: must be 'a' or 'b' (got 'c')"]
    assert models.build(spec(mode="a")).spec["settings"] == {"mode": "a"}


def test_the_template_takes_the_images_and_classes_of_any_data():
    asked = {"file": "template.py", "class": "Template", "settings": {"widths": [4, 6]}}
    model = models.build(models.suited(asked, image=(1, 20, 9), classes=5))
    assert model(torch.zeros(2, 1, 20, 9)).shape == (2, 5)
