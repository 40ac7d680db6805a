"""params.yaml: what is accepted, what is refused and in which words, what a digest names."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

import models
from micronet import params
from tests.support.configs import demo
from tests.support.places import ROOT

sys.path.insert(0, str(ROOT / "stages"))

import validation  # noqa: E402 - it stands among the stage scripts

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def without(section: str) -> dict[str, Any]:
    return {key: value for key, value in demo().items() if key != section}


def faults(tree: Any, path: str = "params.yaml") -> list[str]:
    try:
        params.parse(tree, path)
    except params.ParamsError as error:
        return error.faults
    return []


def faults_of_text(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(params.ParamsError) as caught:
        params.load(path)
    return [fault.replace(str(path), "params.yaml") for fault in caught.value.faults]


# --- what is accepted ---


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_passes_the_whole_validation(recipe):
    assert isinstance(validation.validate(recipe), params.Params)


@pytest.mark.release
def test_params_yaml_is_the_recipe_that_the_readme_names():
    active = [path.stem for path in RECIPES if path.read_bytes() == (ROOT / "params.yaml").read_bytes()]
    assert len(active) == 1 and f"`params.yaml` is `{active[0]}`" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_small_exponent_is_a_number(tmp_path):
    text = (ROOT / "recipes/demo.yaml").read_text().replace("learning_rate: 0.05", "learning_rate: 1e-3")
    (tmp_path / "params.yaml").write_text(text)
    assert params.load(tmp_path / "params.yaml").teacher.train.learning_rate == 0.001


def test_an_integer_stands_for_a_float():
    assert params.parse(demo(("teacher.train.learning_rate", 1))).teacher.train.learning_rate == 1.0


def test_params_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        params.parse(demo()).seed = 3


# --- what is refused ---


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        # unknown key
        ("teacher.train.lr", 0.1, "no such key"),
        ("score.bits", 8, "no such key"),
        ("student.train.augment.rotate", 5, "no such key"),
        # wrong type
        ("seed", "yes", "must be a whole number (got 'yes')"),
        ("engine.channels_last", "yes", "must be true or false (got 'yes')"),
        ("teacher.train.learning_rate", "yes", "must be a number (got 'yes')"),
        ("teacher.train.learning_rate", True, "must be a number (got True)"),
        ("teacher.train.epochs", 1.0, "must be a whole number (got 1.0)"),
        ("teacher.train.augment", 3, "must be a section with keys (got 3)"),
        ("teacher", None, "must be a section with keys (got None)"),
        ("teacher.model", "resnet18", "must be a section with keys (got 'resnet18')"),
        # out of range
        ("seed", -1, "must be >= 0 (got -1)"),
        ("teacher.train.learning_rate", -1, "must be > 0 (got -1)"),
        ("teacher.train.momentum", 1.0, "must be < 1 (got 1.0)"),
        ("teacher.train.weight_decay", -0.1, "must be >= 0 (got -0.1)"),
        ("student.train.augment.crop_padding", 17, "must be <= 16 (got 17)"),
        ("student.train.augment.cutmix_probability", 1.1, "must be <= 1 (got 1.1)"),
        ("distill.temperature", 0, "must be > 0 (got 0)"),
        ("distill.temperature", -4.0, "must be > 0 (got -4.0)"),
        ("prune.temperature", 0.0, "must be > 0 (got 0.0)"),
        ("distill.alpha", 1.01, "must be <= 1 (got 1.01)"),
        ("distill.alpha", -0.01, "must be >= 0 (got -0.01)"),
        ("prune.amount", 1.0, "must be < 1 (got 1.0)"),
        ("prune.amount", -0.1, "must be >= 0 (got -0.1)"),
        ("prune.rounds", 0, "must be >= 1 (got 0)"),
        ("quantize.weight_bits", 0, "must be >= 1 (got 0)"),
        ("quantize.weight_bits", 9, "must be <= 8 (got 9)"),
        ("quantize.activation_bits", 1, "must be >= 2 (got 1)"),
        ("quantize.layer_bits.classifier", 9, "must be <= 8 (got 9)"),
        ("quantize.multiplier_bits", 5, "must be >= 6 (got 5)"),
        ("engine.threads", -1, "must be >= 0 (got -1)"),
        ("engine.processes", 0, "must be >= 1 (got 0)"),
        ("data.validation_size", 0, "must be >= 1 (got 0)"),
        # contradictions
        ("data.validation_size", 1000, "must be below the 1000 training images (got 1000)"),
        ("data.validation_size", 15, "must be a multiple of 10, a stratified split (got 15)"),
        ("data.source", "path", "path needs data.path, a folder or archive"),
        ("prune.amount", 0.99, "0.99 leaves less than layer_floor 0.02 of the weights"),
        ("prune.train.epochs", 0, "must be > 0 for method gradual (0 is one_shot)"),
        ("quantize.weight_bits", 1, "lsq takes 2 to 8 (got 1)"),
    ],
)
def test_one_bad_value_is_one_line_with_file_key_and_reason(path, value, reason):
    assert faults(demo((path, value))) == [f"params.yaml: {path}: {reason}"]


def test_processes_need_an_image_each_of_every_batch_and_ranges_that_one_process_sees():
    two = ("engine.processes", 2)
    said = "prune.train.batch_size: must be >= engine.processes, 2 (got 1)"
    assert faults(demo(two, ("prune.train.batch_size", 1))) == [f"params.yaml: {said}"]
    assert faults(demo(two, ("retrain.train.batch_size", 1), ("retrain.train.epochs", 0))) == []
    fx = (("quantize.method", "fx_int8"), ("quantize.weight_bits", 8), ("quantize.activation_bits", 8))
    (line,) = faults(demo(two, *fx))
    assert line.startswith("params.yaml: quantize.method: fx_int8 observes its ranges in one process, ")
    assert faults(demo(*fx)) == []


@pytest.mark.parametrize("section", [name for name in params.Params.model_fields])
def test_a_missing_section_is_named(section):
    assert faults(without(section)) == [f"params.yaml: {section}: is missing"]


def test_a_missing_key_is_named():
    tree = demo()
    del tree["prune"]["amount"]
    assert faults(tree) == ["params.yaml: prune.amount: is missing"]


def numbers(section: type[BaseModel], where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Key path and JSON schema of every number that a section takes, in whatever it holds."""
    schema = section.model_json_schema()

    def inside(part: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if "$ref" in part:
            part = schema["$defs"][part["$ref"].rpartition("/")[2]]
        if part.get("type") in ("integer", "number"):
            yield where, part
        for key, inner in part.get("properties", {}).items():
            yield from inside(inner, f"{where}.{key}")
        for inner in part.get("anyOf", []):
            yield from inside(inner, where)
        for key in ("items", "additionalProperties"):
            if isinstance(part.get(key), dict):
                yield from inside(part[key], f"{where}.*")

    yield from inside(schema, where)


def test_every_number_has_a_lower_and_an_upper_bound():
    families, broken = models._files()
    found = dict(numbers(params.Params, "params"))
    for name, settings in families.items():
        found |= numbers(settings, name)
    assert not broken and len(found) > 100 and "params.teacher.train.batch_size" in found
    assert "densenet.groups.stem" in found and "resnet.widths.*" in found
    for where, schema in found.items():
        if "enum" in schema:
            continue  # one of a few numbers
        assert {"minimum", "exclusiveMinimum"} & set(schema), where
        assert {"maximum", "exclusiveMaximum"} & set(schema), where


@pytest.mark.parametrize(
    ("path", "value", "limit"),
    [
        ("engine.threads", 10**6, "1024"),
        ("engine.threads", 2**40, "1024"),
        ("distill.views", 10**6, "1000"),
        ("score.batch_size", 10**30, "1e+06"),
        ("teacher.train.batch_size", 10**6 + 1, "1e+06"),
        ("data.timeout_seconds", 1e300, "1e+07"),
        ("student.train.learning_rate", 1e308, "1e+09"),
    ],
)
def test_a_number_above_all_use_is_refused(path, value, limit):
    assert faults(demo((path, value))) == [f"params.yaml: {path}: must be <= {limit} (got {value!r})"]


@pytest.mark.parametrize("value", [10**400, 2**20_000], ids=["400 digits", "6,000 digits"])
def test_a_number_of_many_digits_is_a_short_line(value):
    (line,) = faults(demo(("teacher.train.epochs", value)))
    assert line.startswith("params.yaml: teacher.train.epochs: must be <= 100000 (got ") and len(line) < 150


def test_a_value_and_a_key_of_the_file_are_repeated_in_part_and_printable():
    tree = demo(("teacher.train.optimizer", "\x1b[31m" + "x" * 10**6))
    tree["a\nkey" + "k" * 10**6] = 1
    for line in (found := faults(tree)):
        assert len(line) <= 300 and line.isprintable()
    assert len(found) == 2 and r"a\nkeykkk" in found[1] and found[1].endswith(": no such key")


def test_more_than_twenty_faults_are_counted():
    with pytest.raises(params.ParamsError) as caught:
        params.parse(demo() | {f"key{number}": 1 for number in range(10_000)})
    lines = str(caught.value).splitlines()
    assert len(lines) == 21 and lines[20] == "and 9,980 more faults"


@pytest.mark.parametrize("key", ["data.folder", "data.path", "student.start.file"])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "must be a path of printable characters"),
        ("a\0b", "must be a path of printable characters"),
        ("a\nb", "must be a path of printable characters"),
        ("a\ud800b", "must be a path of printable characters"),
        ("a/" + "x" * 300, "must be a path of at most 2000 bytes, 200 a name"),
        ("a/" * 1500, "must be a path of at most 2000 bytes, 200 a name"),
        ("~nobody_of_that_name/x", None),
    ],
)
def test_a_path_that_no_system_has_is_refused(key, value, reason):
    home = "begins with the home of somebody who has none here; the whole path would work"
    plain = "must not begin with ~, which nothing replaces here; the whole path would work"
    reason = reason or (home if key == "data.path" else plain)
    changes = [("student.start", {"sha256": "0" * 64})] if key == "student.start.file" else []
    assert faults(demo(*changes, (key, value))) == [f"params.yaml: {key}: {reason}"]


