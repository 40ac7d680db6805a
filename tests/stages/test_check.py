"""`stages/check.py`: every stage can work with params that pass it; others are refused with a line a fault."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from micronet import params
from tests.support.configs import demo
from tests.support.generated_params import generated, wrong_lines
from tests.support.pipeline import ENVIRONMENT, run, write_params
from tests.support.places import ROOT
from tests.support.thinning import thinned

sys.path.insert(0, str(ROOT / "stages"))

import consistency  # noqa: E402 - they stand among the stage scripts
import costs  # noqa: E402
import validation  # noqa: E402

SMALL = {"name": "resnet", "blocks": [1], "widths": [4]}
SIX_STAGES = {"name": "resnet", "blocks": [1] * 6, "widths": [4] * 6}  # the last map is 1 x 1


def found(*changes: tuple[str, Any]) -> list[str]:
    """What is inconsistent in the demo recipe of two small networks, with other values."""
    tree = demo(("teacher.model", SMALL), ("student.model", SMALL), ("engine.device", "cpu"), *changes)
    return consistency.inconsistencies(params.parse(tree))


def refused(folder: Path, *changes: tuple[str, Any]) -> list[str]:
    """The lines that the check without torch ends with, without the file's name."""
    write_params(folder, demo(*changes))
    with pytest.raises(params.ParamsError) as caught:
        validation.validate(folder / "params.yaml")
    return [line.split(": ", 1)[1] for line in str(caught.value).splitlines()]


# --- the form of a file ---


@pytest.mark.parametrize(
    ("model", "lines"),
    [
        ({"settings": [1]}, ["settings: must be a section with keys (got [1])"]),
        ({"settings": None}, ["settings: must be a section with keys (got None)"]),
        ({"name": "resnet"}, ["name: no such key (a network in a file of one's own takes file, class, settings)"]),
        ({"file": ""}, ["file: must be a path of printable characters"]),
        ({"file": 3}, ["file: must be text (got 3)"]),
        ({"file": "~/net.py"}, ["file: must not begin with ~, which nothing replaces here; the whole path would work"]),
        ({"class": 3}, ["class: must be text (got 3)"]),
        ({"class": ""}, ["class: must be the name of a class (got '')"]),
        ({"settings": {3: 4}}, ["settings.3.[key]: must be text (got 3)"]),
        ({"settings": {"widths": 3, "width": 4}}, [
            "settings.widths: must be a list (got 3)",
            "settings.width: no such key (Template takes widths, image, classes)",
        ]),
        ({"settings": [1], "class": "", "name": 3}, [
            "settings: must be a section with keys (got [1])",
            "name: no such key (a network in a file of one's own takes file, class, settings)",
            "class: must be the name of a class (got '')",
        ]),
    ],
)  # fmt: skip
def test_one_fault_of_a_network_is_one_line_whoever_sees_it(tmp_path, model, lines):
    asked = {"file": "template.py", "class": "Template"} | model
    for section in ("student", "teacher"):
        assert sorted(refused(tmp_path, (f"{section}.model", asked))) == sorted(
            f"{section}.model.{line}" for line in lines
        )


# --- the data ---


@pytest.mark.parametrize("classes", [5, 20])
@pytest.mark.parametrize("section", ["teacher", "student"])
def test_a_model_has_a_logit_for_every_label_and_no_more(tmp_path, section, classes):
    line = f"{section}.model.classes: must be 10, the number of the data's labels (got {classes})"
    assert refused(tmp_path, (f"{section}.model.classes", classes)) == [line]


# --- what the networks can do ---


def test_params_whose_networks_work_have_no_inconsistency():
    assert found() == []


def test_a_network_of_too_many_parameters_is_refused_before_it_has_memory(monkeypatch):
    monkeypatch.setattr("models.MOST_PARAMETERS", 1_000_000)
    line = "student.model: such a model has more than 1,000,000 parameters; fewer channels or layers would work"
    assert found(("student.model", {"name": "resnet", "blocks": [64] * 6, "widths": [2048] * 6})) == [line]


def test_bits_of_a_layer_that_the_student_does_not_have_name_those_that_it_has():
    (line,) = found(("quantize.layer_bits", {"nothing.there": 8}))
    assert line.startswith(
        "quantize.layer_bits: there is no layer 'nothing.there' in the student (there are stem.conv, "
    )


@pytest.mark.parametrize("section", thinned(consistency.TRAINED, 3))
def test_a_batch_of_one_is_refused_where_a_norm_would_see_one_value(section):
    model = "teacher" if section == "teacher" else "student"
    changes = ((f"{section}.train.batch_size", 1), (f"{model}.model", SIX_STAGES))
    line = f"{section}.train.batch_size: must be >= 2, a batch norm of {model}.model sees a 1 x 1 map (got 1)"
    assert found(*changes) == [line]
    if section != "prune":  # which must train here
        assert found(*changes, (f"{section}.train.epochs", 0)) == []


