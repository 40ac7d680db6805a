"""A checkout as after `make score`, with a network that was never trained, to test the commands of tools/ on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import _tool
import torch

from micronet import params
from micronet.compress.calibration import calibrate, recalibrate_batch_norm
from micronet.compress.quantization import prepare
from micronet.data.datasets import CLASSES
from micronet.data.images import normalise
from micronet.data.store import open_split
from micronet.packed.module import load_packed
from micronet.packed.packing import pack
from micronet.pipeline import TRAINING_STAGES
from micronet.scoring.measurement import measure
from tests.support.models import RESNET, new_model

PACKED, SCORE = Path("checkpoints/quantized.safetensors"), Path("metrics/score.json")
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
    """An untrained quantized network, three quarters of its weights zero; its answers differ by image."""
    model = new_model(RESNET).eval()
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


def release_into(folder: Path, sample_data: params.Data, sample_manifest: Path) -> dict:
    """Fills a folder with params, data, a packed file and metrics; returns the file's true score."""
    (folder / "params.yaml").write_text(PARAMS.replace("FOLDER", sample_data.folder))
    (folder / "data").mkdir()
    shutil.copy(sample_manifest, folder / "data/manifest.json")
    loaded = params.load(folder / "params.yaml")
    splits = {
        name: open_split(loaded.data, name, manifest_path=sample_manifest) for name in ("train", "validation", "test")
    }
    prepared = prepared_resnet(splits["train"].images, loaded.quantize)
    path = folder / PACKED
    told = {"quantize": loaded.quantize, "images": splits["validation"].images, "class_names": CLASSES}
    pack(prepared, path, **told)
    found = measure(path, load_packed(path), splits["validation"])["test_accuracy_percent"]
    claims = {"validation_accuracy_percent": f"{found:.4f}", "params_digest": _tool.training_digest(loaded)}
    pack(prepared, path, **told, metadata=claims)
    score = measure(path, load_packed(path), splits["test"])
    (folder / "metrics/runs").mkdir(parents=True)
    (folder / "metrics/curves").mkdir()
    (folder / SCORE).write_text(json.dumps(score))
    (folder / "metrics/path.csv").write_text(PATH)
    for stage in ("train_teacher", "prune"):
        (folder / f"metrics/curves/{stage}.csv").write_text(CURVE)
    for stage in TRAINING_STAGES:
        metrics = {"epochs": 2, "validation_accuracy_percent": 21.5}
        run = {"commit": "0123abc", "seconds": 1234.5, "images_per_second": 987.6, "device": "CPU", "precision": "fp32"}
        (folder / f"metrics/{stage}.json").write_text(json.dumps(metrics))
        (folder / f"metrics/runs/{stage}.json").write_text(json.dumps(run))
    return score


def change(path: Path, *keys: str, value: object) -> None:
    """Sets one value of a JSON file."""
    tree = json.loads(path.read_text())
    inner = tree
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(tree))
