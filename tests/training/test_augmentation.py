"""Augmentation: each operation against its definition, and against torchvision where it does the same."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from micronet import params
from micronet.data.images import normalise
from micronet.training import augmentation
from micronet.training.augmentation import box_masks, crop_and_flip, cutmix_boxes, sample_beta
from tests.support.images import random_split
from tests.support.thinning import thinned

SEEDS = st.integers(0, 2**31)
OFF = {"crop_padding": 0, "flip": False}
QUICK = settings(max_examples=20, deadline=None)

augment = partial(augmentation.augment, classes=10)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_batch(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    split = random_split(count, seed)
    return split.images, split.labels


def flat_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Ten images, each one grey of its own and its own class: a pixel tells which image it came from."""
    greys = torch.arange(10, dtype=torch.uint8) * 20
    return greys[:, None, None, None].expand(-1, 3, 32, 32).contiguous(), torch.arange(10)


# Crop and flip


@QUICK
@given(st.integers(0, 8), st.integers(0, 8), st.booleans())
def test_crop_and_flip_agree_with_torchvision(row, column, mirrored):
    from torchvision.transforms import v2  # which takes seconds to load

    images, _ = random_batch(3)
    ours = crop_and_flip(images, torch.tensor([row] * 3), torch.tensor([column] * 3), torch.tensor([mirrored] * 3), 4)
    theirs = v2.functional.crop(v2.functional.pad(images, [4], fill=128), row, column, 32, 32)
    assert torch.equal(ours, v2.functional.horizontal_flip(theirs) if mirrored else theirs)


def test_normalisation_agrees_with_torchvision():
    from torchvision.transforms import v2  # which takes seconds to load

    images, _ = random_batch(4)
    transform = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([128 / 255] * 3, [64 / 255] * 3)])
    assert torch.allclose(normalise(images), transform(images), atol=1e-6)


def test_padding_is_zero_after_normalisation():
    images = torch.full((64, 3, 32, 32), 255, dtype=torch.uint8)
    result, _ = augment(images, torch.zeros(64, dtype=torch.long), params.Augment(crop_padding=4), generator(0))
    assert set(result.unique().tolist()) == {0.0, 127 / 64}


def test_images_of_one_batch_are_cropped_and_flipped_differently():
    image, _ = random_batch(1)
    result, _ = augment(image.expand(64, -1, -1, -1), torch.zeros(64, dtype=torch.long), params.Augment(), generator(0))
    assert len({crop.numpy().tobytes() for crop in result}) > 40


def test_every_offset_and_both_directions_occur():
    ramp = (torch.arange(32)[:, None] * 4 + torch.arange(32) * 3).to(torch.uint8).expand(4000, 3, -1, -1)
    result, _ = augment(ramp, torch.zeros(4000, dtype=torch.long), params.Augment(), generator(0))
    assert len({crop.numpy().tobytes() for crop in result[:, 0]}) == 9 * 9 * 2


def test_half_of_the_images_are_flipped():
    images = torch.zeros(4000, 3, 32, 32, dtype=torch.uint8)
    images[..., :16] = 200
    config = params.Augment(crop_padding=0, flip=True)
    result, _ = augment(images, torch.zeros(4000, dtype=torch.long), config, generator(0))
    assert 0.45 < (result[:, 0, 0, 0] < 0).float().mean() < 0.55


def test_with_everything_off_only_normalisation_is_left():
    images, labels = random_batch(8)
    result, targets = augment(images, labels, params.Augment(**OFF), generator(0))
    assert torch.equal(result, normalise(images)) and torch.equal(targets, labels)


def test_a_channels_last_batch_gives_the_same_result():
    images, labels = random_batch(8)
    first, _ = augment(images, labels, params.Augment(), generator(3))
    second, _ = augment(images.contiguous(memory_format=torch.channels_last), labels, params.Augment(), generator(3))
    assert torch.equal(first, second)


# Cutout


