"""Checkpoints: whole or absent, the same bytes for the same weights, refused in one sentence."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

import models
from micronet.errors import MicronetError
from micronet.files import FileError
from micronet.training.checkpoint import FORMAT, HALF_ABOVE_PARAMETERS, CheckpointError, load, save, stored
from micronet.training.weights import count_zeros
from tests.support.failures import full_disk
from tests.support.models import RESNET, TINY, new_model
from tests.support.places import ROOT, entries

FACTS = {"stage": "train_student", "epochs": 3, "validation_accuracy_percent": 61.5, "params_digest": "abc"}


def saved(path: Path, model: nn.Module | None = None, **more) -> Path:
    save(path, new_model() if model is None else model, **FACTS | more)
    return path


def write(path: Path, weights: dict, header: object = None) -> Path:
    """A safetensors file with any header in our metadata entry."""
    metadata = None if header is None else {"micronet": json.dumps(header)}
    path.write_bytes(safetensors.torch.save(weights, metadata))
    return path


def header(**changes) -> dict:
    return {"format": FORMAT, "model": new_model().spec} | FACTS | changes


def refusal(path: Path) -> str:
    """The sentence that loading ends with."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- round trip ---


def test_what_was_saved_is_what_is_loaded(tmp_path):
    model = new_model()
    loaded = load(saved(tmp_path / "student.safetensors", model))
    assert loaded.stage == "train_student" and loaded.epochs == 3 and loaded.params_digest == "abc"
    assert loaded.validation_accuracy_percent == 61.5 and loaded.spec == model.spec
    for name, tensor in loaded.model().state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_loaded_model_is_in_eval_mode(tmp_path):
    assert not load(saved(tmp_path / "student.safetensors")).model().training


def test_weights_stand_under_plain_names(tmp_path):
    path = saved(tmp_path / "student.safetensors")
    assert set(safetensors.torch.load_file(path)) == set(new_model().state_dict())


def test_the_metadata_is_one_entry_without_time_commit_or_machine(tmp_path):
    with safetensors.safe_open(saved(tmp_path / "student.safetensors"), framework="pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["micronet"]
    assert json.loads(metadata["micronet"]) == header()


def test_the_same_weights_give_the_same_bytes_under_another_name(tmp_path):
    one, two = saved(tmp_path / "a.safetensors"), saved(tmp_path / "other-name.safetensors")
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path):
    code = (
        "import sys, torch, models; from micronet.training import checkpoint; torch.manual_seed(0); "
        f"checkpoint.save(sys.argv[1], models.build({TINY!r}), **{FACTS!r}); "
        "checkpoint.load(sys.argv[1]).model(); assert 'torch._dynamo' not in sys.modules, 'it takes seconds to load'"
    )
    path = tmp_path / "there.safetensors"
    environment = os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=True, timeout=60)
    assert path.read_bytes() == saved(tmp_path / "here.safetensors").read_bytes()


def test_a_channels_last_model_gives_the_same_bytes(tmp_path):
    one = saved(tmp_path / "a.safetensors", new_model().to(memory_format=torch.channels_last))
    assert one.read_bytes() == saved(tmp_path / "b.safetensors").read_bytes()


def test_a_large_model_is_stored_in_16_bits(tmp_path):
    model = new_model({"name": "resnet", "blocks": [1], "widths": [256]})
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters > HALF_ABOVE_PARAMETERS
    path = saved(tmp_path / "teacher.safetensors", model)
    assert 2 * parameters < path.stat().st_size < 2.1 * parameters
    rounded = stored(model)
    loaded = load(path).model()
    assert all(tensor.dtype == torch.float32 for tensor in loaded.parameters())
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in rounded.state_dict().items())


