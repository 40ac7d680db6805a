"""Keeps metrics/releases.csv, one row per released model, and writes docs/record.md: the path to the lowest score.

The deck's networks are priced anew by micronet.scoring; our numbers come from metrics/ alone. A run that was not
released is kept as a row of metrics/tried.csv: `python tools/record.py --tried FOLDER --why "..."`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import documents
import results
from _tool import (
    METRICS,
    ToolError,
    arguments_of,
    front,
    network_name,
    network_settings,
    parameters,
    read_csv,
    read_json,
    read_json_if_there,
    training_runs,
)

from micronet.files import write_atomically, write_csv
from micronet.packed.file import VERSION
from micronet.pipeline import TRAINING_STAGES
from micronet.scoring.books import BOOKS

RELEASES = METRICS / "releases.csv"
TRIED = METRICS / "tried.csv"
DOCUMENT = Path("docs/record.md")
COLUMNS = (
    "date", "test_accuracy_percent", "challenge_score", "deck_score", "bytes", "teacher", "student", "zeros",
    "weight_bits", "activation_bits", "device", "training_minutes", "packed_sha256",
)  # fmt: skip
TRIED_COLUMNS = ("date", "why", "teacher", "student", "zeros", "stage", "validation_accuracy_percent", "commit")
GOALS = (  # rule book, test accuracy in percent, score, what that is
    ("deck", 90.9, 0.0357, "what the slides reached"),
    ("deck", 90.0, 0.0137, "the best that another group of that course states"),
    ("deck", 90.9, 0.0055, "a goal"),
    ("challenge", 90.9, 0.0018, "a goal"),
    ("strict", 90.9, 0.0025, "a goal"),
    ("course", 90.9, 0.0035, "a goal"),
    ("course", 90.0, 0.0025, "a goal at the course's threshold"),
)
DECK = (  # of the deck's chapters: network, zeros
    ("densenet_cifar", 0.0),
    ("densenet_small", 0.0),
    ("densenet_tiny", 0.0),
    ("densenet_nano", 0.0),
    ("densenet_nano", 0.197),
)
SEARCHES = {"metrics/sweeps/search.csv": "search.json"}
SCORED = "python stages/score.py"


def _model(spec: dict[str, Any]) -> str:
    """A spec in brief: `resnet 2-2-2 16-32-64`."""
    lists = {key: "-".join(map(str, value)) for key, value in network_settings(spec).items() if isinstance(value, list)}
    told = [text if key in ("blocks", "widths") else f"{key} {text}" for key, text in lists.items()]
    return " ".join([network_name(spec), *told])


def release(params: parameters.Params, metrics: Path = METRICS) -> dict[str, str]:
    """The row of the model that metrics/ describes."""
    score = read_json(metrics / "score.json", SCORED)
    runs = training_runs(metrics)
    packed = read_json(metrics / "quantize.json", "python stages/quantize.py")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "test_accuracy_percent": f"{score['test_accuracy_percent']:.2f}",
        "challenge_score": f"{score['challenge']['score']:.6f}",
        "deck_score": f"{score['deck']['score']:.6f}",
        "bytes": str(score["packed"]["bytes"]),
        "teacher": _model(params.teacher.model.spec()),
        "student": _model(params.student.model.spec()),
        "zeros": f"{packed['zero_weights'] / packed['prunable_weights']:.3f}",
        "weight_bits": str(params.quantize.weight_bits),
        "activation_bits": str(params.quantize.activation_bits),
        "device": " and ".join(sorted({run["device"] for run in runs})),
        "training_minutes": f"{sum(run['seconds'] for run in runs) / 60:.0f}",
        "packed_sha256": score["packed"]["sha256"][:16],
    }


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a table; none when there is no such file."""
    return read_csv(path, "make docs") if path.is_file() else []


def add(row: dict[str, str], path: Path = RELEASES) -> list[dict[str, str]]:
    """The rows with this one added, written to the file; a model already in it stays unchanged."""
    rows = rows_of(path)
    if any(known["packed_sha256"] == row["packed_sha256"] for known in rows):
        return rows
    write_csv(path, COLUMNS, [*rows, row])
    return [*rows, row]


def tried(folder: Path, why: str) -> dict[str, str]:
    """The row of a run in another checkout: how far it got, measured on validation images.

    Raises:
        ToolError: no stage has finished with that checkout's params.
    """
    params = parameters.load(folder / "params.yaml")
    done = {stage: folder / f"metrics/runs/{stage}.json" for stage in TRAINING_STAGES}
    ages = [(path.stat().st_mtime, stage) for stage, path in done.items() if path.is_file()]
    if not ages:
        raise ToolError(f"{folder / 'metrics/runs'}: no stage that trains has finished there; `make repro` runs them")
    newest = max(ages)[1]
    metrics = read_json(folder / f"metrics/{newest}.json", f"python stages/{newest}.py")
    zeros = metrics.get("zero_weights", 0) / metrics["prunable_weights"] if "prunable_weights" in metrics else 0.0
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "why": why,
        "teacher": _model(params.teacher.model.spec()),
        "student": _model(params.student.model.spec()),
        "zeros": f"{zeros:.3f}",
        "stage": newest,
        "validation_accuracy_percent": f"{metrics['validation_accuracy_percent']:.2f}",
        "commit": read_json(done[newest], f"python stages/{newest}.py")["commit"],
    }


