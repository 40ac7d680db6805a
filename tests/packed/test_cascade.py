"""Cascades: joined files say and cost what their networks do, image by image."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from micronet.compress.calibration import recalibrate_batch_norm
from micronet.data.datasets import CLASSES
from micronet.data.images import Split, normalise
from micronet.packed.cascade import Cascade, join
from micronet.packed.errors import PackedFileError, PackError
from micronet.packed.file import decode, encode, read
from micronet.packed.limits import MOST_SUM
from micronet.packed.margins import margins
from micronet.packed.model import FIT, PackedModel, joined, logit_ranges, shifts
from micronet.packed.module import load_packed
from micronet.packed.packing import pack
from micronet.packed.reference import predict, run, witness
from micronet.packed.steps import Product
from micronet.scoring.challenge import challenge_ops, challenge_score
from micronet.scoring.counting import operations
from micronet.scoring.deck import deck_flops, deck_score
from micronet.scoring.measurement import measure, passes
from micronet.scoring.packed_counts import packed_operations
from tests.support.configs import quantize_config
from tests.support.images import random_images, random_labels
from tests.support.models import TINY, new_model, quantized
from tests.support.packed import gated_file

IMAGES, LABELS = random_images(60, 3), random_labels(60, 4)
SPECS = (
    TINY,
    {"name": "mobilenet", "blocks": [1, 1], "widths": [4, 8]},
    {"name": "resnet", "blocks": [1, 1], "widths": [4, 8]},
)


def network(path, number: int, classes: int = 10, **changes) -> PackedModel:
    """A packed network that was never trained."""
    quantize = quantize_config(weight_bits=4, activation_bits=4, **changes)
    model = new_model(SPECS[number] | {"classes": classes}, number)
    recalibrate_batch_norm(model, [normalise(IMAGES)])
    with torch.no_grad():
        model.classifier.bias.zero_()
    names = CLASSES if classes == len(CLASSES) else ()
    return pack(quantized(model, quantize, IMAGES), path, quantize=quantize, images=IMAGES, class_names=names)


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> list[PackedModel]:
    folder = tmp_path_factory.mktemp("networks")
    return [network(folder / str(number), number) for number in range(3)]


@pytest.fixture(scope="module")
def written(three, tmp_path_factory):
    """A cascade of three with all kinds of margins: its path, its tuning."""
    path = tmp_path_factory.mktemp("cascade") / "cascade.safetensors"
    cascade = Cascade(three, IMAGES, LABELS)
    tuning = cascade.tune([0.6, 0.4, 0.2])
    cascade.write(path, tuning, {"made": "here"})
    return path, tuning


def test_the_residual_of_a_product_moves_with_its_network():
    one = decode(gated_file())
    both = decode(join([one, one]))
    values = [step.scaling.residual.value for step in both.steps if isinstance(step, Product) and step.reads[2:]]
    assert values == [1, 1 + len(one.networks[0])]
    images = random_images(3, image=one.image).numpy()
    assert np.array_equal(run(both, images, network=1), run(one, images))


def seen(images: Tensor, number: int) -> Tensor:
    return normalise(images.flip(3) if number % 2 else images)


def test_each_pass_is_the_one_of_the_networks_own_file(three, written):
    module = load_packed(written[0])
    folder = written[0].parent
    for number, model in enumerate(three):
        data = encode(list(model.steps), model.spec, "integer", {})
        (folder / "alone").write_bytes(data)
        alone = load_packed(folder / "alone")
        assert torch.equal(module.one_pass(normalise(IMAGES), number), alone(normalise(IMAGES)))


def test_images_take_the_passes_that_the_margins_say_and_their_logits_are_summed(written):
    module = load_packed(written[0])
    look = module.look(normalise(IMAGES))
    steps, ends = module.packed.steps, module.packed.ends
    for index in range(len(IMAGES)):
        image = IMAGES[index : index + 1]
        total, taken = module.one_pass(normalise(image)), 1
        while taken <= 3 and float(margins(total)[0]) < ends[taken - 1].margin:
            logits = module.one_pass(seen(image, taken), min(taken, 2))
            shift = shifts(steps)[taken - 1]
            total, taken = total * 2 ** max(shift, 0) + logits * 2 ** max(-shift, 0), taken + 1
        assert int(look.passes[index]) == taken
        assert torch.equal(look.logits[index], total[0])


def test_the_shares_of_a_tuning_are_those_of_the_images(written):
    path, tuning = written
    taken = load_packed(path).look(normalise(IMAGES)).passes
    assert [int((taken > number).sum()) for number in (1, 2, 3)] == [36, 24, 12]
    assert tuning.shares == (0.6, 0.4, 0.2)
    assert passes(load_packed(path), Split(IMAGES, LABELS)) == pytest.approx(tuning.passes)
    assert tuning.passes == pytest.approx((1, 0.6, 0.4 + 0.2))


def test_the_reference_gives_the_same_logits(written):
    module = load_packed(written[0])
    logits = module(normalise(IMAGES)).numpy()
    assert np.array_equal(predict(module.packed, IMAGES.numpy(), batch_size=7), logits)


def test_the_records_of_each_network_equal_its_counters(written):
    model = read(written[0])
    records = packed_operations(model)
    assert sum(record.storage_bits for record in records if record.rules != "deck") == model.payload_bits
    for number in range(3):
        _, counts = witness(model, IMAGES[:1].numpy(), network=number)
        done, claimed = Counter(), Counter()
        for each in counts:
            done += each.multiplications + each.additions
        for record in records:
            if record.network == number and record.rules != "deck":
                claimed.update(dict(record.multiplications))
                claimed.update(dict(record.additions))
        assert claimed == done


def test_a_choice_is_charged_in_every_pass_of_the_network_that_makes_it(three, written):
    both, alone = operations(read(written[0])), operations(three[0])
    mine = [op for op in both if op.network == 0]
    assert [op.name for op in mine[-2:]] == ["1.classifier", "1.classifier.choice"]
    bits = dict(mine[-1].additions)
    assert list(bits.values()) == [29]  # 3 C - 1
    more = sum(map(challenge_ops, mine)) - sum(map(challenge_ops, alone))
    assert more == pytest.approx(29 * next(iter(bits)) / 32)


@pytest.fixture(scope="module")
def measured(written) -> dict[str, Any]:
    return measure(written[0], load_packed(written[0]), Split(IMAGES, LABELS))


def test_both_rule_books_charge_each_network_for_the_images_that_it_sees(written, measured):
    path, tuning = written
    model = load_packed(path)
    found, ops = measured, operations(model)
    shares = tuning.passes
    flops = sum(shares[op.network] * deck_flops(op) for op in ops)
    assert found["deck"]["flops"] == int(flops)
    assert found["challenge"]["ops"] == pytest.approx(sum(shares[op.network] * challenge_ops(op) for op in ops))
    assert found["challenge"]["params"] == pytest.approx(model.packed.payload_bits / 32)
    assert found["cascade"]["images_percent"] == pytest.approx([100, 60, 40])
    assert found["flipped_images_percent"] == pytest.approx(20)
    assert found["macs"] == found["ptflops_macs"]
    assert found["test_accuracy_percent"] == pytest.approx(tuning.accuracy_percent)


def test_one_pass_is_every_network_on_every_image(written, measured):
    model = load_packed(written[0])
    found, ops = measured["one_pass"], operations(model)
    assert found["deck_score"] == deck_score(ops, [1, 1, 1]).score
    assert found["challenge_score"] == challenge_score(ops, [1, 1, 1]).score
    total = model.one_pass(normalise(IMAGES))
    for number, each in enumerate(model.packed.networks[:-1], 1):
        total = joined(total, model.one_pass(seen(IMAGES, number), number), model.packed.steps[each[-1]].logit_shift)
    assert found["test_accuracy_percent"] == pytest.approx(100 * float((total.argmax(1) == LABELS).double().mean()))


@pytest.mark.parametrize("loud_first", [True, False])
def test_logits_of_another_scale_are_brought_together_by_powers_of_two(three, tmp_path, loud_first):
    loud = three[1]
    *before, last = loud.steps
    weights = replace(last.weights, codes=(last.weights.codes // 16).astype(np.int8), bits=4)
    weights = replace(weights, accumulator_bits=int(weights.sums(before[-1]).bits.max()))
    quiet = decode(encode([*before, replace(last, weights=weights)], loud.spec, "integer", {}, class_names=CLASSES))
    models_in_turn = [loud, quiet] if loud_first else [quiet, loud]
    cascade = Cascade(models_in_turn, IMAGES, LABELS)
    tuning = cascade.tune([0.5, 0.3])
    equal = -4 if loud_first else 4
    assert equal - 4 <= tuning.logit_shifts[0] <= equal + 1
    model = cascade.write(tmp_path / "both", tuning)
    assert logit_ranges(model.steps)[2][1].max() < MOST_SUM
    logits = load_packed(tmp_path / "both")(normalise(IMAGES)).numpy()
    assert np.array_equal(predict(model, IMAGES.numpy()), logits)


def test_the_weight_of_the_first_network_is_the_one_with_most_right_answers(three):
    cascade = Cascade(three[:2], IMAGES, torch.zeros(len(IMAGES), dtype=torch.int64))
    cascade.labels = cascade.logits[1].argmax(1)  # the second network is always right
    tuning = cascade.tune([0.99, 0.0])
    going = margins(cascade.logits[0]) < tuning.margins[0]

    def right(shift: int) -> int:
        total = joined(cascade.logits[0][going], cascade.logits[1][going], shift)
        return int((total.argmax(1) == cascade.labels[going]).sum())

    (shift,) = tuning.logit_shifts
    assert all(right(shift) >= right(shift + more) for more in (1, 2, 3))
    assert right(shift) > right(shift + 3)


def test_without_a_share_for_the_last_network_nothing_is_seen_mirrored(three, tmp_path):
    cascade = Cascade(three[:2], IMAGES, LABELS)
    tuning = cascade.tune([0.5, 0.0])
    model = cascade.write(tmp_path / "m", tuning)
    assert tuning.margins[1] == 0 and model.flip_margin == 0 and tuning.passes == pytest.approx((1, 0.5))
    assert load_packed(tmp_path / "m").look(normalise(IMAGES)).passes.max() == 2


@pytest.mark.parametrize("shares", [[0.5], [0.2, 0.5], [1.0, 0.1], [0.5, -0.1]])
def test_shares_that_cannot_be_are_refused(three, shares):
    with pytest.raises(PackError, match="shares: must be 2 falling numbers from 0 to 1"):
        Cascade(three[:2], IMAGES, LABELS).tune(shares)


def test_a_network_that_no_image_reaches_is_refused(three):
    with pytest.raises(PackError, match="a network that no image reaches"):
        Cascade(three[:2], IMAGES, LABELS).tune([0.0, 0.0])


def test_what_cannot_be_joined_is_refused_in_one_line(three, written, tmp_path):
    half = network(tmp_path / "half", 0, method="half")
    hundred = network(tmp_path / "hundred", 0, classes=100)
    coarse = network(tmp_path / "coarse", 0, input_bits=5)
    for others, message in (
        ([], "needs two packed models"),
        (three[:1] * 16, "takes at most 16 packed models"),
        ([half], "has no integer logits"),
        ([hundred], "have other classes"),
        ([coarse], "keep other bits of a pixel"),
        ([read(written[0])], "cannot be part of another one"),
    ):
        with pytest.raises(PackError, match=message):
            join([three[0], *others])


def test_a_cascade_says_how_its_networks_pictures_were_fitted_which_must_be_the_same(three, tmp_path):
    stretched = [replace(model, metadata={FIT: "stretch"}) for model in three]
    cascade = Cascade(stretched[:2], IMAGES, LABELS)
    tuning = cascade.tune([0.5, 0.2])
    assert cascade.write(tmp_path / "both", tuning, cascade.claims(tuning)).metadata[FIT] == "stretch"
    for other in (three[1], replace(three[1], metadata={FIT: "pad"})):
        with pytest.raises(PackError, match=r"fitted in other ways \(data.image_fit\) cannot be joined"):
            join([stretched[0], other])


def test_a_file_of_one_network_is_written_as_before(three, written):
    for path, version in ((written[0], 4), (None, 3)):
        model = three[0]
        data = path.read_bytes() if path else encode(model.steps, model.spec, "integer", {}, class_names=CLASSES)
        assert f'\\"version\\":{version}'.encode() in data


def tampered(model: PackedModel, index: int, **changes) -> bytes:
    steps = list(model.steps)
    steps[index] = replace(steps[index], **changes)
    return encode(steps, model.spec, "integer", {})


def test_a_network_reads_nothing_of_another_one(written):
    model = read(written[0])
    second = model.networks[1]
    with pytest.raises(PackedFileError, match="from: must be a whole number from"):
        decode(tampered(model, second[1], inputs=(1,)))


def test_a_network_without_a_margin_before_another_one_is_refused(written):
    model = read(written[0])
    with pytest.raises(PackedFileError, match="must be the last, or have a margin for the next network"):
        decode(tampered(model, model.networks[0][-1], choice=None))


def test_a_sum_of_logits_that_needs_more_than_32_bits_is_refused(written):
    model = read(written[0])
    far = replace(model.ends[0].choice, logit_shift=31)
    with pytest.raises(PackedFileError, match="a sum of logits needs more than 32 bits"):
        decode(tampered(model, model.networks[0][-1], choice=far))


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "resnet"},
        {"name": "cascade"},
        {"name": "cascade", "networks": [{}]},
        {"name": "cascade", "networks": [1, 2, 3]},
    ],
)
def test_a_spec_that_does_not_name_the_networks_is_refused(written, spec):
    model = read(written[0])
    with pytest.raises(PackedFileError, match="its model spec"):
        decode(encode(list(model.steps), spec, "integer", {}))
