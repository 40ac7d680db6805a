"""A search: a sweep whose variants come from Optuna, for accuracy against the score of a rule book.

Every candidate is priced before any training, as a packed file of random weights; one that is over the price is not
trained. The others climb the rungs, of which the best share goes on (asynchronous successive halving, Li et al. 2018,
arXiv:1810.05934). What Optuna knows lies in a journal file, so the same command goes on.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micronet import params as parameters
from micronet.errors import MicronetError, shown
from micronet.params import ParamsError
from sweeps import rows, tasks
from sweeps.rows import Row
from sweeps.spec import ROOT, Search, Spec

if TYPE_CHECKING:
    import optuna

    from sweeps.engine import Outcome

TOO_DEAR = "too_dear"  # status of a row that was priced and not trained
ACCURACY = "validation_accuracy_percent"


def price(tree: dict[str, Any], rules: str) -> float:
    """The score of a candidate before any training: packed with random weights and the zeros that it will have.

    Raises:
        MicronetError: it cannot be built or packed.
    """
    import torch

    import models
    from micronet.compress.calibration import calibrate
    from micronet.compress.pruning import apply_masks, global_masks
    from micronet.compress.quantization import prepare
    from micronet.data.datasets import described
    from micronet.packed.packing import pack
    from micronet.scoring.challenge import challenge_score
    from micronet.scoring.counting import operations
    from micronet.scoring.deck import deck_score
    from micronet.training.weights import prunable

    params = parameters.parse(tree)
    torch.manual_seed(0)
    data = described(params.data)
    model = models.build(models.suited(params.student.model.spec(), image=data.shape, classes=len(data.classes)))
    for _, layer in prunable(model):
        torch.nn.init.kaiming_normal_(layer.weight)  # a convnet starts as the identity, all of it zeros but the ones
    prune = params.prune
    masks = global_masks(model, prune.amount, layer_floor=prune.layer_floor, cost_exponent=prune.cost_exponent)
    apply_masks(model, masks)
    quantize = params.quantize.model_copy(update={"flip_share": 0.0})  # which images are unsure only a training says
    prepared = prepare(model, quantize, data.shape)
    calibrate(prepared, torch.randint(0, 256, (50, *data.shape), dtype=torch.uint8))
    with tempfile.TemporaryDirectory() as folder:
        ops = operations(pack(prepared.eval(), Path(folder) / "packed", quantize=quantize))
    return (challenge_score if rules == "challenge" else deck_score)(ops).score


def goes_on(value: float, others: Sequence[float], keep: float) -> bool:
    """Whether a value is in the best share of those that a rung has so far, itself included."""
    better = sum(other > value for other in others)
    return better < max(1, math.ceil(keep * (len(others) + 1)))


class Trials:
    """The trials of a search as work for the engine.

    Args:
        study: Optuna's, of two objectives: accuracy up, score down.
        known: the rows that there are, by name and seed. priced: what tells a price.
    """

    def __init__(
        self, spec: Spec, search: Search, study: optuna.Study, known: dict[tuple[str, int], Row], priced: Any = price
    ):
        self.spec, self.search, self.study, self.priced = spec, search, study, priced
        self.rows, self.code = known, tasks.Code()
        self.going: dict[str, tuple[optuna.trial.Trial, str, int]] = {}  # key of work: trial, variant, rung
        self.reached: dict[int, list[float]] = {}
        self.ready: list[tasks.Work] = []
        self.new: list[Row] = []

    def more(self) -> list[tasks.Work]:
        """Work that can begin; nothing when all trials are asked for."""
        while not self.ready and len(self.study.get_trials(deepcopy=False)) < self.search.trials:
            trial = self.study.ask()
            self._begin(trial)
        found, self.ready = self.ready[:1], self.ready[1:]
        return found

    def _begin(self, trial: optuna.trial.Trial) -> None:
        """Prices a trial and lets it onto the first rung."""
        import optuna

        patch = {
            key: json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in values]))
            for key, values in self.search.space.items()
        }
        try:
            (task,) = tasks.plan(self._spec(patch, 0, trial.number), code=self.code)
            score = self.priced(task.tree, self.search.rules)
        except MicronetError as error:
            self._tell_row(f"trial-{trial.number}", "failed", {}, None, str(error).splitlines()[0])
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        trial.set_user_attr("price", score)
        if score > self.search.most:
            why = f"priced at {score:.5f}, more than {self.search.most:g}"
            self._tell_row(f"trial-{trial.number}", TOO_DEAR, {f"{self.search.rules}_score": score}, task, why)
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        self._climb(trial, patch, 0)

    def _spec(self, patch: dict[str, Any], rung: int, number: int) -> Spec:
        name = f"trial-{number}" if rung == len(self.search.rungs) - 1 else f"trial-{number}-rung-{rung}"
        changed = self.spec.model_dump(exclude_unset=True) | {
            "search": None,
            "variants": {name: patch},
            "budgets": {f"rung-{rung}": self.search.rungs[rung].model_dump(exclude_unset=True)},
        }
        return Spec.model_validate(changed)

    def _climb(self, trial: optuna.trial.Trial, patch: dict[str, Any], rung: int) -> None:
        (task,) = tasks.plan(self._spec(patch, rung, trial.number), code=self.code)
        row = self.rows.get((task.variant, task.seed))
        (one,) = tasks.works([task])
        one.once = tasks.untouched(task, {key.split(".")[0] for key in self.search.space})
        self.going[one.key] = trial, task.variant, rung
        if row is not None and row.status == "done" and row.is_of(task):
            self.ended(one.key, row)
        else:
            self.ready.append(one)

    def ended(self, key: str, row: Row) -> None:
        """Takes the row of a trial on a rung: it ends, or goes on."""
        import optuna

        trial, _, rung = self.going.pop(key)
        value, score = row.metrics.get(ACCURACY), row.metrics.get(f"{self.search.rules}_score")
        if row.status != "done" or value is None or score is None:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        others = self.reached.setdefault(rung, [])
        last = rung == len(self.search.rungs) - 1
        if not last and goes_on(value, others, self.search.keep):
            patch = {key: json.loads(said) for key, said in trial.params.items()}
            others.append(value)
            self._climb(trial, patch, rung + 1)
            return
        others.append(value)
        trial.set_user_attr("rung", rung)
        self.study.tell(trial, [value, score])

    def _tell_row(
        self, name: str, status: str, metrics: dict[str, float | None], task: tasks.Task | None, why: str
    ) -> None:
        digests = {key: getattr(task, key) for key in ("params_digest", "code_digest", "data_digest")} if task else {}
        row = Row(name, self.spec.chosen_seeds[0], status, metrics, reason=shown(why), **digests)
        self.rows[row.key] = row
        self.new.append(row)


def opened(spec: Spec, name: str, folder: Path) -> optuna.Study:
    """The study of a search in its journal file; trials that a killed driver left are asked for again.

    Raises:
        ParamsError: the journal is of another space.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    assert spec.search is not None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.journal"
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        directions=["maximize", "minimize"],
        sampler=optuna.samplers.TPESampler(seed=spec.search.seed),
        load_if_exists=True,
    )
    space = {key: [json.dumps(value) for value in values] for key, values in spec.search.space.items()}
    if study.user_attrs.get("space", space) != space:
        way = "removing it would work, or another name of the spec"
        raise ParamsError([f"search.space: {path} is of another space; {way}"])
    study.set_user_attr("space", space)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def front(found: Sequence[Row], metric: str) -> list[Row]:
    """The rows that no other is at least as good as in both, accuracy up and score down; the cheapest first."""
    there = [row for row in found if row.status == "done" and row.metrics.get(ACCURACY) and row.metrics.get(metric)]
    ordered = sorted(there, key=lambda row: (row.metrics[metric], -(row.metrics[ACCURACY] or 0.0)))
    best, kept = -math.inf, []
    for row in ordered:
        accuracy = row.metrics[ACCURACY] or 0.0
        if accuracy > best:
            best = accuracy
            kept.append(row)
    return kept


