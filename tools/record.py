"""Keeps metrics/releases.csv, a row a released model, and writes docs/record.md: the path to the lowest score.

The deck's networks are priced anew by micronet.scoring; what is ours comes from metrics/ alone.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _tool import METRICS, TRAINING_STAGES, front, parameters, read_json

from micronet.checkpoint import write_atomically

RELEASES = METRICS / "releases.csv"
DOCUMENT = Path("docs/record.md")
COLUMNS = (
    "date", "test_accuracy_percent", "challenge_score", "deck_score", "bytes", "teacher", "student", "zeros",
    "weight_bits", "activation_bits", "device", "training_minutes", "packed_sha256",
)  # fmt: skip
GOAL_ACCURACY, GOAL_CHALLENGE, GOAL_DECK = 90.9, 0.0025, 0.0068
STEPS = (  # accuracy, challenge score: what already counts on the way
    (90.0, 0.0137, "below the best peer we know"),
    (90.9, 0.0036, "a tenth of the deck's score"),
    (GOAL_ACCURACY, GOAL_CHALLENGE, "the goal"),
)
DECK = (  # of the deck's chapters: network, zeros, what changed. It gives one accuracy, that of the last.
    ("densenet_cifar", 0.0, "growth rate 12, 16 bits"),
    ("densenet_small", 0.0, "growth rate 9"),
    ("densenet_tiny", 0.0, "growth rate 6"),
    ("densenet_nano", 0.0, "growth rate 4"),
    ("densenet_nano", 0.197, "19.7 % of the weights pruned"),
)


def _model(spec: dict[str, Any]) -> str:
    """A spec in few words: `resnet 2-2-2 16-32-64`."""
    lists = [value for value in spec.values() if isinstance(value, list)]
    return " ".join([spec["name"], *("-".join(map(str, value)) for value in lists)])


def release(params: parameters.Params, metrics: Path = METRICS) -> dict[str, str]:
    """The row of the model that metrics/ speaks of."""
    score = read_json(metrics / "score.json", "python stages/score.py")
    runs = [read_json(metrics / f"runs/{stage}.json", f"python stages/{stage}.py") for stage in TRAINING_STAGES]
    pruned = read_json(metrics / "retrain.json", "python stages/retrain.py")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "test_accuracy_percent": f"{score['test_accuracy_percent']:.2f}",
        "challenge_score": f"{score['challenge']['score']:.6f}",
        "deck_score": f"{score['deck']['score']:.6f}",
        "bytes": str(score["packed"]["bytes"]),
        "teacher": _model(params.teacher.model.spec()),
        "student": _model(params.student.model.spec()),
        "zeros": f"{pruned['zero_weights'] / pruned['prunable_weights']:.3f}",
        "weight_bits": str(params.quantize.weight_bits),
        "activation_bits": str(params.quantize.activation_bits),
        "device": " and ".join(sorted({run["device"] for run in runs})),
        "training_minutes": f"{sum(run['seconds'] for run in runs) / 60:.0f}",
        "packed_sha256": score["packed"]["sha256"][:16],
    }


def releases(path: Path = RELEASES) -> list[dict[str, str]]:
    """The rows so far."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def add(row: dict[str, str], path: Path = RELEASES) -> list[dict[str, str]]:
    """The rows with this one, written; a model that is in it already stays as it is."""
    rows = releases(path)
    if any(known["packed_sha256"] == row["packed_sha256"] for known in rows):
        return rows
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*rows, row])
    write_atomically(path, text.getvalue())
    return [*rows, row]


def _table(titles: str, rows: list[list[str]]) -> list[str]:
    head = titles.split(", ")
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)]


def deck_rows() -> list[list[str]]:
    """The deck's own steps, priced by our counter."""
    import torch

    import models
    from micronet.pruning import apply_masks, global_masks
    from micronet.scoring import challenge_score, deck_score, operations

    rows = []
    for name, zeros, change in DECK:
        torch.manual_seed(0)
        model = models.build(name)
        if zeros:
            apply_masks(model, global_masks(model, zeros, layer_floor=0.0))
        ops = operations(model)
        accuracy = "about 90.9 % (the deck's word)" if zeros else "-"
        scores = [f"{deck_score(ops).score:.4f}", f"{challenge_score(ops).score:.4f}"]
        rows.append([f"deck: {name}, {change}", accuracy, *scores])
    return rows


