"""What each section of a page shows of a run: numbers and figures for its template, None where nothing is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from micronet.errors import MicronetError, shown
from micronet.scoring.books import BOOKS
from report import answers, charts, layers
from report.gathered import MADE_BY, STAGES, Row, Run
from report.tables import Column, Figure, Table, number

NAMES = [book.name for book in BOOKS]
DECK, CHALLENGE = "deck", "challenge"
THIS, PATH, RELEASES, MODELS = "this model", "its path", "releases", "other models"
SWEEPS, PEERS = "sweeps (validation)", "others' results"
COURSE_LINE = 90.0  # percent: what the course of the slides asks for
MOST_CLASSES = 40  # in a matrix
LARGEST = 20  # confusions in the table of a matrix with more classes
CLAIM = {
    "teacher": "train_teacher",
    "student": "train_student",
    "distilled": "distill",
    "pruned": "prune",
    "retrained": "retrain",
    "quantized": "quantize",
}


@dataclass(frozen=True)
class Context:
    """What the parts of a page know beside their run."""

    runs: Sequence[Run]  # all that the page shows, so that their axes can be the same
    peers: Sequence[tuple[float, float, str]]  # deck score, accuracy, name of what others published
    root: Path
    texts: Mapping[str, str]  # what charts are called for who hears them, and their controls


Builder = Callable[[Run, Context], dict[str, Any] | None]


def _is_of_cifar10(run: Run) -> bool:
    """Whether scores and accuracy can be compared with those of the slides."""
    return run.reference is None and (run.model is None or run.model.classes == 10)


def headline(run: Run, context: Context) -> dict[str, Any] | None:
    """Accuracy with its interval, and the four scores beside others'."""
    if run.score is None:
        return None
    accuracy, images = run.score["test_accuracy_percent"], run.test_images
    found = [(name, run.score[name]) for name in NAMES if name in run.score]
    rows = [
        {
            "book": name,
            "about": next(book.about for book in BOOKS if book.name == name),
            "score": price["score"],
            "storage": price["score_params"],
            "operations": price["score"] - price["score_params"],
        }
        for name, price in found
    ]
    marks = [{"book": row["book"], "series": THIS, "score": row["score"]} for row in rows]
    once = run.score.get("one_pass", {}) if run.score.get("flipped_images_percent") or "cascade" in run.score else {}
    marks += [
        {"book": name, "series": "in one pass", "score": once[f"{name}_score"]}
        for name, _ in found
        if f"{name}_score" in once
    ]
    others = context.peers if _is_of_cifar10(run) else ()
    slides, groups = context.texts["slides"], context.texts["groups"]
    marks += [
        {"book": DECK, "series": groups if place else slides, "score": one[0]} for place, one in enumerate(others)
    ]
    kinds = dict.fromkeys(mark["series"] for mark in marks)
    colours = {THIS: charts.MAIN, "in one pass": charts.THIRD, slides: charts.SECOND}
    series = {kind: colours.get(kind, charts.QUIET) for kind in kinds}
    columns = [Column("book", "rules"), Column("series", "whose"), Column("score", "score", ".6f")]
    table = Table.of(columns, marks)
    spec = charts.scores(context.texts["scores"], [row["book"] for row in rows], series)
    return {
        "accuracy": accuracy,
        "interval": answers.interval(accuracy, images) if images else None,
        "images": images,
        "rows": rows,
        "packed": run.score.get("packed", {}),
        "one_pass": once,
        "peers": others,
        "reference": run.reference,
        "figure": Figure("scores", spec, table),
    }


LOOKS = {
    THIS: charts.Look(charts.MAIN, 170, named=True),
    PATH: charts.Look(charts.MAIN, 80, named=True),
    MODELS: charts.Look(charts.FOURTH, 70, named=True),
    PEERS: charts.Look(charts.SECOND, 80, named=True),
    RELEASES: charts.Look(charts.THIRD, 60),
    SWEEPS: charts.Look(charts.QUIET, 26, 0.5),
}


