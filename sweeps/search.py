"""A search: a sweep whose variants come from Optuna, for accuracy against the score of a rule book.

Every candidate is priced before any training, as a packed file of random weights; one above the price limit is not
trained. The others climb the rungs, the best share of each continuing (asynchronous successive halving, Li et al. 2018,
arXiv:1810.05934). Optuna's state is kept in a journal file, so the same command continues.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from micronet import params as parameters
from micronet.errors import MicronetError, shown
from micronet.params import ParamsError, read_yaml
from sweeps import rows, tasks
from sweeps.pareto import ACCURACY, draw, pareto_front
from sweeps.rows import DONE, FAILED, TOO_DEAR, Row
from sweeps.spec import ROOT, Search, Spec, base_path, patched
from sweeps.sweep import Sweep

if TYPE_CHECKING:
    import optuna

    from sweeps.engine import Outcome

# What the journal records of a trial: its accuracy on each rung, and which trial it continues.
REACHED, AGAIN_OF = "reached", "again_of"


def price(tree: dict[str, Any], rules: str) -> float:
    """The score of a candidate before any training: packed with random weights and its future zeros.

    Raises:
        MicronetError: it cannot be built or packed.
    """
    import torch

    from micronet.packed.estimate import packed_untrained, untrained_student
    from micronet.scoring.books import BOOKS
    from micronet.scoring.counting import operations
    from micronet.scoring.references import of_params, reference_of

    params = parameters.parse(tree)
    book = next(book for book in BOOKS if book.name == rules)
    with torch.random.fork_rng(devices=[]):
        against = reference_of(book, of_params(params))
        torch.manual_seed(0)
        packed, _ = packed_untrained(untrained_student(params), params)
    return book.score(operations(packed), reference=against).score


def goes_on(value: float, others: Sequence[float], keep: float) -> bool:
    """Whether a value is in the best share of a rung's values so far, itself included."""
    better = sum(other > value for other in others)
    return better < max(1, math.ceil(keep * (len(others) + 1)))


def number_of(trial: optuna.trial.BaseTrial) -> int:
    """The number a trial is called by: one interrupted with its search keeps its number when it is asked for again."""
    return trial.user_attrs.get(AGAIN_OF, trial.number)


