"""Object storage: an S3 server on loopback hands on what one machine made, to a clone and to the tasks of a sweep."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps import engine, repository, spec, tasks, worker
from tests.sweeps.conftest import git

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(monkeypatch):
    """An empty bucket's address; what runs here reaches the server by the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    boto3.client("s3").create_bucket(Bucket="models")
    yield "s3://models/store"
    server.stop()


def dvc(folder: Path, *words: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copied(toy: Path, folder: Path) -> Path:
    """A clone, and a log of its stages that is its own."""
    subprocess.run(["git", "clone", "--quiet", str(toy), str(folder)], check=True)
    return folder


def test_what_is_pushed_is_pulled_into_a_clone_elsewhere_and_nothing_runs_there(toy, place, bucket, tmp_path):
    here = copied(toy, tmp_path / "here")
    endpoint = os.environ.pop("AWS_ENDPOINT_URL")  # the remote says it itself
    dvc(here, "remote", "add", "--default", "store", bucket)
    dvc(here, "remote", "modify", "store", "endpointurl", endpoint)
    dvc(here, "repro", "--quiet", "distill")
    git(here, "add", "--all")
    git(here, "commit", "--quiet", "-m", "made")
    dvc(here, "push", "--quiet")
    made = {path: (here / path).read_bytes() for path in ("checkpoints/distilled.safetensors", "metrics/distill.json")}
    shutil.move(here, tmp_path / "gone")
    there = copied(tmp_path / "gone", tmp_path / "there")
    (toy.parent / "ran.txt").write_text("")
    dvc(there, "pull", "--quiet", "--with-deps", "distill")
    said = dvc(there, "repro", "distill")
    assert "Running stage" not in said and "Data and pipelines are up to date." in said
    assert (toy.parent / "ran.txt").read_text() == ""
    assert {path: (there / path).read_bytes() for path in made} == made
    assert git(there, "status", "--porcelain") == ""


def test_what_variants_share_is_made_on_one_machine_and_comes_to_another_through_the_store(
    toy, place, bucket, tmp_path
):
    chosen = spec.Spec.model_validate(
        {
            "base": "demo",
            "patch": {"engine": {"threads": 1}},
            "grid": {"distill.temperature": [2.0, 3.0]},
            "last": "distill",
            "remote": bucket,
        }
    )
    shared, task, _ = tasks.works(tasks.plan(chosen, toy))
    commit, ran = repository.head(toy), toy.parent / "ran.txt"
    archive = worker.archive_of(toy, commit, tmp_path / "driver")

    def done_on(machine: str, work: tasks.Work) -> list[str]:
        """The stages that ran on a machine with folders of its own."""
        ran.write_text("")
        its = engine.Place(toy, tmp_path / machine / "sweeps", tmp_path / machine / "cache")
        found = worker.perform(engine.order_of(work, chosen, commit, its, price=False), archive)
        assert found["status"] == "done", found["log"]
        return ran.read_text().splitlines()

    assert done_on("one", shared) == ["prepare_data 0", "train_student 0"]
    assert done_on("two", task) == ["prepare_data 0", "train_teacher 0", "distill 0"]