@QUICK
@given(SEEDS, st.integers(1, 32))
def test_cutout_clears_one_square_and_leaves_the_rest(seed, side):
    images = torch.full((16, 3, 32, 32), 255, dtype=torch.uint8)
    config = params.Augment(**OFF, cutout_size=side)
    result, targets = augment(images, torch.zeros(16, dtype=torch.long), config, generator(seed))
    for image in result:
        cleared = image[0] == 0
        assert torch.equal(image == 0, cleared.expand(3, -1, -1)) and (image[:, ~cleared] == 127 / 64).all()
        rows, columns = cleared.any(1).sum().item(), cleared.any(0).sum().item()
        assert rows * columns == cleared.sum()
        assert side // 2 <= rows <= side and side // 2 <= columns <= side
    assert targets.dtype == torch.int64


def test_box_masks_are_cut_off_at_the_borders():
    mask = box_masks(torch.tensor([[-2, 30, 5, 5]]), size=(32, 32))
    assert mask.shape == (1, 1, 32, 32) and mask.sum() == 3 * 2 and mask[0, 0, :3, 30:].all()


# Mixing


CUTMIX = params.Augment(**OFF, cutmix_alpha=1.0)
MIXUP = params.Augment(**OFF, mixup_alpha=0.4)
BOTH = params.Augment(cutmix_alpha=1.0, cutmix_probability=0.4, mixup_alpha=0.4, mixup_probability=0.4, cutout_size=8)


@QUICK
@given(SEEDS, st.sampled_from([CUTMIX, MIXUP, BOTH]))
def test_targets_sum_to_one_and_are_never_negative(seed, config):
    _, targets = augment(*random_batch(32, seed % 100), config, generator(seed))
    assert targets.shape == (32, 10) and targets.dtype == torch.float32
    assert torch.allclose(targets.sum(1), torch.ones(32), atol=1e-6) and (targets >= 0).all()


@QUICK
@given(SEEDS)
def test_cutmix_label_weight_is_exactly_the_share_of_pixels(seed):
    images, labels = flat_batch()
    result, targets = augment(images, labels, CUTMIX, generator(seed))
    greys = normalise(images)[:, 0, 0, 0]
    shares = torch.stack([(result[:, 0] == grey).sum((1, 2)) for grey in greys], dim=1) / 1024
    assert torch.equal(targets, shares)


@QUICK
@given(SEEDS)
def test_cutmix_pastes_a_box_from_the_same_place_and_touches_nothing_else(seed):
    images, labels = random_batch(16)
    result, _ = augment(images, labels, CUTMIX, generator(seed))
    plain = normalise(images)
    for index, image in enumerate(result):
        changed = (image != plain[index]).any(0)
        if not changed.any():
            continue
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        top, left = int(rows.min()), int(columns.min())
        box = (slice(None), slice(top, int(rows.max()) + 1), slice(left, int(columns.max()) + 1))
        assert any(torch.equal(image[box], other[box]) for other in plain)


def test_cutmix_boxes_differ_within_a_batch():
    result, targets = augment(*flat_batch(), CUTMIX, generator(0))
    assert len({round(row.max().item(), 6) for row in targets}) > 5


def test_cutmix_box_area_follows_lambda():
    """A box of relative side s = sqrt(1 - lambda) covers, over all centres, (s - s^2 / 4)^2 on average."""
    boxes = cutmix_boxes(2000, (96, 96), 1.0, generator(0))
    areas = box_masks(boxes, (96, 96)).sum((1, 2, 3)) / 96**2
    sides = (torch.arange(100_000) + 0.5).div(100_000).sqrt()  # lambda is uniform
    assert areas.mean().item() == pytest.approx((sides - sides**2 / 4).square().mean().item(), abs=0.015)


@pytest.mark.parametrize("share", thinned([0.25, 0.0, 0.75], 2))
def test_cutmix_probability_is_the_share_of_images(share):
    images = torch.zeros(4000, 3, 32, 32, dtype=torch.uint8)
    labels = torch.arange(4000)  # a class of its own for each, so that every paste shows in the target
    config = params.Augment(**OFF, cutmix_alpha=1.0, cutmix_probability=share)
    _, targets = augment(images, labels, config, generator(0), classes=4000)
    # boxes under a pixel do not show
    assert (targets.amax(1) < 1).float().mean().item() == pytest.approx(share, abs=0.03)


