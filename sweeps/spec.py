"""A sweep's spec, `sweeps/NAME.yaml`: which variants of which params, with which seeds, at which budget.

A patch says how params differ. `prune: {amount: 0.8}` is merged into the existing params, key by key; a dotted key, as
in `student.model: {...}`, replaces the existing value. Nothing here imports torch or ray.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from micronet.errors import shown
from micronet.faults import faults
from micronet.params import Epochs, ParamsError, read_yaml
from micronet.pipeline import MADE_OF, TRAINING_STAGES
from micronet.scoring.books import BOOKS
from micronet.sections import Positive, PositiveCount, Section, Share

ROOT = Path(__file__).resolve().parents[1]
TRAINED = MADE_OF["quantized"]  # sections that have `train`
LAST = TRAINING_STAGES  # what can be measured without the test set
MOST_RUNS = 100_000  # variants times seeds; a slip in a grid costs an error line, not a night
NAME = r"[A-Za-z0-9][A-Za-z0-9_+=,-]*(\.[A-Za-z0-9_+=,-]+)*"  # also part of a file and branch name


def _named(said: str) -> str:
    """A name that is valid in a path and in a branch. Raises ValueError."""
    if not re.fullmatch(NAME, said) or len(said) > 100 or said.endswith(".lock"):
        raise ValueError(f"must be a name of letters, digits and _+=,.- (got {shown(repr(said), 40)})")
    return said


def _varied(said: Any) -> Any:
    """Patches by name, or a list of patches. Raises ValueError."""
    if isinstance(said, dict):
        for name in said:
            _named(str(name))
    if not isinstance(said, dict | list) or not said:
        raise ValueError("must be sections of patches by their names, or a list of patches")
    patches = said.items() if isinstance(said, dict) else enumerate(said)
    for name, patch in patches:
        if not isinstance(patch, dict) or any(not isinstance(key, str) for key in patch):
            raise ValueError(f"{name}: must be a patch of params, as in {{prune: {{amount: 0.8}}}}")
    return said


def _book(said: str) -> str:
    """The name of a rule book. Raises ValueError."""
    if said not in (names := [book.name for book in BOOKS]):
        raise ValueError(f"must be one of {', '.join(names)} (got {shown(repr(said), 40)})")
    return said


def _addressed(said: str) -> str:
    """A remote's address that is valid in DVC's configuration. Raises ValueError."""
    if not said.strip() or not said.isprintable() or '"' in said or "'" in said:
        raise ValueError(f"must be an address, as in s3://bucket/folder, or a path (got {shown(repr(said), 60)})")
    return said


Seed = Annotated[int, Field(ge=0, lt=2**31)]
Name = Annotated[str, AfterValidator(_named)]
Key = Annotated[str, StringConstraints(pattern=r"^([a-z_]+\.)?[a-z_]+$", max_length=100)]
Patch = dict[str, Any]
RuleBookName = Annotated[str, AfterValidator(_book)]
Last = Literal["train_teacher", "train_student", "distill", "prune", "retrain", "quantize", "score"]
Place = tuple[str, ...]  # the path of a value in params: ("prune", "train", "epochs")


class Budget(Section):
    """How long a run is."""

    images: PositiveCount | None = Field(default=None, description="training images, a stratified part of the split")
    epochs: Epochs | dict[str, Epochs] | None = Field(
        default=None, description="of every section that trains, or of those that are named; the others keep theirs"
    )
    seeds: list[Seed] | None = Field(default=None, min_length=1, description="instead of those of the spec")
    patch: Patch = Field(default={}, description="what else differs at this budget")

    @model_validator(mode="after")
    def _sections(self) -> Budget:
        strangers = sorted(set(self.epochs) - set(TRAINED)) if isinstance(self.epochs, dict) else []
        if strangers:
            raise ValueError(f"epochs: no section {shown(strangers[0], 40)!r} trains; {', '.join(TRAINED)} do")
        return self


class Needs(Section):
    """The resources a task takes of a machine."""

    cpus: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None, description="default: engine.threads times engine.processes"
    )
    gpus: Annotated[float, Field(ge=0, le=64)] = Field(default=0.0, description="0.5: two tasks share one")


class Search(Section):
    """Where Optuna searches for variants, and for how long."""

    space: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)] = Field(
        description="key: values to choose from; numbers in ascending order"
    )
    trials: PositiveCount = Field(description="how many variants Optuna proposes, those above the price limit included")
    rules: RuleBookName = Field(default="challenge", description="the rule book whose score is the price")
    most: Positive = Field(description="score above which a variant is not trained")
    keep: Share = Field(
        default=0.5, description="share of a rung that goes on (asynchronous successive halving, arXiv:1810.05934)"
    )
    rungs: Annotated[list[Budget], Field(min_length=1)] = Field(description="budgets, the shortest first")
    seed: Seed = Field(default=0, description="of Optuna's choices")


class Spec(Section):
    """One sweep."""

    base: str = Field(default="params.yaml", description="a recipe's name, or the path of a params file")
    question: str | None = Field(default=None, description="what the sweep asks, for docs/studies.md")
    deck: str | None = Field(default=None, description="what the slides say about the question")
    claim: Literal["better", "worse", "same"] | None = Field(
        default=None, description="what the slides' answer says of variant `claimed` against the reference"
    )
    claimed: Name | None = Field(default=None, description="the variant that `claim` is about")
    patch: Patch = Field(default={}, description="what all variants have in common")
    budgets: dict[Name, Budget] = Field(default={}, description="how long a run is, by name")
    budget: Name | None = Field(default=None, description="one of budgets; the only one when there is one")
    last: Last = Field(
        default="quantize",
        description="the last stage that runs; `score`, which reads the test set, only without variants",
    )
    variants: Annotated[Any, AfterValidator(_varied)] = Field(
        default=None, description="patches of params by name, or a list of patches; none: the base itself"
    )
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default={}, description="key: values; every combination, with every one of variants"
    )
    absent: dict[Name, str] = Field(default={}, description="variants that cannot exist, and why")
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default=[0], description="every variant runs with each")
    metrics: Annotated[list[Key], Field(min_length=1)] = Field(
        default=["validation_accuracy_percent"],
        description="columns: a key of the last stage's metrics (score's: of metrics/summary.json), STAGE.KEY, "
        "the score under a rule book, as in deck_score",
    )
    reference: Name | None = Field(default=None, description="the variant that the others are compared with")
    needs: Needs = Field(default=Needs(), description="what a task takes of a machine")
    search: Search | None = Field(default=None, description="the variants come from Optuna instead")
    remote: Annotated[str, AfterValidator(_addressed)] | None = Field(
        default=None, description="address of a DVC remote through which machines share what is made once; or a path"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Spec:
        chosen = self.budget or next(iter(self.budgets), None)
        if self.budget and self.budget not in self.budgets:
            raise ValueError(f"budget: there is no {self.budget!r} (there are {', '.join(self.budgets) or 'none'})")
        if not self.budget and len(self.budgets) > 1:
            raise ValueError(f"budget: must be one of {', '.join(self.budgets)}")
        lists = {"seeds": self.seeds, **{f"budgets.{name}.seeds": one.seeds for name, one in self.budgets.items()}}
        for where, seeds in lists.items():
            twice = [seed for place, seed in enumerate(seeds or []) if seed in (seeds or [])[:place]]
            if twice:
                raise ValueError(f"{where}: {twice[0]} is given twice")
        if self.last == "score" and (self.variants or self.grid or self.search):
            raise ValueError("last: score reads the test set, by which nothing is chosen: it stands without variants")
        if self.search and (self.variants or self.grid or self.budgets or len(self.seeds) > 1):
            raise ValueError("search: stands alone: without variants, grid, budgets, and with one seed")
        twice_said = [key for place, key in enumerate(self.metrics) if key in self.metrics[:place]]
        if twice_said:
            raise ValueError(f"metrics: {twice_said[0]} is given twice")
        if chosen:
            object.__setattr__(self, "budget", chosen)
        return self

    @property
    def length(self) -> Budget:
        """The chosen budget."""
        return self.budgets[self.budget] if self.budget else Budget()

    @property
    def chosen_seeds(self) -> list[int]:
        return self.length.seeds or self.seeds

    def with_seeds(self, seeds: list[int]) -> Spec:
        """The same spec with other seeds, at every budget."""
        budgets = {name: one.model_copy(update={"seeds": None}) for name, one in self.budgets.items()}
        return self.model_copy(update={"seeds": seeds, "budgets": budgets})


@dataclass(frozen=True)
class Variant:
    """A variant of a sweep: its name, its params without a seed, and its last stage."""

    name: str
    tree: dict[str, Any]
    last: str


def read(path: Path | str, budget: str | None = None) -> Spec:
    """A spec, fully checked.

    Args:
        budget: replaces the one the file chooses.

    Raises:
        ParamsError: one line per error.
    """
    if not Path(path).exists():
        raise ParamsError([f"{shown(path, 100)}: there is no such file; one of sweeps/ would work: sweeps/demo.yaml"])
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise ParamsError([f"{path}: must hold the keys of a sweep (got {type(tree).__name__})"])
    if tree.get("last") in ("code", "prepare_data"):
        raise ParamsError([f"{path}: last: {tree['last']} measures nothing; one of {', '.join(LAST)} would work"])
    try:
        return Spec.model_validate(tree | ({"budget": budget} if budget else {}))
    except ValidationError as error:
        raise ParamsError([f"{path}: {fault}" for fault in faults(error)]) from None


def flat(patch: Mapping[str, Any]) -> Iterator[tuple[Place, Any]]:
    """(place, value) of everything a patch sets; a place can occur more than once."""
    for key, value in patch.items():
        if "." in key:
            yield tuple(key.split(".")), value
        else:
            yield from _walked((key,), value)


def _walked(place: Place, value: Any) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _walked((*place, str(key)), inner)
    else:
        yield place, value


def contradiction(patches: Sequence[Mapping[str, Any]]) -> str | None:
    """Two values for one place among several patches, in words; None when there are none."""
    places = [place for patch in patches for place, _ in flat(patch)]
    for index, place in enumerate(places):
        for other in places[:index]:
            shorter = min(place, other, key=len)
            if place[: len(shorter)] == other[: len(shorter)]:
                return f"{'.'.join(shorter)} is patched twice"
    return None


def patched(tree: Mapping[str, Any], *patches: Mapping[str, Any]) -> dict[str, Any]:
    """Params with patches merged in; later ones win."""
    result: dict[str, Any] = copy.deepcopy(dict(tree))
    for patch in patches:
        for place, value in flat(patch):
            inner = result
            for key in place[:-1]:
                if not isinstance(inner.get(key), dict):
                    inner[key] = {}
                inner = inner[key]
            inner[place[-1]] = copy.deepcopy(value)
    return result


def base_path(spec: Spec, root: Path = ROOT) -> Path:
    """The params file a spec starts from. Raises `ParamsError` with the available recipes."""
    named = root / f"recipes/{spec.base}.yaml" if re.fullmatch(r"[\w-]+", spec.base) else root / spec.base
    if not named.is_file():
        recipes = ", ".join(sorted(path.stem for path in (root / "recipes").glob("*.yaml")))
        raise ParamsError([f"base: there is no recipe {shown(spec.base, 60)!r} (there are {recipes}, and params.yaml)"])
    return named


def variants(spec: Spec, base: Mapping[str, Any]) -> list[Variant]:
    """Every variant with its params, in the order of the spec. Raises `ParamsError` with one line per error."""
    found: list[Variant] = []
    wrong: list[str] = []
    trees: dict[str, str] = {}
    common = patched(base, spec.patch, _length(spec.length), spec.length.patch)
    for name, patches in _combinations(spec):
        last = next((patch["last"] for patch in patches if "last" in patch), spec.last)
        patches = [{key: value for key, value in patch.items() if key != "last"} for patch in patches]
        fault = contradiction(patches)
        if last not in (*LAST, spec.last):
            fault = f"last: must be one of {', '.join(LAST)} (got {shown(last, 40)!r})"
        if any(place[0] == "seed" for patch in patches for place, _ in flat(patch)):
            fault = "seed: `seeds` says it, for all variants"
        tree = patched(common, *patches)
        same = trees.setdefault(json.dumps([tree, last], sort_keys=True, default=str), name)
        if not fault and same != name:
            fault = f"is the same as variant {same}"
        wrong += [f"variant {name}: {fault}"] if fault else []
        found.append(Variant(name, tree, last))
    names = [one.name for one in found]
    wrong += [f"variant {name}: is there twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if spec.reference and spec.reference not in names:
        wrong.append(f"reference: there is no variant {spec.reference!r}")
    if spec.claimed and spec.claimed not in names:
        wrong.append(f"claimed: there is no variant {spec.claimed!r}")
    wrong += [f"patch: {fault}" for fault in [contradiction([spec.patch])] if fault]
    if wrong:
        raise ParamsError(wrong)
    return found


def _length(budget: Budget) -> Patch:
    """A budget as a patch."""
    made: Patch = {} if budget.images is None else {"data.training_images": budget.images}
    epochs = dict.fromkeys(TRAINED, budget.epochs) if isinstance(budget.epochs, int) else budget.epochs or {}
    return made | {f"{section}.train.epochs": count for section, count in epochs.items()}


def _combinations(spec: Spec) -> Iterator[tuple[str, list[Patch]]]:
    """(name, patches) of every variant."""
    named: list[tuple[str | None, Patch]] = [(None, {})]
    if isinstance(spec.variants, dict):
        named = [*spec.variants.items()]
    elif spec.variants:
        named = [(_told(dict(flat(patch))) or f"variant-{place}", patch) for place, patch in enumerate(spec.variants)]
    count = len(named) * len(spec.chosen_seeds)
    for values in spec.grid.values():
        count *= len(values)
    if count > MOST_RUNS:
        raise ParamsError([f"grid: makes {count:,} runs; at most {MOST_RUNS:,} would work"])
    for name, patch in named:
        for chosen in itertools.product(*spec.grid.values()):
            cell: Patch = dict(zip(spec.grid, chosen, strict=True))
            parts = [
                part for part in (name, _told({tuple(key.split(".")): value for key, value in cell.items()})) if part
            ]
            yield ",".join(parts) or "base", [patch, cell] if cell else [patch]


def _told(values: Mapping[Place, Any]) -> str:
    """A name built from the values a patch sets: `amount=0.5,weight_bits=3`; with the shortest keys that differ."""
    parts = []
    for place, value in values.items():
        length = 1
        while length < len(place) and sum(other[-length:] == place[-length:] for other in values) > 1:
            length += 1
        said = json.dumps(value, separators=(",", ":")) if isinstance(value, dict | list) else str(value)
        parts.append(f"{'_'.join(place[-length:])}={said}")
    return re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9_+=,.-]|\.(?=\.|,|$)", "-", ",".join(parts)))[:100].strip("-,.")
