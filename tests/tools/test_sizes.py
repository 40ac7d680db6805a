"""metrics/export.json: what each export of a packed file takes, and the model card that shows it."""

from __future__ import annotations

import json
from pathlib import Path

import model_card
import pytest
import sizes

from micronet.packed.file import read
from tests.support.checkouts import PACKED

CARD, FOUND = Path("card.md"), Path("metrics/export.json")


@pytest.mark.slow
def test_every_form_is_measured_and_the_card_says_it(checkout):
    assert sizes.main([]) == 0
    found = json.loads(FOUND.read_text())
    assert found["model"] == read(PACKED).digest and "x86_64" in found["compiler"]
    forms = found["forms"]
    files = {"micronet.onnx", "micronet_qdq.onnx", "index.html", "micronet.mjs"}
    assert set(forms) == {"C, --optimize size", "C, --optimize speed", *files}
    assert forms["index.html"]["bytes"] > PACKED.stat().st_size
    small, fast = (forms[f"C, --optimize {way}"] for way in ("size", "speed"))
    assert 0 < small["static_memory_bytes"] <= fast["static_memory_bytes"]
    assert 0 < small["code_bytes"] < fast["code_bytes"]
    assert model_card.main(["--out", str(CARD)]) == 0
    text = CARD.read_text()
    assert (
        f"| C, --optimize size | {small['bytes']:,} | {small['code_bytes']:,} | {small['constants_bytes']:,} "
        f"| {small['static_memory_bytes']:,} |"
    ) in text
    assert f"| micronet.onnx | {forms['micronet.onnx']['bytes']:,} | - | - | - |" in text
    assert found["compiler"] in text


@pytest.mark.slow
def test_without_a_compiler_the_files_are_measured_all_the_same(checkout, monkeypatch):
    monkeypatch.setattr(sizes, "compiler", lambda: None)
    monkeypatch.setattr(sizes, "WAYS", {way: of for way, of in sizes.WAYS.items() if way.startswith("C")})
    assert sizes.main([]) == 0
    found = json.loads(FOUND.read_text())
    assert found["compiler"] is None and [list(form) for form in found["forms"].values()] == [["bytes"], ["bytes"]]
    assert model_card.main(["--out", str(CARD)]) == 0
    assert "No C compiler was at hand" in CARD.read_text()


def test_a_card_shows_the_speeds_of_its_own_file_by_processor_and_no_others(checkout):
    def measured(device: str, model: str, milliseconds: float) -> dict:
        row = {"milliseconds_one": milliseconds, "milliseconds_of_batch": 0.25, "memory_bytes": 74_000}
        return {"machine": {"device": device, "date": "2026-01-02"}, "model": model, "runners": {"C": row}}

    mine = read(PACKED).digest
    others = [measured("B", mine, 2.5), measured("C", "another", 3.5)]
    content = measured("A", mine, 1.5) | {"other_processors": others}
    Path("metrics/bench_export.json").write_text(json.dumps(content))
    assert model_card.main(["--out", str(CARD)]) == 0
    text = CARD.read_text()
    assert "On one core of A, 2026-01-02" in text and "| C | 1.50 | 0.25 | 0.1 |" in text
    assert "| C | 2.50 | 0.25 | 0.1 |" in text and "3.50" not in text


def test_sizes_of_another_file_are_refused_by_a_line(checkout, capsys):
    FOUND.write_text(json.dumps({"model": "another", "compiler": None, "forms": {}}))
    assert model_card.main(["--out", str(CARD)]) == 1
    assert capsys.readouterr().err == (
        "model_card: metrics/export.json: speaks of another packed file; `python tools/sizes.py` makes it anew\n"
    )
    assert not CARD.exists()


@pytest.mark.parametrize("content", [b"", b"no packed model"])
def test_what_is_no_packed_model_has_no_sizes(checkout, capsys, content):
    PACKED.write_bytes(content)
    assert sizes.main([]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"sizes: {PACKED}: ") and said.count("\n") == 1 and not FOUND.exists()
