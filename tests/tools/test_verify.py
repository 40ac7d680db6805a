"""`make verify`: what it measures, what it notices."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import _tool
import pytest
import verify

from micronet import params
from micronet.data.store import open_split
from micronet.packed.packing import pack
from micronet.scoring import packed_counts, strict
from tests.support.checkouts import FEW, PACKED, SCORE, change, prepared_resnet
from tests.support.hostile import resigned
from tests.support.thinning import thinned

NEW = [("strict", "params"), ("course", "score"), ("one_pass", "strict_score")]


def test_a_true_claim_passes_and_every_check_is_named(checkout, capsys):
    assert verify.main(FEW) == 0
    out = capsys.readouterr().out
    assert "FAILED" not in out
    counts = ("storage_bits", "strict_parameters", "operations", "strict")
    for key in ("structure", "digest", *counts, "logits.differing", "macs", "params", "claims"):
        assert f"\nok     {key} " in f"\n{out}"
    assert "\nok     validation_accuracy_percent " in out
    assert "stem.conv" in out  # the table a layer


def test_all_scores_are_printed(checkout, released, capsys):
    verify.main(FEW)
    out = capsys.readouterr().out
    for rules in ("challenge", "deck", "strict", "course"):
        assert f"{released[1][rules]['score']:.6f} = " in out


CLAIMS = [("test_accuracy_percent",), ("challenge", "score"), ("deck", "flops"), ("packed", "sha256"), *NEW]


@pytest.mark.parametrize("keys", thinned(CLAIMS, 8, name=".".join))
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


@pytest.mark.slow
def test_claims_of_before_a_rule_book_was_there_say_nothing_of_it_and_hold(checkout, capsys):
    claims = json.loads(SCORE.read_text())
    for name in ("strict", "course"):
        del claims[name], claims["one_pass"][f"{name}_score"]
    SCORE.write_text(json.dumps(claims))
    assert verify.main(FEW) == 0
    out = capsys.readouterr().out
    assert "note   claims                       metrics/score.json says nothing of strict, course" in out
    claims["one_pass"]["strict_score"] = 0.0
    SCORE.write_text(json.dumps(claims))
    assert verify.main(FEW) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert failed[0].startswith("FAILED one_pass.strict_score: claimed 0.0, measured 0.")
    assert failed[1] == "FAILED strict: claimed None, measured 5 values"


def test_a_rule_book_that_a_claim_says_nothing_of_is_left_out_of_all_that_is_compared():
    priced = {"deck": {"score": 1}, "course": {"score": 2}, "macs": 3, "one_pass": {"deck_score": 4, "course_score": 5}}
    assert verify.without(priced | {"reference": {"name": "x", "deck": {}, "course": {}}}, ["course", "strict"]) == {
        "deck": {"score": 1},
        "macs": 3,
        "one_pass": {"deck_score": 4},
        "reference": {"name": "x", "deck": {}},
    }


def test_counts_and_storage_that_strict_rules_do_not_charge_are_noticed(checkout, capsys, monkeypatch):
    monkeypatch.setattr(strict, "strict_work", strict.challenge_work)
    monkeypatch.setattr(packed_counts, "described_bits", lambda *_: 0)
    assert verify.main(FEW) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert any(line.startswith("FAILED strict.stem.conv: claimed multiplications {") for line in failed)
    assert any(line.startswith("FAILED strict_parameters: claimed ") for line in failed)


def test_a_wrong_claim_of_the_file_itself_fails(checkout, capsys):
    loaded = params.load("params.yaml")
    training = open_split(loaded.data, "train", manifest_path="data/manifest.json")
    prepared = prepared_resnet(training.images, loaded.quantize)
    claims = {"validation_accuracy_percent": "99.0000"}
    pack(prepared, "boasting.safetensors", quantize=loaded.quantize, images=training.images[:100], metadata=claims)
    assert verify.main(["boasting.safetensors", *FEW]) == 1
    assert "FAILED validation_accuracy_percent: claimed 99.0000, measured " in capsys.readouterr().out


def test_names_and_claims_of_a_hostile_file_are_shown_as_text(checkout, capsys):
    def lie(header, table, payload):
        header["made"] = {"validation_accuracy_percent": "\x1b[2J\n\udc80" + "9" * 1_000_000, "[red]": "\x1b"}
        table["steps"][1]["name"] = "[/a]:star:"

    hostile = Path("[b]\x1b[2J.safetensors")
    hostile.write_bytes(resigned(PACKED.read_bytes(), lie))
    Path("claims.json").write_text('{"deck": {"score": "0.5", "\\u001b[1m": NaN}, "[/c]": null, "macs": true}')
    assert verify.main([str(hostile), *FEW, "--claims", "claims.json"]) == 1
    out, err = capsys.readouterr()
    assert all(character.isprintable() or character == "\n" for character in out + err)
    lines = out.splitlines()
    assert any(line.lstrip().startswith("[/a]:star:") for line in lines) and "[b]\\x1b[2J.safetensors" in out
    failures = [line for line in lines if line.startswith("FAILED")]
    assert any(
        line.startswith("FAILED validation_accuracy_percent: claimed \\x1b[2J\\n\\udc80999") for line in failures
    )
    assert any(line.startswith("FAILED deck.score: claimed '0.5', measured 0.") for line in failures)
    assert "FAILED deck.\\x1b[1m: claimed nan, measured None" in failures
    assert "FAILED [/c]: claimed null, measured None" in failures
    assert all(len(line) <= 300 for line in failures)


def test_a_spec_that_cannot_be_built_fails_in_one_line(checkout, capsys):
    def lie(header, table, payload):
        header["model"] = {"name": "resnet", "blocks": [10**4000], "[red]\x1b": "x" * 100_000}

    Path("hostile.safetensors").write_bytes(resigned(PACKED.read_bytes(), lie))
    assert verify.main(["hostile.safetensors", *FEW]) == 1
    said = capsys.readouterr().err
    assert said.startswith("verify: hostile.safetensors: names an architecture that cannot be built: ")
    assert said.count("\n") == 1 and said.strip().isprintable() and len(said) <= 310


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1, "a": 2}', r"cannot be read as JSON \(a key is there twice\)"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("\udc80", "cannot be read as JSON"),
        ("[1]", "holds no JSON object"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read as JSON"),
        (" " * ((1 << 24) + 1), "is larger than any result"),
    ],
    ids=["twice", "deep", "no utf-8", "list", "number", "large"],
)
def test_claims_that_are_no_plain_json_object_are_one_line(tmp_path, content, message):
    path = tmp_path / "claims.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(_tool.ToolError, match=message) as caught:
        _tool.read_json(path, "python stages/score.py")
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 300


def test_claims_in_a_pipe_or_a_folder_are_one_line_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(_tool.ToolError, match="is no regular file"):
            _tool.read_json(path, "python stages/score.py")


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
    way = "another copy of the file would work, or `python stages/quantize.py`, which makes it anew"
    assert errors == f"verify: {PACKED}: is damaged: its digest does not fit its content; {way}\n"


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
