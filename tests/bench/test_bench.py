"""The benchmarks: both loops train, and what is reported is what was measured."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import models
from micronet import params
from micronet.data.sample import images_for
from micronet.packed.file import decode
from micronet.packed.reference import predict
from micronet.training.hardware import machine
from tests.support.models import TINY, meta, new_model
from tests.support.packed import tiny_files
from tests.support.places import ROOT


@pytest.fixture
def bench(monkeypatch):
    """The folder on the import path, as the scripts have it."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import _bench

    return _bench


@pytest.mark.slow
def test_the_plain_loop_trains_and_counts_right_answers(bench):
    import plain

    pixels, labels = bench.images(256)
    model = new_model()
    before = [parameter.clone() for parameter in model.parameters()]
    done: list[int] = []
    plain.train(
        model, pixels, labels, epochs=1, rate=lambda step, steps: 0.05, weight_decay=0.0, teacher=models.build(TINY),
        clock=done.append,
    )  # fmt: skip
    assert done == [128, 256]
    assert all(not torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))

    class First(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 10).float()

    assert plain.accuracy(First(), pixels, labels) == pytest.approx(100 * float((labels == 0).mean()))


@pytest.mark.slow
def test_every_case_can_be_built_and_priced(bench):
    from micronet.scoring.counting import operations
    from micronet.scoring.records import macs

    specs = [spec for case in bench.CASES.values() for spec in (case.model, case.teacher) if spec]
    for spec in {json.dumps(spec): spec for spec in specs}.values():
        assert macs(operations(meta(spec))) > 1e6


def test_a_table_has_its_names_to_the_left_and_its_numbers_to_the_right(bench, capsys):
    bench.print_table("speed", ("case", "images a second"), [["tiny", "1,234"], ["a larger one", "5"]])
    title, _, headings, _, *rows, _ = capsys.readouterr().out.splitlines()
    assert title.strip() == "speed" and headings == "┃ case         ┃ images a second ┃"
    assert rows == ["│ tiny         │           1,234 │", "│ a larger one │               5 │"]


def test_the_stopwatch_leaves_the_first_steps_out(bench, monkeypatch):
    import loops

    times = iter([100.0, 103.0])
    monkeypatch.setattr(loops.time, "perf_counter", lambda: next(times))
    watch = loops.Stopwatch(steps=1)
    watch(64)  # warming up: no time is taken
    watch(128)
    with pytest.raises(loops.Done):
        watch(256)
    assert watch.images_per_second == pytest.approx(128 / 3)


