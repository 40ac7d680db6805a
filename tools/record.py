"""Keeps metrics/releases.csv, a row a released model, and writes docs/record.md: the path to the lowest score.

The deck's networks are priced anew by micronet.scoring; what is ours comes from metrics/ alone. A run that was not
released is kept as a row of metrics/tried.csv: `python tools/record.py --tried FOLDER --why "..."`.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _tool import METRICS, TRAINING_STAGES, front, parameters, read_json

from micronet.files import write_atomically, write_csv
from micronet.packed.file import VERSION

RELEASES = METRICS / "releases.csv"
TRIED = METRICS / "tried.csv"
DOCUMENT = Path("docs/record.md")
COLUMNS = (
    "date", "test_accuracy_percent", "challenge_score", "deck_score", "bytes", "teacher", "student", "zeros",
    "weight_bits", "activation_bits", "device", "training_minutes", "packed_sha256",
)  # fmt: skip
TRIED_COLUMNS = ("date", "why", "teacher", "student", "zeros", "stage", "validation_accuracy_percent", "commit")
GOAL_ACCURACY, GOAL_CHALLENGE, GOAL_DECK = 90.9, 0.0025, 0.0068
DECK_SCORE = 0.0357
FOR_THE_DECK = (  # a folder of metrics/, the model there
    ("dense", "the recipe `dense` for them"),
    ("refined", "`refined`, which went on from dense's packed file with mixed images"),
    ("cascade", "`glance` and `refined` in a row, the second for the images that the first is unsure of"),
)
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
    lists = {key: "-".join(map(str, value)) for key, value in spec.items() if isinstance(value, list)}
    told = [text if key in ("blocks", "widths") else f"{key} {text}" for key, text in lists.items()]
    return " ".join([spec["name"], *told])


def release(params: parameters.Params, metrics: Path = METRICS) -> dict[str, str]:
    """The row of the model that metrics/ speaks of."""
    score = read_json(metrics / "score.json", "python stages/score.py")
    runs = [read_json(metrics / f"runs/{stage}.json", f"python stages/{stage}.py") for stage in TRAINING_STAGES]
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
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def add(row: dict[str, str], path: Path = RELEASES) -> list[dict[str, str]]:
    """The rows with this one, written; a model that is in it already stays as it is."""
    rows = rows_of(path)
    if any(known["packed_sha256"] == row["packed_sha256"] for known in rows):
        return rows
    write_csv(path, COLUMNS, [*rows, row])
    return [*rows, row]


def tried(folder: Path, why: str) -> dict[str, str]:
    """The row of a run in another checkout: how far it came, measured on validation images.

    Raises:
        ToolError: there is no finished stage of that checkout's params.
    """
    params = parameters.load(folder / "params.yaml")
    done = {stage: folder / f"metrics/runs/{stage}.json" for stage in TRAINING_STAGES}
    newest = max((path.stat().st_mtime, stage) for stage, path in done.items() if path.is_file())[1]
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


def _table(titles: str, rows: list[list[str]]) -> list[str]:
    head = titles.split(", ")
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] + ["---:"] * (len(head) - 1), *rows)]


def deck_rows() -> list[list[str]]:
    """The deck's own steps, priced by our counter."""
    import torch

    import models
    from micronet.compress.pruning import apply_masks, global_masks
    from micronet.scoring.challenge import challenge_score
    from micronet.scoring.counting import operations
    from micronet.scoring.deck import deck_score

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
    """Our steps, from metrics/path.csv and score.json: the last checkpoint's in the ways to evaluate it."""
    with (metrics / "path.csv").open(encoding="utf-8", newline="") as file:
        rows = [
            (row["stage"], *(float(row[key]) for key in ("test_accuracy_percent", "deck_score", "challenge_score")))
            for row in csv.DictReader(file)
        ]
    once = read_json(metrics / "score.json", "python stages/score.py")["one_pass"]
    same = once["test_accuracy_percent"], once["deck_score"]
    rows[-1:] = [
        ("quantized; plain sums of products, a mask bit for every weight", *same, once["plain_challenge_score"]),
        ("masks of blocks, and inputs of equal weights summed first", *same, once["challenge_score"]),
        ("unsure images seen mirrored too: the release", *rows[-1][1:]),
    ]
    return [
        [f"ours: {name}", f"{accuracy:.2f} %", f"{deck:.4f}", f"{challenge:.4f}"]
        for name, accuracy, deck, challenge in rows
    ]