class Trials:
    """The trials of a search as work for the engine.

    Args:
        study: Optuna's, with two objectives: accuracy up, score down.
        known: the existing rows, by name and seed. priced: the function that prices a candidate.
        keep: writes `rows` to disk. Called before Optuna learns that a trial has ended: a search stopped in between
            asks for the trial again, while the other order would lose the row for good.

    Attributes:
        rows: of all trials and rungs, including `known`. new: final rows of trials that needed no work.
    """

    def __init__(
        self,
        spec: Spec,
        search: Search,
        study: optuna.Study,
        known: dict[tuple[str, int], Row],
        priced: Any = price,
        keep: Callable[[], None] = lambda: None,
    ):
        self.spec, self.search, self.study, self.priced, self.keep = spec, search, study, priced, keep
        self.rows, self.code = known, tasks.Code()
        self.going: dict[str, tuple[optuna.trial.Trial, int]] = {}  # key of a work: trial, rung
        self.reached: dict[int, list[float]] = defaultdict(list)  # per rung, by all that have been there
        for trial in self._over():
            for rung, value in enumerate(trial.user_attrs.get(REACHED, [])):
                self.reached[rung].append(value)
        self.ready: list[tasks.Work] = []
        self.new: list[Row] = []

    def more(self) -> list[tasks.Work]:
        """Work that can start; none once all trials have been asked for."""
        while not self.ready and self._any_to_ask():
            self._begin(self.study.ask())
        found, self.ready = self.ready[:1], self.ready[1:]
        return found

    def _any_to_ask(self) -> bool:
        """Whether a trial remains to be asked for, including one that a stopped search left unfinished."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        begun = {number_of(trial) for trial in trials}
        return len(begun) < self.search.trials or any(trial.state == TrialState.WAITING for trial in trials)

    def _over(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that have ended, each once; not those to be asked for again."""
        last = {number_of(trial): trial for trial in self.study.get_trials(deepcopy=False)}
        return [trial for trial in last.values() if trial.state.is_finished()]

    def told(self) -> list[Row]:
        """The final row of each trial, in the order of the trials."""
        found = []
        for trial in self._over():
            names = [self._name(number_of(trial), rung) for rung in reversed(range(len(self.search.rungs)))]
            there = [row for name in names if (row := self.rows.get((name, self.seed)))]
            found += there[:1] or [row for row in [self.rows.get((f"trial-{number_of(trial)}", self.seed))] if row]
        return found

    def of_today(self) -> list[Row]:
        """The rows of ended trials, on every rung, that the current code, data and params would give again."""
        found = []
        for trial in self._over():
            if set(trial.params) != set(self.search.space):
                continue  # ended before its choices were known
            patch = {key: json.loads(said) for key, said in trial.params.items()}
            for rung in range(len(self.search.rungs)):
                (task,) = tasks.plan(self._spec(patch, rung, number_of(trial)), code=self.code)
                row = self.rows.get((task.variant, task.seed))
                found += [row] if row is not None and row.is_of(task) else []
        return found

    @property
    def seed(self) -> int:
        return self.spec.chosen_seeds[0]

    def _begin(self, trial: optuna.trial.Trial) -> None:
        """Prices a trial and starts it on the first rung."""
        import optuna

        patch = {
            key: json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in values]))
            for key, values in self.search.space.items()
        }
        try:
            (task,) = tasks.plan(self._spec(patch, 0, number_of(trial)), code=self.code)
            score = self.priced(task.tree, self.search.rules)
        except MicronetError as error:
            self._tell_row(trial, FAILED, {}, None, str(error).splitlines()[0])
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        trial.set_user_attr("price", score)
        if score > self.search.most:
            why = f"priced at {score:.5f}, more than {self.search.most:g}"
            self._tell_row(trial, TOO_DEAR, {f"{self.search.rules}_score": score}, task, why)
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        if (row := self._climb(trial, patch, 0)) is not None:
            self.new.append(row)

    def _name(self, number: int, rung: int) -> str:
        return f"trial-{number}" if rung == len(self.search.rungs) - 1 else f"trial-{number}-rung-{rung}"

    def _spec(self, patch: dict[str, Any], rung: int, number: int) -> Spec:
        name = self._name(number, rung)
        changed = self.spec.model_dump(exclude_unset=True) | {
            "search": None,
            "variants": {name: patch},
            "budgets": {f"rung-{rung}": self.search.rungs[rung].model_dump(exclude_unset=True)},
        }
        return Spec.model_validate(changed)

    def _climb(self, trial: optuna.trial.Trial, patch: dict[str, Any], rung: int) -> Row | None:
        """Puts a trial on a rung. Its final row, if existing rows already decide that."""
        (task,) = tasks.plan(self._spec(patch, rung, number_of(trial)), code=self.code)
        row = self.rows.get((task.variant, task.seed))
        (one,) = tasks.works([task])
        one.once = tasks.untouched(task, {key.split(".")[0] for key in self.search.space})
        self.going[one.key] = trial, rung
        if row is not None and row.status == DONE and row.is_of(task):
            return self._judged(one.key, row)
        self.ready.append(one)
        return None

    def ended(self, key: str, row: Row) -> Row | None:
        """Takes a trial's row for a rung. The trial's final row, or None while it continues."""
        self._add(row)
        return self._judged(key, row)

    def _add(self, row: Row) -> None:
        self.rows[row.key] = row
        self.keep()

    def _judged(self, key: str, row: Row) -> Row | None:
        """Ends a trial with the row of a rung, or moves it to the next."""
        import optuna

        trial, rung = self.going.pop(key)
        value, score = row.metrics.get(ACCURACY), row.metrics.get(f"{self.search.rules}_score")
        if row.status != DONE or value is None or score is None:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return row
        last = rung == len(self.search.rungs) - 1
        further = not last and goes_on(value, self.reached[rung], self.search.keep)
        self.reached[rung].append(value)
        trial.set_user_attr(REACHED, [*trial.user_attrs.get(REACHED, []), value])
        if further:
            patch = {key: json.loads(said) for key, said in trial.params.items()}
            return self._climb(trial, patch, rung + 1)
        trial.set_user_attr("rung", rung)
        self.study.tell(trial, [value, score])
        return row

    def _tell_row(
        self,
        trial: optuna.trial.Trial,
        status: str,
        metrics: dict[str, float | None],
        task: tasks.Task | None,
        why: str,
    ) -> None:
        digests = {key: getattr(task, key) for key in ("params_digest", "code_digest", "data_digest")} if task else {}
        row = Row(f"trial-{number_of(trial)}", self.seed, status, metrics, reason=shown(why), **digests)
        self._add(row)
        self.new.append(row)


