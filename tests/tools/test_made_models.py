"""Files made of files: a cascade of packed models, a checkpoint of a packed model, the mean of checkpoints."""

from __future__ import annotations

import hashlib
from pathlib import Path

import average
import cascade
import pytest
import unpack
import verify

from micronet.packed.module import load_packed
from micronet.scoring.books import BOOKS
from micronet.training.checkpoint import load
from micronet.training.weights import count_zeros
from tests.support.checkouts import FEW, PACKED

JOINED = [str(PACKED), str(PACKED)]


def test_shares_are_priced_on_validation_images_before_a_file_is_written(checkout, capsys):
    assert cascade.main(JOINED) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "%" in line]
    pairs = [(share, again) for share in cascade.SHARES for again in cascade.MIRRORED if again <= share]
    assert len(lines) == len(pairs) < len(cascade.SHARES) * len(cascade.MIRRORED)
    decks = {pair: float(line[-len(BOOKS)]) for pair, line in zip(pairs, lines, strict=True)}
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
        (JOINED[:1], "needs two packed models or more"),
        ([*JOINED, "--shares", "0.1", "0.5"], "shares: must be 2 falling numbers"),
        ([*JOINED, "missing.safetensors"], "there is no such file"),
    ],
)
def test_what_cannot_be_joined_fails_in_one_line(checkout, capsys, arguments, message):
    assert cascade.main(arguments) == 1
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1 and not Path("x").exists()


@pytest.mark.parametrize("arguments", [["--out", "x"], ["--shares", "0.5", "0.1", "--save", "x"]])
def test_arguments_that_would_be_ignored_are_refused(checkout, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        cascade.main([*JOINED, *arguments])
    assert caught.value.code == 2 and "shares" in capsys.readouterr().err and not Path("x").exists()


def test_an_unpacked_model_is_a_checkpoint_that_a_student_can_start_from(checkout, capsys):
    assert unpack.main([str(PACKED), "start.safetensors"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("start.safetensors: ") and first.endswith("% on validation, in floats and in one pass")
    assert second == f"sha256 {hashlib.sha256(Path('start.safetensors').read_bytes()).hexdigest()}"
    found, expected = load("start.safetensors"), load_packed(PACKED).packed
    assert found.spec == expected.spec and found.stage == "unpack"
    assert count_zeros(found.model())[0] == expected.zero_weights


def test_a_cascade_is_not_unpacked(checkout, capsys):
    assert cascade.main([*JOINED, "--shares", "0.5", "0.1", "--out", "both.safetensors"]) == 0
    assert unpack.main(["both.safetensors", "start.safetensors"]) == 1
    assert "unpack: only a file of one network" in capsys.readouterr().err and not Path("start.safetensors").exists()


@pytest.mark.slow
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