def deck_steps() -> list[dict[str, Any]]:
    """The deck's own steps, priced by our counter."""
    import torch

    import models
    from micronet.compress.pruning import apply_masks, global_masks
    from micronet.scoring.challenge import challenge_score
    from micronet.scoring.counting import operations
    from micronet.scoring.deck import deck_score

    steps = []
    for name, zeros in DECK:
        torch.manual_seed(0)
        model = models.build(name)
        if zeros:
            apply_masks(model, global_masks(model, zeros, layer_floor=0.0))
        ops = operations(model)
        steps.append(
            {
                "name": name,
                "zeros": zeros,
                "growth_rate": model.spec["growth_rate"],
                "deck_score": deck_score(ops).score,
                "challenge_score": challenge_score(ops).score,
            }
        )
    return steps


def standing(published: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How close each goal is: per goal, the published CIFAR-10 model that is accurate enough and scores lowest.

    Args:
        published: `results.models`.
    """
    places, rows = {book.name: place for place, book in enumerate(BOOKS)}, []
    for rules, accuracy, score, what in GOALS:
        place = places[rules]
        fit = [model for model in published if model["of_cifar10"] and model["scores"][place] is not None]
        best = min(
            (model for model in fit if model["accuracy"] >= accuracy),
            key=lambda model: model["scores"][place],
            default=None,
        )
        rows.append({"rules": rules, "accuracy": accuracy, "goal": score, "what": what, "model": best, "place": place})
    return rows


def grid(rows: Sequence[Mapping[str, Any]], down: str, across: str) -> dict[str, Any]:
    """A table's rows arranged by two columns: {columns, rows: [(value, cells)]}; None for a cell without a row."""
    columns = sorted({row[across] for row in rows})
    cells = {(row[down], row[across]): row for row in rows}
    values = dict.fromkeys(row[down] for row in rows)
    return {"columns": columns, "rows": [(value, [cells.get((value, at)) for at in columns]) for value in values]}


def choices(metrics: Path) -> dict[str, Any] | None:
    """What two settings were chosen by, if `make choices` ran."""
    found = read_json_if_there(metrics / "bench_choices.json", "make choices")
    if found is None:
        return None
    rows = sorted(found["pruned_at_once"], key=lambda row: row["amount"])
    return {"teacher": found["teacher_accuracy_percent"], "pruned": grid(rows, "amount", "cost_exponent")}


def cascade_shares(metrics: Path) -> dict[str, Any] | None:
    """Cost and accuracy, on validation images, of a small network in front of a large one, if priced."""
    path = metrics / "cascade/shares.csv"
    if not path.is_file():
        return None
    return grid(read_csv(path, "tools/cascade.py", ("network_2", "mirrored_too")), "network_2", "mirrored_too")


def searches(metrics: Path) -> dict[str, Any]:
    """The results of the searches that ran, by space."""
    found = {
        space: read_json_if_there(metrics / name, f"git checkout -- metrics/{name}") for space, name in SEARCHES.items()
    }
    told = {space: one for space, one in found.items() if one is not None}
    for one in told.values():
        if one["best"]:
            one["best"]["model"] = _model(json.loads(one["best"]["network"]))
    return told


def render(rows: Sequence[Mapping[str, str]], metrics: Path, deck: list[dict[str, Any]]) -> str:
    """docs/record.md, from the released models, a metrics folder and `deck_steps`; pipelines/ is beside the folder."""
    folders = sorted((metrics.parent / "pipelines").glob("*/params.yaml"))
    facts = {
        "releases": rows,
        "pending": [path.parent.name for path in folders if not (path.parent / "metrics/score.json").is_file()],
        "last": rows[-1],
        "goals": standing(results.models(metrics)),
        "deck": deck,
        "path": read_csv(metrics / "path.csv", SCORED, ("test_accuracy_percent",)),
        "one_pass": read_json(metrics / "score.json", SCORED)["one_pass"],
        "choices": choices(metrics),
        "shares": cascade_shares(metrics),
        "tried": rows_of(metrics / TRIED.name),
        "searches": searches(metrics),
        "packed_version": VERSION,
    }
    return documents.render("record", facts)


def main() -> int:
    parser = arguments_of("record", __doc__)
    parser.add_argument("--tried", type=Path, metavar="FOLDER", help="only keep the run in this checkout as tried")
    parser.add_argument("--why", help="what was tried there, and why it was not released")
    args = parser.parse_args()
    if (args.tried is None) != (args.why is None):
        parser.error("--tried and --why go together")

    def work() -> int:
        if args.tried:
            write_csv(TRIED, TRIED_COLUMNS, [*rows_of(TRIED), tried(args.tried, args.why)])
            return 0
        rows = add(release(parameters.load("params.yaml")))
        write_atomically(DOCUMENT, render(rows, METRICS, deck_steps()))
        return 0

    return front("record", work)


if __name__ == "__main__":
    sys.exit(main())