def path_rows(metrics: Path) -> list[list[str]]:
    """Our steps, from metrics/path.csv."""
    with (metrics / "path.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    return [
        [
            f"ours: {row['stage']}",
            f"{float(row['test_accuracy_percent']):.2f} %",
            f"{float(row['deck_score']):.4f}",
            f"{float(row['challenge_score']):.4f}",
        ]
        for row in found
    ]


def standing(row: dict[str, str]) -> list[str]:
    """Which steps the released model has reached, and what separates it from those it has not."""
    accuracy, challenge = float(row["test_accuracy_percent"]), float(row["challenge_score"])
    lines = []
    for least, most, name in STEPS:
        missing = []
        if accuracy < least:
            missing.append(f"{least - accuracy:.2f} points of accuracy")
        if challenge > most:
            missing.append(f"{challenge - most:.4f} of score ({challenge / most:.1f} times as much)")
        verdict = "**reached**" if not missing else f"missing: {' and '.join(missing)}"
        lines.append(f"- {least} % at {most} ({name}): {verdict}.")
    deck = float(row["deck_score"])
    reached = "reached" if deck <= GOAL_DECK else f"{deck:.4f}, {deck / GOAL_DECK:.1f} times the goal"
    lines.append(f"- Deck rules, goal {GOAL_DECK}: {reached}.")
    return lines


def search_lines(metrics: Path) -> list[str]:
    """What the search found, if it ran."""
    path = metrics / "search.json"
    if not path.is_file():
        return ["`make search` has not been run."]
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = [f"{found['trials']} trials (metrics/search.csv), on validation images only."]
    for name, ranking in found["rankings"].items():
        value = ranking["rank_correlation"]
        told = "too few to tell" if value is None else f"rank correlation {value:.2f}"
        lines.append(f"- {name}: {ranking['candidates']} candidates ran both; {told}.")
    best = found["best"]
    if best:
        lines.append(
            f"- Best of the highest rung: {_model(json.loads(best['network']))}, {best['amount']:.0%} zeros, "
            f"{best['weight_bits']}/{best['activation_bits']} bits: {best['validation_accuracy_percent']:.2f} % on "
            f"validation at {best['challenge_score']:.4f}."
        )
    return lines


def render(rows: list[dict[str, str]], metrics: Path) -> str:
    """docs/record.md."""
    last = rows[-1]
    lines = [
        "# The record, and the path to it",
        "",
        "Written by `make docs` from `metrics/`. The goal: 90.9 % on the test set with a challenge score of at most "
        f"{GOAL_CHALLENGE} and a deck score of at most {GOAL_DECK}, on the packed file.",
        "",
        "## Where it stands",
        "",
        f"Released on {last['date']}: **{last['test_accuracy_percent']} %**, challenge "
        f"**{float(last['challenge_score']):.4f}**, deck **{float(last['deck_score']):.4f}**, "
        f"{int(last['bytes']):,} bytes; one seed; trained in {last['training_minutes']} minutes on {last['device']}.",
        "",
        *standing(last),
        "",
        "## The path",
        "",
        "Float rows are priced at 16 bits; the quantized row is what the packed file holds and does.",
        "",
        *_table("step, test accuracy, deck score, challenge score", [*deck_rows(), *path_rows(metrics)]),
        "",
        "## Releases",
        "",
        *_table(
            "date, test accuracy, challenge, deck, bytes, teacher, student, zeros, bits, minutes",
            [
                [
                    row["date"],
                    f"{row['test_accuracy_percent']} %",
                    f"{float(row['challenge_score']):.4f}",
                    f"{float(row['deck_score']):.4f}",
                    f"{int(row['bytes']):,}",
                    row["teacher"],
                    row["student"],
                    f"{float(row['zeros']):.0%}",
                    f"{row['weight_bits']}/{row['activation_bits']}",
                    row["training_minutes"],
                ]
                for row in rows
            ],
        ),
        "",
        "## The search",
        "",
        *search_lines(metrics),
        "",
        "## With more compute",
        "",
        "`recipes/record.yaml` is the next run: a wider teacher for 40 epochs, then the student taught for 310 epochs "
        "while nine tenths of its weights go. It wants a GPU and has not been run in full.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    def work() -> int:
        rows = add(release(parameters.load("params.yaml")))
        write_atomically(DOCUMENT, render(rows, METRICS))
        return 0

    return front("record", work)


if __name__ == "__main__":
    sys.exit(main())
