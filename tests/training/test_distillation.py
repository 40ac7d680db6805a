"""Hinton's loss against the formula, and how the teacher is treated."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from micronet.params import Augment, Distillation, Train
from micronet.training.distillation import answering, distillation_loss, distilled
from micronet.training.loop import train
from micronet.training.sampling import Batch
from micronet.training.trial import TrainingError
from micronet.training.views import answers_to_view, fixed_views
from tests.support.configs import MACHINE
from tests.support.images import random_split
from tests.support.models import TINY, new_model


def logits(seed: int, count: int = 6, size: float = 3.0) -> Tensor:
    return size * torch.randn(count, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


def some_images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(7))


def loss_of(teacher: nn.Module, *, alpha: float, temperature: float = 4.0, label_smoothing: float = 0.0):
    config = Distillation(temperature=temperature, alpha=alpha)
    return distilled(lambda: teacher, config, MACHINE, label_smoothing=label_smoothing)


# --- the formula ---


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_the_loss_is_the_formula_computed_by_hand(temperature):
    student, teacher = logits(1), logits(2)
    total = 0.0
    for z, v in zip(student.tolist(), teacher.tolist(), strict=True):
        weights = [math.exp(value / temperature) for value in v]
        p = [weight / sum(weights) for weight in weights]
        log_sum = math.log(sum(math.exp(value / temperature) for value in z))
        log_q = [value / temperature - log_sum for value in z]
        total += sum(a * (math.log(a) - b) for a, b in zip(p, log_q, strict=True))
    expected = temperature**2 * total / len(student)
    assert float(distillation_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-4)


@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 20))
def test_the_loss_is_torchs_cross_entropy_less_the_teachers_entropy(seed, temperature):
    student, teacher = logits(seed), logits(seed + 1)
    soft = F.softmax(teacher / temperature, dim=1)
    entropy = -(soft * F.log_softmax(teacher / temperature, dim=1)).sum(1).mean()
    expected = temperature**2 * (F.cross_entropy(student / temperature, soft) - entropy)
    assert float(distillation_loss(student, teacher, temperature)) == pytest.approx(float(expected), rel=1e-3, abs=1e-3)


@given(seed=st.integers(0, 1000), temperature=st.floats(0.5, 20))
def test_the_loss_is_0_for_the_same_answers_and_above_it_for_others(seed, temperature):
    student, teacher = logits(seed), logits(seed + 1)
    assert float(distillation_loss(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-4)
    assert float(distillation_loss(student, teacher, temperature)) > 0


def test_the_loss_does_not_see_a_constant_added_to_all_logits():
    one, two = distillation_loss(logits(1), logits(2), 4), distillation_loss(logits(1) + 5, logits(2) - 3, 4)
    assert float(one) == pytest.approx(float(two), rel=1e-4)


def gradient(temperature: float) -> Tensor:
    student = logits(1, size=0.1).requires_grad_()
    distillation_loss(student, logits(2, size=0.1), temperature).backward()
    return student.grad


@pytest.mark.parametrize("temperature", [2.0, 4.0, 20.0])
def test_t_squared_keeps_the_gradients_size_when_t_changes(temperature):
    # Hinton et al., equation 4: for logits small against T the gradient is (z - v) / classes, whatever T is.
    expected = (logits(1, size=0.1) - logits(2, size=0.1)) / (10 * 6)
    expected -= expected.mean(1, keepdim=True)
    assert torch.allclose(gradient(temperature), expected, atol=0.05 * float(expected.abs().max()))


@pytest.mark.parametrize("alpha", [0.3, 0.9])
def test_alpha_weighs_the_teachers_answers_against_the_labels(alpha):
    student, images, labels = logits(1, count=8), some_images(), torch.arange(8)
    with torch.no_grad():
        answers = new_model().eval()(images)
    value = loss_of(new_model(), alpha=alpha, label_smoothing=0.1)(student, Batch(images, labels))
    hard = F.cross_entropy(student, labels, label_smoothing=0.1)
    expected = alpha * distillation_loss(student, answers, 4.0) + (1 - alpha) * hard
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_alpha_0_never_loads_the_teacher():
    def teacher() -> nn.Module:
        raise AssertionError("the teacher was loaded")

    loss = distilled(teacher, Distillation(alpha=0.0), MACHINE)
    student, labels = logits(1), torch.arange(6)
    assert torch.equal(loss(student, Batch(some_images(6), labels)), F.cross_entropy(student, labels))


def test_alpha_1_ignores_the_labels():
    loss = loss_of(new_model(), alpha=1.0)
    student, images, labels = logits(1, count=8), some_images(), torch.arange(8)
    assert torch.equal(loss(student, Batch(images, labels)), loss(student, Batch(images, labels.flip(0))))


def test_soft_labels_of_mixed_images_are_taken():
    soft = F.softmax(logits(5, count=8), dim=1)
    student, images = logits(1, count=8), some_images()
    loss = loss_of(new_model(), alpha=0.5)
    teacher_part = 0.5 * loss_of(new_model(), alpha=1.0)(student, Batch(images, soft))
    assert float(loss(student, Batch(images, soft)) - teacher_part) == pytest.approx(
        0.5 * float(F.cross_entropy(student, soft)), rel=1e-4
    )


# --- the teacher ---


def test_the_teacher_stands_in_eval_mode_and_its_statistics_do_not_move():
    teacher = new_model().train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    loss_of(teacher, alpha=0.9)(logits(1, count=8), Batch(5 + some_images(), torch.arange(8)))
    assert not any(module.training for module in teacher.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_the_teachers_answer_to_an_image_does_not_depend_on_its_neighbours():
    loss = loss_of(new_model().train(), alpha=1.0)
    images, student = some_images(), logits(1, count=8)
    alone = [loss(student[i : i + 1], Batch(images[i : i + 1], torch.zeros(1))) for i in range(8)]
    together = float(loss(student, Batch(images, torch.zeros(8))))
    assert float(torch.stack(alone).mean()) == pytest.approx(together, rel=1e-4)


def test_gradients_reach_the_student_and_not_the_teacher():
    teacher = new_model()
    student = logits(1, count=8).requires_grad_()
    loss_of(teacher, alpha=0.9)(student, Batch(some_images(), torch.arange(8))).backward()
    assert student.grad.abs().sum() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())


class Looks(nn.Module):
    """A network that notes the images it was shown while training, or as a teacher."""

    def __init__(self, inner: nn.Module, always: bool):
        super().__init__()
        self.inner, self.always = inner, always
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.always:
            self.seen.append(x.detach().clone())
        return self.inner(x)


def test_teacher_and_student_see_the_same_crop():
    student, teacher = Looks(new_model(seed=1), always=False), Looks(new_model(seed=2), always=True)
    augment = Augment(cutout_size=8, cutmix_alpha=1.0, cutmix_probability=0.5)
    config = Train(epochs=2, batch_size=8, learning_rate=0.05, augment=augment)
    data = {"training": random_split(32, 32), "validation": random_split(10, 10)}
    train(student, config=config, machine=MACHINE, seed=0, loss=loss_of(teacher, alpha=0.9), **data)
    assert len(student.seen) == len(teacher.seen) == 8
    assert all(torch.equal(one, two) for one, two in zip(student.seen, teacher.seen, strict=True))


def test_distilling_from_a_teacher_brings_the_students_answers_nearer():
    student, teacher = new_model(seed=1), new_model(TINY | {"widths": [8]}, seed=2).eval()
    images = some_images(32)
    config = Train(epochs=6, batch_size=16, learning_rate=0.1, augment=Augment(crop_padding=0, flip=False))
    data = random_split(64, 64)

    def distance() -> float:
        with torch.no_grad():
            return float(distillation_loss(student.eval()(images), teacher(images), 1.0))

    before = distance()
    train(
        student,
        config=config,
        machine=MACHINE,
        seed=0,
        loss=loss_of(teacher, alpha=1.0, temperature=1.0),
        training=data,
        validation=data,
    )
    assert distance() < 0.7 * before


def test_known_answers_make_the_loss_of_asking_the_teacher():
    teacher, images, labels, student = new_model().eval(), some_images(), torch.arange(8), logits(1, count=8)
    answers = answering(teacher, MACHINE)(images)  # in the machine's layout: another one sums in another order

    def never() -> nn.Module:
        raise AssertionError("the teacher was asked")

    told = distilled(never, Distillation(alpha=0.7, views=4), MACHINE)(student, Batch(images, labels, answers))
    assert torch.equal(told, loss_of(teacher, alpha=0.7)(student, Batch(images, labels)))


def test_an_image_and_its_mirror_image_get_the_same_answer_the_mean_of_both():
    teacher, images = new_model().eval(), some_images()
    answer, plain = answering(teacher, MACHINE, mirror=True), answering(teacher, MACHINE)
    assert torch.allclose(answer(images), (plain(images) + plain(images.flip(-1))) / 2, atol=1e-6)
    assert torch.allclose(answer(images), answer(images.flip(-1)), atol=1e-6)
    assert not torch.allclose(plain(images), plain(images.flip(-1)), atol=1e-3)


# --- what cannot be learned from ---


def test_a_teacher_of_other_classes_is_refused():
    teacher = new_model(TINY | {"classes": 20})
    with pytest.raises(
        TrainingError, match="^the teacher tells 20 classes apart, the student 10; they must be as many$"
    ):
        loss_of(teacher, alpha=0.5)(logits(1, count=8), Batch(some_images(), torch.arange(8)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_teacher_whose_answers_are_not_finite_is_refused(value):
    teacher = new_model()
    with torch.no_grad():
        teacher.classifier.bias[0] = value
    with pytest.raises(TrainingError, match="^the teacher's answers are not finite"):
        loss_of(teacher, alpha=0.5)(logits(1, count=8), Batch(some_images(), torch.arange(8)))
    images = random_split(4).images
    with pytest.raises(TrainingError, match="^the teacher's answers are not finite"):
        answers_to_view(teacher, images, fixed_views(1, images, Augment(), seed=0), 0, MACHINE, 4)