@pytest.mark.parametrize(
    ("path", "those"),
    [
        ("data.source", "'auto', 'path', 'torchvision', 'npm', 'sample', 'mnist', 'cifar100' or 'folder'"),
        ("teacher.train.optimizer", "'sgd' or 'adam'"),
        ("teacher.train.schedule", "'cosine', 'step', 'one_cycle' or 'constant'"),
        ("distill.start_from", "'student', 'scratch' or 'teacher'"),
        ("prune.method", "'one_shot', 'iterative', 'gradual', 'soft' or 'feedback'"),
        ("quantize.method", "'half', 'fx_int8', 'binary_connect' or 'lsq'"),
    ],
)
def test_a_name_that_does_not_exist_lists_those_that_do(path, those):
    assert faults(demo((path, "magic"))) == [f"params.yaml: {path}: must be {those} (got 'magic')"]


def test_a_start_needs_a_whole_sha256():
    way = (
        "params.yaml: student.start.sha256: must be the 64 digits and letters that `sha256sum 'my net.pt'` prints (got "
    )
    for given in ({"sha256": "0" * 63}, {"sha256": "..."}, {"sha256": "A" * 64}, {"sha256": None}, {}):
        (line,) = faults(demo(("student.start", {"file": "my net.pt", **given})))
        assert line.startswith(way) and len(line) <= 300


