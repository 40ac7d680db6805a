"""Writes the model card of the packed model from metrics/, params.yaml and a measurement of the file on the test set.

Nothing in it is typed by hand, and the same inputs give the same text. A file other than the one metrics/score.json
and params.yaml describe gets no card.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import documents
from _tool import (
    MANIFEST,
    METRICS,
    PACKED,
    Facts,
    ToolError,
    arguments_of,
    front,
    network_name,
    network_settings,
    open_split,
    parameters,
    read_csv,
    read_json,
    read_json_if_there,
    training_digest,
    training_runs,
    watch,
)

from micronet.pipeline import CHECKPOINT_OF, TRAINING_STAGES

if TYPE_CHECKING:
    from micronet.data.images import Split
    from micronet.packed.module import PackedModule

CARD = Path("release/MODEL_CARD.md")
SCORED = "python stages/score.py"
SIZED, TIMED = ("export.json", "python tools/sizes.py"), ("bench_export.json", "python bench/export.py")


def stages() -> list[dict[str, Any]]:
    """Each stage that trains: its metrics, its run's record, its checkpoint's test accuracy."""
    rows = read_csv(METRICS / "path.csv", SCORED, ("test_accuracy_percent",))
    tested = {row["stage"]: row["test_accuracy_percent"] for row in rows}
    metrics = [read_json(METRICS / f"{stage}.json", f"python stages/{stage}.py") for stage in TRAINING_STAGES]
    return [
        {"name": name, "metrics": mine, "run": run, "test_accuracy_percent": tested.get(CHECKPOINT_OF[name])}
        for name, mine, run in zip(TRAINING_STAGES, metrics, training_runs(METRICS), strict=True)
    ]


def accuracies(model: PackedModule, test: Split, batch_size: int) -> dict[str, Any]:
    """The packed file's number of correct test images, its 95 % interval, and the accuracy per class."""
    from micronet.scoring.measurement import class_accuracies, predictions
    from report.answers import interval

    predicted = predictions(model, test, batch_size)
    correct, by_class = int((predicted == test.labels).sum()), class_accuracies(predicted, test.labels, test.classes)
    known = {name: accuracy for name, accuracy in by_class.items() if accuracy is not None}
    return {
        "correct": correct,
        "interval": interval(100 * correct / len(test), len(test)),
        "by_class": by_class,
        "worst": min(known, key=lambda name: known[name]),
        "best": max(known, key=lambda name: known[name]),
    }


def checked(score: Facts, params_path: Path, params: parameters.Params) -> tuple[PackedModule, Split]:
    """The packed model and the test set it was measured on.

    Raises:
        ToolError: score.json or the params describe another file.
    """
    from micronet.packed.module import load_packed
    from micronet.scoring.measurement import differences, measure
    from micronet.scoring.references import of_params

    model = load_packed(PACKED)
    if model.packed.metadata.get("params_digest") != training_digest(params):
        raise ToolError(f"{params_path}: did not make {PACKED}; `make repro` brings them together")
    test = open_split(params, "test")
    wrong = differences(score, measure(PACKED, model, test, params.score.batch_size, of_params(params), watch=watch))
    if wrong:
        raise ToolError(f"{METRICS / 'score.json'}: {wrong[0]}; `make verify` lists every difference")
    return model, test


def exported(digest: str) -> dict[str, Any]:
    """The sizes of this file's exports, and their speed per processor; empty if not measured."""
    sizes, speeds = (read_json_if_there(METRICS / name, made_by) for name, made_by in (SIZED, TIMED))
    if sizes is not None and sizes["model"] != digest:
        raise ToolError(f"{METRICS / SIZED[0]}: speaks of another packed file; `{SIZED[1]}` makes it anew")
    measured = [speeds, *speeds.get("other_processors", [])] if speeds else []
    return {"sizes": sizes, "speeds": [one for one in measured if one["model"] == digest]}


def facts_of(params_path: Path, params: parameters.Params) -> dict[str, Any]:
    """The content of the card; measures the packed file on the test set.

    Raises:
        MicronetError: an input is missing or damaged, or score.json or params describe another file.
    """
    score = read_json(METRICS / "score.json", SCORED)
    if not PACKED.is_file():
        raise ToolError(f"{PACKED}: there is no such file; `python stages/quantize.py` makes it, or `make pull`")
    made = stages()
    model, test = checked(score, params_path, params)
    manifest = read_json(MANIFEST, "python stages/prepare_data.py")
    spec = model.packed.spec or {"name": "unknown"}
    from micronet.scoring.books import BOOKS

    return {
        "score": score,
        "books": BOOKS,
        "file": PACKED,
        "packed": model.packed,
        "network": network_name(spec),
        "settings": network_settings(spec),
        "manifest": manifest,
        "manifest_file": MANIFEST,
        "images": {name: facts["images"] for name, facts in manifest["splits"].items()},
        **accuracies(model, test, params.score.batch_size),
        **exported(model.packed.digest),
        "stages": made,
        "seconds": sum(stage["run"]["seconds"] for stage in made),
        "dirty": any(str(stage["run"]["commit"]).endswith("-dirty") for stage in made),
        "seed": params.seed,
        "params_file": params_path.name,
        "params_text": params_path.read_text(encoding="utf-8").rstrip(),
    }


def main(argv: list[str] | None = None) -> int:
    parser = arguments_of("model_card", __doc__)
    parser.add_argument("--params", default="params.yaml", metavar="PATH", help="default: %(default)s")
    parser.add_argument("--out", default=str(CARD), metavar="PATH", help="default: %(default)s")
    arguments = parser.parse_args(argv)

    def work() -> int:
        path = Path(arguments.params)
        text = documents.render("model_card", facts_of(path, parameters.load(path)))
        from micronet.files import write_atomically

        write_atomically(arguments.out, text)
        print(f"{arguments.out}: written")
        return 0

    return front("model_card", work)


if __name__ == "__main__":
    sys.exit(main())
