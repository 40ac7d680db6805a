"""What the studies run: checks `studies/studies.yaml` and `studies/params.yaml`, writes `studies/plan.yaml`.

The plan is what `studies/dvc.yaml` fills its matrix with: the variants and seeds of each study at the chosen budget,
and a digest of each variant's full settings, so that DVC reruns a variant exactly when its own settings change.
Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import models  # noqa: E402 - the lines above make it importable
from micronet.files import write_atomically  # noqa: E402
from micronet.params import (  # noqa: E402
    Distillation,
    Engine,
    ParamsError,
    Positive,
    PositiveCount,
    Prune,
    Quantize,
    Section,
    Train,
    read_yaml,
)

STUDIES, BUDGET, PLAN = Path("studies/studies.yaml"), Path("studies/params.yaml"), Path("studies/plan.yaml")
RUNS = Path("metrics/studies/runs")
VALIDATION_IMAGES = 5000

# Seconds that a run costs beside its training (DVC, starting torch, reading images), and by how much quantizers slow
# training down (measured); a forward pass is a third of a training step. Only the estimate uses them.
START_SECONDS, QUANTIZER_FACTOR, FORWARD_SHARE = 10.0, 1.5, 1 / 3


class Size(Section):
    """How long a run of a budget is."""

    images: PositiveCount
    epochs: PositiveCount
    seeds: list[int] = Field(min_length=1)


class Network(Section):
    """An architecture and how it is usually trained."""

    model: dict[str, Any]
    images_per_second: Positive
    train: dict[str, Any] = {}


class Variant(Section):
    """How one answer differs from what its study has in common."""

    network: str | None = Field(default=None, description="one of `networks`")
    model: dict[str, Any] = Field(default={}, description="on top of the network's")
    train: dict[str, Any] = Field(default={}, description="on top of the network's and the study's")
    start: str | None = Field(default=None, description="one of `shared.base`, of the same seed")
    teacher: str | None = Field(default=None, description="one of `shared.teacher`")
    temperature: float | None = None
    alpha: float | None = None
    prune: dict[str, Any] | None = None
    quantize: dict[str, Any] | None = None
    weight_bits: Literal[16, 32] = Field(default=16, description="what an unquantized network is priced at")
    absent: str | None = Field(default=None, description="why this cell of a grid does not exist")


class Shared(Section):
    """Networks that variants start from or learn from."""

    size: str
    common: Variant = Variant()
    variants: dict[str, Variant] = Field(min_length=1)


class Study(Shared):
    """One question."""

    question: str
    deck: str | None = Field(default=None, description="what the deck claims; none: nothing")
    reference: str = Field(description="the variant that the others are compared with")


class File(Section):
    """`studies.yaml`."""

    budgets: dict[str, dict[str, Size]]
    networks: dict[str, Network]
    shared: dict[str, Shared]
    studies: dict[str, Study]


class Chosen(Section):
    """`params.yaml` of the studies."""

    budget: str
    engine: Engine = Engine()


class Settings(Section):
    """All that decides the result of a variant, but for the seed, the code and the data."""

    network: str
    model: dict[str, Any]
    images: int
    epochs: int
    train: Train
    start: str | None
    teacher: str | None
    distillation: Distillation | None
    prune: Prune | None
    quantize: Quantize | None
    weight_bits: int
    engine: Engine

    def digest(self) -> str:
        """A short sha256. What only says how the machine is used and changes no result is left out."""
        tree = self.model_dump(mode="json", exclude={"network": True, "engine": {"save_every_seconds"}})
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def _merged(*trees: dict[str, Any]) -> dict[str, Any]:
    """The trees laid over each other, sections key by key; later ones win."""
    result: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = _merged(result[key], value) if both else value
    return result


def _lines(where: str, error: ValidationError) -> list[str]:
    """One line a fault of a section."""
    lines = []
    for item in error.errors():
        path = ".".join([where, *map(str, item["loc"])]).lstrip(".")
        text = "no such key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        lines.append(f"{STUDIES}: {path}: {text}")
    return lines


class Plan:
    """The studies at one budget. Making one checks everything. Raises `ParamsError` with a line a fault."""

    def __init__(self, tree: Any, chosen: Any):
        try:
            self.file = File.model_validate(tree)
            self.chosen = Chosen.model_validate(chosen)
        except ValidationError as error:
            path = STUDIES if error.title == "File" else BUDGET
            raise ParamsError([line.replace(str(STUDIES), str(path), 1) for line in _lines("", error)]) from None
        self.budget = self.chosen.budget
        if self.budget not in self.file.budgets:
            raise ParamsError(
                [f"{BUDGET}: budget: there is no {self.budget!r} (there are {', '.join(self.file.budgets)})"]
            )
        self.sizes = self.file.budgets[self.budget]
        self.groups: dict[str, Shared] = {**self.file.shared, **self.file.studies}
        self.settings: dict[str, dict[str, Settings]] = {}
        self.absent: dict[str, dict[str, str]] = {}
        faults: list[str] = []
        for name, group in self.groups.items():
            self.settings[name], self.absent[name] = {}, {}
            if group.size not in self.sizes:
                faults.append(f"{STUDIES}: {name}.size: budget {self.budget} has no {group.size!r}")
                continue
            for variant in group.variants:
                try:
                    self._resolve(name, variant)
                except ParamsError as error:
                    faults += error.faults
            if isinstance(group, Study) and group.reference not in self.settings[name]:
                faults.append(f"{STUDIES}: {name}.reference: {group.reference!r} is no variant that can run")
        if faults:
            raise ParamsError(faults)

    def _resolve(self, group: str, name: str) -> None:
        """Puts a variant's settings into `settings`, or the reason why it cannot exist into `absent`."""
        where = f"{group}.variants.{name}"

        def fault(text: str, key: str = "") -> ParamsError:
            return ParamsError([f"{STUDIES}: {where}{'.' + key if key else ''}: {text}"])

        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise fault("a name takes small letters, digits and _")
        shared = self.groups[group]
        layers = [shared.common, shared.variants[name]]
        tree = _merged(*(layer.model_dump(exclude_unset=True) for layer in layers))
        variant = Variant.model_validate(tree)
        if variant.absent:
            self.absent[group][name] = variant.absent
            return
        if variant.network not in self.file.networks:
            raise fault(f"there is no {variant.network!r} (there are {', '.join(self.file.networks)})", "network")
        network = self.file.networks[variant.network]
        spec = _merged(network.model, variant.model)
        try:
            spec = models.normalise(spec)
        except models.SpecError as error:
            # A cell of the grid that no channels fit is an answer of the study; anything else is a mistake.
            if variant.model and str(error).startswith(("groups.", "interleave.")) and "no such key" not in str(error):
                self.absent[group][name] = str(error)
                return
            raise fault(str(error), "model") from None
        for key, kind in (("teacher", "teacher"), ("start", "base")):
            value, known = getattr(variant, key), list(self.file.shared[kind].variants) if kind in self.groups else []
            if value is not None and value not in known:
                raise fault(f"there is no {value!r} (there are {', '.join(known) or 'none'})", key)
        if variant.start is not None:
            base = self.settings["base"].get(variant.start)
            if base is None or base.model != spec:
                raise fault("its network has another architecture than this variant's", "start")
        soft = {key: getattr(variant, key) for key in ("temperature", "alpha") if getattr(variant, key) is not None}
        if soft and variant.teacher is None:
            known = ", ".join(self.file.shared["teacher"].variants) if "teacher" in self.file.shared else "none"
            raise fault(f"{' and '.join(soft)} need a teacher (there are {known})")
        if variant.prune is not None and variant.quantize is not None:
            raise fault("either prune or quantize")
        size = self.sizes[shared.size]
        try:
            layered = _merged(network.train, variant.train, {"epochs": size.epochs})
            train = Train.model_validate(layered)
            prune = None if variant.prune is None else Prune.model_validate({**variant.prune, "train": train})
            quantize = (
                None if variant.quantize is None else Quantize.model_validate({**variant.quantize, "train": train})
            )
            distillation = Distillation.model_validate(soft) if variant.teacher is not None else None
        except ValidationError as error:
            raise ParamsError(_lines(where, error)) from None
        self.settings[group][name] = Settings(
            network=variant.network,
            model=spec,
            images=size.images,
            epochs=size.epochs,
            train=train,
            start=variant.start,
            teacher=variant.teacher,
            distillation=distillation,
            prune=prune,
            quantize=quantize,
            weight_bits=variant.weight_bits,
            engine=self.chosen.engine,
        )

    def variants(self, group: str) -> list[str]:
        """The variants that can run. Raises `ParamsError` for an unknown study, naming those that exist."""
        self.check(group)
        return list(self.settings[group])

    def seeds(self, group: str) -> list[int]:
        return self.sizes[self.groups[group].size].seeds

    def check(self, group: str, variant: str | None = None) -> None:
        """Raises `ParamsError` for a study or variant that does not exist, naming those that do."""
        if group not in self.groups:
            raise ParamsError([f"there is no study {group!r} (there are {', '.join(self.file.studies)})"])
        if variant is not None and variant not in self.settings[group]:
            if variant in self.absent[group]:
                raise ParamsError([f"{group}: {variant} cannot exist: {self.absent[group][variant]}"])
            known = ", ".join(self.settings[group])
            raise ParamsError([f"{group}: there is no variant {variant!r} (there are {known})"])

    @cached_property
    def document(self) -> dict[str, Any]:
        """The content of `plan.yaml`. No key of params.yaml may stand in it: DVC reads both into one."""
        return {
            "studies": list(self.file.studies),
            "variants": {group: list(found) for group, found in self.settings.items()},
            "seeds": {group: self.seeds(group) for group in self.groups},
            "digests": {
                group: {name: settings.digest() for name, settings in found.items()}
                for group, found in self.settings.items()
            },
        }

    def seconds(self) -> dict[str, float]:
        """How long each study takes on 2 CPU cores, from measured throughputs. What two studies share counts once."""
        seen: set[tuple[str, int]] = set()
        totals: dict[str, float] = {}
        for group, found in self.settings.items():
            totals[group] = 0.0
            for settings in found.values():
                for seed in self.seeds(group):
                    key = (settings.digest(), seed)
                    new = group in self.file.shared or key not in seen
                    totals[group] += START_SECONDS + (self._training_seconds(settings) if new else 0.0)
                    if group not in self.file.shared:
                        seen.add(key)
        return totals

    def _training_seconds(self, settings: Settings) -> float:
        speed = self.file.networks[settings.network].images_per_second
        images = settings.images * settings.epochs
        seconds = images / speed * (QUANTIZER_FACTOR if settings.quantize else 1.0)
        if settings.teacher:
            network = self.groups["teacher"].variants[settings.teacher].network
            seconds += images * FORWARD_SHARE / self.file.networks[network].images_per_second
        # a packed model is measured in exact arithmetic, which is slower than a training step
        return seconds + VALIDATION_IMAGES / speed * (2.0 if settings.quantize else FORWARD_SHARE)


