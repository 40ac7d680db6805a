"""A repository whose stages take no time: the real params and the real graph, scripts that only copy and count."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from micronet import params
from sweeps import engine
from tests.support.places import ROOT

SCRIPT = """
import json, pathlib, sys
import yaml
stage, params = sys.argv[1], yaml.safe_load(open("params.yaml"))
with open({log!r}, "a") as file:
    file.write(stage + " " + str(params["seed"]) + "\\n")
bits = int(params["distill"]["temperature"]) if stage == "distill" else 1
if bits == 7:
    sys.exit("distill: seven is not lucky")
for path in sys.argv[2:]:
    place = pathlib.Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps({{"validation_accuracy_percent": 10.0 * bits + params["seed"], "file_bytes": bits}}))
"""
IDENTITY = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.invalid"]


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *IDENTITY, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed repository; its stages write what they do into `../ran.txt`."""
    folder = tmp_path_factory.mktemp("sweeps") / "toy"
    (folder / "stages").mkdir(parents=True)
    (folder / ".dvc").mkdir()
    (folder / "recipes").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (folder / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    (folder / ".gitignore").write_text("/checkpoints/\n/run/\n/logs/\n")
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    del graph["stages"]["code"]
    for name, stage in graph["stages"].items():
        stage["plots"] = [plot for plot in stage.get("plots", []) if next(iter(plot)).endswith(".json")]  # no curves
        outs = [*stage.get("outs", []), *stage.get("metrics", []), *stage["plots"]]
        places = [next(iter(out)) if isinstance(out, dict) else out for out in outs]
        stage["cmd"] = " ".join(["python stages/toy.py", name, *places])
        stage["deps"] = [path for path in stage["deps"] if not path.startswith(("code/", "data/sample"))]
    (folder / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    (folder / "stages/toy.py").write_text(SCRIPT.format(log=str(folder.parent / "ran.txt")))
    (folder / "recipes/demo.yaml").write_text((ROOT / "recipes/demo.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump(params.read_yaml(ROOT / "recipes/demo.yaml")))
    (folder / "metrics").mkdir()
    (folder / "metrics/score.json").write_text('{"of": "the base"}')
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "toy")
    return folder


@pytest.fixture
def place(toy, monkeypatch) -> engine.Place:
    monkeypatch.chdir(toy)
    (toy.parent / "ran.txt").write_text("")
    (toy / "metrics/sweeps/some.csv").unlink(missing_ok=True)
    return engine.Place(toy, toy / "run/sweeps", toy / ".dvc/cache")