def test_a_small_model_keeps_its_32_bits(tmp_path):
    model = new_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stored(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- what is not saved ---


def test_a_claimed_sparsity_is_compared_with_the_weights(tmp_path):
    model = new_model()
    with torch.no_grad():
        model.stem.conv.weight[:2] = 0
    zeros, _ = count_zeros(model)
    saved(tmp_path / "pruned.safetensors", model, zeros=zeros)
    with pytest.raises(CheckpointError, match=f"{zeros + 1} zero weights are claimed and {zeros} are there"):
        saved(tmp_path / "wrong.safetensors", model, zeros=zeros + 1)
    assert entries(tmp_path) == ["pruned.safetensors"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, value):
    model = new_model()
    with torch.no_grad():
        model.stem.norm.running_var[1] = value
    with pytest.raises(CheckpointError, match="stem.norm.running_var holds a value that is not finite"):
        saved(tmp_path / "student.safetensors", model)
    assert entries(tmp_path) == []


def test_a_value_that_16_bits_cannot_hold_is_not_saved_as_infinity(tmp_path):
    model = new_model({"name": "resnet", "blocks": [1], "widths": [256]})
    with torch.no_grad():
        model.stem.norm.running_var[1] = 1e6
    with pytest.raises(CheckpointError, match="stem.norm.running_var"):
        saved(tmp_path / "teacher.safetensors", model)


# --- what is not loaded ---


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("teacher", "train_teacher"),
        ("student", "train_student"),
        ("distilled", "distill"),
        ("pruned", "prune"),
        ("retrained", "retrain"),
        ("quantized", "quantize"),
    ],
)
def test_a_missing_checkpoint_names_the_stage_that_makes_it(tmp_path, name, script):
    line = refusal(tmp_path / f"{name}.safetensors")
    assert "there is no such checkpoint" in line and f"`python stages/{script}.py` makes it" in line
    assert (ROOT / "stages" / f"{script}.py").is_file()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """The bytes of a checkpoint."""
    return saved(tmp_path_factory.mktemp("whole") / "student.safetensors").read_bytes()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_checkpoint_is_refused(tmp_path, whole, share):
    path = tmp_path / "cut" / "student.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(whole[: int(share * len(whole))])
    assert "truncated or no checkpoint" in refusal(path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 1500), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_header_never_ends_in_a_traceback(tmp_path, whole, position, bit):
    data = bytearray(whole)
    data[position] ^= 1 << bit
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(data)
    try:
        load(path)
    except CheckpointError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100, struct.pack("<Q", 2**63) + b"{}"])
def test_a_foreign_file_is_refused(tmp_path, content):
    (tmp_path / "student.safetensors").write_bytes(content)
    assert "truncated or no checkpoint" in refusal(tmp_path / "student.safetensors")


@pytest.mark.parametrize("foreign", [None, [], {}, header() | {"format": None}, {"format": 1, "stage": "x"}], ids=repr)
def test_a_safetensors_file_of_something_else_is_refused(tmp_path, foreign):
    refusal(write(tmp_path / "student.safetensors", new_model().state_dict(), foreign))


def test_a_later_format_is_named(tmp_path):
    path = write(tmp_path / "student.safetensors", new_model().state_dict(), header(format=99))
    assert "has format 99, this code reads 1" in refusal(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, None])
def test_a_pickle_is_refused_and_not_run(tmp_path, protocol):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    path = tmp_path / "student.safetensors"
    if protocol is None:
        torch.save({"weights": Trap()}, path)
    else:
        path.write_bytes(pickle.dumps(Trap(), protocol))
    assert "is a pickle, which is never loaded" in refusal(path)
    assert not (tmp_path / "sprung").exists()


def test_a_packed_model_is_sent_to_the_function_that_reads_it(tmp_path):
    path = write(tmp_path / "quantized.safetensors", {"payload": torch.zeros(9, dtype=torch.uint8)}, {"format": 1})
    assert "is a packed model; `micronet.packed.load_packed` reads those" in refusal(path)


def test_weights_of_another_architecture_are_refused(tmp_path):
    wider = models.build({"name": "resnet", "blocks": [1], "widths": [8]})
    path = write(tmp_path / "student.safetensors", wider.state_dict(), header())
    with pytest.raises(CheckpointError, match="of another architecture than resnet") as caught:
        load(path).model()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", [{"name": "mobilenet"}, {"name": "resnet", "blocks": [0], "widths": [4]}, "x", None])
def test_a_spec_that_cannot_be_built_is_refused_in_one_sentence(tmp_path, spec):
    path = write(tmp_path / "student.safetensors", new_model().state_dict(), header(model=spec))
    with pytest.raises(MicronetError) as caught:
        load(path).model()
    assert "\n" not in str(caught.value)


# --- nothing half-written ---


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch, call):
    path = saved(tmp_path / "student.safetensors")
    before = path.read_bytes()

    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(FileError) as caught:
        saved(path, epochs=4)
    assert str(caught.value) == f"{path}: cannot be written (No space left on device); what stood there is intact"
    assert path.read_bytes() == before and entries(tmp_path) == [path.name]


def test_a_written_file_can_be_read_by_others(tmp_path):
    assert saved(tmp_path / "new" / "student.safetensors").stat().st_mode & 0o777 == 0o644


# --- networks and files that lie ---


