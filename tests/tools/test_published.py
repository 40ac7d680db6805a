"""`make verify NAME=`: file, params and claims of a published model are found by its name."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import export
import page
import pytest
import verify
from _tool import OF_MAKE_TOO

from micronet.packed.errors import PackedFileError
from micronet.packed.file import content
from micronet.packed.module import load_packed
from micronet.scoring import __main__ as scoring
from tests.support.checkouts import FEW, PACKED
from tests.support.places import ROOT


def released_as(name: str) -> None:
    """The checkout's model in release/, with its claims and params beside each other."""
    for folder in ("release", f"metrics/{name}"):
        Path(folder).mkdir(parents=True)
    shutil.move(PACKED, f"release/{name}.safetensors")
    shutil.move("metrics/score.json", f"metrics/{name}/score.json")
    shutil.move("params.yaml", f"metrics/{name}/params.yaml")


def test_a_released_model_is_verified_by_its_name_on_data_of_its_own_params(checkout, capsys):
    released_as("tiny")
    Path("data/manifest.json").write_text("{}")  # that of what the root works on: another dataset
    assert verify.main(["--name", "tiny", *FEW]) == 0
    out = capsys.readouterr().out
    assert (
        "\nok     claims                       all of metrics/tiny/score.json, exactly" in out and "FAILED" not in out
    )
    claims = json.loads(Path("metrics/tiny/score.json").read_text())
    claims["course"]["score"] = 0.0
    Path("metrics/tiny/score.json").write_text(json.dumps(claims))
    assert verify.main(["--name", "tiny", *FEW]) == 1
    assert "FAILED course.score: claimed 0.0, measured 0." in capsys.readouterr().out


def test_once_a_pipeline_has_run_its_folder_is_what_the_name_means(checkout, capsys, monkeypatch):
    folder = checkout / "pipelines/tiny"
    folder.mkdir(parents=True)
    for name in ("checkpoints", "metrics", "params.yaml", "data"):
        shutil.move(name, folder / name)
    assert verify.main(["--name", "tiny", "--save", "out.json", *FEW]) == 0
    assert "all of metrics/score.json, exactly" in capsys.readouterr().out
    assert json.loads((checkout / "out.json").read_text()) == json.loads((folder / "metrics/score.json").read_text())
    monkeypatch.chdir(checkout)
    (checkout / "release").mkdir(exist_ok=True)
    shutil.move(folder / PACKED, checkout / "release/tiny.safetensors")
    assert verify.main(["--name", "tiny", *FEW]) == 0, "as in a clone"
    assert "all of metrics/score.json, exactly" in capsys.readouterr().out
    monkeypatch.chdir(checkout)
    (checkout / "release/tiny.safetensors").unlink()
    assert verify.main(["--name", "tiny", *FEW]) == 1
    said = capsys.readouterr().err
    assert f"pipelines/tiny/{PACKED}: there is no such file; `dvc repro pipelines/dvc.yaml` makes it" in said


@pytest.mark.parametrize("name", ["nothing", "../metrics", "\x1b[2J" + "x" * 1000])
def test_a_name_of_nothing_is_one_line_that_lists_what_there_is(checkout, capsys, name):
    released_as("tiny")
    assert verify.main(["--name", name]) == 2
    said = capsys.readouterr().err
    assert said.strip().endswith("one of these would work: tiny") and said.count("\n") == 1 and len(said) <= 310
    for more in (["other.safetensors"], ["--params", "other.yaml"], ["--claims", "other.json"]):
        with pytest.raises(SystemExit) as caught:
            verify.main(["--name", "tiny", *more])
        assert caught.value.code == 2


def test_an_argument_that_names_nothing_is_a_line_of_its_command_whichever_that_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, main, words in (
        ("verify", verify.main, ["--name", "nothing"]),
        ("report", page.main, ["--name", "nothing"]),
        ("scoring", scoring.main, ["resnet18", "--reference", "nothing"]),
        ("scoring", scoring.main, ["nothing"]),
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"{name}: ") and "nothing" in said and said.count("\n") == 1