def test_only_lsq_learns_a_step_a_channel():
    assert faults(demo(("quantize.method", "half"), ("quantize.per_channel", True))) == [
        "params.yaml: quantize.per_channel: must be false for half, which has scales of its own"
    ]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ([("quantize.method", "half")], "must be 0 for half, only lsq can trim"),
        ([("quantize.train.epochs", 0)], "must be 0 when train.epochs is 0: it reads the gradients of training"),
    ],
)
def test_trimming_needs_training_with_lsq(changes, fault):
    assert faults(demo(("quantize.trim", 0.1), *changes)) == [f"params.yaml: quantize.trim: {fault}"]


def test_a_second_pass_needs_integer_logits():
    tree = demo(("quantize.method", "half"), ("quantize.flip_share", 0.1))
    assert faults(tree) == ["params.yaml: quantize.flip_share: must be 0 for half, which has no integer logits"]


@pytest.mark.parametrize(
    ("method", "bits", "takes"), [("fx_int8", 4, "8"), ("binary_connect", 2, "1"), ("lsq", 1, "2 to 8")]
)
def test_a_width_that_a_quantizer_does_not_have_is_refused(method, bits, takes):
    tree = demo(("quantize.method", method), ("quantize.weight_bits", bits), ("quantize.activation_bits", 8))
    assert faults(tree) == [f"params.yaml: quantize.weight_bits: {method} takes {takes} (got {bits})"]


