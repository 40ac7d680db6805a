"""What the studies plan: which variants, how long they take, what is a mistake, what DVC is told of them."""

from __future__ import annotations

import pytest
import yaml

from micronet import params
from studies import plan, sources
from tests.support.places import ROOT
from tests.support.studies import QUESTIONS, planned


def faults(change) -> list[str]:
    with pytest.raises(params.ParamsError) as caught:
        planned(change)
    return caught.value.faults


def test_there_is_a_study_for_every_question():
    assert list(planned().file.studies) == QUESTIONS


def test_the_small_budget_takes_at_most_four_hours():
    assert 1 < sum(planned().seconds().values()) / 3600 <= 4


def test_the_estimate_grows_with_the_images():
    def more(tree):
        tree["budgets"]["small"]["resnet"]["images"] *= 2

    assert planned(more).seconds()["augmentation"] > 1.5 * planned().seconds()["augmentation"]


def test_the_full_budget_is_sound_and_longer():
    assert sum(planned(budget="full").seconds().values()) > 20 * sum(planned().seconds().values())


def test_dense_networks_are_trained_only_where_the_question_is_about_them():
    found = planned()
    dense = {name for name, group in found.settings.items() for one in group.values() if one.model["name"] != "resnet"}
    assert dense == {"growth_rate", "grouping"}


def test_every_study_has_the_variants_that_the_deck_names():
    settings = planned().settings
    assert [one.model["growth_rate"] for one in settings["growth_rate"].values()] == [12, 9, 6, 4]
    assert [(one.quantize.method, one.quantize.weight_bits) for one in settings["bits"].values() if one.quantize] == [
        ("half", 8),
        ("lsq", 8),
        ("fx_int8", 8),
        ("lsq", 4),
        ("lsq", 3),
        ("lsq", 2),
        ("binary_connect", 1),
    ]
    assert {one.train.weight_decay for one in settings["weight_decay"].values()} == {5e-4, 1e-4, 0.0}
    methods = {one.prune.method for one in settings["pruning"].values() if one.prune}
    assert methods == {"one_shot", "iterative", "gradual", "soft"}


def test_a_cell_that_no_channels_fit_is_listed_with_the_reason():
    found = planned()
    assert found.absent["grouping"]["stem_2"] == (
        "groups.stem: 2 does not divide the channels of growth_rate 6; 1, 3 would"
    )
    assert "stem_2" not in found.variants("grouping") and "stem_3" in found.variants("grouping")


def test_a_misspelt_model_is_a_mistake_and_no_absent_cell():
    def misspell(tree):
        tree["studies"]["grouping"]["variants"]["stem_3"] = {"model": {"groups": {"stam": 3}}}

    assert faults(misspell) == [
        "studies/studies.yaml: grouping.variants.stem_3.model: groups.stam: no such key (there are bottleneck, "
        "transition, stem)"
    ]


def test_a_temperature_without_a_teacher_is_refused():
    def drop(tree):
        del tree["studies"]["distillation"]["variants"]["t4_a09"]["teacher"]

    assert faults(drop) == [
        "studies/studies.yaml: distillation.variants.t4_a09: temperature and alpha need a teacher "
        "(there are thin, wide, wider)"
    ]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"teacher": "huge", "temperature": 1.0}, "teacher: there is no 'huge' (there are thin, wide, wider)"),
        ({"teacher": "wide", "temperature": 0.0}, "temperature: Input should be greater than 0"),
        ({"prune": {"method": "guess", "amount": 0.5}}, "method: Input should be 'one_shot'"),
        ({"network": "resnet18"}, "network: there is no 'resnet18' (there are thin,"),
        ({"train": {"epoch": 3}}, "epoch: no such key"),
        ({"speed": 3}, "speed: no such key"),
    ],
)
def test_a_faulty_variant_is_named_in_one_line(change, text):
    def put(tree):
        tree["studies"]["distillation"]["variants"]["t1_a05"] = change

    (line,) = faults(put)
    assert line.startswith("studies/studies.yaml: ") and "t1_a05" in line and text in line


def test_an_unknown_budget_lists_those_that_exist():
    with pytest.raises(params.ParamsError, match=r"there is no 'huge' \(there are small, full\)"):
        planned(budget="huge")


def test_a_changed_setting_changes_the_digest_of_its_own_variant_only():
    def change(tree):
        tree["studies"]["pruning"]["variants"]["soft_80"]["prune"]["amount"] = 0.81

    before, after = planned().document["digests"], planned(change).document["digests"]
    changed = [(group, name) for group in before for name in before[group] if before[group][name] != after[group][name]]
    assert changed == [("pruning", "soft_80")]


def test_the_plan_in_the_repository_is_that_of_its_studies():
    assert (
        params.read_yaml(ROOT / "studies/plan.yaml")
        == plan.load(ROOT / "studies/studies.yaml", ROOT / "studies/params.yaml").document
    )


def test_dvc_runs_every_study_and_every_shared_network():
    stages = yaml.safe_load((ROOT / "studies/dvc.yaml").read_text())["stages"]
    found = planned()
    assert list(stages) == ["code", *found.groups, "collect"]
    for name in found.groups:
        assert stages[name]["matrix"] == {"variant": f"${{variants.{name}}}", "seed": f"${{seeds.{name}}}"}
        wanted = {f"teacher/{one.teacher}-0" for one in found.settings[name].values() if one.teacher}
        wanted |= {f"base/{one.start}-${{item.seed}}" for one in found.settings[name].values() if one.start}
        assert {dep for dep in stages[name]["deps"] if "runs/" in dep} == {
            f"metrics/studies/runs/{need}.json" for need in wanted
        }


def test_dvc_knows_the_code_that_decides_the_results():
    stages = yaml.safe_load((ROOT / "studies/dvc.yaml").read_text())["stages"]
    deps, found = stages["code"]["deps"], sources.digests(planned())
    assert [name for name in found if not any(name == dep or name.startswith(f"{dep}/") for dep in deps)] == []
    assert {"stages/dependencies.py", "studies/plan.py", "studies/sources.py", "studies/studies.yaml"} <= set(deps)
    assert not any(out for stage in stages.values() for out in stage["outs"] if isinstance(out, str))  # no cached ones


def test_what_is_planned_and_said_is_no_code_of_a_result():
    found = sources.digests(planned())
    assert {"studies/run.py", "micronet/training/loop.py", "micronet/packed/packing.py"} <= set(found)
    assert not {"studies/plan.py", "studies/sources.py", "micronet/training/reporting.py"} & set(found)
    assert not [name for name in found if name.startswith("stages/")]
