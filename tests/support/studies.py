"""The studies: those of the repository after a change, and ones that run in seconds."""

from __future__ import annotations

import copy
import functools

from micronet import params
from micronet.training.reporting import Reporter
from studies import plan, run
from tests.support.places import ROOT

QUESTIONS = (
    "growth_rate grouping augmentation distillation teacher_size pruning bits optimizer schedule learning_rate "
    "weight_decay batch_size"
).split()
TINY = {
    "budgets": {
        "tiny": {
            "short": {"images": 200, "epochs": 2, "seeds": [0]},
            "shared": {"images": 200, "epochs": 1, "seeds": [0]},
        }
    },
    "networks": {
        "thin": {
            "model": {"name": "resnet", "blocks": [1, 1], "widths": [8, 16]},
            "images_per_second": 1000,
            "train": {"batch_size": 50, "learning_rate": 0.05},
        }
    },
    "shared": {
        "teacher": {"size": "shared", "variants": {"thin": {"network": "thin"}}},
        "base": {"size": "shared", "variants": {"thin": {"network": "thin"}}},
    },
    "studies": {
        "rates": {
            "question": "How fast?",
            "deck": "Fast.",
            "size": "short",
            "reference": "slow",
            "common": {"network": "thin"},
            "variants": {"broken": {"train": {"learning_rate": 1e9}}, "slow": {}},
        },
        "widths": {
            "question": "How wide?",
            "size": "short",
            "reference": "plain",
            "common": {"network": "thin"},
            "variants": {
                "plain": {},
                "taught": {"teacher": "thin", "temperature": 2.0, "alpha": 0.5},
                "pruned": {"start": "thin", "prune": {"method": "gradual", "amount": 0.5}},
                "bits_8_fx": {"start": "thin", "quantize": {"method": "fx_int8", "calibration_images": 50}},
                "bits_2": {"start": "thin", "quantize": {"method": "lsq", "weight_bits": 2, "calibration_images": 50}},
            },
        },
    },
}


@functools.cache
def _tree() -> dict:
    return params.read_yaml(ROOT / "studies/studies.yaml")


def planned(change=lambda tree: None, budget: str = "small") -> plan.Plan:
    """The plan of the real studies after a change."""
    changed = copy.deepcopy(_tree())
    change(changed)
    return plan.Plan(changed, {"budget": budget})


def a_run(group: str, variant: str, reporter: Reporter | None = None) -> run.Run:
    """A variant of the studies in the working directory, with seed 0."""
    return run.Run(plan.load(), group, variant, 0, reporter or Reporter())