def accuracy_against_score(run: Run, context: Context) -> dict[str, Any] | None:
    """This model, its path, releases, sweeps, other models, what others published: accuracy over score."""
    points: list[dict[str, Any]] = []

    def add(series: str, label: str, accuracy: float | None, scores: Mapping[str, float | None]) -> None:
        if accuracy is None or not any(scores.values()):
            return
        last = points[-1] if points else {}
        if last.get("series") == series == PATH and (last["accuracy"], last[DECK]) == (accuracy, scores[DECK]):
            last["label"] += f", {label}"
        else:
            points.append({"series": series, "label": label, "accuracy": accuracy, **scores})

    def add_rows(series: str, rows: Sequence[Row], label: Callable[[Row], str], column: str) -> None:
        for row in rows:
            add(series, label(row), number(row, column), {name: number(row, f"{name}_score") for name in NAMES})

    if run.score is not None:
        add(THIS, "", run.score["test_accuracy_percent"], _prices(run.score))
    add_rows(PATH, run.path[:-1], lambda row: row["stage"], "test_accuracy_percent")
    add_rows(RELEASES, run.releases, lambda row: f"{row['date']}, {row['packed_sha256'][:8]}", "test_accuracy_percent")
    for name, rows in run.sweeps.items():
        done = [{**row, "variant": f"{name}: {row['variant']}"} for row in rows if row.get("status") == "done"]
        add_rows(SWEEPS, done, lambda row: row["variant"], "validation_accuracy_percent")
    comparable = _is_of_cifar10(run) and bool(points)
    if comparable:
        for name, score in run.others.items():
            if "test_accuracy_percent" in score and "reference" not in score and run.score != score:
                add(MODELS, name, score["test_accuracy_percent"], _prices(score))
        for price, accuracy, name in context.peers:
            add(PEERS, name, accuracy, {DECK: price})
    if not points:
        return None
    there = {point["series"] for point in points}
    looks = {name: look for name, look in LOOKS.items() if name in there}
    columns = [
        Column("series", "what"),
        Column("label", "which"),
        Column("accuracy", "accuracy %", ".2f"),
        *(Column(name, name, ".6f") for name in NAMES),
    ]
    line = COURSE_LINE if comparable else None
    books = [CHALLENGE, *(name for name in NAMES if name != CHALLENGE)]
    spec = charts.accuracy_against_score(context.texts["against"], books, looks, points, line, context.texts["rules"])
    return {"figure": Figure("against", spec, Table.of(columns, points)), "line": line, "sweeps": bool(run.sweeps)}


def _prices(score: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: score[name]["score"] for name in NAMES if name in score}


def path(run: Run, context: Context) -> dict[str, Any] | None:
    """Accuracy, size and scores at each block of the pipeline."""
    rows: list[dict[str, Any]] = []
    for row in run.path or _path_of_stages(run):
        stage = row["stage"]
        own = run.stages.get(CLAIM.get(stage, ""), {})
        rows.append(
            {
                "stage": stage,
                "test": number(row, "test_accuracy_percent"),
                "validation": own.get("validation_accuracy_percent"),
                "all": number(row, "parameters"),
                "not_zero": number(row, "nonzero_parameters"),
                # A checkpoint holds 32-bit floats.
                "bytes": own.get("file_bytes", 4 * (number(row, "parameters") or 0)) or None,
                "macs": number(row, "macs"),
                **{name: number(row, f"{name}_score") for name in NAMES},
            }
        )
    if not rows:
        return None
    stages = [row["stage"] for row in rows]
    measured = [key for key in ("test", "validation") if any(row[key] is not None for row in rows)]
    colours = {"test": charts.MAIN, "validation": charts.THIRD}
    first = [Column("stage", "block"), Column("test", "test %", ".2f"), Column("validation", "validation %", ".2f")]
    size = [
        Column("stage", "block"),
        Column("all", "parameters", ",d"),
        Column("not_zero", "not zero", ",d"),
        Column("bytes", "bytes", ",d"),
        Column("macs", "MACs", ",d"),
    ]
    prices = [Column("stage", "block"), *(Column(name, name, ".6f") for name in NAMES)]
    found: dict[str, Any] = {"scores": Table.of(prices, rows), "measured": measured}
    if measured:
        known = [row[key] for row in rows for key in measured if row[key] is not None]
        spec = charts.path_accuracy(
            context.texts["path_accuracy"], stages, {key: colours[key] for key in measured}, known
        )
        found["accuracy"] = Figure("path-accuracy", spec, Table.of(first, rows))
    spec = charts.path_size(context.texts["path_size"], stages, {"all": charts.THIRD, "not_zero": charts.MAIN})
    return found | {"size": Figure("path-size", spec, Table.of(size, rows))}