def verdict(accuracy: float, score: float, least: float, most: float, digits: int) -> str:
    """Whether a goal is reached, and by how much not."""
    missing = []
    if accuracy < least:
        missing.append(f"{least - accuracy:.2f} points of accuracy")
    if score > most:
        missing.append(f"{score - most:.{digits}f} of score ({score / most:.2f} times as much)")
    return f"missing: {' and '.join(missing)}" if missing else "**reached**"


def standing(row: dict[str, str], metrics: Path) -> list[str]:
    """Which steps the released models have reached, and what separates them from those they have not."""
    accuracy, challenge, deck = (float(row[key]) for key in ("test_accuracy_percent", "challenge_score", "deck_score"))
    lines = [
        f"- {least} % at {most} ({name}): {verdict(accuracy, challenge, least, most, 5)}."
        for least, most, name in STEPS
    ]
    goal = GOAL_ACCURACY, GOAL_DECK, 4
    lines.append(f"- Deck rules, {GOAL_ACCURACY} % at {GOAL_DECK}: {verdict(accuracy, deck, *goal)}.")
    for name, what in FOR_THE_DECK:
        path = metrics / name / "score.json"
        if path.is_file():
            score = json.loads(path.read_text(encoding="utf-8"))
            accuracy, deck = score["test_accuracy_percent"], score["deck"]["score"]
            lines.append(
                f"- Deck rules, {what} (`make {name}` measures it): {accuracy:.2f} % at {deck:.4f}, "
                f"where the deck has {DECK_SCORE}; {verdict(accuracy, deck, *goal)}."
            )
    return lines


def search_lines(metrics: Path) -> list[str]:
    """What the searches found, if they ran."""
    spaces = {"search.json": "search/space.yaml", "search_deck.json": "search/deck.yaml"}
    lines = []
    for name, space in spaces.items():
        if (metrics / name).is_file():
            found = json.loads((metrics / name).read_text(encoding="utf-8"))
            lines += [f"{space}: {found['trials']} trials (metrics/search.csv), on validation images only."]
            lines += [*_search(found), ""]
    return lines[:-1] or ["`make search` has not been run."]


def _search(found: dict[str, Any]) -> list[str]:
    """One search: how its rungs agree, its best."""
    lines = []
    for name, ranking in found["rankings"].items():
        value = ranking["rank_correlation"]
        told = "too few to tell" if value is None else f"rank correlation {value:.2f}"
        lines.append(f"- {name}: {ranking['candidates']} candidates ran both; {told}.")
    best = found["best"]
    if best and best["packed_version"] != VERSION:
        lines.append(f"- Scores as counted by version {best['packed_version']} of the packed format, higher than now.")
    if best:
        scores = [f"{rules} {best[f'{rules}_score']:.4f}" for rules in ("challenge", "deck") if best[f"{rules}_score"]]
        lines.append(
            f"- Best of the highest rung: {_model(json.loads(best['network']))}, {best['amount']:.0%} zeros, "
            f"{best['weight_bits']}/{best['activation_bits']} bits: {best['validation_accuracy_percent']:.2f} % on "
            f"validation at {' and '.join(scores)}."
        )
    return lines


def tried_lines(metrics: Path) -> list[str]:
    """What was tried and not released, and why."""
    rows = rows_of(metrics / TRIED.name)
    if not rows:
        return []
    cells = [
        [
            row["why"],
            row["teacher"],
            row["student"],
            f"{float(row['zeros']):.0%}",
            row["stage"],
            f"{row['validation_accuracy_percent']} %",
        ]
        for row in rows
    ]
    return [
        "Runs that were not released:",
        "",
        *_table("what and why not, teacher, student, zeros, got to, validation", cells),
        "",
    ]