def test_the_second_node_is_killed_after_a_third_of_the_rows_and_rows_that_come_again_are_counted(
    bench, monkeypatch, tmp_path
):
    import scale

    from sweeps.rows import DONE, FAILED, Row

    killed_after: list[int] = []
    rows: list[Row] = []

    class Cluster:
        def remove_node(self, node, allow_graceful):
            assert (node, allow_graceful) == ("second", False)
            killed_after.append(len(rows))

    def run(sweep, place, cpus, board):
        tasks = [(task.variant, task.seed) for task in sweep.tasks]
        assert len(tasks) == 6
        for (variant, seed), status in [(tasks[0], FAILED), *((task, DONE) for task in tasks)]:
            rows.append(Row(variant, seed, status, {}))
            sweep.rows[rows[-1].key] = rows[-1]
            board.ended(f"{variant}-{seed}", rows[-1], 1.0)

    (tmp_path / "recipes").mkdir()
    for name in ("recipes/demo.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(scale.subprocess, "run", lambda *_, **__: None)  # the clone
    monkeypatch.setattr(scale.repository, "head", lambda _: "0123abc")
    monkeypatch.setattr(scale, "connected", lambda nodes: contextlib.nullcontext((Cluster(), "second")))
    monkeypatch.setattr(scale.run, "run", run)
    monkeypatch.chdir(tmp_path)
    found = scale.swept(tmp_path, 3, 2, kill=True)
    assert killed_after == [3], "the third row is the second that is done, of six"
    assert found | {"seconds": 0} == {"nodes": 2, "killed": True, "seconds": 0, "rows": 6, "done": 6, "twice": 1}
    killed_after.clear()
    assert scale.swept(tmp_path, 3, 2, kill=False)["twice"] == 1 and not killed_after


@pytest.mark.slow
def test_a_profiles_shares_are_whole(bench):
    import shares

    here = machine(params.Engine(device="cpu", precision="fp32", threads=1))
    found = shares.profile(bench.Case(TINY, TINY, 1), here)
    assert sum(found["share_percent"].values()) == pytest.approx(100, abs=0.1)
    assert sum(found["operator_share_percent"].values()) == pytest.approx(100)
    assert found["share_percent"]["teacher"] > 0 and found["images_per_second"] > 0


def test_shared_statistics_are_those_of_plain_pytorch(bench):
    import variants

    model = new_model({"name": "densenet", "blocks": [2, 3], "growth_rate": 4}).double().train()
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
    twin = models.build(model.spec).double().train()
    twin.load_state_dict(model.state_dict())
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    assert variants.same(model, images) < 1e-9
    model.load_state_dict(twin.state_dict())
    variants.shared_forward(model, images)
    twin(images)
    for name, value in twin.state_dict().items():
        assert torch.allclose(model.state_dict()[name], value, rtol=1e-9), name


KINDS = ("median", "fastest")


def files_of_metrics() -> dict[str, Any]:
    """What a machine measured, by file, and the plain loop on another one too."""
    this = {"date": "2026-01-02", "device": "A CPU", "precision": "fp32", "threads": 2, "torch": "2.11"}
    loop = {"images_per_second": 100.0, "images_per_second_runs": [100.0], "peak_memory_bytes": 5_000_000}
    cases = {"densenet_nano": {"plain": loop, "ours": loop | {"images_per_second": 150.0}, "ratio": 1.5}}
    case = {
        "images_per_second": 1.0,
        "share_percent": {"data": 12.5},
        "evaluation_share_of_an_epoch_percent": 3.0,
        "operator_share_percent": {"convolution": 61.0},
        "gflop_per_second_share_of_limit_percent": 44.0,
        "gb_per_second_share_of_limit_percent": 33.0,
    }
    limits = {"gflop_per_second": 100.0, "gb_per_second": 10.0}
    contents: dict[str, Any] = {
        "bench": {"machine": this, "turns": 3, "epochs": 300, "cases": cases},
        "bench_accuracy": {
            "machine": this,
            "epochs": 4,
            "training_images": 10_000,
            "validation_accuracy_percent": {"plain": [50.0], "ours": [51.0]},
            "difference_of_means": 1.0,
            "largest_standard_deviation": 0.2,
        },
        "profile": {"machine": this, "limits": limits, "cases": {"densenet_nano": case}},
        "bench_variants": {
            "machine": this,
            "model": "densenet_nano",
            "images_per_second": {"NCHW": 10.0, "channels-last (what is used)": 15.0, "torch.compile": 24.0},
            "largest_relative_difference": 1e-12,
            "compile_seconds": 60.0,
        },
        "bench_startup": {"machine": this, "help_seconds": 0.456, "score_seconds": 12.34},
        "bench_steps": {
            "machine": this,
            "batch_size": 64,
            "steps": 8,
            "kinds": {
                "trimming": {
                    **{f"{name}_seconds": 0.1234 for name in KINDS},
                    **{f"ratio_of_{name}": 1.27 for name in ("median", "fastest", "mean")},
                }
            },
        },
        "bench_allocation": {
            "machine": this,
            "turns": 3,
            "steps": 40,
            "memory": {
                "kept": {"images_per_second": 1480.0, "page_faults_per_step": 0.4, "peak_memory_bytes": 1_020_000_000},
                "malloc's defaults": {
                    "images_per_second": 1250.0,
                    "page_faults_per_step": 24050.0,
                    "peak_memory_bytes": 1_010_000_000,
                },
            },
        },
        "bench_processes": {
            "machine": this,
            "turns": 3,
            "cases": {
                "laptop student": {
                    **{f"images_per_second_{kind}_step": {"one": 100.0, "two": 190.0} for kind in KINDS},
                    **{f"ratio_of_{kind}_steps": 1.9 for kind in KINDS},
                }
            },
        },
        "bench_export": {
            "machine": this,
            "weights": 1000,
            "zero_weights": 880,
            "turns": 3,
            "runners": {"C": {"milliseconds_one": 0.6512, "milliseconds_of_batch": 3.1, "memory_bytes": 74_000}},
            "milliseconds_one_of_qdq_over_c": 22.46,
            "memory_bytes_of_qdq_over_c": 121.0,
        },
    }
    other = {"machine": this | {"device": "Another CPU"}, "turns": 3, "cases": cases}
    return contents | {"bench": contents["bench"] | {"other_processors": [other]}}


def test_the_document_says_what_the_files_say(tmp_path):
    command = [sys.executable, str(ROOT / "tools/performance.py")]
    (tmp_path / "metrics").mkdir()
    (tmp_path / "docs").mkdir()
    missing = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert missing.returncode == 1 and "`make bench` makes it" in missing.stderr
    for name, content in files_of_metrics().items():
        (tmp_path / f"metrics/{name}.json").write_text(json.dumps(content))
    assert subprocess.run(command, cwd=tmp_path).returncode == 0
    text = (tmp_path / "docs/performance.md").read_text()
    for expected in (
        "2026-01-02 on A CPU",
        "**1.50** | 3 | 5 | 5 |",
        "Below the goal: densenet_nano",
        "| kept | 1,480 | 0 | 1,020 |\n| malloc's defaults | 1,250 | 24,050 | 1,010 |",
        "44 %",
        "1,000 weights, 88% of them zero",
        "| C | 0.65 | 3.10 | 0.1 |",
        "22.5 times as fast at one image as ONNX Runtime's QDQ (goal: 2)",
        "121 times less memory (goal: 10)",
        "12.5 %",
        "| trimming | 123 | 123 | **1.27** | 1.27 | 1.27 |",
        "| laptop student | 100 / 100 | 190 / 190 | **1.90** | 1.90 |",
        "A compiled step is 1.60 times as fast",
        "Steps of a run of 300 epochs.",
        "Steps of a run of 2 epochs, too short to compile them.",
        "2026-01-02 on Another CPU",
    ):
        assert expected in text
    assert "+1.00 points" in text and "beyond two of them" in text and "| torch.compile | 24 | 2.40 |" in text
    assert text.count("**1.50** | 3 | 5 | 5 |") == 2, "a table a processor"
    # Three times 100 images a second where the profile saw 1: 300 times as fast. It saw nothing of the other processor.
    assert text.count("| densenet_nano | 300.0 | 13200 % | 9900 % |") == 1
    assert "Not measured yet: `make gpu-check`" in text


def test_a_benchmark_keeps_what_was_measured_on_other_processors(bench, tmp_path):
    path = tmp_path / "bench.json"

    def measured(device: str, precision: str, speed: float) -> dict:
        return {"machine": {"device": device, "precision": precision}, "speed": speed}

    def held() -> list[tuple[str, str, float]]:
        newest = json.loads(path.read_text())
        entries = [newest, *newest.get("other_processors", [])]
        return [(*bench.processor(entry), entry["speed"]) for entry in entries]

    bench.write(path, measured("AVX2", "fp32", 1.23456))
    assert held() == [("AVX2", "fp32", 1.235)]
    bench.write(path, measured("AVX512", "bf16", 2.0))
    bench.write(path, measured("AVX512", "fp32", 3.0))
    assert held() == [("AVX512", "fp32", 3.0), ("AVX512", "bf16", 2.0), ("AVX2", "fp32", 1.235)]
    bench.write(path, measured("AVX2", "fp32", 4.0))
    assert held() == [("AVX2", "fp32", 4.0), ("AVX512", "fp32", 3.0), ("AVX512", "bf16", 2.0)]
    bench.write(path, measured("AVX2", "fp32", 5.0))
    assert held() == [("AVX2", "fp32", 5.0), ("AVX512", "fp32", 3.0), ("AVX512", "bf16", 2.0)]


def test_each_way_to_run_c_gives_the_references_logits_and_says_what_it_takes(bench, tmp_path):
    import runners

    data = tiny_files()[1]
    model = decode(data)
    images = images_for((3, 40, 40), 7)[:, :, :32, :32].copy()
    assert images_for(model.image).shape == (500, 3, 32, 32)
    run = runners.RUNNERS["C for speed, -O2"](data, tmp_path)()
    assert np.array_equal(run(images), predict(model, images))
    found = runners.measured(run, np.tile(images, (30, 1, 1, 1)))
    assert 0 < found["milliseconds_one"] < 1000 and 0 < found["milliseconds_of_batch"] < 1000
    packed = runners.torch_packed(data, tmp_path)()
    assert np.array_equal(packed(images), predict(model, images))


def test_a_runner_whose_program_is_not_there_is_left_out(bench, tmp_path, monkeypatch):
    import runners

    monkeypatch.setenv("PATH", str(tmp_path))
    assert runners.available() == [name for name in runners.RUNNERS if not name.startswith("C ")]
    for name in ("cc", "node"):
        (tmp_path / name).touch(mode=0o755)
    assert runners.available() == [*runners.RUNNERS, runners.JAVASCRIPT]
