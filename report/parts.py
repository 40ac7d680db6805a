"""What each section of a page shows of a run: numbers and figures for its template, None if nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jinja2

from micronet.errors import MicronetError, shown
from micronet.pipeline import CHECKPOINT_OF, HALF_ABOVE_PARAMETERS, MADE_BY, TRAINING_STAGES
from micronet.scoring.books import BOOKS
from report import answers, charts, layers
from report.against import accuracy_against_score
from report.checked import group, percent, text, value, value_if_there
from report.context import CHALLENGE, DECK, NAMES, THIS, Builder, Context, is_of_cifar10, prices
from report.gathered import Row, Run
from report.made import provenance, seeds
from report.tables import Column, Figure, Table, number

MOST_CLASSES = 40  # in a matrix
LARGEST = 20  # confusions listed when there are too many classes for a matrix


def _float_bytes(parameters: float) -> float:
    """Bytes of the weights as a checkpoint stores them."""
    return parameters * (2 if parameters > HALF_ABOVE_PARAMETERS else 4)


def _contradiction(run: Run) -> str:
    """Why the answers do not match the score, empty if they do."""
    try:
        answers.of(run)
    except (MicronetError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        return shown(error, 200)
    return ""


def headline(run: Run, context: Context) -> dict[str, Any] | None:
    """Accuracy with its interval, and the four scores beside others'."""
    if run.score is None:
        return None
    accuracy, contradiction = percent(run.score, "test_accuracy_percent"), _contradiction(run)
    images = run.counted_images if contradiction else run.test_images
    rows: list[dict[str, Any]] = [
        {
            "book": name,
            "about": next(book.about for book in BOOKS if book.name == name),
            "score": price,
            "storage": value(run.score, f"{name}.score_params"),
            "operations": price - value(run.score, f"{name}.score_params"),
        }
        for name, price in prices(run.score).items()
    ]
    marks: list[dict[str, Any]] = [{"book": row["book"], "series": THIS, "score": row["score"]} for row in rows]
    several = value_if_there(run.score, "flipped_images_percent", 100.0) or "cascade" in run.score
    once = group(run.score, "one_pass") if several else {}
    marks += [
        {"book": name, "series": "in one pass", "score": value(once, f"{name}_score")}
        for name in NAMES
        if f"{name}_score" in once
    ]
    others = context.peers if is_of_cifar10(run) else ()
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
        "bytes": value(run.score, "packed.bytes") if group(run.score, "packed") else None,
        "payload": value(run.score, "packed.payload_bits") / 8 if group(run.score, "packed") else None,
        "one_pass": percent(once, "test_accuracy_percent") if once else None,
        "peers": others,
        "reference": text(run.score, "reference.name"),
        "contradiction": contradiction,
        "figure": Figure("scores", spec, table),
    }


