"""Measures the packed model on the test set, prices it under each rule book; no other stage reads the test set.

With --check it measures again and compares with metrics/score.json and metrics/predictions.csv instead of writing:
exit code 1 when they differ. With --packed there is the packed model alone, as of a cascade, and no path to it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

sys.path.insert(0, __file__.rpartition("/")[0])  # where PYTHONSAFEPATH hides what stands beside a script

from common import CHECKPOINTS, METRICS
from job import Job

from micronet.errors import shown

if TYPE_CHECKING:
    from micronet.data.images import Split
    from micronet.packed.module import PackedModule
    from micronet.scoring.references import References

PACKED = CHECKPOINTS / "quantized.safetensors"
PATH_STAGES = ("teacher", "student", "distilled", "pruned", "retrained")
MADE_OF = {  # the params sections that each checkpoint of the path came from
    "teacher": ("teacher",),
    "student": ("student",),
    "distilled": ("teacher", "student", "distill"),
    "pruned": ("teacher", "student", "distill", "prune"),
    "retrained": ("teacher", "student", "distill", "prune", "retrain"),
    "quantized": ("teacher", "student", "distill", "prune", "retrain", "quantize"),
}
MAKE = "python stages/score.py"
SCORE, PATH = METRICS / "score.json", METRICS / "path.csv"
PREDICTIONS, SUMMARY = METRICS / "predictions.csv", METRICS / "summary.json"


def references_of(job: Job) -> References:
    """What the scores are relative to: what params say, what is usual for the data, or the teacher in 16 bits."""
    import models
    from micronet.scoring.references import references

    def teacher() -> Any:
        spec = job.params.teacher.model.spec()
        return models.build(models.suited(spec, image=job.data.shape, classes=len(job.data.classes)))

    return references(job.params.data.source, job.params.score.reference, teacher, job.data.shape)


def unpacked_row(job: Job, name: str, test: Split, references: References) -> dict[str, Any]:
    """One checkpoint of the path, in float; its price is that of 16-bit weights."""
    from micronet.scoring.books import BOOKS
    from micronet.scoring.counting import operations
    from micronet.scoring.records import macs
    from micronet.training.checkpoint import load
    from micronet.training.evaluation import evaluate
    from micronet.training.hardware import machine
    from micronet.training.weights import count_nonzero

    model = load(CHECKPOINTS / f"{name}.safetensors").model()
    ops = operations(model, job.data.shape, weight_bits=16)
    accuracy = None
    if job.params.score.measure_path:
        on, size = machine(job.params.engine).exact(), job.params.score.batch_size
        _, accuracy = evaluate(model, test, on, size, job.reporter.watch, f"measuring {name}")
    return {
        "stage": name,
        "test_accuracy_percent": accuracy,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "nonzero_parameters": count_nonzero(model),
        **{f"{book.name}_score": book.score(ops, reference=references.of[book.name]).score for book in BOOKS},
        "macs": macs(ops),
    }


def packed_row(model: Any, score: dict[str, Any]) -> dict[str, Any]:
    """The packed model: what is stored, each value once."""
    from micronet.scoring.books import BOOKS

    return {
        "stage": "quantized",
        "test_accuracy_percent": score["test_accuracy_percent"],
        "parameters": model.packed.parameters,
        "nonzero_parameters": model.packed.nonzero_parameters,
        **{f"{book.name}_score": score[book.name]["score"] for book in BOOKS},
        "macs": score["macs"],
    }


def read_path() -> list[dict[str, Any]]:
    """The rows of `metrics/path.csv`, for the table; one of before a rule book was there lacks its column.

    Raises:
        FileError: it is damaged.
    """
    from micronet.files import FileError, read_csv
    from micronet.scoring.books import BOOKS

    if not PATH.exists():
        return []
    scores = [f"{book.name}_score" for book in BOOKS]
    forms: dict[str, Callable[[str], Any]] = {"stage": str, "test_accuracy_percent": float}
    forms |= {"parameters": int, "nonzero_parameters": int} | dict.fromkeys(scores, float) | {"macs": int}
    try:
        return [
            {
                name: None if row[name] == "" else form(row[name])
                for name, form in forms.items()
                if name in row or name not in scores
            }
            for row in read_csv(PATH)
        ]
    except (KeyError, ValueError, TypeError):
        raise FileError(f"{PATH}: is damaged; `{MAKE}` makes it anew") from None


def read_score() -> dict[str, Any]:
    """The object in `metrics/score.json`. Raises `FileError` when there is none."""
    from micronet.files import FileError, read_json

    if not SCORE.exists():
        raise FileError(f"{SCORE}: there is no such file; `{MAKE}` makes it")
    score = read_json(SCORE)
    if not isinstance(score, dict):
        raise FileError(f"{SCORE}: holds no JSON object; `{MAKE}` makes it anew")
    return score


def read_predictions() -> list[dict[str, str]]:
    """The rows of `metrics/predictions.csv`. Raises `FileError` when there are none."""
    from micronet.files import FileError, read_csv

    if not PREDICTIONS.exists():
        raise FileError(f"{PREDICTIONS}: there is no such file; `{MAKE}` makes it")
    try:
        return read_csv(PREDICTIONS)
    except FileError:
        raise FileError(f"{PREDICTIONS}: cannot be read; `{MAKE}` makes it anew") from None


def of_other_params(job: Job, model: PackedModule) -> list[str]:
    """The checkpoints of the path that the active params did not make, in their order; what is not there is left out.

    Whoever runs stages by hand may have changed params since some of them ran.
    """
    from micronet.training.checkpoint import CheckpointError, load

    made = {"quantized": model.packed.metadata.get("params_digest")}
    for name in PATH_STAGES:
        with suppress(CheckpointError):
            made[name] = load(CHECKPOINTS / f"{name}.safetensors").params_digest
    return [name for name, sections in MADE_OF.items() if made.get(name) not in (None, job.params_digest(*sections))]


def summary(model: PackedModule, score: dict[str, Any]) -> dict[str, float]:
    """The content of `metrics/summary.json`: the few numbers that two runs are compared by.

    Their names are short, for each is a column of `dvc exp show`, and the first in the alphabet stands on top of
    `dvc metrics diff`.
    """
    from micronet.scoring.books import BOOKS

    packed = model.packed
    chosen = {"accuracy_percent": score["test_accuracy_percent"]}
    if "balanced_accuracy_percent" in score:
        chosen["balanced_accuracy_percent"] = round(score["balanced_accuracy_percent"], 4)
    chosen["bytes"] = score["packed"]["bytes"]
    chosen |= {f"{book.name}_score": round(score[book.name]["score"], 6) for book in BOOKS}
    with suppress(KeyError, ValueError):  # a cascade, or a file from elsewhere, may say nothing of it
        chosen["validation_accuracy_percent"] = round(float(packed.metadata["validation_accuracy_percent"]), 4)
    chosen["zeros_percent"] = round(100.0 * packed.zero_weights / max(1, packed.weights), 2)
    return chosen


def show(
    rows: list[dict[str, Any]], score: dict[str, Any], test: Split, references: References, strangers: list[str]
) -> None:
    """The table of the path, and what was measured, on stdout.

    Args:
        strangers: the checkpoints that are of other params.
    """
    from micronet.scoring.books import BOOKS
    from micronet.scoring.tables import class_table, print_wrapped, score_table
    from micronet.scoring.tables import show as show_table

    marked = [row | {"stage": f"{row['stage']} *"} if row["stage"] in strangers else row for row in rows]
    show_table(score_table(marked, references))
    if strangers:
        print_wrapped("* made with other params than these: the rows are not those of one run of the pipeline")
    if "class_accuracy_percent" in score:
        counts = test.labels.bincount(minlength=len(test.classes)).tolist()
        show_table(class_table(score["class_accuracy_percent"], dict(zip(test.classes, counts, strict=True))))
    images = len(test)
    packed, accuracy = score["packed"], score["test_accuracy_percent"]
    lines = [
        f"{accuracy:.2f} % of {images:,} test images, measured now on {PACKED} read back",
        "the rule books:",
        *(f"  {book.name:<9} {book.about}" for book in BOOKS),
    ]
    if "balanced_accuracy_percent" in score:
        lines.append(f"{score['balanced_accuracy_percent']:.2f} % is the mean of the classes, the balanced accuracy")
    if score["flipped_images_percent"]:
        flipped = score["flipped_images_percent"]
        lines.append(f"{flipped:.2f} % of the images were seen mirrored too; both passes are charged")
    once = score["one_pass"]
    lines += [
        f"in one pass {once['test_accuracy_percent']:.2f} % at {once['challenge_score']:.4f} under challenge rules; "
        f"with plain sums of products, and a mask bit for every weight, {once['plain_challenge_score']:.4f}",
        f"{packed['bytes']:,} bytes, of which {packed['payload_bits'] / 8:,.0f} are payload",
    ]
    print_wrapped(*lines)


def tell(job: Job, strangers: list[str]) -> None:
    """Says which checkpoints are of other params, a line each."""
    from micronet.training.checkpoint import MADE_BY

    for name in strangers:
        way = f"`python stages/{MADE_BY[name]}.py` makes it of these, `dvc repro` all that need it"
        place = CHECKPOINTS / f"{name}.safetensors"
        job.reporter.say(f"{place}: was made with other params than {shown(job.flags.params, 60)} holds; {way}")


def measured(job: Job, model: PackedModule, test: Split, references: References) -> tuple[dict[str, Any], Any]:
    """The content of `metrics/score.json`, and the rows of `metrics/predictions.csv`."""
    from micronet.scoring.answers import ask, confidences, table
    from micronet.scoring.measurement import check_classes, measure

    check_classes(model, test)
    batch_size = job.params.score.batch_size
    answers = ask(model, test, batch_size, job.reporter.watch)
    score = measure(PACKED, model, test, batch_size, references, answers=answers, watch=job.reporter.watch)
    return score, table(answers, confidences(model, answers, job.split("validation"), batch_size), test)


def work(job: Job) -> int:
    from micronet.files import write_csv, write_json
    from micronet.packed.module import load_packed
    from micronet.scoring.answers import COLUMNS
    from micronet.training.checkpoint import CheckpointError

    if not PACKED.is_file():
        raise CheckpointError(f"{PACKED}: there is no such file; `python stages/quantize.py` makes it, or `make pull`")
    claimed = (read_score(), read_predictions()) if job.flags.check else None
    path = read_path() if job.flags.check and not job.flags.packed else []
    model = load_packed(PACKED)
    strangers = [] if job.flags.packed else of_other_params(job, model)
    tell(job, strangers)
    test, references = job.split("test"), references_of(job)
    score, predictions = measured(job, model, test, references)
    if claimed is not None:
        lines = differing(*claimed, score, predictions) + other_summary(summary(model, score))
        for line in lines:
            print(line, file=sys.stderr)
        show(path[:-1] + [packed_row(model, score)], score, test, references, strangers)
        return 1 if lines else 0
    names = () if job.flags.packed else PATH_STAGES
    rows = [unpacked_row(job, name, test, references) for name in names] + [packed_row(model, score)]
    write_json(SCORE, score)
    write_json(SUMMARY, summary(model, score))
    write_csv(PREDICTIONS, COLUMNS, predictions)
    if names:
        write_csv(PATH, list(rows[0]), rows)
    mixed: dict[str, Any] = {"made_with_other_params": strangers} if strangers else {}
    job.record_run(params_digest=job.params_digest("score"), **mixed)
    show(rows, score, test, references, strangers)
    return 0


def other_summary(measured: dict[str, float]) -> list[str]:
    """What `metrics/summary.json` says otherwise, a line each; it is there for who compares runs."""
    from micronet.files import FileError, read_json

    try:
        claimed = read_json(SUMMARY)
    except FileError:
        claimed = None
    if not isinstance(claimed, dict):
        return [f"{SUMMARY}: is not there or damaged; `{MAKE}` makes it anew"]
    names = sorted(claimed.keys() | measured.keys())
    return [
        f"{SUMMARY}: {shown(name, 60)}: claimed {shown(claimed.get(name), 60)}, measured {measured.get(name)}"
        for name in names
        if claimed.get(name) != measured.get(name)
    ]


def differing(
    score: dict[str, Any], predictions: list[dict[str, str]], measured: dict[str, Any], answered: list[dict[str, Any]]
) -> list[str]:
    """What the two files claim and was not measured, a line each."""
    from micronet.scoring import answers, measurement

    lines = [f"{SCORE}: {shown(line)}" for line in measurement.differences(score, measured)]
    return lines + [f"{PREDICTIONS}: {shown(line)}" for line in answers.differences(predictions, answered)]


if __name__ == "__main__":
    flags = {
        "--check": f"measure again and compare with {SCORE} and {PREDICTIONS}",
        "--packed": "the packed model alone, without the checkpoints that led to it",
    }
    sys.exit(Job.main(__file__, __doc__, work, flags))
