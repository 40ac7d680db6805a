"""The commands behind `make verify`, `make release` and `make plots`: what they notice, what they write."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import models
from micronet import params
from micronet.compress.calibration import calibrate, recalibrate_batch_norm
from micronet.compress.quantization import prepare
from micronet.data.datasets import CLASSES
from micronet.data.images import normalise
from micronet.data.store import open_split
from micronet.packed.module import load_packed
from micronet.packed.packing import pack
from micronet.scoring.measurement import measure
from micronet.training.checkpoint import load
from micronet.training.weights import count_zeros

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import _tool  # noqa: E402 - the line above makes them importable
import average  # noqa: E402
import cascade  # noqa: E402
import model_card  # noqa: E402
import plots  # noqa: E402
import unpack  # noqa: E402
import verify  # noqa: E402

SPEC = {"name": "resnet", "blocks": [1, 1], "widths": [4, 8]}
PACKED, SCORE, CARD = Path("checkpoints/quantized.safetensors"), Path("metrics/score.json"), Path("card.md")
FEW = ["--reference-images", "20"]
PARAMS = """\
seed: 0
data: {source: sample, folder: FOLDER, validation_size: 200}
engine: {}
teacher: {model: {name: resnet}, train: {epochs: 1, learning_rate: 0.1}}
student: {model: {name: resnet}, train: {epochs: 1, learning_rate: 0.1}}
distill: {train: {epochs: 1, learning_rate: 0.1}}
prune: {amount: 0.5, train: {epochs: 1, learning_rate: 0.1}}
retrain: {train: {epochs: 1, learning_rate: 0.1}}
quantize: {weight_bits: 4, activation_bits: 4, flip_share: 0.2, train: {epochs: 1, learning_rate: 0.1}}
score: {}
"""
CURVE = """\
epoch,learning_rate,train_loss,train_accuracy_percent,validation_loss,validation_accuracy_percent
1,0.1,2.1,20.5,2.0,21.5
2,0.05,1.9,30.25,1.8,nan
"""
PATH = """\
stage,test_accuracy_percent,parameters,nonzero_parameters,deck_score,challenge_score,macs
teacher,30.5,9000,9000,0.01,0.02,500000
student,,1000,1000,0.002,0.004,50000
quantized,25.5,900,400,0.001,0.0005,50000
"""


def prepared_resnet(images: torch.Tensor, quantize: params.Quantize) -> torch.nn.Module:
    """A quantized network that was never trained, three in four of its weights zero; its answers differ by image."""
    torch.manual_seed(0)
    model = models.build(SPEC).eval()
    with torch.no_grad():
        model.classifier.bias.zero_()
        for parameter in model.parameters():
            if parameter.dim() == 4:
                parameter.mul_(torch.rand_like(parameter) < 0.25)
    prepared = prepare(model, quantize)
    for _ in range(2):
        calibrate(prepared, images[:50])
        recalibrate_batch_norm(prepared, [normalise(images[:100])])
    return prepared.eval()


@pytest.fixture(scope="session")
def released(
    sample_data: params.Data, sample_manifest: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict]:
    """A checkout as after `make score`: params, data, a packed file, metrics; and the file's true score."""
    folder = tmp_path_factory.mktemp("released")
    (folder / "params.yaml").write_text(PARAMS.replace("FOLDER", sample_data.folder))
    (folder / "data").mkdir()
    shutil.copy(sample_manifest, folder / "data/manifest.json")
    loaded = params.load(folder / "params.yaml")
    splits = {
        name: open_split(loaded.data, loaded.seed, name, manifest_path=sample_manifest)
        for name in ("train", "validation", "test")
    }
    prepared = prepared_resnet(splits["train"].images, loaded.quantize)
    path = folder / PACKED
    pack(prepared, path, quantize=loaded.quantize, images=splits["validation"].images)
    found = measure(path, load_packed(path), splits["validation"])["test_accuracy_percent"]
    claims = {"validation_accuracy_percent": f"{found:.4f}", "params_digest": _tool.training_digest(loaded)}
    pack(prepared, path, quantize=loaded.quantize, images=splits["validation"].images, metadata=claims)
    score = measure(path, load_packed(path), splits["test"])
    (folder / "metrics/runs").mkdir(parents=True)
    (folder / "metrics/curves").mkdir()
    (folder / SCORE).write_text(json.dumps(score))
    (folder / "metrics/path.csv").write_text(PATH)
    for stage in ("train_teacher", "prune"):
        (folder / f"metrics/curves/{stage}.csv").write_text(CURVE)
    for stage in _tool.TRAINING_STAGES:
        metrics = {"epochs": 2, "validation_accuracy_percent": 21.5}
        run = {"commit": "0123abc", "seconds": 1234.5, "images_per_second": 987.6, "device": "CPU", "precision": "fp32"}
        (folder / f"metrics/{stage}.json").write_text(json.dumps(metrics))
        (folder / f"metrics/runs/{stage}.json").write_text(json.dumps(run))
    return folder, score