def _path_of_stages(run: Run) -> list[Row]:
    """What stages say of themselves where `path.csv` is not there."""
    return [
        {
            "stage": MADE_BY[stage],
            "parameters": str(found.get("parameters", "")),
            "nonzero_parameters": str(found.get("nonzero_parameters", "")),
        }
        for stage, found in run.stages.items()
        if stage in MADE_BY and "parameters" in found
    ]


def curves(run: Run, context: Context) -> dict[str, Any] | None:
    """Training and validation accuracy of each stage that trained."""
    if not run.curves:
        return None
    fields = ("train_accuracy_percent", "validation_accuracy_percent")
    found = [
        number(row, name) for one in context.runs for rows in one.curves.values() for row in rows for name in fields
    ]
    values = [value for value in found if value is not None]
    columns = [
        Column("epoch", "epoch", "d"),
        Column("train", "train %", ".2f"),
        Column("validation", "validation %", ".2f"),
        Column("train_loss", "train loss", ".4f"),
        Column("validation_loss", "validation loss", ".4f"),
        Column("learning_rate", "learning rate", ".3g"),
    ]
    figures = []
    for stage, rows in run.curves.items():
        named = [{**row, "train": row.get(fields[0]), "validation": row.get(fields[1])} for row in rows]
        said = context.texts["curve"].replace("STAGE", stage)
        series, epochs = {"train": charts.THIRD, "validation": charts.MAIN}, int(number(rows[-1], "epoch") or len(rows))
        spec = charts.curve(said, series, epochs, values)
        last = next((value for row in reversed(rows) if (value := number(row, fields[1])) is not None), None)
        figures.append((stage, last, Figure(f"curve-{stage}", spec, Table.of(columns, named))))
    trained = [stage for stage in STAGES if stage in MADE_BY]
    return {"figures": figures, "without": [stage for stage in trained if stage not in run.curves]}


def layer_shares(run: Run, context: Context) -> dict[str, Any] | None:
    """Where the score goes by layer: storage and operations."""
    if run.model is None or run.score is None:
        return None
    rows = [{**row, "share": row["share_percent"]} for row in layers.shares(run.model, run.score)]
    columns = [
        Column("book", "rules"),
        Column("layer", "layer"),
        Column("part", "part"),
        Column("score", "adds to the score", ".6f"),
        Column("share", "share %", ".2f"),
    ]
    said = context.texts
    names = list(dict.fromkeys(row["layer"] for row in rows))
    spec = charts.layer_shares(said["layers"], NAMES, CHALLENGE, names, said["rules"])
    whole = {name: sum(row["score"] for row in rows if row["book"] == name) for name in NAMES}
    claimed = {name: run.score[name]["score"] for name in NAMES if name in run.score}
    other = [name for name in claimed if abs(claimed[name] - whole[name]) > 0.005 * claimed[name]]
    parts = {
        part: sum(row["share"] for row in rows if row["book"] == CHALLENGE and row["part"] == part)
        for part in ("storage", "operations")
    }
    return {"figure": Figure("layers", spec, Table.of(columns, rows)), "other": other, "parts": parts}


