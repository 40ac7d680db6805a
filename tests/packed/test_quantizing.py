"""The one path from a float network to its packed file: what is kept, what is measured, in which order."""

from __future__ import annotations

import copy
import tempfile

import pytest
import torch
from torch import nn

from micronet.compress.calibration import recalibrate_batch_norm, training_batches
from micronet.compress.pruning import FixedMask
from micronet.compress.quantization import prepare
from micronet.compress.trimming import Trimming
from micronet.packed import quantizing
from micronet.packed.errors import PackError
from micronet.packed.module import load_packed
from micronet.packed.packing import pack
from micronet.packed.quantizing import Quantized, quantize
from micronet.params import Quantize
from micronet.training.evaluation import evaluate
from tests.support.configs import MACHINE, train_config
from tests.support.images import bright_split
from tests.support.models import WIDER, calibrated, new_model
from tests.support.thinning import thinned
from tests.support.training import STEPS, train

TRAINING, VALIDATION = bright_split(16 * STEPS), bright_split(20, 1)


def section(epochs: int = 1, **changes) -> Quantize:
    settings = train_config(epochs=epochs, learning_rate=0.02)
    return Quantize(**{"weight_bits": 4, "activation_bits": 4, "train": settings} | changes)


def sparse_model() -> nn.Module:
    model = new_model(WIDER)
    with torch.no_grad():
        model.stages[0][0].conv1.weight[:, 4:] = 0
    return model


def path_of(model: nn.Module, settings: Quantize, **more) -> Quantized:
    given = {
        "images": TRAINING.images,
        "validation": VALIDATION,
        "train": lambda prepared, mask: train(prepared, settings.train, constraint=mask),
        "machine": lambda: MACHINE,
        "seed": 5,
    }
    return quantize(model, settings, **given | more)


def test_the_file_is_what_preparing_calibrating_training_and_packing_give_one_after_the_other(tmp_path):
    settings, model = section(calibration_images=20), sparse_model()
    found = path_of(copy.deepcopy(model), settings, path=tmp_path / "m", batch_norm_images=32)
    prepared = calibrated(model, settings, TRAINING.images[:20])
    train(prepared, settings.train, constraint=FixedMask(model))
    recalibrate_batch_norm(prepared, training_batches(TRAINING.images[:32], settings.train.augment, 5))
    claims = {"validation_accuracy_percent": f"{found.validation_accuracy_percent:.4f}"}
    by_hand = pack(prepared, tmp_path / "by hand", quantize=settings, metadata=claims)
    assert (tmp_path / "m").read_bytes() == (tmp_path / "by hand").read_bytes()
    assert found.packed.digest == by_hand.digest


def test_the_accuracy_is_that_of_the_file_and_the_file_claims_it(tmp_path):
    found = path_of(sparse_model(), section(), path=tmp_path / "m", metadata={"params_digest": "abc"})
    read = load_packed(tmp_path / "m")
    assert found.validation_accuracy_percent == evaluate(read, VALIDATION, MACHINE)[1]
    accuracy = f"{found.validation_accuracy_percent:.4f}"
    assert read.packed.metadata == {"validation_accuracy_percent": accuracy, "params_digest": "abc"}
    assert read.packed.digest == found.packed.digest and found.refitted == []