def test_what_lies_in_metrics_without_a_file_in_release_is_no_published_model(checkout, capsys):
    released_as("tiny")
    for folder in ("runs", "folder"):
        Path("metrics", folder).mkdir(exist_ok=True)
        Path("metrics", folder, "score.json").write_text("{}")
    assert verify.main(["--name", "runs"]) == 2
    assert capsys.readouterr().err.endswith("there is no published model 'runs'; one of these would work: tiny\n")


@pytest.mark.parametrize(
    ("path", "way"),
    [
        ("checkpoints/quantized.safetensors", "`python stages/quantize.py`"),
        ("README.md", "those in release/"),
    ],
)
def test_only_the_pipeline_s_own_file_is_said_to_be_made_anew(path, way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PackedFileError) as missing:
        content(path)
    assert way in str(missing.value) and way in PackedFileError(f"{path}: is damaged").remedy


@pytest.mark.parametrize("words", [["--to", "onx"], ["--nonsense\n"], ["--optimize", "x" * 1000]])
def test_a_faulty_argument_is_one_line_under_the_name_that_people_type(words, capsys):
    with pytest.raises(SystemExit) as caught:
        export.main(words)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.startswith("make export: ") and said.count("\n") == 1 and len(said) <= 301


def test_what_is_typed_as_make_s_is_a_target_of_make():
    assert {name for name in OF_MAKE_TOO if f"\n{name}:" in (ROOT / "Makefile").read_text()} == OF_MAKE_TOO


def test_a_target_or_a_number_of_seeds_that_is_none_is_refused_with_what_would_work():
    def said(*words: str) -> str:
        command = ["make", "--no-print-directory", *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        return done.stderr

    assert "*** there is no target 'foo'; `make` alone lists those there are.  Stop.\n" in said("foo")
    assert "make seeds: N: must be a whole number, 1 to 9999 (got x)\n" in said("_seeds", "N=x", "-o", "env")


def joining(monkeypatch, *arguments: str) -> int:
    monkeypatch.syspath_prepend(str(ROOT / "stages"))
    import join

    params = Path("params.yaml")  # a stage checks the models too
    params.write_text(params.read_text().replace("name: resnet", "name: resnet, blocks: [1], widths: [4]"))
    monkeypatch.setattr("sys.argv", ["join.py", *arguments])
    return join.Job.main(join.__file__, join.__doc__, join.work, more=join.arguments)


def test_the_stage_join_writes_a_cascade_that_holds_what_its_metrics_say(checkout, capsys, monkeypatch):
    shutil.copy(PACKED, "front.safetensors")
    digest = load_packed(PACKED).packed.digest
    assert joining(monkeypatch, "--shares", "0.5", "0.1", "--", "front.safetensors", str(PACKED)) == 0
    made = load_packed(PACKED).packed
    assert made.metadata["network_1"] == made.metadata["network_2"] == digest
    found = json.loads(Path("metrics/join.json").read_text())
    assert found["file_bytes"] == made.file_bytes and found["network_1_passes"] == 1
    assert f"{found['validation_accuracy_percent']:.4f}" == made.metadata["validation_accuracy_percent"]
    assert 0.6 <= found["network_2_passes"] < 0.8
    assert json.loads(Path("metrics/runs/join.json").read_text())["seconds"] >= 0
    assert verify.main([str(PACKED), *FEW, "--claims", "metrics/join.json"]) == 1  # what they say is no score.json
    assert "\nok     validation_accuracy_percent " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--shares", "0.1", "0.5", "--", str(PACKED), str(PACKED)], 1, "shares: must be 2 falling numbers"),
        (["--shares", "0.5", "--", str(PACKED)], 1, "needs two packed models or more"),
        (["--shares", "0.5", "0.1", "--", str(PACKED), "nowhere"], 1, "nowhere: there is no such file"),
    ],
)
def test_what_cannot_be_joined_is_one_line_and_leaves_the_file_as_it_was(
    checkout, capsys, monkeypatch, arguments, code, message
):
    before = PACKED.read_bytes()
    assert joining(monkeypatch, *arguments) == code
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and PACKED.read_bytes() == before