class _Dumper(yaml.SafeDumper):
    """YAML without anchors, so that a change of one study shows in its own line only."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def load(studies: Path = STUDIES, budget: Path = BUDGET) -> Plan:
    """Reads and checks both files. Raises `ParamsError`, a line a fault."""
    return Plan(read_yaml(studies), read_yaml(budget))


def forget_failures() -> list[Path]:
    """Removes the records of runs that failed, so that DVC tries them again. A result is never removed."""
    records = [path for path in sorted(RUNS.glob("*/*.json")) if "failure" in json.loads(path.read_text("utf-8"))]
    for path in records:
        path.unlink()
    return records


def main(argv: list[str] | None = None) -> int:
    """Checks the studies and writes studies/plan.yaml; exit code 2 and one line a fault."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("study", nargs="*", help="check that these exist")
    parser.add_argument("--retry", action="store_true", help="forget which runs failed, so that they run again")
    arguments = parser.parse_args(argv)
    try:
        plan = load()
        for study in arguments.study:
            if study not in plan.file.studies:
                raise ParamsError([f"there is no study {study!r} (there are {', '.join(plan.file.studies)})"])
    except ParamsError as error:
        print(error, file=sys.stderr)
        return 2
    text = f"# Budget {plan.budget}. Written by `python studies/plan.py`, read by studies/dvc.yaml.\n"
    text += yaml.dump(plan.document, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120)
    if not PLAN.is_file() or PLAN.read_text(encoding="utf-8") != text:
        write_atomically(PLAN, text)
    if arguments.retry:
        forget_failures()
    return 0


if __name__ == "__main__":
    sys.exit(main())
