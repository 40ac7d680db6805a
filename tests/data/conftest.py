"""A stand-in for CIFAR-10, built from the sample."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from micronet import params
from micronet.data import datasets, sources
from micronet.data.arrays import DataError
from micronet.data.datasets import CIFAR10, SAMPLE, Dataset
from micronet.data.formats import BATCHES
from micronet.data.sources import fetch
from micronet.data.store import prepare
from tests.support.cifar import config_for, python_2_pickle, write_form


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where downloads are kept: a place that is empty at first, never the user's own."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place / "micronet"


@pytest.fixture(scope="session")
def records() -> dict[str, np.ndarray]:
    """The sample as six batches in the binary layout, (200 or 500, 3073) uint8."""
    _, whole = fetch(params.Data(source="sample", validation_size=200))
    train = np.concatenate([whole.train_labels[:, None], whole.train_images], axis=1)
    test = np.concatenate([whole.test_labels[:, None], whole.test_images], axis=1)
    return dict(zip(BATCHES, [*np.split(train, 5), test], strict=True))


@pytest.fixture
def official(records: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Puts the sample, cut in six batches, in the place of CIFAR-10."""
    dataset = Dataset(
        name="cifar10",
        train_images_sha256=SAMPLE.train_images_sha256,
        train_labels_sha256=SAMPLE.train_labels_sha256,
        test_images_sha256=SAMPLE.test_images_sha256,
        test_labels_sha256=SAMPLE.test_labels_sha256,
        binary_md5={name: hashlib.md5(batch.tobytes()).hexdigest() for name, batch in records.items()},
        python_md5={name: hashlib.md5(python_2_pickle(batch)).hexdigest() for name, batch in records.items()},
        archive_md5=CIFAR10.archive_md5,
    )
    monkeypatch.setattr(datasets, "CIFAR10", dataset)
    return dataset


def no_network(*_: object, **__: object) -> None:
    """In the place of a download."""
    raise DataError("the network is off")


@pytest.fixture
def prepared(official, records, tmp_path, monkeypatch) -> tuple[params.Data, Path]:
    """A prepared folder whose source is there still, and a network that is off."""
    config = config_for(write_form(tmp_path / "files", records, "binary"), tmp_path / "out" / "cifar10")
    prepare(config, tmp_path / "manifest.json")
    monkeypatch.setattr(sources, "download", no_network)
    return config, tmp_path / "manifest.json"