def test_a_batch_of_which_a_process_gets_one_image_is_refused_where_a_norm_would_see_one_value(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    changes = (("engine.processes", 2), ("student.model", SIX_STAGES))
    line = (
        "student.train.batch_size: must be >= 4, two a process, a batch norm of student.model sees a 1 x 1 map (got 3)"
    )
    assert found(*changes, ("student.train.batch_size", 3)) == [line]
    assert found(*changes, ("student.train.batch_size", 4)) == []


def test_more_processes_than_cores_are_a_line(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    changes = (("engine.device", "cpu"), ("engine.processes", 3))
    assert found(*changes) == ["engine.processes: must be <= 2, the cores of this machine (got 3)"]


def test_a_batch_of_one_is_fine_where_every_norm_sees_a_map():
    assert found(("student.train.batch_size", 1)) == []


def test_a_gpu_that_is_not_there_is_a_line(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = "engine.device: cuda needs a GPU, and torch sees none here; cpu or auto would work"
    assert found(("engine.device", "cuda")) == [line]


def test_a_start_must_be_there_with_the_bytes_that_its_digest_names(tmp_path):
    start = {"file": str(tmp_path / "start.safetensors"), "sha256": hashlib.sha256(b"").hexdigest()}
    (missing,) = found(("student.start", start))
    (tmp_path / "start.safetensors").write_bytes(b"PK")
    (foreign,) = found(("student.start", start))
    assert missing.startswith("student.start.file: ") and "there is no such checkpoint" in missing
    digest = hashlib.sha256(b"PK").hexdigest()
    assert (
        foreign
        == f"student.start.file: {start['file']}: its sha256 is {digest}, student.start.sha256 names another one"
    )


def test_whatever_a_network_raises_is_a_line(monkeypatch):
    def broken(spec: Any) -> None:
        raise IndexError("list\nindex out of range")

    monkeypatch.setattr("models.build", broken)
    first, second = found()
    assert first == "teacher.model: does not work on 32 x 32 images: IndexError: list index out of range"
    assert second.startswith("student.model: ")


# --- as a command ---


def test_the_command_says_each_fault_once_and_only_then_asks_torch(tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(demo(("prune.roundz", 3))))
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "stages/check.py")],
        cwd=tmp_path, env=ENVIRONMENT | {"PYTHONSAFEPATH": "1", "PYTHONINSPECT": "1"},
        capture_output=True, text=True, timeout=60, input="print('a prompt')",
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert (done.returncode, done.stdout, said) == (2, "", ["params.yaml: prune.roundz: no such key"])
    assert "| torch" not in done.stderr


def test_the_command_finds_what_only_networks_show(tmp_path):
    write_params(tmp_path, demo(("quantize.layer_bits", {"nothing.there": 8})))
    done = run(tmp_path, "check")
    assert done.returncode == 2 and done.stderr.startswith("params.yaml: quantize.layer_bits: there is no layer")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("patience", "lines"), [(0.01, 1), (60.0, 0)])
def test_a_price_that_takes_long_is_no_silence(tmp_path, monkeypatch, capsys, patience, lines):
    monkeypatch.setattr(costs, "PATIENCE", patience)
    with costs._said_when_slow():
        time.sleep(0.2)
    said = capsys.readouterr().err
    assert said.count("\n") == lines and said.count("check: packing the student untrained to price it") == lines


# --- files that anybody may have written ---


@pytest.mark.parametrize(("count", "seed"), thinned([(30, 0), (300, 1)], 2))
def test_a_generated_file_is_valid_or_refused_in_a_few_short_printable_lines(count, seed, tmp_path):
    path, valid = tmp_path / "params.yaml", []
    for number, content in enumerate(generated(count, seed)):
        path.write_bytes(content)
        try:
            valid.append(validation.validate(path))
        except params.ParamsError as error:
            assert wrong_lines(error) == [], number
    assert count / 40 < len(valid) < count / 1.5
    for loaded in valid[:8]:
        lines = consistency.inconsistencies(loaded)
        assert not lines or wrong_lines(params.ParamsError(lines)) == []


def test_more_zeros_than_a_network_can_have_are_a_line_before_anything_is_trained():
    (line,) = consistency.inconsistencies(params.parse(demo(("prune.amount", 0.98), ("prune.layer_floor", 0.02))))
    assert line.startswith("prune.amount: amount 0.98 asks for ") and line.endswith(" works")