@pytest.fixture
def checkout(released: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `released`, and the working directory."""
    folder = tmp_path / "checkout"
    shutil.copytree(released[0], folder)
    monkeypatch.chdir(folder)
    return folder


def change(path: Path, *keys: str, value: object) -> None:
    """Sets one value of a JSON file."""
    tree = json.loads(path.read_text())
    inner = tree
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(tree))


# --- cascade ---

JOINED = [str(PACKED), str(PACKED)]


def test_shares_are_priced_on_validation_images_before_a_file_is_written(checkout, capsys):
    assert cascade.main(JOINED) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "%" in line]
    pairs = [(share, again) for share in cascade.SHARES for again in cascade.MIRRORED if again <= share]
    assert len(lines) == len(pairs) < len(cascade.SHARES) * len(cascade.MIRRORED)
    decks = {pair: float(line[-1]) for pair, line in zip(pairs, lines, strict=True)}
    assert decks[0.15, 0.0] < decks[0.7, 0.0] < decks[0.7, 0.16]
    for (share, again), line in zip(pairs, lines, strict=True):  # images of equal margins go on together
        assert 100 * share <= float(line[0]) < 100 * share + 5 and 100 * again <= float(line[2]) < 100 * again + 5


def test_a_written_cascade_holds_what_it_claims(checkout, capsys):
    assert cascade.main([*JOINED, "--shares", "0.5", "0.1", "--out", "both.safetensors"]) == 0
    assert "both.safetensors: " in capsys.readouterr().out
    assert verify.main(["both.safetensors", *FEW]) == 0
    out = capsys.readouterr().out
    assert "FAILED" not in out and "\nok     validation_accuracy_percent " in out
    assert "network 2       " in out and "mirrored too    " in out
    made = load_packed("both.safetensors").packed.metadata
    assert made["network_1"] == made["network_2"] == load_packed(PACKED).packed.digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*JOINED, "--out", "x"], "--out needs --shares"),
        (JOINED[:1], "needs two packed models or more"),
        ([*JOINED, "--shares", "0.1", "0.5"], "shares: must be 2 falling numbers"),
        ([*JOINED, "missing.safetensors"], "there is no such file"),
    ],
)
def test_what_cannot_be_joined_fails_in_one_line(checkout, capsys, arguments, message):
    assert cascade.main(arguments) == 1
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1 and not Path("x").exists()


# --- unpack ---


def test_an_unpacked_model_is_a_checkpoint_that_a_student_can_start_from(checkout, capsys):
    assert unpack.main([str(PACKED), "start.safetensors"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("start.safetensors: ") and first.endswith("% on validation, in floats and in one pass")
    assert second == f"sha256 {hashlib.sha256(Path('start.safetensors').read_bytes()).hexdigest()}"
    found, expected = load("start.safetensors"), load_packed(PACKED).packed
    assert found.spec == expected.spec and found.stage == "unpack"
    assert count_zeros(found.model())[0] == sum(
        int((step.weight == 0).sum()) for step in expected.steps if step.weight is not None
    )


def test_a_cascade_is_not_unpacked(checkout, capsys):
    assert cascade.main([*JOINED, "--shares", "0.5", "0.1", "--out", "both.safetensors"]) == 0
    assert unpack.main(["both.safetensors", "start.safetensors"]) == 1
    assert "unpack: only a file of one network" in capsys.readouterr().err and not Path("start.safetensors").exists()


# --- average ---


def test_the_mean_of_two_checkpoints_is_a_checkpoint(checkout, capsys):
    assert unpack.main([str(PACKED), "one.safetensors"]) == 0
    assert unpack.main([str(PACKED), "two.safetensors"]) == 0
    capsys.readouterr()
    assert average.main(["one.safetensors", "two.safetensors", "--out", "mean.safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["one.safetensors", "two.safetensors", "mean.safetensors"]
    assert lines[3] == f"sha256 {hashlib.sha256(Path('mean.safetensors').read_bytes()).hexdigest()}"
    mean, one = (load(name).model() for name in ("mean.safetensors", "one.safetensors"))
    assert all((a == b).all() for a, b in zip(mean.parameters(), one.parameters(), strict=True))
    assert average.main(["one.safetensors", "--out", "x"]) == 1 and not Path("x").exists()
    assert "average: a mean needs two checkpoints or more" in capsys.readouterr().err


# --- verify ---


def test_a_true_claim_passes_and_every_check_is_named(checkout, capsys):
    assert verify.main(FEW) == 0
    out = capsys.readouterr().out
    assert "FAILED" not in out
    for key in ("structure", "digest", "storage_bits", "operations", "logits.differing", "macs", "params", "claims"):
        assert f"\nok     {key} " in f"\n{out}"
    assert "\nok     validation_accuracy_percent " in out
    assert "stem.conv" in out  # the table a layer


def test_both_scores_are_printed(checkout, released, capsys):
    verify.main(FEW)
    out = capsys.readouterr().out
    for rules in ("challenge", "deck"):
        assert f"{released[1][rules]['score']:.6f} = " in out


@pytest.mark.parametrize(
    "keys",
    [("test_accuracy_percent",), ("challenge", "score"), ("deck", "flops"), ("packed", "sha256")],
    ids=lambda keys: ".".join(keys),
)
def test_a_wrong_claim_of_score_json_fails_with_a_line_that_says_what(checkout, released, capsys, keys):
    true = released[1]
    for key in keys:
        true = true[key]
    wrong = "0" * 64 if isinstance(true, str) else true + 1
    change(SCORE, *keys, value=wrong)
    assert verify.main(FEW) == 1
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("FAILED")] == [
        f"FAILED {'.'.join(keys)}: claimed {wrong}, measured {true}"
    ]


def test_a_wrong_claim_of_the_file_itself_fails(checkout, capsys):
    loaded = params.load("params.yaml")
    training = open_split(loaded.data, 0, "train", manifest_path="data/manifest.json")
    prepared = prepared_resnet(training.images, loaded.quantize)
    claims = {"validation_accuracy_percent": "99.0000"}
    pack(prepared, "boasting.safetensors", quantize=loaded.quantize, images=training.images[:100], metadata=claims)
    assert verify.main(["boasting.safetensors", *FEW]) == 1
    assert "FAILED validation_accuracy_percent: claimed 99.0000, measured " in capsys.readouterr().out


def test_what_was_measured_can_be_saved_and_claimed(checkout, released):
    assert verify.main([str(PACKED), *FEW, "--save", "found.json"]) == 0
    assert json.loads(Path("found.json").read_text()) == released[1]
    assert verify.main([str(PACKED), *FEW, "--claims", "found.json"]) == 0


def test_a_flipped_bit_fails_in_one_line(checkout, capsys):
    content = bytearray(PACKED.read_bytes())
    content[-10] ^= 4
    PACKED.write_bytes(content)
    assert verify.main(FEW) == 1
    errors = capsys.readouterr().err
    assert errors == f"verify: {PACKED}: is damaged: its digest does not fit its content\n"


def test_counts_that_the_reference_does_not_confirm_fail(checkout, monkeypatch, capsys):
    from dataclasses import replace

    from micronet.scoring import counting

    honest = counting.operations

    def cheap(model, **settings):
        ops = honest(model, **settings)
        place = next(place for place, op in enumerate(ops) if op.kind == "conv")
        return [*ops[:place], replace(ops[place], additions=()), *ops[place + 1 :]]

    monkeypatch.setattr(counting, "operations", cheap)
    assert verify.main(FEW) == 1
    assert "FAILED operations.stem.conv: claimed multiplications {" in capsys.readouterr().out


def test_logits_that_the_reference_does_not_confirm_fail(checkout, monkeypatch, capsys):
    from micronet.packed import reference

    honest = reference.predict
    monkeypatch.setattr(reference, "predict", lambda model, images: honest(model, images) + 1)
    assert verify.main(FEW) == 1
    assert "FAILED logits.differing: claimed 0, measured 20" in capsys.readouterr().out


def test_another_file_is_compared_with_score_json_only_when_asked(checkout, capsys):
    shutil.copy(PACKED, "copy.safetensors")
    change(SCORE, "test_accuracy_percent", value=99.0)
    assert verify.main(["copy.safetensors", *FEW]) == 0
    assert "none but the file's own" in capsys.readouterr().out
    assert verify.main(["copy.safetensors", "--claims", str(SCORE), *FEW]) == 1


def test_a_claim_that_is_not_there_is_no_pass(checkout, capsys):
    SCORE.unlink()
    assert verify.main(FEW) == 1
    assert capsys.readouterr().err == f"verify: {SCORE}: there is no such file; `python stages/score.py` makes it\n"


@pytest.mark.parametrize("arguments", [["--unknown"], ["--strict-images", "0"], ["--strict-images", "500"]])
def test_bad_usage_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        verify.main(arguments)
    assert stopped.value.code == 2


def test_faulty_params_are_exit_code_2(checkout):
    Path("params.yaml").write_text("seed: -1\n")
    assert verify.main(FEW) == 2


# --- model card ---


@pytest.mark.parametrize(
    ("correct", "images", "low", "high"),
    [(9_000, 10_000, 89.396, 90.573), (0, 10, 0.0, 27.753), (10, 10, 72.247, 100.0)],
)
def test_wilson_intervals_are_those_of_the_formula(correct, images, low, high):
    assert model_card.wilson(correct, images) == pytest.approx((low, high), abs=0.001)


def test_the_card_holds_interval_classes_scores_params_and_commit(checkout, released):
    assert model_card.main(["--out", str(CARD)]) == 0
    text, score = CARD.read_text(), released[1]
    correct = round(5 * score["test_accuracy_percent"])
    low, high = model_card.wilson(correct, 500)
    assert f"{score['test_accuracy_percent']:.2f} %** of 500 test images ({correct} right), 95 % interval" in text
    assert f"{low:.2f} to {high:.2f} %" in text
    assert all(f"| {name} | " in text for name in CLASSES)
    assert all(f"{score[rules]['score']:.6f}" in text for rules in ("challenge", "deck"))
    assert Path("params.yaml").read_text().rstrip() in text
    assert text.count("`0123abc`") == 7  # six stages, and that of the file
    assert f"{score['packed']['bytes']:,} bytes" in text
    assert "one run with one seed (0)" in text


def test_class_accuracies_of_the_card_make_up_the_accuracy(checkout, released):
    model_card.main(["--out", str(CARD)])
    lines = CARD.read_text().splitlines()
    found = [
        float(line.split("|")[2].strip(" %"))
        for line in lines
        if line.startswith(tuple(f"| {name} |" for name in CLASSES))
    ]
    assert len(found) == 10
    assert sum(found) / 10 == pytest.approx(released[1]["test_accuracy_percent"], abs=0.06)  # 50 images a class


def test_the_card_is_deterministic(checkout):
    model_card.main(["--out", "one.md"])
    model_card.main(["--out", "two.md"])
    assert Path("one.md").read_bytes() == Path("two.md").read_bytes()


def test_a_file_that_score_json_does_not_speak_of_gets_no_card(checkout, capsys):
    change(SCORE, "test_accuracy_percent", value=99.0)
    assert model_card.main(["--out", str(CARD)]) == 1
    assert "test_accuracy_percent: claimed 99.0, measured " in capsys.readouterr().err
    assert not CARD.exists()


def test_params_that_did_not_make_the_file_get_no_card(checkout, capsys):
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("weight_bits: 4", "weight_bits: 3"))
    assert model_card.main(["--out", str(CARD)]) == 1
    assert f"params.yaml: did not make {PACKED}" in capsys.readouterr().err


def test_a_stage_without_results_is_named(checkout, capsys):
    Path("metrics/runs/prune.json").unlink()
    assert model_card.main(["--out", str(CARD)]) == 1
    assert (
        "metrics/runs/prune.json: there is no such file; `python stages/prune.py` makes it" in capsys.readouterr().err
    )


# --- plots ---


def test_plots_are_written_in_both_forms(checkout):
    assert plots.main(["--out", "drawn"]) == 0
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["curves.png", "curves.svg", "path.png", "path.svg"]
    assert Path("drawn/curves.png").read_bytes().startswith(b"\x89PNG")


def test_drawings_are_the_same_byte_for_byte(checkout):
    for name in ("one", "two"):
        plots.main(["--out", name])
    for name in ("curves.svg", "path.svg"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_a_curve_of_other_columns_is_named(checkout, capsys):
    Path("metrics/curves/prune.csv").write_text("epoch,loss\n1,2\n")
    assert plots.main(["--out", "drawn"]) == 1
    assert capsys.readouterr().err == "plots: metrics/curves/prune.csv: has no column 'learning_rate'\n"


def test_while_the_score_is_not_there_curves_are_drawn_alone(checkout):
    Path("metrics/path.csv").unlink()
    assert plots.main(["--out", "drawn"]) == 0
    assert sorted(path.name for path in Path("drawn").iterdir()) == ["curves.png", "curves.svg"]


def test_nothing_to_draw_is_said(tmp_path, capsys):
    assert plots.main(["--metrics", str(tmp_path)]) == 1
    assert "holds no curve; `make repro` trains" in capsys.readouterr().err
