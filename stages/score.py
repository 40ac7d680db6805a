"""Measures the packed model on the test set and prices it under each rule book; no other stage reads the test set.

With --check it measures again and compares with score.json, predictions.csv and summary.json in metrics/ instead of
writing them: exit code 1 if they differ. With --packed it handles the packed model alone, such as a cascade.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

sys.path.insert(0, __file__.rpartition("/")[0])  # with PYTHONSAFEPATH, a script cannot see its neighbours

from common import CHECKPOINTS, METRICS
from job import Job

from micronet.errors import shown

if TYPE_CHECKING:
    from micronet.data.images import Split
    from micronet.packed.module import PackedModule
    from micronet.scoring.references import References
    from micronet.scoring.results import Results

PACKED, PATH = CHECKPOINTS / "quantized.safetensors", METRICS / "path.csv"
MAKE = "python stages/score.py"


def strangers_of(job: Job, model: PackedModule) -> dict[str, list[str]]:
    """The checkpoints that are not from one run with the active params, by what is wrong; prints a line for each."""
    from micronet.pipeline import MADE_BY
    from micronet.scoring import path

    params = path.of_other_params(CHECKPOINTS, model, job.digest_of)
    files = path.of_other_files(CHECKPOINTS, METRICS / "runs")
    wrong = {name: f"was made with other params than {shown(job.flags.params, 60)} holds" for name in params}
    wrong |= {name: f"was made of another {files[name]} than lies here" for name in files if name not in wrong}
    for name, why in wrong.items():
        way = f"`python stages/{MADE_BY[name]}.py` makes it of these, `dvc repro` all that need it"
        job.reporter.say(f"{CHECKPOINTS / name}.safetensors: {why}; {way}")
    found = {"made_with_other_params": params, "made_of_other_files": [name for name in wrong if name not in params]}
    return {what: names for what, names in found.items() if names}


def measured(job: Job, model: PackedModule, test: Split, references: References) -> Results:
    """What this packed model does and costs."""
    from micronet.scoring.answers import ask, confidences, table
    from micronet.scoring.measurement import check_classes, measure
    from micronet.scoring.results import Results, summarized

    check_classes(model, test)
    size = job.params.score.batch_size
    answers = ask(model, test, size, job.reporter.watch)
    score = measure(PACKED, model, test, size, references, answers=answers, watch=job.reporter.watch)
    sure = confidences(model, answers, job.split("validation"), size)
    return Results(score, table(answers, sure, test), summarized(model, score))


def float_rows(job: Job, test: Split, references: References) -> list[dict[str, Any]]:
    """Rows for the checkpoints of the path, up to the packed model."""
    from micronet.scoring import path
    from micronet.training.checkpoint import load
    from micronet.training.evaluation import evaluate
    from micronet.training.hardware import machine

    rows = []
    for name in path.FLOATS:
        model, accuracy = load(CHECKPOINTS / f"{name}.safetensors").model(), None
        if job.params.score.measure_path:
            on, size = machine(job.params.engine).exact(), job.params.score.batch_size
            _, accuracy = evaluate(model, test, on, size, job.reporter.watch, f"measuring {name}")
        rows.append(path.float_row(name, model, job.data.shape, references, accuracy))
    return rows


def work(job: Job) -> int:
    from micronet.files import write_csv
    from micronet.packed.module import load_packed
    from micronet.scoring import path, results
    from micronet.scoring.references import of_params
    from micronet.scoring.tables import show_results
    from micronet.training.checkpoint import CheckpointError

    if not PACKED.is_file():
        raise CheckpointError(f"{PACKED}: there is no such file; `python stages/quantize.py` makes it, or `make pull`")
    check, alone = job.flags.check, job.flags.packed
    claimed = results.read(METRICS, MAKE) if check else None
    rows = path.read(PATH, MAKE)[:-1] if check and not alone else []
    model = load_packed(PACKED)
    mixed = {} if alone else strangers_of(job, model)
    strangers = [name for names in mixed.values() for name in names]
    test, references = job.split("test"), of_params(job.params)
    found = measured(job, model, test, references)
    last = path.packed_row(model, found.score)
    if claimed is not None:
        lines = list(results.differences(claimed, found, METRICS, MAKE))
        for line in lines:
            print(line, file=sys.stderr)
        show_results([*rows, last], found.score, test, references, PACKED, strangers)
        return 1 if lines else 0
    rows = [] if alone else float_rows(job, test, references)
    found.write(METRICS)
    if rows:
        write_csv(PATH, list(last), [*rows, last])
    job.record_run(params_digest=job.params_digest("score"), **mixed)
    show_results([*rows, last], found.score, test, references, PACKED, strangers)
    return 0


if __name__ == "__main__":
    flags = {
        "--check": "measure again and compare with what is in metrics/",
        "--packed": "the packed model alone, without the checkpoints that led to it",
    }
    sys.exit(Job.main(__file__, __doc__, work, flags))