def test_without_a_path_it_is_measured_just_the_same_and_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = path_of(sparse_model(), section(), path=tmp_path / "m")  # torch leaves a folder where it is loaded first
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    passing = path_of(sparse_model(), section())
    assert passing.validation_accuracy_percent == kept.validation_accuracy_percent
    assert passing.packed.payload_bits == kept.packed.payload_bits
    assert [file.name for file in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(("share", "expected"), [(0.0, FixedMask), (0.3, Trimming)])
def test_zeros_stay_zero_and_a_share_to_trim_adds_to_them(share, expected):
    settings, constraints = section(trim=share), []

    def fit(prepared, constraint):
        constraints.append(constraint)
        return train(prepared, settings.train, constraint=constraint)

    found = path_of(sparse_model(), settings, train=fit)
    assert [type(constraint) for constraint in constraints] == [expected]
    weight = found.prepared.get_submodule("stages.0.0.conv1").weight
    assert not weight[:, 4:].any()
    assert (int((weight == 0).sum()) > weight[:, 4:].numel()) == bool(share)


def test_statistics_of_norms_are_estimated_anew_when_something_was_trained(monkeypatch):
    seen = []
    monkeypatch.setattr(
        quantizing, "recalibrate_batch_norm", lambda _, batches: seen.append(sum(len(batch) for batch in batches))
    )
    path_of(sparse_model(), section(epochs=0))
    assert seen == []
    path_of(sparse_model(), section(), batch_norm_images=40)
    path_of(sparse_model(), section())
    assert seen == [40, len(TRAINING)]


def test_the_machine_is_asked_for_after_the_training():
    order, settings = [], section()

    def fit(prepared, constraint):
        order.append("trained")
        return train(prepared, settings.train, constraint=constraint)

    path_of(sparse_model(), settings, train=fit, machine=lambda: order.append("machine") or MACHINE)
    assert order == ["trained", "machine"]


@pytest.mark.parametrize(
    ("part", "changes", "step"),
    thinned(
        [
            ("stem.conv.quantizer", {"per_channel": True}, -1.0),
            ("classifier.quantizer", {}, -0.0006),
            ("activations.relu", {}, -0.5),
            ("stages.0.0.conv1.quantizer", {}, 0.0),
        ],
        2,
    ),
)
def test_a_step_that_the_last_update_brought_to_nothing_is_fitted_anew_and_named(part, changes, step):
    settings = section(**changes)

    def fit(prepared, constraint):
        result = train(prepared, settings.train, constraint=constraint)
        with torch.no_grad():
            prepared.get_submodule(part).step.fill_(step)
        return result

    found = path_of(sparse_model(), settings, train=fit)
    assert found.refitted == [part.removesuffix(".quantizer")]
    assert (found.prepared.get_submodule(part).step > 1e-3).all()


def test_a_step_that_is_not_lost_is_not_fitted_anew():
    assert path_of(sparse_model(), section(per_channel=True)).refitted == []


@pytest.mark.parametrize("part", ["classifier.quantizer", "stem.conv.quantizer", "activations.relu_1"])
def test_a_network_computes_with_the_step_that_it_is_packed_with_also_where_an_update_left_it_below_0(tmp_path, part):
    settings, model = section(), sparse_model()
    prepared = calibrated(model, settings, TRAINING.images[:20]).eval()
    with torch.no_grad():
        prepared.classifier.bias.zero_()
        prepared.get_submodule(part).step.fill_(-0.5)
    pack(prepared, tmp_path / "m", quantize=settings)  # which compares the two


def test_a_bias_that_dwarfs_the_steps_of_its_layer_is_a_line_of_that_layer(tmp_path):
    settings, model = section(), sparse_model()
    prepared = prepare(model, settings).eval()
    with torch.no_grad():
        prepared.classifier.bias.fill_(1e6)
        prepared.classifier.quantizer.step.fill_(1e-6)
    with pytest.raises(PackError, match=r"^classifier: its bias is so large .* would work$"):
        pack(prepared, tmp_path / "m", quantize=settings)


@pytest.mark.parametrize("dead", thinned(["weights", "activations", "variance"], 2))
def test_a_network_in_which_a_layer_is_dead_is_packed_all_the_same(dead):
    model = sparse_model()
    with torch.no_grad():
        if dead == "weights":
            for parameter in model.parameters():
                parameter.zero_()
        if dead == "activations":
            model.stages[0][0].norm1.bias.fill_(-100)
        if dead == "variance":
            model.stem.norm.running_var.zero_()
    found = path_of(model, section(), images=torch.full_like(TRAINING.images, 128))
    assert 0 <= found.validation_accuracy_percent <= 100
