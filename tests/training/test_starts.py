"""Weights to go on from: what is taken, and what is refused with a line each."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import models
from micronet import model_params
from micronet.training.checkpoint import save
from micronet.training.starts import StartError, fold_normalisation, started
from tests.support.models import WIDER, new_model

SPEC = {"name": "resnet", "blocks": [1], "widths": [4], "classes": 3}


def start(path: Path) -> model_params.Start:
    return model_params.Start(file=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def written(path: Path, content: Any) -> model_params.Start:
    """The start of a file that `torch.save` writes, or safetensors."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return start(path)


def faults(asked: model_params.Start) -> list[str]:
    with pytest.raises(StartError) as caught:
        started(asked, SPEC, "teacher")
    assert all("\n" not in line and len(line) <= 300 for line in caught.value.faults)
    return caught.value.faults


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
@pytest.mark.parametrize(
    "form", ["plain", "module.", "_orig_mod.module.", "state_dict", "model", "half", "without counts"]
)
def test_a_state_dict_from_elsewhere_is_taken_in_the_forms_that_it_comes_in(tmp_path, name, form):
    model = models.build(SPEC)
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    given: Any = weights
    if form.endswith("."):
        given = {f"{form}{key}": value for key, value in weights.items()}
    elif form in ("state_dict", "model"):
        if name == "w.safetensors":
            return
        given = {"epoch": 3, form: weights}
    elif form == "half":
        given = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    elif form == "without counts":
        given = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    found = started(written(tmp_path / name, given), SPEC)
    assert not found.training
    for key, value in found.state_dict().items():
        assert value.dtype == weights[key].dtype and torch.equal(
            value, weights[key].to(value) if form != "half" else value
        )


def test_every_weight_that_does_not_fit_is_a_line(tmp_path):
    weights = models.build(SPEC).state_dict()
    del weights["stem.conv.weight"]
    weights["classifier.weight"] = torch.zeros(10, 4)
    weights["head.\x1bbias"] = torch.zeros(3)
    weights["classifier.bias"] = torch.tensor([0.0, 1.0, float("nan")])
    path = tmp_path / "w.pt"
    assert faults(written(path, weights)) == [
        f"{path}: stem.conv.weight is missing",
        f"{path}: classifier.weight has the shape (10, 4), it must be (3, 4)",
        f"{path}: classifier.bias holds a value that is not finite",
        f"{path}: head.\\x1bbias is nothing of this network",
    ]


def test_codes_and_variances_that_are_none_are_no_weights(tmp_path):
    weights = models.build(SPEC).state_dict()
    norm = next(name for name in weights if name.endswith("running_var"))
    weights |= {"stem.conv.weight": weights["stem.conv.weight"].to(torch.int8), norm: -weights[norm]}
    weights["classifier.weight"] = weights["classifier.weight"] > 0
    path = tmp_path / "w.pt"
    assert sorted(faults(written(path, weights))) == sorted([
        f"{path}: stem.conv.weight is of int8, which holds codes, no weights; float32 would work",
        f"{path}: {norm} holds a variance below 0",
        f"{path}: classifier.weight is of bool, which holds codes, no weights; float32 would work",
    ])  # fmt: skip


def test_a_checkpoint_is_of_the_very_network(tmp_path):
    path = tmp_path / "w.safetensors"
    facts = {"stage": "train_student", "epochs": 0, "validation_accuracy_percent": 0.0, "params_digest": "0"}
    save(path, models.build(SPEC | {"widths": [5]}), **facts)
    (line,) = faults(start(path))
    assert "which is not teacher.model" in line
    save(path, models.build(SPEC), **facts)
    assert started(start(path), SPEC).spec == models.normalise(SPEC)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as weights"),
        (b"PK\3\4 and no more", "cannot be read as weights"),
        (
            b"\x80\4\x95\x1e\0\0\0\0\0\0\0\x8c\5posix\x94\x8c\6system\x94\x93\x94\x8c\4true\x94\x85\x94R\x94.",
            "is a pickle of more",
        ),
    ],
)
def test_what_is_no_weights_is_a_line_and_runs_nothing(tmp_path, content, said):
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    (line,) = faults(start(path))
    assert said in line


@pytest.mark.parametrize("content", [{}, {"a": 1}, [torch.zeros(1)], {"state_dict": {"a": "text"}}])
def test_a_file_of_something_else_says_what_a_state_dict_is(tmp_path, content):
    (line,) = faults(written(tmp_path / "w.pt", content))
    assert "holds no state_dict" in line


def test_a_missing_file_and_other_bytes_are_a_line(tmp_path):
    path = tmp_path / "w.pt"
    (line,) = faults(model_params.Start(file=str(path), sha256="0" * 64))
    assert "there is no such checkpoint" in line
    path.write_bytes(b"x")
    (line,) = faults(model_params.Start(file=str(path), sha256="0" * 64))
    assert "teacher.start.sha256 names another one" in line


def test_another_normalisation_is_folded_into_the_first_convolution():
    layer = nn.Conv2d(3, 5, 3)
    mean, std = [0.49, 0.48, 0.44], [0.25, 0.24, 0.26]
    pixels = torch.randint(0, 256, (2, 3, 9, 8), generator=torch.Generator().manual_seed(0)).float()
    theirs = (pixels / 255 - torch.tensor(mean).reshape(1, 3, 1, 1)) / torch.tensor(std).reshape(1, 3, 1, 1)
    wanted = layer(theirs)
    layer.load_state_dict(
        {
            key.removeprefix("a."): value
            for key, value in fold_normalisation(
                {f"a.{key}": value for key, value in layer.state_dict().items()}, "a", mean, std
            ).items()
        }
    )
    assert torch.allclose(layer((pixels - 128) / 64), wanted, atol=1e-5)
    with pytest.raises(StartError, match="is no convolution of 1 channels"):
        fold_normalisation({"a.weight": layer.weight}, "a", [0.5], [0.5])


@pytest.mark.parametrize(
    ("first", "mean", "std", "said"),
    [
        ("first", [0.5] * 3, [0.2] * 3, "first: is no convolution of 3 channels in these weights (there are stem."),
        ("stem.conv", [0.5], [0.2], "stem.conv: is no convolution of 1 channels in these weights (there are "),
        ("stem.conv", 0.5, [0.2] * 3, "mean: must be a list of a number for each channel (got 0.5)"),
        ("stem.conv", [0.5] * 3, [0.0] * 3, "std: must be of pixels from 0 to 1 (got [0.0, 0.0, 0.0])"),
        ("stem.conv", [125.3, 123.0, 113.9], [0.2] * 3, "mean: must be of pixels from 0 to 1 (got [125"),
    ],
)  # fmt: skip
def test_a_normalisation_that_cannot_be_folded_says_what_would_work(first, mean, std, said):
    weights = new_model(WIDER).state_dict()
    with pytest.raises(StartError) as caught:
        fold_normalisation(weights, first, mean, std)
    assert str(caught.value).startswith(said) and len(str(caught.value)) <= 300
