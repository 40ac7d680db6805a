"""What the packed module and the numpy reference take, and what they say to everything else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from micronet.data.images import normalise
from micronet.packed.errors import InferenceError
from micronet.packed.file import decode, encode
from micronet.packed.model import PackedModel
from micronet.packed.module import InputError, PackedModule, flip_margin
from micronet.packed.reference import predict, run, witness
from micronet.packed.steps import Input
from micronet.scoring.counting import operations
from tests.support.images import random_images
from tests.support.packed import conv, hand_made, linear, pool, tiny_files, vector

IMAGES = random_images(6, 4)
FLOATS = normalise(IMAGES)


@pytest.fixture(scope="module")
def model() -> PackedModel:
    return decode(tiny_files()[1])  # one that sees some images twice


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES, r"normalised images in floats, got torch.uint8; micronet.data.images.normalise makes them of uint8"),
        (IMAGES > 9, "in floats, got torch.bool"),
        (IMAGES.long(), "in floats, got torch.int64"),
        (FLOATS.to(torch.complex64), "in floats, got torch.complex64"),
        (FLOATS.numpy(), "takes a tensor of images, got a ndarray"),
        (None, "takes a tensor of images, got a NoneType"),
        (FLOATS[0], r"images of \(N, 3, 32, 32\), got \(3, 32, 32\)"),
        (torch.full_like(FLOATS, float("nan")), "takes finite pixels"),
        (FLOATS.index_fill(0, torch.tensor(2), float("-inf")), "takes finite pixels"),
        (FLOATS.to("meta"), "the images are on meta, the packed model on cpu"),
    ],
    ids=["raw", "bool", "integer", "complex", "array", "none", "one image", "nan", "infinite", "device"],
)
def test_what_is_no_normalised_image_is_refused_by_name(model, images, message):
    module = PackedModule(model)
    for call in (module, module.look, module.one_pass):
        with pytest.raises(InputError, match=message) as caught:
            call(images)
        assert str(caught.value).isprintable() and len(str(caught.value)) <= 300


def test_finite_pixels_whose_sum_is_not_are_cut_off_like_any_other(model):
    huge = torch.full((1, 3, 32, 32), 1.7e308, dtype=torch.float64)
    assert torch.equal(PackedModule(model)(huge), PackedModule(model)(huge.clamp(max=2.0)))


def test_no_images_have_no_logits_in_torch_and_in_numpy(model):
    assert PackedModule(model)(FLOATS[:0]).shape == predict(model, IMAGES[:0].numpy()).shape == (0, 3)


@pytest.mark.parametrize("call", [run, witness, predict])
@pytest.mark.parametrize(
    "images", [FLOATS.numpy(), IMAGES, IMAGES.numpy().astype(np.int64), IMAGES.numpy()[:, :1], None, IMAGES.numpy()[0]]
)
def test_the_reference_takes_pixels_as_they_are_and_refuses_all_else(model, call, images):
    with pytest.raises(InferenceError, match=r"\(N, 3, 32, 32\) uint8"):
        call(model, images)


@pytest.mark.parametrize(
    ("images", "share", "message"),
    [
        (FLOATS, 0.5, "uint8 pixels"),
        (IMAGES[:0], 0.5, "uint8 pixels, one or more"),
        (IMAGES.numpy(), 0.5, "uint8 pixels"),
        (IMAGES, 0.0, "a share of the images above 0, below 1"),
        (IMAGES, 1.0, "a share of the images above 0, below 1"),
        (IMAGES, float("nan"), "a share of the images above 0, below 1"),
    ],
)
def test_a_flip_margin_of_other_images_or_shares_is_refused(model, images, share, message):
    with pytest.raises(InputError, match=message):
        flip_margin(PackedModule(model), images, share)


def test_a_network_of_one_class_answers_and_has_a_price_but_no_margin():
    one = hand_made(conv([[1, 2, 0]]), pool(1, 1), linear([[3]], [5], 2, (np.zeros(1), np.full(1, 15 * 1024))))
    logits = PackedModule(one)(FLOATS)
    assert logits.shape == (6, 1) and np.array_equal(predict(one, IMAGES.numpy()), logits.numpy())
    assert sum(op.storage_bits for op in operations(one) if op.rules != "deck") == one.payload_bits
    with pytest.raises(InputError, match="of one class is never unsure"):
        flip_margin(PackedModule(one), IMAGES, 0.5)


def test_a_map_that_nobody_reads_changes_nothing():
    range_of_codes = np.zeros(1), np.full(1, 15 * 1024)
    steps = [conv([[1, 2, 0]]), pool(1, 1), linear([[3], [-2]], [5, 0], 2, range_of_codes)]
    unread = conv([[7, 0, 1]], name="unread")
    moved = [unread, conv([[1, 2, 0]]), pool(2, 1), linear([[3], [-2]], [5, 0], 3, range_of_codes)]
    plain, more = hand_made(*steps), hand_made(*moved)
    assert torch.equal(PackedModule(plain)(FLOATS), PackedModule(more)(FLOATS))
    assert np.array_equal(predict(plain, IMAGES.numpy()), predict(more, IMAGES.numpy()))


def test_sums_of_a_pool_beyond_what_float32_holds_are_exact():
    # A padding makes the map larger, so that 255 x 272 x 272 exceeds 2**24; most of its codes are the bias.
    side = 32 + 2 * 120
    grown = conv([[1, 1, 1]], code_bits=8, bias=vector(255), bias_bits=9, shape=(1, side, side))
    grown = replace(grown, padding=(120, 120), high=np.full(1, 255, np.int32))
    pooled = replace(pool(1, 1, 255, side), shape=(1, 1, 1))
    last = linear([[1], [-1]], [3, 0], 2, (np.zeros(1), np.full(1, 255 * side * side)))
    model = decode(encode([Input.of(8), grown, pooled, last], None, "integer", {}))
    logits = PackedModule(model)(FLOATS[:1])
    assert float(logits.max()) > 1 << 24
    assert np.array_equal(predict(model, IMAGES[:1].numpy()), logits.numpy())


def test_fewer_images_are_computed_at_once_where_their_maps_are_large(model, monkeypatch):
    module = PackedModule(model)
    wanted = module(FLOATS), predict(model, IMAGES.numpy())
    seen: list[int] = []
    module.steps[0].register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    monkeypatch.setattr("micronet.packed.model.MOST_AT_ONCE", 2 * model.peak)
    assert model.at_once(50) == 2
    assert torch.equal(module(FLOATS), wanted[0]) and max(seen) == 2
    assert np.array_equal(predict(model, IMAGES.numpy()), wanted[1])
