"""The architectures: their sizes, their specs and what a spec is refused for."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

import models
from models.layers import Interleave
from tests.support.models import DENSENET, MOBILENET, meta
from tests.support.thinning import thinned

PARAMETERS = {
    "densenet_cifar": 1_000_618,
    "densenet_small": 569_566,
    "densenet_tiny": 259_114,
    "densenet_nano": 119_146,
    "densenet121": 6_956_298,
    "densenet169": 12_493_322,
    "densenet161": 26_482_378,
    "densenet201": 18_104_330,
    "resnet18": 11_173_962,
}
SMALL = [
    DENSENET,
    {
        "name": "densenet",
        "blocks": [2, 2],
        "growth_rate": 6,
        "groups": {"bottleneck": 3, "transition": 2, "stem": 3},
        "interleave": {"bottleneck": True, "transition": True},
        "classes": 7,
    },
    {"name": "resnet", "blocks": [1, 2], "widths": [4, 8]},
    {"name": "convnet", "widths": [8, 30, 4]},
    MOBILENET,
    {
        "name": "mobilenet",
        "blocks": [1, 2],
        "widths": [4, 8],
        "strides": [2, 1],
        "expansion": [1, 3],
        "stem": 6,
        "stem_stride": 2,
    },
]


named = functools.cache(meta)  # hundreds of layers, of which a test changes none


def refusal(spec) -> str:
    with pytest.raises(models.SpecError) as error:
        models.check(spec)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", thinned(PARAMETERS, 4))
def test_a_named_model_has_its_published_number_of_parameters(name):
    assert sum(parameter.numel() for parameter in named(name).parameters()) == PARAMETERS[name]


def test_every_name_is_covered_here():
    assert set(models.NAMED) == set(PARAMETERS)


@pytest.mark.parametrize("spec", SMALL)
def test_images_in_logits_out(spec):
    logits = models.build(spec)(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, spec.get("classes", 10)) and logits.dtype == torch.float32


@pytest.mark.parametrize("spec", [*SMALL, *thinned(PARAMETERS, 8)])
def test_the_spec_of_a_model_builds_the_same_architecture(spec):
    model = named(spec) if isinstance(spec, str) else meta(spec)
    again = meta(json.loads(json.dumps(model.spec)))
    assert again.spec == model.spec and str(again) == str(model)


@pytest.mark.parametrize("spec", SMALL)
def test_fx_traces_a_model_to_the_same_function(spec):
    model, images = models.build(spec).eval(), torch.randn(2, 3, 32, 32)
    assert torch.equal(fx.symbolic_trace(model)(images), model(images))


def test_a_name_with_overrides_keeps_the_rest_of_its_settings():
    spec = models.normalise({"name": "densenet_nano", "groups": {"bottleneck": 4}, "classes": 100})
    assert spec["growth_rate"] == 4 and spec["blocks"] == [6, 12, 24, 16] and spec["classes"] == 100
    assert spec["groups"] == {"bottleneck": 4, "transition": 1, "stem": 1}


def test_normalising_leaves_the_named_specs_as_they_are():
    before = json.dumps(models.NAMED)
    models.normalise("densenet_nano")["blocks"].append(1)
    assert json.dumps(models.NAMED) == before


def test_a_dense_layer_puts_its_input_first():
    layer = models.build(SMALL[0]).eval().blocks[0][0]
    x = torch.randn(1, 8, 4, 4)
    out = layer(x)
    assert out.shape[1] == 12 and torch.equal(out[:, :8], x)


def test_the_deck_densenet_groups_at_its_three_places():
    spec = {"name": "densenet_cifar", "groups": {"bottleneck": 3, "transition": 6, "stem": 3}}
    model = meta(spec)
    assert model.stem.conv.groups == 3
    assert {layer.conv1.groups for block in model.blocks for layer in block} == {1}
    assert {layer.conv2.groups for block in model.blocks for layer in block} == {3}
    assert {transition.conv.groups for transition in model.transitions} == {6}


def test_convolutions_start_with_a_standard_deviation_of_kaiming_fan_out():
    weight = models.build("densenet121").blocks[0][0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.02)


def test_a_residual_block_projects_only_where_the_shape_changes():
    model = meta({"name": "resnet", "blocks": [2, 1], "widths": [8, 8]})
    assert [block.shortcut is None for stage in model.stages for block in stage] == [True, True, False]


def test_fitting_makes_the_first_layer_of_a_convnet_white():
    model = models.build({"name": "convnet", "widths": [8]})
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.avg_pool2d(torch.randn(200, 3, 40, 40, generator=generator), 9, 1)
    models.fit(model, smooth)
    patches = torch.nn.functional.conv2d(smooth, model.whiten.weight[:12]).transpose(0, 1).flatten(1)
    # The regulariser leaves the least directions below 1; none is correlated with another.
    covariance = patches @ patches.T / patches.shape[1]
    assert torch.equal(model.whiten.weight[12:], -model.whiten.weight[:12])
    assert covariance.diagonal().max().item() == pytest.approx(1, abs=0.05)
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-3
    assert not model.whiten.weight.requires_grad


def test_a_narrowed_convnet_is_the_wide_one_without_the_channels_that_nobody_reads():
    wide = models.build({"name": "convnet", "widths": [6, 5]})
    layers = [layer for block in wide.blocks for layer in (block.conv1, block.conv2)]
    with torch.no_grad():
        for norm in (norm for block in wide.blocks for norm in (block.norm1, block.norm2)):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2.0)
        for layer, reader in zip(layers, [*layers[1:], wide.classifier], strict=True):
            reader.weight[:, [0, layer.out_channels - 2]] = 0  # two channels of every layer go nowhere
    narrow = models.narrowed(wide, {"name": "convnet", "widths": [4, 3]})
    images = torch.randn(4, 3, 32, 32)
    assert narrow.spec == models.normalise({"name": "convnet", "widths": [4, 3]})
    assert [block.conv2.weight.shape[:2] for block in narrow.blocks] == [(4, 4), (3, 3)]
    assert torch.allclose(narrow.eval()(images), wide.eval()(images), atol=1e-5)


def test_only_a_convnet_of_fewer_channels_is_made_of_another():
    wide = models.build({"name": "convnet", "widths": [6, 5]})
    assert models.narrowed(wide, wide.spec) is wide
    for spec in (
        {"name": "convnet", "widths": [7, 5]},
        {"name": "convnet", "widths": [6]},
        {"name": "convnet", "widths": [6, 5], "classes": 100},
        {"name": "resnet", "blocks": [1, 1], "widths": [6, 5]},
    ):
        assert not models.narrows(spec, wide.spec)
        with pytest.raises(models.SpecError, match="cannot start from"):
            models.narrowed(wide, spec)
    resnet = models.build({"name": "resnet", "blocks": [1], "widths": [4]})
    assert models.narrowed(resnet, resnet.spec) is resnet and not models.narrows(
        {"name": "resnet", "blocks": [1], "widths": [2]}, resnet.spec
    )


def test_fitting_leaves_other_models_as_they_are():
    model = models.build(SMALL[2])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    models.fit(model, torch.randn(4, 3, 32, 32))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@given(st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_interleaving_gives_group_g_the_channels_c_with_c_mod_groups_equal_g(groups, members):
    channels = groups * members
    x = torch.arange(channels).view(1, channels, 1, 1).expand(2, channels, 2, 3)
    out = Interleave(groups)(x)
    assert out.shape == x.shape
    for group, chunk in enumerate(out[0, :, 0, 0].split(members)):
        assert chunk.tolist() == list(range(group, channels, groups))


def test_interleaved_groups_see_other_channels_than_contiguous_ones():
    def sees(interleave: bool) -> list[int]:
        spec = {"name": "densenet", "blocks": [1, 1], "growth_rate": 4, "groups": {"bottleneck": 2}}
        layer = models.build(spec | {"interleave": {"bottleneck": interleave}}).blocks[0][0].eval()
        x = torch.ones(1, 16, 1, 1, requires_grad=True)
        grouped = layer.conv2(layer.interleave(x) if interleave else x)
        grouped[0, 0, 0, 0].backward()
        return x.grad.flatten().nonzero().flatten().tolist()

    assert sees(False) == list(range(8)) and sees(True) == list(range(0, 16, 2))


def test_an_unknown_name_lists_those_that_exist():
    message = refusal("densenet_pico")
    assert "densenet_pico" in message and all(name in message for name in [*models.NAMED, "densenet", "resnet"])


@pytest.mark.parametrize(
    ("place", "groups", "possible"),
    [("bottleneck", 3, "1, 2, 4"), ("transition", 5, "1, 2, 4, 8"), ("stem", 2, "1")],
)
def test_groups_that_do_not_divide_are_refused_with_those_that_would(place, groups, possible):
    spec = {"name": "densenet", "blocks": [2, 6, 1], "growth_rate": 4}
    message = refusal(spec | {"groups": {place: groups}})
    assert message.startswith(f"groups.{place}: {groups}") and message.endswith(f"; {possible} would")
    for count in possible.split(", "):
        meta(spec | {"groups": {place: int(count)}})


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(1, 8),
    st.fixed_dictionaries({place: st.integers(1, 8) for place in ("bottleneck", "transition", "stem")}),
)
@settings(max_examples=30, deadline=None)
def test_what_check_accepts_builds_and_what_it_refuses_torch_refuses_too(blocks, growth_rate, groups):
    from models.densenet import DenseNet, DenseNetSettings, Groups

    spec = {"name": "densenet", "blocks": blocks, "growth_rate": growth_rate, "groups": groups}
    if len(blocks) == 1:
        groups["transition"] = 1
    try:
        models.check(spec)
    except models.SpecError:
        unchecked = spec | {"groups": Groups(**groups)}
        with pytest.raises(ValueError), torch.device("meta"):
            DenseNet(DenseNetSettings.model_construct(**unchecked))
    else:
        assert meta(spec)(torch.zeros(1, 3, 32, 32, device="meta")).shape == (1, 10)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (3, "a model is a name"),
        ({"blocks": [1]}, "a model is a name"),
        ({"name": "resnet18", "width": 3}, "width: no such key (resnet18 takes stem_stride, blocks, widths, classes)"),
        ({"name": "resnet", "blocks": [1]}, "widths: is missing"),
        ({"name": "resnet", "blocks": [1, 1], "widths": [4]}, "widths: must be 2 numbers"),
        ({"name": "resnet18", "classes": True}, "classes: must be a whole number (got True)"),
        ({"name": "resnet18", "classes": 0}, "classes: must be >= 1 (got 0)"),
        ({"name": "resnet18", "blocks": "2"}, "blocks: must be a list (got '2')"),
        ({"name": "resnet18", "blocks": [1] * 7, "widths": [8] * 7}, "blocks: must have at most 6 items (got 7)"),
        ({"name": "mobilenet", "blocks": [1], "widths": [4], "expansion": 0}, "expansion: must be >= 1 (got 0)"),
        ({"name": "mobilenet", "blocks": [1], "widths": [4], "expansion": [2, 2]}, "expansion: must be 1 numbers"),
        (
            {"name": "mobilenet", "blocks": [1, 1], "widths": [4, 4], "strides": [2, 3]},
            "strides.1: must be <= 2 (got 3)",
        ),
        ({"name": "mobilenet", "blocks": [1, 1], "widths": [4, 4], "strides": [2]}, "strides: must be 2 numbers"),
        ({"name": "mobilenet", "blocks": [1], "widths": [4], "stem_stride": 4}, "stem_stride: must be <= 2 (got 4)"),
        ({"name": "convnet", "widths": [8] * 5}, "widths: must have at most 4 items (got 5)"),
        ({"name": "densenet_nano", "growth_rate": 4.0}, "growth_rate: must be a whole number (got 4.0)"),
        ({"name": "densenet_nano", "growth_rate": 10**9}, "growth_rate: must be <= 128 (got 1000000000)"),
        ({"name": "densenet_nano", "groups": 2}, "groups: must be a section with keys (got 2)"),
        (
            {"name": "densenet_nano", "groups": {"head": 2}},
            "groups.head: no such key (there are bottleneck, transition, stem)",
        ),
        ({"name": "densenet_nano", "groups": {"stem": 0}}, "groups.stem: must be >= 1 (got 0)"),
        ({"name": "densenet", "blocks": [1], "growth_rate": 4, "groups": {"transition": 2}}, "groups.transition: a"),
        (
            {"name": "densenet_nano", "interleave": {"stem": 1}},
            "interleave.stem: must be true or false (got 1)",
        ),
        ({"name": "densenet_nano", "interleave": {"bottleneck": True}}, "interleave.bottleneck: needs groups"),
    ],
)
def test_a_wrong_spec_is_refused_in_one_line(spec, message):
    assert refusal(spec).startswith(message)


@pytest.mark.parametrize(
    ("strides", "stem_stride", "sides"),
    [
        ([1, 2, 2], 1, [32, 16, 8]),
        ([1, 2, 2], 2, [16, 8, 4]),
        ([2, 1, 2], 1, [16, 16, 8]),
        ([1, 1, 2], 1, [32, 32, 16]),
    ],
)
def test_a_mobilenet_halves_the_map_where_it_is_told_to(strides, stem_stride, sides):
    spec = {"name": "mobilenet", "blocks": [1, 2, 1], "widths": [4, 6, 8], "expansion": [1, 2, 3], "stem": 5}
    model = models.build(spec | {"strides": strides, "stem_stride": stem_stride})
    inner = [stage[0].expand.out_channels for stage in model.stages]
    assert inner == [5, 4 * 2, 6 * 3] and model.stem.out_channels == 5
    maps = []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, inputs, output: maps.append(output.shape[-1]))
    model.eval()(torch.zeros(1, 3, 32, 32))
    assert maps == sides
