"""A budgeted search for the network, its width, its zeros and its bits together: `make search`.

Every candidate of search/space.yaml, or of another space (search/deck.yaml is that of the slides' rules), is priced
before any training, as a packed file with untrained weights. What fits the price is trained briefly on few images, the
best again on more (successive halving, arXiv:1502.07943), each all the way to the packed file: dense, then with growing
zeros, then quantized. Only the validation set is measured. With checkpoints/teacher.safetensors there, it teaches.

metrics/search.csv has a row a trial; a trial that is in it is not run again, so a search that was stopped goes on. A
candidate whose training diverges is out, and has no row.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError, model_validator

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from micronet import params as parameters  # noqa: E402 - the line above makes it importable
from micronet.errors import MicronetError  # noqa: E402
from micronet.files import read_csv, write_csv, write_json  # noqa: E402
from micronet.packed.file import VERSION  # noqa: E402
from models.settings import SpecError  # noqa: E402

if TYPE_CHECKING:
    from torch import nn

    from micronet.data.images import Split
    from micronet.packed.model import PackedModel
    from micronet.training.hardware import Machine

SPACE, TABLE = ROOT / "search/space.yaml", Path("metrics/search.csv")
TEACHER = Path("checkpoints/teacher.safetensors")
FIT_IMAGES = 5000  # training images that a model may set itself from before it trains


class Rung(parameters.Section):
    """One rung: how many images and epochs, and how many candidates go on."""

    images: parameters.PositiveCount
    epochs: tuple[parameters.Count, parameters.Count, parameters.Count]
    keep: parameters.PositiveCount


class Space(parameters.Section):
    """search/space.yaml, search/deck.yaml."""

    most_challenge_score: parameters.Positive = math.inf
    most_deck_score: parameters.Positive = math.inf
    seed: parameters.Count
    batch_size: parameters.PositiveCount
    learning_rate: parameters.Positive
    layer_bits_first_and_last: parameters.Bits
    cost_exponent: parameters.Fraction
    networks: list[dict[str, Any]]
    amounts: list[parameters.Fraction]
    bits: list[tuple[parameters.Bits, parameters.Bits]]
    rungs: list[Rung]

    @model_validator(mode="after")
    def _limited(self) -> Space:
        if math.inf == self.most_challenge_score == self.most_deck_score:
            raise ValueError("most_challenge_score or most_deck_score: one of them must be given")
        return self

    def limited(self, scores: tuple[float, float]) -> float:
        """Of (challenge score, deck score) the one that has a limit, the challenge's where both have."""
        challenge, deck = scores
        return challenge if self.most_challenge_score < math.inf else deck


@dataclass(frozen=True)
class Candidate:
    """A network, the share of its weights that become zero, and bits of weights and activations."""

    network: str  # the spec as JSON: a candidate is a row of a table
    amount: float
    weight_bits: int
    activation_bits: int

    @property
    def spec(self) -> dict[str, Any]:
        return json.loads(self.network)


@dataclass(frozen=True)
class Trial:
    """A row of metrics/search.csv. Scores are those of the packed file; `priced` ones of the untrained one."""

    network: str
    amount: float
    weight_bits: int
    activation_bits: int
    seed: int
    images: int
    epochs: str
    taught: bool
    macs: int
    parameters: int
    priced_challenge_score: float
    priced_deck_score: float
    validation_accuracy_percent: float
    challenge_score: float
    deck_score: float
    seconds: float
    packed_version: int  # that counted the scores

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.network, self.amount, self.weight_bits, self.activation_bits)


def candidates(space: Space) -> list[Candidate]:
    """All of them, in the order of the file."""
    import models

    specs = [json.dumps(models.normalise(spec), separators=(",", ":")) for spec in space.networks]
    return [
        Candidate(spec, amount, *bits) for spec, amount, bits in itertools.product(specs, space.amounts, space.bits)
    ]


def quantization_of(candidate: Candidate, model: nn.Module, space: Space, epochs: int) -> parameters.Quantize:
    """LSQ at the candidate's bits; the first and the last layer are small and sensitive."""
    from micronet.training.weights import prunable

    names = [name for name, _ in prunable(model)]
    return parameters.Quantize(
        method="lsq",
        weight_bits=candidate.weight_bits,
        activation_bits=candidate.activation_bits,
        per_channel=True,  # it costs nothing in the file, and whitening filters differ too much for one step
        layer_bits=dict.fromkeys((names[0], names[-1]), space.layer_bits_first_and_last),
        train=parameters.Train(epochs=epochs, batch_size=space.batch_size, learning_rate=0.15 * space.learning_rate),
    )