def test_a_weight_under_two_names_is_stored_twice_and_computes_the_same(tmp_path):
    model = new_model(RESNET).eval()
    block = model.stages[0][0]
    block.conv2.weight = block.conv1.weight
    zeros, _ = count_zeros(model)
    loaded = load(saved(tmp_path / "student.safetensors", model, zeros=zeros)).model()
    assert torch.equal(loaded(torch.ones(2, 3, 32, 32)), model(torch.ones(2, 3, 32, 32)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: prune.l1_unstructured(model.stem.conv, "weight", 0.5), "stem.conv: torch.nn.utils.prune"),
        (lambda model: model.double(), "stem.conv.weight is of torch.float64, float32 would work"),
        (lambda model: model.to("meta"), "stem.conv.weight has no values"),
        (lambda model: setattr(model, "spec", None), "the network has no spec"),
        (lambda model: setattr(model, "extra", nn.Linear(2, 2)), "not what its spec builds: it has no extra.weight"),
        (lambda model: setattr(model, "stem", nn.Identity()), "not what its spec builds: stem.conv.weight is missing"),
    ],
    ids=["prune", "double", "meta", "no spec", "more", "less"],
)
def test_a_network_that_could_not_be_loaded_again_is_not_saved(tmp_path, change, said):
    model = new_model()
    change(model)
    with pytest.raises(MicronetError) as caught:
        saved(tmp_path / "student.safetensors", model)
    assert said in str(caught.value) and entries(tmp_path) == []


@pytest.mark.parametrize("facts", [{"epochs": -1}, {"validation_accuracy_percent": float("nan")}, {"stage": None}])
def test_facts_that_could_not_be_read_again_are_not_saved(tmp_path, facts):
    with pytest.raises(CheckpointError, match=f"not saved, {next(iter(facts))}: "):
        saved(tmp_path / "student.safetensors", **facts)
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": "3"},
        {"epochs": -1},
        {"epochs": True},
        {"validation_accuracy_percent": float("nan")},
        {"validation_accuracy_percent": 101},
        {"stage": ["x"]},
        {"params_digest": 7},
        {"model": "\x1b[2J"},
        {"format": "\x1b[2J" * 99},
    ],
    ids=repr,
)
def test_a_header_that_says_nonsense_is_refused_in_a_line_that_a_terminal_can_show(tmp_path, changes):
    line = refusal(write(tmp_path / "student.safetensors", new_model().state_dict(), header(**changes)))
    assert line.isprintable() and len(line) <= 300


def test_a_header_without_end_is_refused(tmp_path):
    path = tmp_path / "student.safetensors"
    path.write_bytes(safetensors.torch.save(new_model().state_dict(), {"micronet": "[" * 100_000}))
    assert "truncated or no checkpoint" in refusal(path)


def test_a_folder_and_a_pipe_are_no_files(tmp_path):
    (tmp_path / "student.safetensors").mkdir()
    os.mkfifo(tmp_path / "teacher.safetensors")
    for name in ("student", "teacher"):
        assert "is no file; `python stages/" in refusal(tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_stored_weights_that_are_not_finite_are_not_loaded(tmp_path, kind):
    tensors = new_model().state_dict()
    tensors["stem.conv.weight"] = torch.full((4, 3, 3, 3), float("nan"), dtype=kind)
    line = refusal(write(tmp_path / "student.safetensors", tensors, header()))
    assert "stem.conv.weight holds a value that is not finite" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stem.conv.weight": None}, "stem.conv.weight is missing"),
        ({"\x1b[2J\n": torch.zeros(1)}, "it has no \\x1b[2J\\n"),
        ({"classifier.bias": torch.zeros(11)}, "classifier.bias is (11,), it must be (10,)"),
        ({"classifier.bias": torch.zeros(10).long()}, "classifier.bias is of torch.int64, it must be of torch.float32"),
        ({"stem.norm.num_batches_tracked": torch.tensor(0.5)}, "num_batches_tracked is of torch.float32, it must be"),
    ],
    ids=["missing", "more", "shape", "whole numbers", "a count that is none"],
)
def test_the_first_weight_that_does_not_fit_is_named(tmp_path, changes, said):
    tensors = {name: value for name, value in (new_model().state_dict() | changes).items() if value is not None}
    with pytest.raises(CheckpointError) as caught:
        load(write(tmp_path / "student.safetensors", tensors, header())).model()
    assert str(caught.value) == f"the weights are of another architecture than resnet: {said}" or said in str(
        caught.value
    )
    assert str(caught.value).isprintable()


def test_a_spec_of_a_giant_is_refused_without_the_memory_for_it(tmp_path, monkeypatch):
    giant = {"name": "resnet", "blocks": [8] * 6, "widths": [2048] * 6}
    path = write(tmp_path / "student.safetensors", new_model().state_dict(), header(model=giant))
    with pytest.raises(CheckpointError, match="such a model has more than 250,000,000 parameters"):
        load(path).model()
