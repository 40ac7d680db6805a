"""Images of any shape and classes of any names: in the file, in everything that reads it, and within bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from micronet.compress.graph import read
from micronet.data.datasets import CLASSES
from micronet.data.images import normalise
from micronet.errors import MicronetError
from micronet.packed import checks
from micronet.packed.cascade import join
from micronet.packed.errors import InferenceError, PackedFileError, PackError
from micronet.packed.file import decode, encode
from micronet.packed.file import read as read_file
from micronet.packed.module import InputError, load_packed
from micronet.packed.packing import pack
from micronet.packed.reference import predict
from micronet.scoring.counting import operations
from micronet.scoring.records import macs
from tests.support.configs import quantize_config
from tests.support.hostile import opened, resigned
from tests.support.images import random_images
from tests.support.models import calibrated
from tests.support.packed import conv, linear, pool, tiles, tiny_files

NAMES = ("Katze", "großer Hund", "\u732b", "a b", "x" * 255)
QUANTIZE = quantize_config(multiplier_bits=14)


class Small(nn.Module):
    """conv -> relu -> mean -> linear, for images of any size."""

    def __init__(self, channels: int, classes: int, scale: float = 1.0):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.classifier, self.scale = nn.Conv2d(channels, 6, 3, stride=2), nn.Linear(6, classes), scale

    def forward(self, x):
        return self.classifier(F.relu(self.conv(x)).mean((2, 3))) * self.scale


def pixels(image: tuple[int, int, int]) -> torch.Tensor:
    return random_images(12, image=image)


def packed(path, image=(3, 32, 32), classes=5, quantize=QUANTIZE, scale=1.0, **named):
    prepared = calibrated(Small(image[0], classes, scale), quantize, pixels(image), image).eval()
    return prepared, pack(prepared, path, quantize=quantize, **named)


@pytest.mark.parametrize(
    ("method", "image"),
    [("lsq", (1, 28, 28)), ("lsq", (3, 64, 48)), ("lsq", (1, 8, 256)), ("half", (3, 9, 8)), ("fx_int8", (1, 28, 20))],
)
def test_a_network_of_images_of_any_shape_is_packed_with_it_and_computes_what_it_did(image, method, tmp_path):
    quantize = quantize_config(method=method, multiplier_bits=14)
    prepared, model = packed(tmp_path / "m", image, quantize=quantize)
    assert model.image == prepared.meta["image"] == image
    module, images = load_packed(tmp_path / "m"), normalise(pixels(image))
    logits = module(images)
    with torch.no_grad():
        wanted = prepared(images).double()
    scale = model.logit_scale
    assert scale is not None
    assert torch.corrcoef(torch.stack([wanted.flatten(), logits.flatten().double()]))[0, 1] > 0.99
    assert (logits * scale - wanted).abs().max() < 0.1 * wanted.abs().max()
    if method != "half":
        assert np.array_equal(predict(model, pixels(image).numpy()), logits.numpy())


def test_the_scale_of_the_logits_holds_what_multiplies_them_behind_the_last_layer(tmp_path):
    plain, scaled = (packed(tmp_path / "m", scale=scale, class_names=NAMES)[1].logit_scale for scale in (1.0, 0.125))
    assert plain is not None and scaled == pytest.approx(plain / 8)


def test_names_of_classes_are_held_and_what_no_terminal_shows_is_escaped(tmp_path):
    model = packed(tmp_path / "m", class_names=NAMES)[1]
    assert model.class_names == NAMES and read_file(tmp_path / "m").class_names == NAMES
    odd = ("a\nb", "\x1b[2J", "\udc80", "x" * 300, "ok")
    held = packed(tmp_path / "m", class_names=odd)[1].class_names
    assert held[:3] == (r"a\nb", r"\x1b[2J", r"\udc80") and len(held[3]) == 255 and held[4] == "ok"


def test_another_number_of_names_than_classes_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(PackError, match="tells 5 classes apart, and 2 names were given"):
        packed(tmp_path / "m", class_names=("a", "b"))
    assert not (tmp_path / "m").exists()


def test_two_classes_of_one_name_are_refused_by_the_reader_and_so_are_never_packed(tmp_path):
    model = packed(tmp_path / "m", class_names=NAMES)[1]
    same = (*NAMES[:-1], NAMES[0])
    data = encode(model.steps, model.spec, "integer", {}, class_names=same)
    with pytest.raises(PackedFileError) as caught:
        decode(data)
    assert str(caught.value) == f"classes: each needs a name of its own (got {checks.shown(NAMES[0])} twice)"
    (tmp_path / "m").unlink()
    with pytest.raises(PackError, match="a name of its own"):
        packed(tmp_path / "m", class_names=same)
    assert not (tmp_path / "m").exists()


def version(path) -> int:
    return opened(path.read_bytes())[0]["version"]


@pytest.mark.parametrize(
    ("image", "classes", "names", "expected", "read_back"),
    [
        ((3, 32, 32), 10, CLASSES, 3, CLASSES),
        ((3, 32, 32), 10, (), 5, ()),
        ((3, 32, 32), 7, (), 3, ()),
        ((3, 32, 32), 10, tuple(reversed(CLASSES)), 5, tuple(reversed(CLASSES))),
        ((3, 32, 32), 5, NAMES, 5, NAMES),
        ((3, 32, 40), 10, CLASSES, 5, CLASSES),
        ((1, 32, 32), 10, (), 5, ()),
    ],
)
def test_version_5_is_written_only_for_what_version_3_cannot_say(image, classes, names, expected, read_back, tmp_path):
    model = packed(tmp_path / "m", image, classes, class_names=names)[1]
    assert version(tmp_path / "m") == expected
    assert model.class_names == read_back and (model.logit_scale is None) == (expected == 3)
    again = encode(model.steps, model.spec, "integer", {}, class_names=model.class_names, logit_scale=model.logit_scale)
    assert again == (tmp_path / "m").read_bytes()


def test_a_cascade_holds_the_names_of_its_networks_which_must_be_the_same(tmp_path):
    one, two = (packed(tmp_path / "m", (1, 12, 9), class_names=NAMES)[1] for _ in range(2))
    cascade = decode(join([one, two]))
    assert (cascade.class_names, cascade.image, len(cascade.networks)) == (NAMES, (1, 12, 9), 2)
    assert cascade.logit_scale is None, "images that took other passes have sums of other scales"
    for other in (replace(two, class_names=("a",) * 5), packed(tmp_path / "m", (1, 9, 12), class_names=NAMES)[1]):
        with pytest.raises(PackError, match="other shapes, or whose classes have other names"):
            join([one, other])


def test_images_of_another_shape_are_refused_with_the_one_that_the_file_takes(tmp_path):
    model = packed(tmp_path / "m", (1, 12, 9))[1]
    with pytest.raises(InputError, match=r"takes images of \(N, 1, 12, 9\), got \(2, 3, 32, 32\)"):
        load_packed(tmp_path / "m")(torch.zeros(2, 3, 32, 32))
    with pytest.raises(InferenceError, match=r"images must be \(N, 1, 12, 9\) uint8"):
        predict(model, np.zeros((2, 1, 9, 12), np.uint8))


def test_a_network_is_read_and_priced_for_the_images_that_it_will_see():
    model = Small(1, 5)
    assert read(model, image=(1, 28, 20)).image == (1, 28, 20)
    assert macs(operations(model, (1, 28, 20))) == 6 * 9 * 13 * 9 + 30
    with pytest.raises(MicronetError, match=r"cannot take what comes to it, \(3, 32, 32\)"):
        operations(model)


# What a file may say


def refused(change, match: str) -> None:
    def made_new(header, table, payload):
        header["version"] = 5
        change(table)

    with pytest.raises(PackedFileError, match=match) as caught:
        decode(resigned(tiny_files()[0], made_new))
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 300


@pytest.mark.parametrize(
    "names", ["abc", ["a"], ["a"] * 4, ["a", "b", 1], ["a", "b", ""], ["a", "b", "c" * 256], ["a", "b", "\x1b[2J"], {}]
)
def test_classes_that_are_no_printable_names_one_a_logit_are_refused(names):
    refused(lambda table: table.update(classes=names), "^classes: ")


@pytest.mark.parametrize("scale", [0, -1.0, True, "1", 1e-31, 1e31, float("nan"), float("inf"), 10**400, [1.0]])
def test_a_scale_of_logits_that_is_no_number_above_0_is_refused(scale):
    refused(lambda table: table.update(logit_scale=scale), "^logit_scale: must be a number above 0")


@pytest.mark.parametrize(
    "shape", [[3, 32], [3, 32, 32, 1], [0, 8, 8], [3, -8, 8], [3, 8.0, 8], [3, 1025, 8], "3", None]
)
def test_an_image_that_is_none_is_refused(shape):
    refused(lambda table: table["steps"][0].update(shape=shape), "^step 0 .*(an image of|shape: must be)")


def test_what_is_new_in_version_5_is_refused_in_a_file_that_says_3():
    small = conv([[1, 2, 3]], shape=(1, 8, 8))
    data = encode(
        [replace(decode(tiny_files()[0]).steps[0], shape=(3, 8, 8)), small, replace(pool(1, 1), geometry=tiles(8)),
         linear([[1]], [0], 2, (np.zeros(1), np.full(1, 15 * 64)))],
        None, "integer", {},
    )  # fmt: skip
    assert decode(data).image == (3, 8, 8)
    with pytest.raises(PackedFileError, match="its input 'input0' is of version 5 of the format, the file says 3"):
        decode(resigned(data, lambda header, table, payload: header.update(version=3)))
    with pytest.raises(PackedFileError, match="has 1 networks, which version 4 does not hold"):
        decode(resigned(data, lambda header, table, payload: header.update(version=4)))
