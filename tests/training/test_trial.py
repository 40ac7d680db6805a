"""What is asked of a network and its images before a run: every case is one line, and nothing was trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from micronet.data.images import Split, normalise
from micronet.errors import MicronetError
from micronet.params import Augment
from micronet.training.evaluation import evaluate
from micronet.training.run import Run, TrainingDiverged
from micronet.training.trial import TrainingError
from micronet.training.weights import WeightsError
from tests.support.configs import MACHINE, train_config
from tests.support.images import bright_split, random_images
from tests.support.models import TINY, new_model, same, weights
from tests.support.training import train

DEEP = {"name": "resnet", "blocks": [1] * 6, "widths": [4] * 6}  # whose last map is 1 x 1
QUICK = train_config(epochs=1)


def split(images=None, labels=None) -> Split:
    images = random_images(20) if images is None else images
    return Split(images, torch.arange(len(images)) % 10 if labels is None else labels)


def refusal(model: nn.Module, kind: type[MicronetError] = TrainingError, settings=QUICK, **data) -> str:
    """The line that training ends with; the network is as it was."""
    before = None if any(tensor.is_meta for tensor in model.state_dict().values()) else weights(model)
    with pytest.raises(kind) as caught:
        train(model, settings, **data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300
    assert before is None or same(before, weights(model))
    return str(caught.value)


# --- networks ---


def test_a_weight_that_is_made_of_others_is_not_trained():
    model = new_model()
    prune.l1_unstructured(model.stem.conv, "weight", amount=0.5)
    for decay in (0.0, 0.9):
        said = refusal(model, WeightsError, train_config(epochs=1, ema_decay=decay))
        assert said.startswith("stem.conv: torch.nn.utils.prune is still on its weight")


def test_a_network_that_holds_nothing_is_not_trained():
    assert (
        refusal(new_model().to("meta"))
        == "stem.conv.weight: is on the device meta and holds nothing; build the network on the CPU"
    )


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_a_network_of_other_floats_is_named_with_the_way_out(kind):
    said = refusal(new_model().to(kind))
    assert said == f"the network has parameters of {kind} and gets images of torch.float32; model.float() would work"


def test_a_network_with_every_parameter_frozen_is_measured_but_not_trained():
    frozen = new_model().requires_grad_(False)
    assert refusal(frozen) == "every parameter is frozen; one that trains is needed, or epochs: 0"
    assert train(frozen, train_config(epochs=0)).rows == []


def test_parameters_that_train_must_have_a_part_in_the_logits():
    model = new_model().requires_grad_(False)
    model.spare = nn.Linear(2, 2)
    assert "no parameter that trains has a part in the logits" in refusal(model)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1)), "the network gives (2, 4, 32, 32) for 2 images, it must give logits"),
        (nn.LSTM(32, 2), "the network does not take images (2, 3, 32, 32) of torch.float32: "),
        (nn.Sequential(nn.Conv2d(1, 4, 1)), "the network does not take images (2, 3, 32, 32) of torch.float32: "),
    ],
    ids=["maps", "no images", "other channels"],
)
def test_what_is_no_classifier_of_these_images_is_refused(network, said):
    assert refusal(network).startswith(said)


def test_a_frozen_layer_stays_also_in_the_average():
    model = new_model()
    model.stem.requires_grad_(False)
    before = model.stem.conv.weight.clone()
    train(model, train_config(epochs=1, ema_decay=0.9))
    assert torch.equal(model.stem.conv.weight, before)


def test_data_parallel_without_a_gpu_trains_what_is_in_it():
    plain, wrapped = new_model(), new_model()
    train(plain, QUICK)
    train(nn.DataParallel(wrapped), QUICK)
    assert same(weights(plain), weights(wrapped))


def test_the_trial_changes_neither_the_network_nor_the_random_numbers():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(3072, 10), nn.BatchNorm1d(10))
    before, drawn = weights(model), torch.get_rng_state()
    started = Run(model, QUICK, split(), MACHINE, 3)
    assert started.classes == 10
    assert same(before, weights(model)) and torch.equal(drawn, torch.get_rng_state())


# --- batches of one ---


def test_a_batch_of_one_before_a_norm_that_sees_one_value_is_refused():
    for settings, images in ((train_config(batch_size=1), 20), (train_config(), 1)):
        said = refusal(new_model(DEEP), settings=settings, training=split(random_images(images)))
        assert said.startswith("a batch norm behind a map of 1 x 1 sees one value") and "batch_size: 2 works" in said
    assert train(new_model(DEEP), train_config(batch_size=1, epochs=0)).rows == []


def test_a_batch_of_one_is_trained_on_where_every_norm_sees_more():
    assert len(train(new_model(), train_config(epochs=1, batch_size=1), training=split(random_images(3))).rows) == 1


def test_no_batch_of_one_is_left_at_the_end_of_an_epoch():
    assert len(train(new_model(DEEP), QUICK, training=split(random_images(17))).rows) == 1


# --- images and labels ---


@pytest.mark.parametrize("which", ["training", "validation"])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (split(normalise(random_images(4))), "images must be (N, C, H, W) of torch.uint8"),
        (split(random_images(4)[0], torch.zeros(3).long()), "images must be (N, C, H, W) of torch.uint8"),
        (split(random_images(4), torch.zeros(3).long()), "labels must be one whole number for each of 4 images"),
        (split(random_images(4), torch.zeros(4, 10)), "labels must be one whole number for each of 4 images"),
        (split(random_images(4), torch.zeros(4)), "labels must be one whole number for each of 4 images"),
        (split(random_images(0)), "images; one would do, or more"),
        (split(random_images(4), torch.tensor([0, 1, 12, 3])), "labels hold 12, the model has classes 0 to 9; a model"),
        (split(random_images(4), torch.tensor([0, 1, -1, 3])), "labels hold -1, the model has classes 0 to 9; labels"),
    ],
    ids=["normalised", "one image", "too few labels", "soft", "floats", "none", "beyond", "negative"],
)
def test_images_and_labels_that_do_not_fit_are_refused(which, data, said):
    line = refusal(new_model(), **{which: data})
    assert said in line and which in line


def test_evaluation_refuses_labels_that_are_no_classes_of_the_model():
    with pytest.raises(TrainingError, match="labels hold 12, .* a model of 13 classes would work"):
        evaluate(new_model(), split(random_images(4), torch.tensor([0, 1, 12, 3])), MACHINE)


# --- the number of classes ---


@pytest.mark.parametrize("mix", [{"cutmix_alpha": 1.0}, {"mixup_alpha": 1.0}])
@pytest.mark.parametrize("classes", [4, 20])
def test_mixed_targets_have_the_models_classes(mix, classes):
    data = split(random_images(20), torch.arange(20) % classes)
    settings = train_config(epochs=1, label_smoothing=0.1, augment=Augment(**mix))
    started = Run(new_model(TINY | {"classes": classes}), settings, data, MACHINE, 3)
    batch = started.sampler(started.images, started.labels, torch.arange(8), started.generator)
    assert batch.targets.shape == (8, classes) and torch.allclose(batch.targets.sum(1), torch.ones(8))
    train(started.model, settings, training=data, validation=data)


def test_divergence_is_measured_by_the_loss_of_as_many_classes():
    data = split(random_images(20))
    started = Run(new_model(TINY | {"classes": 1000}), QUICK, data, MACHINE, 3)
    started.train_step(started.remaining_batches()[0])
    started.check(690.0)
    with pytest.raises(TrainingDiverged):
        started.check(691.0)


def test_more_images_a_batch_than_there_are_make_one_batch():
    started = Run(new_model(), train_config(batch_size=10_000), bright_split(12), MACHINE, 3)
    assert [len(batch) for batch in started.remaining_batches()] == [12]
