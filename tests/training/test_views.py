"""Fixed views: what they show, what they are labelled, what the teacher answered to them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from micronet.data.images import normalise
from micronet.params import Augment
from micronet.training import views as room
from micronet.training.augmentation import box_masks
from micronet.training.distillation import answering
from micronet.training.memory import NoMemory
from micronet.training.views import Views, answers_to_view, fixed_views, known_answers, mean_of_pairs
from tests.support.configs import MACHINE
from tests.support.images import random_split
from tests.support.models import new_model

MIXED = Augment(mixup_alpha=1.0, mixup_probability=0.4, cutmix_alpha=1.0, cutmix_probability=0.4)
EVERYTHING = MIXED.model_copy(update={"cutout_size": 8})


def window(views: Views, view: int, place: int, images: Tensor) -> Tensor:
    """A crop as `fixed_views` drew it, cut by slices, (C, 32, 32) uint8."""
    row, column = int(views.rows[view, place]), int(views.columns[view, place])
    cut = F.pad(images, (4, 4, 4, 4), value=128)[place][:, row : row + 32, column : column + 32]
    cut = cut.flip(2) if views.mirrored[view, place] else cut.clone()
    if views.cutout is not None:
        top, left, height, width = views.cutout[view, place].tolist()
        cut[:, max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)] = 128
    return cut


def test_a_fixed_view_is_the_crop_that_augment_would_make():
    images = random_split(6, 6).images
    views = fixed_views(3, images, Augment(crop_padding=4), seed=1)
    assert len(views) == 3
    for view in range(3):
        shown = views.show(images, view, slice(0, 6))
        for place in range(6):
            assert torch.equal(shown[place], (window(views, view, place, images).float() - 128) / 64)


def test_a_mixed_view_is_a_crop_with_a_box_and_a_share_of_another_ones():
    data = random_split(60, 60)
    labels, views = data.labels.long(), fixed_views(2, data.images, EVERYTHING, seed=1)
    kinds = set()
    for view in range(2):
        shown, targets = views.show_labelled(data.images, labels, view, slice(0, 60), 10)
        assert sorted(views.partner[view].tolist()) == list(range(60))  # each is mixed into one
        for place in range(60):
            own = window(views, view, place, data.images)
            partner = int(views.partner[view, place])
            other = window(views, view, partner, data.images)
            top, left, height, width = views.cutmix[view, place].tolist()
            rows, columns = slice(max(0, top), max(0, top + height)), slice(max(0, left), max(0, left + width))
            area = own[0, rows, columns].numel()
            own[:, rows, columns] = other[:, rows, columns]
            weight = float(views.weight[view, place])
            kinds.add((area > 0, weight < 1))
            expected = weight * normalise(own[None]) + (1 - weight) * normalise(other[None])
            assert torch.allclose(shown[place], expected[0], atol=1e-5)
            kept = (1 - area / 1024) * weight
            answer = torch.zeros(10).index_add(0, labels[[place, partner]], torch.tensor([kept, 1 - kept]))
            assert torch.allclose(targets[place], answer, atol=1e-5)
    assert kinds == {(False, False), (True, False), (False, True)}  # no image is mixed in both ways


def test_fixed_views_are_drawn_from_all_crops_and_only_by_the_seed():
    images = random_split(500).images
    views = fixed_views(8, images, Augment(crop_padding=4), seed=1)
    assert {int(value) for value in views.rows.unique()} == set(range(9)) == {int(v) for v in views.columns.unique()}
    assert 0.4 < float(views.mirrored.float().mean()) < 0.6
    again, other = (fixed_views(8, images, Augment(crop_padding=4), seed=seed) for seed in (1, 2))
    assert torch.equal(views.rows, again.rows) and not torch.equal(views.rows, other.rows)
    still = fixed_views(2, images[:50], Augment(crop_padding=0, flip=False), seed=1)
    assert not still.rows.any() and not still.columns.any() and not still.mirrored.any()


def test_what_is_mixed_is_drawn_anew_in_each_view_in_the_shares_asked_for():
    views = fixed_views(8, random_split(500).images, MIXED, seed=1)
    assert not torch.equal(views.partner[0], views.partner[1])
    assert 0.35 < float((views.weight < 1).float().mean()) < 0.45
    assert 0.33 < float((views.cutmix[..., 2:] > 0).all(-1).float().mean()) < 0.45  # a thin box may have no pixel
    assert views.cutout is None and set(views.tables()) == set(
        fixed_views(2, torch.zeros(3, 3, 8, 8), MIXED, 0).tables()
    )
    plain = fixed_views(8, random_split(500).images, Augment(), seed=1)
    assert torch.equal(plain.rows, views.rows) and set(plain.tables()) == {"rows", "columns", "mirrored"}


@pytest.mark.parametrize("config", [Augment(), MIXED, EVERYTHING])
def test_a_known_answer_is_the_teachers_answer_to_the_image_beside_it(config):
    data, teacher = random_split(40, 40), new_model().eval()
    labels, views = data.labels.long(), fixed_views(3, data.images, config, seed=1)
    answers = torch.stack([answers_to_view(teacher, data.images, views, view, MACHINE, 16) for view in range(3)])
    sample = known_answers(views, answers, MACHINE)
    generator, indices = torch.Generator().manual_seed(2), torch.arange(40).flip(0)
    drawn = [sample(data.images, labels, indices, generator) for _ in range(2)]
    assert not torch.equal(drawn[0].images, drawn[1].images)
    for batch in drawn:
        if config.mixup_alpha:
            assert torch.allclose(batch.targets.sum(1), torch.ones(40))
            assert (batch.targets.argmax(1) == labels.flip(0)).float().mean() > 0.6
        else:
            assert torch.equal(batch.targets, labels.flip(0))
        with torch.no_grad():
            assert torch.allclose(batch.answers, teacher(batch.images), atol=1e-4)
    again, part = torch.Generator().manual_seed(2), slice(13, 30)  # a part is what it is in the whole
    batch = sample(data.images, labels, indices, again, part)
    assert torch.equal(batch.images, drawn[0].images[part]) and torch.equal(batch.answers, drawn[0].answers[part])
    assert torch.equal(batch.targets, drawn[0].targets[part])


@pytest.mark.parametrize("config", [Augment(), EVERYTHING])
def test_views_in_pairs_mirror_one_another_and_know_what_a_mirroring_teacher_answers(config):
    data, teacher = random_split(20, 20), new_model().eval()
    images, labels, part = data.images, data.labels.long(), slice(0, 20)
    views, answer = fixed_views(6, images, config, seed=1, pairs=True), answering(teacher, MACHINE, mirror=True)
    answers = torch.stack([answers_to_view(teacher, images, views, view, MACHINE, 16) for view in range(6)])
    means = mean_of_pairs(answers)
    for view in range(3):
        one, its_targets = views.show_labelled(images, labels, view, part, 10)
        other, targets = views.show_labelled(images, labels, view + 3, part, 10)
        assert torch.equal(one.flip(-1), other) and torch.equal(its_targets, targets)
    for view in range(6):
        assert torch.allclose(means[view], answer(views.show(images, view, part)), atol=1e-4)
    with pytest.raises(ValueError, match="3 views are no pairs"):
        fixed_views(3, images, config, seed=1, pairs=True)


def test_a_box_beyond_the_border_is_mirrored_beyond_the_other_one():
    images = torch.randint(0, 256, (200, 3, 12, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    views = fixed_views(2, images, EVERYTHING, seed=3, pairs=True)
    for boxes in (views.cutout.long(), views.cutmix.long()):
        assert (boxes[0, :, 1] < 0).any() and (boxes[0, :, 1] + boxes[0, :, 3] > 20).any()
        one, other = (box_masks(boxes[view], (12, 20)) for view in range(2))
        assert torch.equal(one.flip(-1), other)


def test_views_beyond_the_memory_are_refused_with_what_would_fit(monkeypatch):
    monkeypatch.setattr(room, "available_memory", lambda: 5.0 * room.views_memory(1000, 10))
    room.check_memory(5, 1000, 10, MACHINE)
    with pytest.raises(NoMemory, match=r"^views: 6 views of 1000 images take 0\.0 GB .*; views: 4 would fit, 0 asks"):
        room.check_memory(6, 1000, 10, MACHINE)


@pytest.mark.parametrize("config", [Augment(), EVERYTHING])
def test_what_a_view_takes_is_within_the_memory_that_is_asked_for(config):
    images = random_split(30).images
    tables = fixed_views(4, images, config, seed=0, pairs=True).tables().values()
    assert sum(table.nbytes for table in tables) <= 4 * 30 * 27 <= 4 * (room.views_memory(30, 10) - 30 * 16 * 10)
