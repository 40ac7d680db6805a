"""A network of the user's own in the pipeline: the guide's example, the check, what reruns when its file changes."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import models
from micronet import params
from micronet.compress.pruning import FixedMask, PruningSchedule
from micronet.data.images import Split
from micronet.packed.quantizing import quantize
from micronet.scoring import __main__ as scoring
from micronet.training import loop
from micronet.training.checkpoint import load, save
from micronet.training.weights import count_zeros
from models import own
from stages import dependencies
from tests.support.configs import MACHINE, demo, quantize_config, train_config
from tests.support.places import ROOT

sys.path.insert(0, str(ROOT / "stages"))

import check  # noqa: E402 - they stand among the stage scripts
import consistency  # noqa: E402
import validation  # noqa: E402

GUIDE = (ROOT / "docs/your-network.md").read_text(encoding="utf-8")
BLOCKS = [(kind, text) for kind, text in re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)]
NETWORK, FOLDING = (text for kind, text in BLOCKS if kind == "python")
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
ASKED, STARTED = (yaml.safe_load(text) for kind, text in BLOCKS if kind == "yaml")
MODEL = ASKED["student"]["model"]
SMALL = {"name": "resnet", "blocks": [1], "widths": [4]}


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of networks of a repository, with the guide's example in it."""
    for name in ("stages", "models", "micronet"):
        (tmp_path / name).symlink_to(ROOT / name)
    folder = tmp_path / "networks"
    folder.mkdir()
    (folder / "my_net.py").write_text(NETWORK)
    monkeypatch.setattr(own, "NETWORKS", folder)
    monkeypatch.setattr(dependencies, "ROOT", tmp_path)
    return folder


def tree(*changes: tuple[str, Any]) -> dict[str, Any]:
    """The demo recipe with the guide's network as its student, and other values."""
    return demo(("teacher.model", SMALL), ("student.model", dict(MODEL)), ("engine.device", "cpu"), *changes)


def found(*changes: tuple[str, Any]) -> list[str]:
    """What the check refuses."""
    lines = consistency.inconsistencies(params.parse(tree(*changes)))
    assert all("\n" not in line and len(line) <= 300 for line in lines)
    return lines