def path(run: Run, context: Context) -> dict[str, Any] | None:
    """Accuracy, size and scores at each block of the pipeline."""
    rows: list[dict[str, Any]] = []
    for row in run.path or _path_of_stages(run):
        stage = row["stage"]
        own = run.stages.get(MADE_BY.get(stage, ""), {})
        floats = number(row, "parameters") or 0
        rows.append(
            {
                "stage": stage,
                "test": number(row, "test_accuracy_percent"),
                "validation": value_if_there(own, "validation_accuracy_percent", 100.0),
                "all": number(row, "parameters"),
                "not_zero": number(row, "nonzero_parameters"),
                "bytes": value_if_there(own, "file_bytes") or _float_bytes(floats) or None,
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
    """The stages' own measurements, if `path.csv` is missing."""
    return [
        {
            "stage": CHECKPOINT_OF[stage],
            "parameters": str(found.get("parameters", "")),
            "nonzero_parameters": str(found.get("nonzero_parameters", "")),
        }
        for stage, found in run.stages.items()
        if stage in CHECKPOINT_OF and "parameters" in found
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
    figures: list[tuple[str, float | None, Figure | None]] = []
    once: dict[str, tuple[float | None, float | None]] = {}  # of what trained for one epoch, which makes no curve
    for stage, rows in run.curves.items():
        if len(rows) == 1:
            once[stage] = number(rows[0], fields[0]), number(rows[0], fields[1])
            figures.append((stage, once[stage][1], None))
            continue
        named = [{**row, "train": row.get(fields[0]), "validation": row.get(fields[1])} for row in rows]
        said = context.texts["curve"].replace("STAGE", stage)
        series, epochs = {"train": charts.THIRD, "validation": charts.MAIN}, int(number(rows[-1], "epoch") or len(rows))
        spec = charts.curve(said, series, epochs, values)
        last = next((value for row in reversed(rows) if (value := number(row, fields[1])) is not None), None)
        figures.append((stage, last, Figure(f"curve-{stage}", spec, Table.of(columns, named))))
    trained = list(TRAINING_STAGES)
    return {"figures": figures, "once": once, "without": [stage for stage in trained if stage not in run.curves]}


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
    claimed = prices(run.score)
    other = [name for name in claimed if abs(claimed[name] - whole[name]) > 0.005 * claimed[name]]
    parts = {
        part: sum(row["share"] for row in rows if row["book"] == CHALLENGE and row["part"] == part)
        for part in ("storage", "operations")
    }
    return {"figure": Figure("layers", spec, Table.of(columns, rows)), "other": other, "parts": parts}


def sparsity(run: Run, context: Context) -> dict[str, Any] | None:
    """How many weights of each layer are nonzero, in how many bits, and how often each code occurs."""
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
    found = answers.of(run)
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
    made: dict[str, Any] = {
        "classes": len(classes),
        "largest": wrong[:3],
        "worst": answers.worst_class(found),
        "figure": None,
    }
    if len(classes) <= MOST_CLASSES:
        spec = charts.confusion(context.texts["confusion"], classes)
        return made | {"figure": Figure("confusion", spec, Table.of(columns, rows))}
    return made | {"table": Table.of(columns, wrong[:LARGEST])}


def _classes(run: Run, found: Sequence[answers.Answer]) -> list[str]:
    """The classes in label order; unlisted ones come last."""
    named = list(run.model.class_names) if run.model is not None else []
    if not named and run.manifest is not None:
        named = list(run.manifest.get("classes", []))
    there = {answer.actual for answer in found} | {answer.predicted for answer in found}
    return [name for name in named if name in there] + sorted(there - set(named))


def calibration(run: Run, context: Context) -> dict[str, Any] | None:
    """Whether the model is right as often as it says."""
    if not run.predictions:
        return None
    found = answers.calibration(answers.of(run))
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
    found = answers.of(run)
    if all(answer.confidence_percent is None for answer in found):
        return {"groups": {}, "pictures": False}
    pictures = answers.Pictures(context.root, run)
    kinds = {"mistakes": answers.most_confident_mistakes(found), "unsure": answers.least_sure_right_ones(found)}
    groups = {kind: [(one, pictures.uri(one.image, one.actual)) for one in each] for kind, each in kinds.items()}
    shown_ones = any(uri for each in groups.values() for _, uri in each)
    return {"groups": groups, "pictures": shown_ones, "others": pictures.others}


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


FORMS = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError)  # what odd results raise


def part(name: str, run: Run, context: Context) -> dict[str, Any] | None:
    """A section's content; results of an unexpected form are a line in `fault`, not the end of the page."""
    try:
        return BUILDERS[name](run, context)
    except MicronetError as error:
        return {"fault": shown(error, 200)}
    except FORMS as error:
        return {"fault": shown(f"{type(error).__name__}: {error}", 200)}


def filled(macro: Callable[..., str], it: dict[str, Any] | None, side: Any) -> tuple[str, str]:
    """A section's text, or why its template cannot be filled: the other sections remain."""
    try:
        return macro(it, side), ""
    except (jinja2.TemplateError, *FORMS) as error:
        return "", shown(f"{type(error).__name__}: {error}", 200)
