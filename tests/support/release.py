"""Whether this is the release's checkout: the tests of its own documents run there, and nowhere else.

On a branch with other params, or between two `dvc repro`, the numbers in README and docs/ are not those of metrics/.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from released import check_released

from micronet.errors import MicronetError
from micronet.params import read_yaml
from tests.support.places import ROOT


def is_here(root: Path = ROOT) -> bool:
    """Whether metrics/ describe the published model, and params.yaml is what made them."""
    try:
        check_released(root)
        params = read_yaml(root / "params.yaml")  # of YAML 1.2, as DVC reads it
        lock = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))
    except (MicronetError, OSError, ValueError, yaml.YAMLError):
        return False
    made = [stage.get("params", {}).get("params.yaml", {}) for stage in lock["stages"].values()]
    return all(params.get(section) == values for sections in made for section, values in sections.items())