def sparsity(run: Run, context: Context) -> dict[str, Any] | None:
    """How many weights of each layer are not zero, in how many bits, and how often each code stands."""
    if run.model is None:
        return None
    rows = [{**row, "nonzero": row["nonzero_percent"]} for row in layers.weights(run.model)]
    columns = [
        Column("layer", "layer"),
        Column("shape", "shape"),
        Column("weights", "weights", ",d"),
        Column("nonzeros", "not zero", ",d"),
        Column("nonzero", "not zero %", ".2f"),
        Column("bits", "bits of a code", "d"),
        Column("stored_bits", "bits in the file, mask too", ",d"),
    ]
    spec = charts.sparsity(context.texts["sparsity"], [row["layer"] for row in rows])
    found: dict[str, Any] = {
        "figure": Figure("sparsity", spec, Table.of(columns, rows)),
        "weights": run.model.weights,
        "zero_percent": 100 * run.model.zero_weights / run.model.weights,
        "codes": None,
    }
    if counted := layers.codes(run.model):
        names = list(dict.fromkeys(row["layer"] for row in counted))
        said = context.texts
        first = max(rows, key=lambda row: row["nonzeros"])["layer"]
        spec = charts.codes(said["codes"], names, first, said["all_layers"], said["layer"])
        columns = [Column("layer", "layer"), Column("code", "code", "d"), Column("count", "weights", ",d")]
        found["codes"] = Figure("codes", spec, Table.of(columns, counted))
    return found


def confusion(run: Run, context: Context) -> dict[str, Any] | None:
    """How often each class is taken for each other."""
    if not run.predictions:
        return None
    found = answers.answers(run.predictions)
    rows = [{**row, "kind": row["right"]} for row in answers.confusions(found)]
    classes = list(dict.fromkeys(_classes(run, found)))
    columns = [
        Column("actual", "actual"),
        Column("predicted", "predicted"),
        Column("images", "images", ",d"),
        Column("percent", "% of the actual class", ".2f"),
        Column("kind", "right or wrong"),
    ]
    wrong = sorted((row for row in rows if row["kind"] == "wrong"), key=lambda row: -row["images"])
    worst = sorted((row for row in rows if row["kind"] == "right"), key=lambda row: row["percent"])
    made: dict[str, Any] = {"classes": len(classes), "largest": wrong[:3], "worst": worst[:1], "figure": None}
    if len(classes) <= MOST_CLASSES:
        spec = charts.confusion(context.texts["confusion"], classes)
        return made | {"figure": Figure("confusion", spec, Table.of(columns, rows))}
    return made | {"table": Table.of(columns, wrong[:LARGEST])}


def _classes(run: Run, found: Sequence[answers.Answer]) -> list[str]:
    """The classes in the order of the labels; what nobody names comes last."""
    named = list(run.model.class_names) if run.model is not None else []
    if not named and run.manifest is not None:
        named = list(run.manifest.get("classes", []))
    there = {answer.actual for answer in found} | {answer.predicted for answer in found}
    return [name for name in named if name in there] + sorted(there - set(named))


def calibration(run: Run, context: Context) -> dict[str, Any] | None:
    """Whether the model is right as often as it says."""
    if not run.predictions:
        return None
    found = answers.calibration(answers.answers(run.predictions))
    if found is None:
        return {"error": None}
    rows, error = found
    columns = [
        Column("from", "confidence from %", ".0f"),
        Column("to", "to %", ".0f"),
        Column("images", "images", ",d"),
        Column("confidence", "mean confidence %", ".2f"),
        Column("accuracy", "accuracy %", ".2f"),
    ]
    spec = charts.calibration(context.texts["calibration"])
    mean = sum(row["images"] * row["confidence"] for row in rows) / sum(row["images"] for row in rows)
    right = sum(row["images"] * row["accuracy"] for row in rows) / sum(row["images"] for row in rows)
    figure = Figure("calibration", spec, Table.of(columns, rows))
    return {"error": error, "mean": mean, "accuracy": right, "figure": figure}