@QUICK
@given(SEEDS)
def test_mixup_images_and_targets_share_one_lambda(seed):
    images, labels = flat_batch()
    result, targets = augment(images, labels, MIXUP, generator(seed))
    greys = normalise(images)[:, 0, 0, 0]
    assert torch.allclose(result, (targets @ greys)[:, None, None, None].expand_as(result), atol=1e-5)


def test_mixup_lambda_differs_within_a_batch():
    _, targets = augment(*flat_batch(), MIXUP, generator(0))
    assert len({round(row.max().item(), 6) for row in targets}) > 5


def test_no_image_gets_both_cutmix_and_mixup():
    images, labels = flat_batch()
    config = params.Augment(**OFF, cutmix_alpha=1.0, cutmix_probability=0.5, mixup_alpha=1.0, mixup_probability=0.5)
    greys = set(normalise(images).unique().tolist())
    kinds = set()
    for seed in range(20):
        for image in augment(images, labels, config, generator(seed))[0]:
            values = set(image.unique().tolist())
            kinds.add("cutmix" if values <= greys else "mixup")
            assert values <= greys or len(values) == 1
    assert kinds == {"cutmix", "mixup"}


@pytest.mark.parametrize("alpha", [0.001, 0.2, 1.0, 4.0])
def test_beta_draws_have_the_distributions_mean_and_variance(alpha):
    draws = sample_beta(alpha, 20_000, generator(0))
    assert draws.isfinite().all() and draws.min() >= 0 and draws.max() <= 1
    assert draws.mean().item() == pytest.approx(0.5, abs=0.02)
    if alpha > 0.01:  # below, both Gamma draws underflow now and then
        assert draws.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


# Random numbers


@pytest.mark.parametrize("config", [params.Augment(), CUTMIX, MIXUP, BOTH], ids=["crop", "cutmix", "mixup", "all"])
def test_the_generators_state_decides_the_result(config):
    batch, source = random_batch(16), generator(5)
    augment(*batch, config, source)
    state = source.get_state()
    first = augment(*batch, config, source)
    torch.manual_seed(123)  # the global generator has no part in it
    source.set_state(state)
    second = augment(*batch, config, source)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    third = augment(*batch, config, source)
    assert not torch.equal(second[0], third[0])


@pytest.mark.parametrize("cutout_size", [0, 8])
@pytest.mark.parametrize("config", [params.Augment(**OFF), params.Augment(), CUTMIX, MIXUP, BOTH])
def test_the_parts_of_a_batch_are_what_they_are_in_the_whole(config, cutout_size):
    batch, config = random_batch(11), config.model_copy(update={"cutout_size": cutout_size})
    whole, parts, states = augment(*batch, config, generator(5)), [], []
    for part in (slice(0, 4), slice(4, 8), slice(8, 11)):
        source = generator(5)
        parts.append(augment(*batch, config, source, part=part))
        states.append(source.get_state())
    assert all(torch.equal(state, states[0]) for state in states)
    for index in range(2):
        assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])


@pytest.mark.parametrize("config", [params.Augment(), CUTMIX, MIXUP, BOTH], ids=["crop", "cutmix", "mixup", "all"])
def test_the_global_generator_is_left_alone(config):
    state = torch.get_rng_state()
    augment(*random_batch(16), config, generator(5))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("config", [params.Augment(**OFF), params.Augment(), CUTMIX, MIXUP, BOTH])
def test_the_input_stays_and_the_result_is_channels_last(config):
    images, labels = random_batch(16)
    before = images.clone(), labels.clone()
    result, _ = augment(images, labels, config, generator(0))
    assert torch.equal(images, before[0]) and torch.equal(labels, before[1])
    assert result.is_contiguous(memory_format=torch.channels_last) and result.dtype == torch.float32
