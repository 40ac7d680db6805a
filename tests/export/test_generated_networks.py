"""Random networks of any shape, operation and width: every export gives the logits of the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies

from micronet.data.images import normalise
from micronet.export import onnx as target
from micronet.export.onnx import export
from micronet.export.targets import Options
from micronet.packed.file import decode
from micronet.packed.module import PackedModule
from micronet.packed.reference import predict
from tests.support.exports import random_file
from tests.support.images import random_images
from tests.support.javascript import in_node

FLOATS_APART = 1e-4  # of the greatest logit: what the order of float32 sums changes
SEEDS = strategies.lists(strategies.integers(0, 2**32), min_size=6, max_size=6)


def compared(seeds: list[int]) -> int:
    """Exports the networks of some seeds; how many computed in integers."""
    files = [data for data in map(random_file, seeds) if data is not None]
    images = [random_images(3, 1, decode(data).image).numpy() for data in files]
    wanted = []
    for data, pixels in zip(files, images, strict=True):
        model = decode(data)
        exact = next(iter(export(model, data, Options()).files.values()))
        found = target.logits(target.session(exact), pixels)
        if model.arithmetic == "half":
            near = PackedModule(model)(normalise(torch.from_numpy(pixels))).numpy()
            assert np.abs(found - near).max() <= FLOATS_APART * np.abs(near).max()
            wanted.append(None)
        else:
            wanted.append(predict(model, pixels))
            assert np.array_equal(found, wanted[-1])
    answers = in_node(zip(files, images, strict=True))
    for answer, logits in zip(answers, wanted, strict=True):
        if logits is None:
            assert answer["refused"].startswith("computes in 16-bit floats")
        else:
            assert np.array_equal(answer.get("logits"), logits), answer
    return sum(logits is not None for logits in wanted)


@settings(max_examples=1, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SEEDS)
def test_random_networks_have_their_logits_in_onnx_and_in_javascript(seeds):
    assert compared([*seeds, 11, 26]) >= 2


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SEEDS)
def test_120_random_networks_have_their_logits_in_onnx_and_in_javascript(seeds):
    compared(seeds)