@pytest.mark.parametrize("key", ["activation_bits", "signed_bits"])
def test_fx_int8_has_8_bits_everywhere(key):
    tree = demo(("quantize.method", "fx_int8"), ("quantize.weight_bits", 8), ("quantize.activation_bits", 8))
    tree["quantize"][key] = 5
    assert faults(tree) == [f"params.yaml: quantize.{key}: fx_int8 takes 8 (got 5)"]


def test_more_pruning_rounds_than_epochs_are_refused():
    tree = demo(("prune.method", "iterative"), ("prune.rounds", 5))
    assert faults(tree) == ["params.yaml: prune.rounds: must be at most train.epochs, 4 (got 5)"]


def test_mixup_and_cutmix_together_need_probabilities_that_sum_to_at_most_1():
    tree = demo(("student.train.augment", {"mixup_alpha": 1.0, "cutmix_alpha": 1.0}))
    (fault,) = faults(tree)
    where = "student.train.augment.mixup_probability + cutmix_probability"
    assert fault == f"params.yaml: {where}: must be at most 1 when both are on"


@pytest.mark.parametrize("value", ["big", 0, 1.5])
def test_a_wrong_batch_size_is_one_fault(value):
    assert len(faults(demo(("teacher.train.batch_size", value)))) == 1


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("path", ["teacher.train.learning_rate", "distill.temperature", "student.train.weight_decay"])
def test_infinity_and_nan_are_out_of_every_range(path, value):
    (fault,) = faults(demo((path, value)))
    assert fault.startswith(f"params.yaml: {path}: ")


def test_all_faults_come_at_once():
    found = faults(
        demo(
            ("teacher.train.learning_rate", -1),
            ("student.train.lr", 0.1),
            ("distill.temperature", 0),
            ("prune.amount", 1.0),
            ("data.validation_size", 1000),
            ("quantize.weight_bits", 1),
        )
    )
    assert sorted(fault.split(": ")[1] for fault in found) == [
        "data.validation_size",
        "distill.temperature",
        "prune.amount",
        "quantize.weight_bits",
        "student.train.lr",
        "teacher.train.learning_rate",
    ]


def test_a_fault_names_the_file_it_is_in():
    assert faults(without("seed"), "recipes/mine.yaml") == ["recipes/mine.yaml: seed: is missing"]


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "teacher\n"])
def test_a_file_without_sections_is_one_fault(tmp_path, text):
    (fault,) = faults_of_text(tmp_path, text)
    assert fault.startswith("params.yaml: must hold sections, one a stage")


# --- models, through what the stages call ---


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        (
            {"name": "densenet_nano", "groups": {"bottleneck": 3}},
            "groups.bottleneck: 3 does not divide the channels of growth_rate 4; 1, 2, 4 would",
        ),
        ({"name": "densenet_nano", "groups": {"stem": 3}}, "groups.stem: 3 does not divide"),
        ({"name": "resnet", "blocks": [1], "widths": [0]}, "widths.0: must be >= 1 (got 0)"),
        ({"name": "resnet", "blocks": [1]}, "widths: is missing"),
        ({"name": "alexnet"}, "name: there is no model 'alexnet' (there are densenet_cifar, "),
    ],
)
def test_a_model_that_cannot_be_built_is_a_fault_of_the_params(tmp_path, model, fault):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(demo(("student.model", model))))
    with pytest.raises(params.ParamsError) as caught:
        validation.validate(path)
    (line,) = caught.value.faults
    assert line.startswith(f"{path}: student.model.{fault}")


