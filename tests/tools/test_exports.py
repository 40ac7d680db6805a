"""`make exports` and the documents that it fills: what is measured, what fits a board, what is said of it."""

from __future__ import annotations

import export_docs
import exports
import published
import pytest
import torch
from _tool import read_json
from export_docs import Board

from micronet.data.images import Split
from micronet.packed.file import content, decode, read
from tests.support.configs import quantize_config
from tests.support.images import random_images
from tests.support.models import TINY
from tests.support.packed import IMAGES, packed_network, tiny_files
from tests.support.places import ROOT

METRICS = ROOT / "metrics"


@pytest.mark.release
@pytest.mark.parametrize("name", ["export", "microcontroller"])
def test_the_committed_documents_are_those_of_the_metrics(name):
    assert export_docs.render(METRICS)[name] == (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")


@pytest.mark.release
def test_what_was_measured_is_of_the_published_files(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = read_json(METRICS / "exports.json", "make exports")["onnx"]
    assert set(found) == set(published.places())
    record = read_json(METRICS / "export.json", "make release")["model"]  # a clone has its file in a cache alone
    for name in found:
        digest = record if name == published.RECORD else read(ROOT / f"release/{name}.safetensors").digest
        assert found[name]["packed"] == digest, f"{name}: `make exports` measures it anew"


def row(model: str, optimize: str, flash: int, ram: int, board: str = "Cortex-M4", instructions: int = 100) -> dict:
    sizes = {"flash_bytes": flash, "ram_bytes": ram, "instructions_an_image": instructions}
    return {"model": model, "optimize": optimize, "board": board, **sizes}


@pytest.mark.parametrize(
    ("size", "speed", "said"),
    [
        ((64 << 10, 20 << 10), (1, 1), "size or speed"),
        ((64 << 10, 20 << 10), ((64 << 10) + 1, 1), "size"),
        ((64 << 10, (20 << 10) + 1), (1, (20 << 10) + 1), "no: RAM"),
        ((64 << 10, (20 << 10) + 1), ((64 << 10) + 1, (20 << 10) + 1), "no: RAM"),
        (((64 << 10) + 1, (20 << 10) + 1), ((64 << 10) + 1, (20 << 10) + 1), "no: RAM and flash"),
    ],
)
def test_a_board_holds_what_needs_no_more_than_it_has(size, speed, said):
    board = Board("x", "M3", flash=64, ram=20)
    assert export_docs.fits(board, [row("m", "size", *size), row("m", "speed", *speed)]) == said


def test_the_other_board_is_told_by_the_most_that_it_differs():
    rows = [
        row("m", "size", 1000, 100, instructions=50),
        row("m", "size", 980, 101, "Cortex-M55", 53),
        row("m", "speed", 1000, 100, instructions=50),
        row("m", "speed", 1000, 97, "Cortex-M55", 49),
    ]
    found = export_docs.boards_of({"compiler": "12", "boards": rows})
    assert found["apart"] == {"memory_percent": pytest.approx(3), "instructions_percent": pytest.approx(6)}
    assert [one["optimize"] for one in found["rows"]] == ["size", "speed"], "of one board"


def test_onnx_is_compared_with_the_packed_file_image_by_image():
    data = tiny_files()[0]
    model = decode(data)
    images = random_images(40, image=model.image)
    found = exports.in_onnx(model, data, Split(images, torch.zeros(40, dtype=torch.int64)))
    assert (found["packed"], found["images"], found["equal_logits_percent"]) == (model.digest, 40, 100)
    assert found["same_class_percent"] >= 90 and 0 <= found["accuracy_percent"] <= 100
    assert abs(found["accuracy_percent"] - found["qdq_accuracy_percent"]) <= 10


def test_a_model_of_floats_has_one_graph_whose_classes_are_compared(tmp_path):
    path = tmp_path / "m"
    packed_network(TINY, quantize_config(method="half"), IMAGES, path)
    found = exports.in_onnx(read(path), content(path), Split(random_images(4), torch.zeros(4, dtype=torch.int64)))
    assert "equal_logits_percent" not in found and "qdq_accuracy_percent" not in found
    assert (found["images"], found["same_class_percent"]) == (4, 100)


@pytest.mark.slow
def test_a_model_is_measured_on_both_boards_in_both_forms():
    path = ROOT / "release/mnist.safetensors"
    rows = list(exports.on_boards("mnist", read(path), content(path)))
    assert {(one["board"], one["optimize"]) for one in rows} == {
        (board, optimize) for board in ("Cortex-M4", "Cortex-M55") for optimize in ("size", "speed")
    }
    assert all(3000 < one["ram_bytes"] < 10_000 < 20_000_000 > one["instructions_an_image"] for one in rows)