def run(name: str, spec: Spec, cpus: int | None, folder: Path, cache: Path) -> int:
    """Runs a search to its last trial. The exit code: 1 when no trial is done."""
    from sweeps import branches, engine, plots
    from sweeps.board import Board
    from sweeps.run import CODE, Sweep

    assert spec.search is not None
    search, place = spec.search, engine.Place(ROOT, folder.absolute(), cache.absolute())
    tasks.check_clean(branches.git(ROOT, "status", "--porcelain", "--", *CODE))
    score = f"{search.rules}_score"
    metrics = list(dict.fromkeys([ACCURACY, score, *spec.metrics]))
    sweep = Sweep(name, spec.model_copy(update={"metrics": metrics}), [], branches.head(ROOT))
    known = {row.key: row for row in rows.read(sweep.table)}
    trials = Trials(spec, search, opened(spec, name, place.folder / "searches"), known)

    def write() -> None:
        rows.write(sweep.table, list(trials.rows.values()), metrics)

    with Board(name, ACCURACY, search.trials, []) as board, engine.started(cpus) as ray:

        def take(outcome: Outcome) -> None:
            row = replace(sweep.row(outcome), budget=f"rung {trials.going[outcome.work.key][2]}")
            trials.rows[row.key] = row
            trials.ended(outcome.work.key, row)
            write()
            board.ended(outcome.work.name, [row], outcome.seconds)

        archive = engine.packed(place, sweep.commit)
        order = partial(engine.order_of, spec=spec, commit=sweep.commit, place=place, price=True)
        runner = engine.Engine(ray, spec, spec.needs.cpus or 1, order, archive, take=take, began=board.began)
        runner.run([], trials.more)
        write()
    best = front(list(trials.rows.values()), score)
    rows.write(sweep.table.with_name(f"{name}_front.csv"), best, metrics)
    plots.front(Path(f"docs/plots/{name}_front"), list(trials.rows.values()), best, score)
    return 0 if best else 1