def bright(count: int) -> Split:
    """Grey images of 20 x 24 pixels in three classes, whose label shows in their brightness."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 60, (count, 1, 20, 24), generator=generator)
    return Split((noise + 80 * labels[:, None, None, None]).to(torch.uint8), labels, ("a", "b", "c"))


# --- the guide ---


def test_the_network_of_the_guide_goes_all_the_way_on_images_of_another_shape(networks, tmp_path):
    data = bright(48)
    model = models.build(models.suited(MODEL, image=(1, 20, 24), classes=3))
    told = {"training": data, "validation": data, "machine": MACHINE, "seed": 1}
    loop.train(model, config=train_config(epochs=3), **told)
    save(tmp_path / "net.safetensors", model, stage="x", epochs=3, validation_accuracy_percent=0.0, params_digest="0")
    model = load(tmp_path / "net.safetensors").model()
    section = params.Prune(amount=0.5, train=train_config(epochs=1))
    loop.train(model, config=section.train, constraint=PruningSchedule(section, model, (1, 20, 24)), **told)
    zeros, weights = count_zeros(model)
    assert zeros == round(weights / 2)
    loop.train(model, config=train_config(epochs=1), constraint=FixedMask(model), **told)

    def train(prepared: Any, mask: Any) -> Any:
        return loop.train(prepared, config=train_config(epochs=1), constraint=mask, **told)

    result = quantize(
        model,
        quantize_config(calibration_images=16, train=train_config(epochs=1)),
        images=data.images,
        validation=data,
        train=train,
        machine=lambda: MACHINE,
        seed=1,
        class_names=data.classes,
        path=tmp_path / "packed.safetensors",
    )
    packed = result.packed
    assert (packed.image, packed.class_names, packed.spec) == ((1, 20, 24), data.classes, model.spec)
    assert result.validation_accuracy_percent > 60 and packed.zero_weights >= zeros


def test_every_command_of_the_guide_runs(networks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree()))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    run = {"make check": lambda: check.check("params.yaml")}
    for command in COMMANDS:
        if command.startswith(".venv/bin/python -m micronet.scoring "):
            assert scoring.main(shlex.split(command)[3:]) == 0
        else:
            assert run[command]() is None and '"$(PY)" stages/check.py\n' in makefile
    said = capsys.readouterr().out
    assert "Cost of the untrained student" in said and "packed" in said and "MACs" in said
    assert set(re.findall(r"`make ([a-z-]+)`", GUIDE)) <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_the_weights_of_the_guide_are_folded_and_started_from(networks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (networks / "my_net.py").write_text(NETWORK.replace("padding=2, bias=False", "padding=2"))
    torch.save(models.build(models.suited(MODEL, classes=10)).state_dict(), "my_weights.pt")
    exec(compile(FOLDING, "guide", "exec"), {})
    start = {"file": "folded.pt", "sha256": common_sha256(tmp_path / "folded.pt")}
    assert set(STARTED["teacher"]["start"]) == set(start) and STARTED["teacher"]["train"]["epochs"] == 0
    assert found(("teacher.model", MODEL), ("teacher.start", start)) == []
    (line, *others) = found(("teacher.model", MODEL | {"settings": {"width": 9}}), ("teacher.start", start))
    assert line.startswith("teacher.start.file: folded.pt: stem.weight has the shape (8, 3, 5, 5), it must be (9, ")
    assert len(others) > 5


def common_sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- what decides a result ---


def digests(stage: str, *changes: tuple[str, Any]) -> dict[str, str]:
    return dependencies.stage_digests(stage, params.parse(tree(*changes)))


def test_a_changed_network_or_neighbour_reruns_the_stages_that_use_it_and_a_comment_none(networks):
    source = NETWORK.replace("class MyNet", "from parts import SIZE\n\n\nclass MyNet")
    (networks / "my_net.py").write_text(source)
    (networks / "parts.py").write_text("SIZE = 3\n")
    (networks / "unused.py").write_text("x = 1\n")
    before = {stage: digests(stage) for stage in ("train_teacher", "train_student", "distill")}
    assert {"networks/my_net.py", "networks/parts.py"} <= set(before["train_student"])
    assert "networks/unused.py" not in before["train_student"]
    assert not any(name.startswith("networks/") for name in before["train_teacher"])

    def changed() -> set[str]:
        return {stage for stage, told in before.items() if digests(stage) != told}

    (networks / "my_net.py").write_text(f"# a remark\n{source}")
    assert changed() == set()
    (networks / "my_net.py").write_text(source.replace("stride=2, padding=2", "stride=1, padding=2"))
    assert changed() == {"train_student", "distill"}
    (networks / "my_net.py").write_text(source)
    (networks / "parts.py").write_text("SIZE = 4\n")
    assert changed() == {"train_student", "distill"}


def test_a_network_outside_of_the_repository_is_refused_with_the_way_out(networks, tmp_path):
    elsewhere = tmp_path / "my_net.py"
    elsewhere.write_text(NETWORK)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree(("student.model.file", str(elsewhere)))))
    with pytest.raises(params.ParamsError, match="must lie in networks/, where dvc repro sees its changes"):
        validation.validate(tmp_path / "params.yaml")


# --- bad networks ---


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("return self.classifier", "return x, self.classifier", "student.model: gives a tuple for an image, "),
        ("2 * width, classes)", "2 * width, 7)", "student.model: gives (1, 7) for an image, (1, 10) would work"),
        ("Conv2d(width, 2 * width, 3", "Conv2d(7, 2 * width, 3", "the layer down has in_channels=7, and 8 come to it"),
        ("        return self", "        x = x.cumsum(1)\n        return self", "student.model: cumsum: the operation"),
        (
            "        x = self.down_norm",
            "        raise SystemExit(0)\n        x = self.down_norm",
            "line 25: SystemExit: 0",
        ),
        ("import Tensor, nn", "import Tensr, nn", "student.model: networks/my_net.py: line 1: ImportError: "),
        ("super().__init__()", "super().__init__(3)", "student.model: networks/my_net.py: line 8: TypeError: "),
    ],
)
def test_a_network_that_does_not_work_is_a_line_with_its_place(networks, old, new, said):
    assert old in NETWORK
    (networks / "my_net.py").write_text(NETWORK.replace(old, new))
    (line,) = found()
    assert said in line


def test_settings_and_class_are_checked_before_torch_is_asked(networks, tmp_path):
    changes = ("student.model", MODEL | {"settings": {"width": "wide"}}), ("teacher.model", MODEL | {"class": "Nix"})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree(*changes)))
    with pytest.raises(params.ParamsError) as caught:
        validation.validate(tmp_path / "params.yaml")
    assert [line.split(": ", 1)[1] for line in caught.value.faults] == [
        "teacher.model.class: no class 'Nix' in the file (it has MyNet)",
        "student.model.settings.width: must be a whole number (got 'wide')",
    ]