def mistakes(run: Run, context: Context) -> dict[str, Any] | None:
    """The most confident mistakes and the least sure right ones, as pictures where the test images are there."""
    if not run.predictions:
        return None
    found = answers.answers(run.predictions)
    if all(answer.confidence_percent is None for answer in found):
        return {"groups": {}, "pictures": False}
    pictures = answers.Pictures(context.root, run.params)
    kinds = {"mistakes": answers.most_confident_mistakes(found), "unsure": answers.least_sure_right_ones(found)}
    groups = {kind: [(one, pictures.uri(one.image, one.actual)) for one in each] for kind, each in kinds.items()}
    return {"groups": groups, "pictures": any(uri for each in groups.values() for _, uri in each)}


def seeds(run: Run, context: Context) -> dict[str, Any] | None:
    """Mean and spread over seeds."""
    if run.seeds is None:
        return None
    rows = [
        {
            "seed": row["seed"],
            "commit": row.get("commit", ""),
            "test": row.get("accuracy_percent"),
            "accuracy": row.get("validation_accuracy_percent"),
            "score": row.get("challenge_score"),
            **{book.name: row.get(f"{book.name}_score") for book in BOOKS},
        }
        for row in run.seeds["rows"]
    ]
    columns = [
        Column("seed", "seed", "d"),
        Column("test", "test %", ".2f"),
        Column("accuracy", "validation %", ".2f"),
        *(Column(book.name, book.name, ".6f") for book in BOOKS),
        Column("commit", "commit"),
    ]
    means, spreads = run.seeds["mean"], run.seeds["spread"]
    forms = {name: ".2f" if name.endswith("percent") else ".5f" if mean < 1 else ",.0f" for name, mean in means.items()}
    return {
        "stats": {name: f"{mean:{forms[name]}} ± {spreads[name]:{forms[name]}}" for name, mean in means.items()},
        "count": len(rows),
        "figure": Figure("seeds", charts.seeds(context.texts["seeds"]), Table.of(columns, rows)),
    }


def provenance(run: Run, context: Context) -> dict[str, Any] | None:
    """Commits, machines and seconds."""
    if not run.records:
        return None
    rows = [
        {
            "stage": stage,
            "commit": found.get("commit", ""),
            "device": found.get("device", ""),
            "torch": found.get("torch", ""),
            "precision": found.get("precision", ""),
            "threads": found.get("threads"),
            "seconds": found.get("seconds"),
            "images_per_second": found.get("images_per_second"),
            "memory": found.get("peak_memory_bytes", 0) / 2**20 or None,
            "source": found.get("data_source", ""),
        }
        for stage, found in run.records.items()
    ]
    columns = [
        Column("stage", "stage"),
        Column("commit", "commit"),
        Column("seconds", "seconds", ",.1f"),
        Column("device", "machine"),
        Column("precision", "precision"),
        Column("threads", "threads", "d"),
        Column("images_per_second", "images a second", ",.0f"),
        Column("memory", "peak MiB", ",.0f"),
        Column("torch", "torch"),
        Column("source", "data from"),
    ]
    spec = charts.seconds(context.texts["seconds"], [row["stage"] for row in rows])
    return {
        "figure": Figure("seconds", spec, Table.of(columns, rows)),
        "total": sum(row["seconds"] or 0 for row in rows),
        "dirty": [row["stage"] for row in rows if str(row["commit"]).endswith("dirty")],
        "machines": sorted({row["device"] for row in rows if row["device"]}),
        "packed": (run.score or {}).get("packed", {}).get("sha256", ""),
    }


BUILDERS: dict[str, Builder] = {
    "headline": headline,
    "against": accuracy_against_score,
    "path": path,
    "curves": curves,
    "layers": layer_shares,
    "sparsity": sparsity,
    "confusion": confusion,
    "calibration": calibration,
    "mistakes": mistakes,
    "seeds": seeds,
    "provenance": provenance,
}


def part(name: str, run: Run, context: Context) -> dict[str, Any] | None:
    """A section's content; results of another form are a line in `fault`, not the end of the page."""
    try:
        return BUILDERS[name](run, context)
    except MicronetError as error:
        return {"fault": shown(error, 200)}
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        return {"fault": shown(f"{type(error).__name__}: {error}", 200)}