def opened(spec: Spec, name: str, folder: Path) -> optuna.Study:
    """The study of a search in its journal file; trials left by a killed driver are asked for again.

    Raises:
        ParamsError: the journal is of a different search space.
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
        study.enqueue_trial(trial.params, user_attrs={AGAIN_OF: number_of(trial)})
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def run(name: str, spec: Spec, cpus: int | None, folder: Path, cache: Path) -> int:
    """Runs a search to its last trial. The exit code: 1 when no trial is done."""
    from sweeps import engine, repository
    from sweeps.board import Board

    assert spec.search is not None
    search, place = spec.search, engine.Place(ROOT, folder.absolute(), cache.absolute())
    tasks.check_clean(repository.git(ROOT, "status", "--porcelain", "--", *tasks.CODE))
    score = f"{search.rules}_score"
    metrics = list(dict.fromkeys([ACCURACY, score, *spec.metrics]))
    sweep = Sweep(name, spec.model_copy(update={"metrics": metrics}), [], repository.head(ROOT))
    known = {row.key: row for row in rows.read(sweep.table)}

    def write() -> None:
        rows.write(sweep.table, list(known.values()), metrics)

    trials = Trials(spec, search, opened(spec, name, place.folder / "searches"), known, keep=write)

    with Board(name, ACCURACY, search.trials, trials.told()) as board, engine.started(cpus) as ray:

        def take(outcome: Outcome) -> None:
            row = replace(sweep.row(outcome), budget=f"rung {trials.going[outcome.work.key][1]}")
            end = trials.ended(outcome.work.key, row)
            if end is None:
                board.passed(outcome.work.name, f"{ACCURACY} {row.metrics[ACCURACY]:g}, goes on")
            else:
                board.ended(outcome.work.name, end, outcome.seconds)

        def more() -> list[tasks.Work]:
            found = trials.more()
            for row in trials.new:
                board.ended(row.variant, row, None)
            trials.new.clear()
            return found

        archive = engine.packed(place, sweep.commit)
        order = partial(engine.order_of, spec=spec, commit=sweep.commit, place=place, price=True)
        needed = spec.needs.cpus or tasks.cores(patched(read_yaml(base_path(spec)), spec.patch))
        runner = engine.Engine(ray, spec, needed, order, archive, take=take, began=board.began)
        board.slots = runner.slots
        runner.run([], more)
        write()
    found = trials.of_today()
    if left_out := sum(row.status == DONE for row in trials.rows.values()) - len(found):
        board.say(f"{left_out} rows of other code, data or params are left out of {name}_front.csv and its picture")
    best = pareto_front(found, score)
    rows.write(sweep.table.with_name(f"{name}_front.csv"), best, metrics)
    draw(Path(f"docs/plots/{name}_front"), found, best, score)
    return 0 if best else 1
