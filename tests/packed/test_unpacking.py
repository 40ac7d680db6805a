"""Unpacked networks: they do in floats what the packed file does in integers, and can be trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import models
from micronet.compress.calibration import recalibrate_batch_norm
from micronet.data.images import normalise
from micronet.packed.cascade import join
from micronet.packed.file import decode, read
from micronet.packed.model import PackedModel
from micronet.packed.module import PackedModule
from micronet.packed.packing import pack
from micronet.packed.unpacking import UnpackError, unpack
from tests.support.configs import quantize_config
from tests.support.hostile import resigned
from tests.support.images import random_images, random_labels
from tests.support.models import new_model, quantized

IMAGES, LABELS = random_images(40, 3), random_labels(40, 4)
MOBILENET = {"name": "mobilenet", "blocks": [1, 2], "widths": [8, 12], "stem": 8}
RESNET = {"name": "resnet", "blocks": [1, 2], "widths": [6, 8]}


def pack_new(path: Path, spec: dict[str, Any], method: str = "lsq") -> PackedModel:
    """A packed network whose weights and norms are random."""
    quantize = quantize_config(method=method, weight_bits=6, per_channel=method == "lsq")
    model = new_model(spec, 5)
    models.fit(model, normalise(IMAGES))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, -0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    recalibrate_batch_norm(model, [normalise(IMAGES)])
    return pack(quantized(model, quantize, IMAGES), path, quantize=quantize, images=IMAGES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What `pack_new` made of each architecture, by its name."""
    folder = tmp_path_factory.mktemp("packed")
    for spec in (MOBILENET, RESNET):
        pack_new(folder / spec["name"], spec)
    return folder


@pytest.mark.parametrize("spec", [MOBILENET, RESNET], ids=lambda spec: spec["name"])
def test_an_unpacked_network_does_what_the_file_does(folder, spec):
    model = read(folder / spec["name"])
    network = unpack(model, IMAGES, LABELS)
    assert network.spec == model.spec and not network.training
    integers = PackedModule(model).eval()
    with torch.no_grad():
        ours, theirs = network(normalise(IMAGES)), integers.one_pass(normalise(IMAGES), 0).float()
        # In training mode a norm takes the batch's own statistics: those that it was given, for these images.
        trained = network.train()(normalise(IMAGES))
    ours, theirs, trained = (logits - logits.mean(0) for logits in (ours, theirs, trained))
    same = torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0)
    assert same > 0.95
    assert torch.allclose(trained, ours, rtol=0.05, atol=0.05 * float(ours.abs().max()))


class WithBiases(torch.nn.Module):
    """Convolutions with biases before their norms, torch's default, and a head of another name without one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
        self.two, self.norm2 = torch.nn.Conv2d(8, 8, 3, stride=2), torch.nn.BatchNorm2d(8)
        self.fc = torch.nn.Linear(8, 10, bias=False)
        self.spec = {"name": "resnet"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm2(self.two(self.norm(self.one(x)).relu())).relu()
        return self.fc(x.mean((2, 3)))


def test_a_convolution_with_a_bias_and_a_head_of_any_name_are_unpacked(tmp_path, monkeypatch):
    torch.manual_seed(2)
    model, quantize = WithBiases(), quantize_config(weight_bits=6, per_channel=True)
    with torch.no_grad():
        model.one.bias.uniform_(-3, 3)
    recalibrate_batch_norm(model, [normalise(IMAGES)])
    packed = pack(quantized(model, quantize, IMAGES), tmp_path / "m", quantize=quantize, images=IMAGES)
    monkeypatch.setattr("micronet.packed.unpacking._architecture", lambda _packed: WithBiases())
    network = unpack(packed, IMAGES, LABELS)
    with torch.no_grad():
        ours = network(normalise(IMAGES)).flatten()
        theirs = PackedModule(packed).eval().one_pass(normalise(IMAGES), 0).float().flatten()
    assert float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1]) > 0.99999


def test_weights_are_as_large_as_he_et_al_draw_them_and_keep_their_zeros(folder):
    model = read(folder / "mobilenet")
    network = unpack(model, IMAGES, LABELS)
    for step in model.steps:
        if step.op == "conv":
            weight = network.get_submodule(step.name).weight.detach()
            assert ((weight == 0).numpy() == (step.weights.codes == 0)).all()
            assert float(weight.square().mean()) == pytest.approx(2 / weight[0].numel(), rel=1e-3)


def test_logits_get_the_scale_that_the_labels_ask_for(folder):
    model = read(folder / "mobilenet")
    with torch.no_grad():
        answers = PackedModule(model).eval().one_pass(normalise(IMAGES), 0).argmax(1)
        sure = unpack(model, IMAGES, answers)(normalise(IMAGES)).std()
        unsure = unpack(model, IMAGES, LABELS)(normalise(IMAGES)).std()
    assert sure > 4 * unsure, "labels that the network knows make it sure of itself"


def test_what_cannot_be_unpacked_is_refused(folder, tmp_path):
    one = read(folder / "resnet")
    with pytest.raises(UnpackError, match="a file of one network in integers"):
        unpack(decode(join([one, one])), IMAGES, LABELS)
    with pytest.raises(UnpackError, match="a file of one network in integers"):
        unpack(pack_new(tmp_path / "half", RESNET, method="half"), IMAGES, LABELS)
    with pytest.raises(UnpackError, match=r"cannot be unpacked, only a convolution with a batch norm"):
        unpack(pack_new(tmp_path / "other", {"name": "densenet", "blocks": [1, 1], "growth_rate": 4}), IMAGES, LABELS)


def test_a_spec_of_other_layers_than_the_steps_is_refused_before_a_network_is_built(folder, monkeypatch):
    devices, build = [], models.build
    monkeypatch.setattr(models, "build", lambda spec: devices.append(torch.empty(0).device.type) or build(spec))
    for spec, message in (
        (RESNET | {"widths": [6, 2048]}, "has a weight of .* in the file's spec"),
        (RESNET | {"blocks": [1, 64]}, "layers, its steps have"),
        ({"name": "[red]\x1b"}, r"no architecture that can be built: .*\[red\]\\+x1b"),
    ):
        data = resigned((folder / "resnet").read_bytes(), lambda header, *_, spec=spec: header.update(model=spec))
        with pytest.raises(UnpackError, match=message) as caught:
            unpack(decode(data), IMAGES, LABELS)
        assert str(caught.value).isprintable() and len(str(caught.value)) <= 300
    assert set(devices) == {"meta"}