def choice_lines(metrics: Path) -> list[str]:
    """What decided two settings, if `make choices` ran."""
    path = metrics / "bench_choices.json"
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    answers, rows = found["teacher_accuracy_percent"], found["pruned_at_once"]
    exponents = sorted({row["cost_exponent"] for row in rows})
    cells = []
    for amount in sorted({row["amount"] for row in rows}):
        same = sorted((row for row in rows if row["amount"] == amount), key=lambda row: row["cost_exponent"])
        results = [f"{row['validation_accuracy_percent']:.2f} % at {row['challenge_score']:.4f}" for row in same]
        cells.append([f"{amount:.0%}", *results])
    return [
        f"`mirror_answers`: on validation images the teacher is right on {answers['plain']:.2f} %, the mean over each "
        f"image and its mirror image on {answers['mirror']:.2f} %. With fixed views the mean costs no further pass.",
        "",
        "`prune.cost_exponent`: validation accuracy of the distilled student pruned at once, without training, and the "
        "challenge score it would have at 4 bits:",
        "",
        *_table(", ".join(["zeros", *(f"exponent {exponent:g}" for exponent in exponents)]), cells),
        "",
    ]


def cascade_lines(metrics: Path) -> list[str]:
    """What a small network in front of a large one costs and gives on validation images, if it was priced."""
    path = metrics / "cascade/shares.csv"
    if not path.is_file():
        return []
    by_share: dict[str, dict[str, str]] = {}
    for row in rows_of(path):
        cell = f"{float(row['validation_accuracy_percent']):.2f} % at {float(row['deck_score']):.4f}"
        by_share.setdefault(row["network_2"], {})[row["mirrored_too"]] = cell
    mirrored = sorted({share for cells in by_share.values() for share in cells}, key=float)
    titles = ["seen by `refined`", *(f"{float(share):g} % mirrored too" for share in mirrored)]
    cells = [
        [f"{float(share):g} %", *(found.get(again, "") for again in mirrored)] for share, found in by_share.items()
    ]
    return [
        "`glance` in front of `refined` (`tools/cascade.py`): validation accuracy and deck score, by the share of the "
        "validation images that go on to the second network, and that this one sees mirrored too:",
        "",
        *_table(", ".join(titles), cells),
        "",
    ]


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
        *standing(last, metrics),
        "",
        "## The path",
        "",
        "Up to `retrained` a row is a checkpoint in floats, priced at 16 bits; the others are the packed file.",
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
        "## What was tried",
        "",
        *(
            choice_lines(metrics) + cascade_lines(metrics) + tried_lines(metrics)
            or ["Nothing beside the releases.", ""]
        ),
        "## The search",
        "",
        *search_lines(metrics),
        "",
        "## With more compute",
        "",
        "`recipes/record.yaml` is what two CPU cores have trained in hours, `recipes/dense.yaml` what an H200 has in "
        "minutes. Next, in this order: mixed images from the start of the long distillation of `dense`, whose "
        "training accuracy ended far above its validation accuracy: 24 epochs of them brought its network from 90.80 "
        "% to 91.50 % on validation (in floats), and quantizing with them kept what fixed views had lost; more runs "
        "in the mean that `refined` starts from, and their mean while they train; batches of 256 while pruning, for "
        "a sparse network wants steps, not epochs; quantizing on the GPU too, for as long as distilling; from the "
        "dense student on, prune by what `quantize.trim` ranks by instead of by magnitudes, and let weights come "
        "back in rows that are stored anyway, for masks take more of the file than codes; three seeds instead of "
        "one: all numbers here are one seed's, and two quantizations that differed in their share of mixed images "
        "alone were 0.4 points apart on validation. `record` has not been timed on a GPU from nothing: what was run "
        "there, with half the steps, is in the table above.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
        write_atomically(DOCUMENT, render(rows, METRICS))
        return 0

    return front("record", work)


if __name__ == "__main__":
    sys.exit(main())