def scores(packed: PackedModel) -> tuple[float, float]:
    """(challenge score, deck score) of a packed file."""
    from micronet.scoring.challenge import challenge_score
    from micronet.scoring.counting import operations
    from micronet.scoring.deck import deck_score

    ops = operations(packed)
    return challenge_score(ops).score, deck_score(ops).score


def price(candidate: Candidate, space: Space) -> tuple[float, float]:
    """What the candidate will cost, before any training: its scores as a packed file of random weights."""
    import torch

    import models
    from micronet.compress.calibration import calibrate
    from micronet.compress.pruning import apply_masks, global_masks
    from micronet.compress.quantization import prepare
    from micronet.packed.packing import pack
    from micronet.training.weights import prunable

    torch.manual_seed(space.seed)
    model = models.build(candidate.spec)
    for _, layer in prunable(model):
        torch.nn.init.kaiming_normal_(layer.weight)  # a convnet starts as the identity, all of it zeros but the ones
    masks = global_masks(model, candidate.amount, layer_floor=0.02, cost_exponent=space.cost_exponent)
    apply_masks(model, masks)
    quantize = quantization_of(candidate, model, space, 0)
    prepared = prepare(model, quantize)
    calibrate(prepared, torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8))
    with tempfile.TemporaryDirectory() as folder:
        return scores(pack(prepared.eval(), Path(folder) / "packed", quantize=quantize))


def run(candidate: Candidate, rung: Rung, space: Space, *, training: Split, validation: Split, here: Machine) -> Trial:
    """Trains a candidate to its packed file and measures that on the validation images."""
    import torch

    import models
    from micronet.compress.pruning import PruningSchedule
    from micronet.data.images import Split, normalise
    from micronet.packed.quantizing import quantize
    from micronet.scoring.counting import operations
    from micronet.scoring.records import macs
    from micronet.training.checkpoint import load
    from micronet.training.distillation import distilled
    from micronet.training.loop import TrainResult, train

    began = time.monotonic()
    images = Split(training.images[: rung.images], training.labels[: rung.images])
    torch.manual_seed(space.seed)
    model = models.build(candidate.spec)
    models.fit(model, normalise(images.images[:FIT_IMAGES]))
    shape = operations(model)
    taught = TEACHER.is_file()

    def fit(net: nn.Module, config: parameters.Train, temperature: float, constraint: Any = None) -> TrainResult:
        teaching = parameters.Distillation(temperature=temperature, alpha=0.7 if taught else 0.0)
        loss = distilled(lambda: load(TEACHER).model(), teaching, here)
        return train(
            net, config=config, training=images, validation=Split(validation.images[:500], validation.labels[:500]),
            machine=here, seed=space.seed, loss=loss, constraint=constraint,
        )  # fmt: skip

    def config(epochs: int, share: float) -> parameters.Train:
        return parameters.Train(epochs=epochs, batch_size=space.batch_size, learning_rate=share * space.learning_rate)

    dense, sparse, quantized = rung.epochs
    fit(model, config(dense, 1.0), 4.0)
    prune = parameters.Prune(
        method="gradual", amount=candidate.amount, cost_exponent=space.cost_exponent, train=config(sparse, 0.5)
    )
    fit(model, prune.train, 4.0, PruningSchedule(prune, model))
    section = quantization_of(candidate, model, space, quantized)
    found = quantize(
        model,
        section,
        images=images.images,
        validation=validation,
        train=lambda prepared, mask: fit(prepared, section.train, 2.0, mask),
        machine=lambda: here,
        seed=space.seed,
    )
    challenge, deck = scores(found.packed)
    return Trial(
        **asdict(candidate),
        seed=space.seed,
        images=len(images),
        epochs="+".join(map(str, rung.epochs)),
        taught=taught,
        macs=macs(shape),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        priced_challenge_score=0.0,
        priced_deck_score=0.0,
        validation_accuracy_percent=found.validation_accuracy_percent,
        challenge_score=challenge,
        deck_score=deck,
        seconds=round(time.monotonic() - began, 1),
        packed_version=VERSION,
    )


def read(path: Path = TABLE) -> list[Trial]:
    """The trials so far."""
    if not path.is_file():
        return []
    kinds = {field.name: field.type for field in fields(Trial)}
    convert = {"int": int, "float": float, "str": str, "bool": lambda text: text == "True"}
    return [Trial(**{key: convert[kinds[key]](value) for key, value in row.items()}) for row in read_csv(path)]


def write(trials: list[Trial], path: Path = TABLE) -> None:
    """All trials, as CSV."""
    write_csv(path, [field.name for field in fields(Trial)], map(asdict, trials), digits=6)


def rank_correlation(first: list[float], second: list[float]) -> float | None:
    """Spearman's; None with fewer than three pairs or without any difference."""
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    from scipy import stats

    return float(stats.spearmanr(first, second).statistic)