def test_every_fault_of_every_model_is_a_line(tmp_path):
    path = tmp_path / "params.yaml"
    teacher, student = {"name": "resnet18", "classes": 0, "depth": 3}, {"name": "convnet", "widths": [8] * 5}
    path.write_text(yaml.safe_dump(demo(("teacher.model", teacher), ("student.model", student))))
    with pytest.raises(params.ParamsError) as caught:
        validation.validate(path)
    assert caught.value.faults == [
        f"{path}: teacher.model.classes: must be >= 1 (got 0)",
        f"{path}: teacher.model.depth: no such key (resnet18 takes stem_stride, blocks, widths, classes)",
        f"{path}: student.model.widths: must have at most 4 items (got 5)",
    ]


def test_the_command_prints_faults_of_params_and_models_together_and_ends_with_2(tmp_path):
    bad = demo(("student.model", {"name": "alexnet"}), ("seed", -1), ("distill.alpha", 2))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(bad))
    command = [sys.executable, str(ROOT / "stages/check.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == ""
    assert [line.split(": ")[1] for line in lines[:2]] == ["seed", "distill.alpha"]
    assert len(lines) == 3 and "there is no model 'alexnet'" in lines[2]


def test_only_a_student_that_the_teachers_channels_can_make_starts_from_its_weights(tmp_path):
    tree = demo()
    path = tmp_path / "params.yaml"
    tree["distill"]["start_from"] = "teacher"
    path.write_text(json.dumps(tree))
    with pytest.raises(params.ParamsError, match="distill.start_from: teacher needs a student.model that is teacher.m"):
        validation.validate(path)
    tree["student"]["model"] = tree["teacher"]["model"]
    path.write_text(json.dumps(tree))
    validation.validate(path)
    for widths, fits in (([8, 6], True), ([8, 9], False)):
        tree["teacher"]["model"] = {"name": "convnet", "widths": [8, 8]}
        tree["student"]["model"] = {"name": "convnet", "widths": widths}
        path.write_text(json.dumps(tree))
        if fits:
            validation.validate(path)
        else:
            with pytest.raises(params.ParamsError, match="a convnet of the same that is narrower"):
                validation.validate(path)


# --- the digest ---


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (params.Engine, "processes", 2),
        (params.Student, "start", {"file": "earlier.safetensors", "sha256": "0" * 64}),
        (params.Distillation, "views", 4),
        (params.Distillation, "mirror_answers", True),
        (params.Prune, "cost_exponent", 0.25),
        (params.Quantize, "trim", 0.25),
        (params.Quantize, "signed_bits", 5),
        (params.Quantize, "flip_share", 0.25),
    ],
)
def test_a_digest_is_that_of_the_time_before_there_was_a_key_while_it_is_off(section, key, value):
    given = {"amount": 0.5} if section is params.Prune else {}
    given |= {} if section in (params.Distillation, params.Engine) else {"train": demo()["prune"]["train"]}
    given |= {"model": demo()["student"]["model"]} if section is params.Student else {}
    off, on = section(**given), section(**given, **{key: value})
    assert key not in off.model_dump() and on.model_dump()[key] == value
    assert params.digest(off) != params.digest(on)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ([("distill.views", 3)], "views: must be even with mirror_answers, every view with its mirror image (got 3)"),
        ([("distill.train.augment", {"flip": False})], "mirror_answers: must be false where train.augment.flip is"),
    ],
)
def test_mirrored_answers_need_mirrored_images(changes, fault):
    tree = demo(("distill.mirror_answers", True), *changes)
    assert faults(tree) == [f"params.yaml: distill.{fault}"]


def test_the_digest_changes_with_any_value_and_with_nothing_else():
    one, other = params.parse(demo()), params.parse(demo(("prune.amount", 0.51)))
    assert params.digest(one.seed, one.prune) == params.digest(params.parse(demo()).seed, params.parse(demo()).prune)
    assert params.digest(one.prune) != params.digest(other.prune)
    assert params.digest(one.retrain) == params.digest(other.retrain)
    assert params.digest(0, one.prune) != params.digest(1, one.prune)