def affordable(space: Space, say: Any) -> dict[Candidate, tuple[float, float]]:
    """The candidates within the price, and their prices."""
    found = {}
    for candidate in candidates(space):
        priced = price(candidate, space)
        if priced[0] <= space.most_challenge_score and priced[1] <= space.most_deck_score:
            found[candidate] = priced
        else:
            say(f"too dear, challenge {priced[0]:.4f}, deck {priced[1]:.4f}: {candidate}")
    return found


def climb(space: Space, priced: dict[Candidate, tuple[float, float]], until: float, say: Any) -> list[Trial]:
    """Runs what is not in the table yet, rung by rung, until the time is over; all trials there are."""
    from micronet.data.store import open_split
    from micronet.training.hardware import machine
    from micronet.training.run import TrainingDiverged

    params = parameters.load(ROOT / "params.yaml")
    here = machine(params.engine)
    training, validation = (open_split(params.data, name, report=say) for name in ("train", "validation"))
    trials, going = read(), list(priced)
    for rung in space.rungs:
        epochs = "+".join(map(str, rung.epochs))
        same = [trial for trial in trials if (trial.images, trial.epochs) == (rung.images, epochs)]
        mine = {trial.candidate: trial for trial in same if trial.packed_version == VERSION}
        for candidate in going:
            if candidate in mine:
                continue
            if time.monotonic() > until:
                say("the time is over; the same command goes on from here")
                return trials
            try:
                trial = run(candidate, rung, space, training=training, validation=validation, here=here)
            except TrainingDiverged as error:
                say(f"out: {error}: {candidate}")
                continue
            challenge, deck = priced[candidate]
            mine[candidate] = replace(trial, priced_challenge_score=challenge, priced_deck_score=deck)
            trials.append(mine[candidate])
            write(trials)
            cost = space.limited((trial.challenge_score, trial.deck_score))
            say(f"{trial.validation_accuracy_percent:.2f} % at {cost:.4f}: {candidate}")
        going = [candidate for candidate in going if candidate in mine]
        going.sort(key=lambda candidate: mine[candidate].validation_accuracy_percent, reverse=True)
        del going[rung.keep :]
    return trials


def summary(space: Space, trials: list[Trial]) -> dict[str, Any]:
    """How well each rung's ranking predicted the next one's, and the best trial of the highest rung reached."""
    rungs = [(rung.images, "+".join(map(str, rung.epochs))) for rung in space.rungs]
    trials = [trial for trial in trials if (trial.images, trial.epochs) in rungs]  # the table may hold other spaces'
    newest = max((trial.packed_version for trial in trials), default=VERSION)  # prices of other versions differ
    trials = [trial for trial in trials if trial.packed_version == newest]
    tables = [{trial.candidate: trial for trial in trials if (trial.images, trial.epochs) == rung} for rung in rungs]
    correlations = {}
    for (low, high), (first, second) in zip(itertools.pairwise(rungs), itertools.pairwise(tables), strict=True):
        both = [candidate for candidate in first if candidate in second]
        accuracies = [[table[candidate].validation_accuracy_percent for candidate in both] for table in (first, second)]
        name = f"{low[0]} images, {low[1]} epochs -> {high[0]} images, {high[1]} epochs"
        correlations[name] = {"candidates": len(both), "rank_correlation": rank_correlation(*accuracies)}
    highest = next((table for table in reversed(tables) if table), {})
    best = max(highest.values(), key=lambda trial: trial.validation_accuracy_percent, default=None)
    found = asdict(best) if best else None
    if found and math.isnan(found["challenge_score"]):  # not known; JSON has no NaN
        found["challenge_score"] = None
    return {"trials": len(trials), "rankings": correlations, "best": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="start no trial after so long (default: 60)")
    parser.add_argument(
        "--space", type=Path, default=SPACE, metavar="PATH", help="the candidates (default: %(default)s)"
    )
    parser.add_argument("--price", action="store_true", help="only say what every candidate would cost")
    args = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    until = time.monotonic() + 60 * args.minutes
    try:
        space = Space.model_validate(parameters.read_yaml(args.space), strict=False)
        priced = affordable(space, say)
        for candidate, (challenge, deck) in sorted(priced.items(), key=lambda item: space.limited(item[1])):
            print(f"challenge {challenge:.4f}  deck {deck:.4f}  {candidate}")
        if args.price:
            return 0
        trials = climb(space, priced, until, say)
    except (ValidationError, SpecError) as error:  # what is wrong with the space
        print(f"search: {args.space.name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except MicronetError as error:
        print(f"search: {error}", file=sys.stderr)
        return error.exit_code
    found = summary(space, trials)
    usual = args.space.resolve() == SPACE.resolve()
    path = TABLE.with_name("search.json" if usual else f"search_{args.space.stem}.json")
    write_json(path, found)
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
