"""Where the numbers of a run come from: its seeds, and the commits, machines and seconds of its stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from micronet import params as parameters
from micronet.pipeline import CHECKPOINT_OF, MADE_BY
from micronet.scoring.books import BOOKS
from report import charts
from report.checked import group, text, value, value_if_there
from report.context import Context
from report.differences import recipe_digest
from report.gathered import Run
from report.tables import Column, Figure, Table


def seeds(run: Run, context: Context) -> dict[str, Any] | None:
    """Mean and spread over seeds; `other` if they are from another recipe than the run, or it is unknown."""
    if run.seeds is None:
        return None
    try:
        mine = recipe_digest(parameters.parse(run.params))
    except parameters.ParamsError:  # from an older version, or damaged
        return {"other": "unknown"}
    if run.seeds.get("params_digest") != mine:
        return {"other": "params"}
    rows = [
        {
            "seed": row["seed"],
            "commit": row.get("commit", ""),
            "test": row.get("accuracy_percent"),
            "accuracy": row.get("validation_accuracy_percent"),
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
    means, spreads = (
        {name: value(one, name) for name in one} for one in (group(run.seeds, "mean"), group(run.seeds, "spread"))
    )
    forms = {name: ".2f" if name.endswith("percent") else ".5f" if mean < 1 else ",.0f" for name, mean in means.items()}
    return {
        "other": "",
        "stats": {name: f"{mean:{forms[name]}} ± {spreads[name]:{forms[name]}}" for name, mean in means.items()},
        "count": len(rows),
        "figure": Figure("seeds", charts.seeds(context.texts["seeds"]), Table.of(columns, rows)),
    }


def provenance(run: Run, context: Context) -> dict[str, Any] | None:
    """Commits, machines and seconds."""
    if not run.records:
        return None
    rows: list[dict[str, Any]] = [
        {
            "stage": stage,
            **{name: text(found, name) for name in ("commit", "device", "torch", "precision")},
            **{name: value_if_there(found, name) for name in ("threads", "seconds", "images_per_second")},
            "memory": (value_if_there(found, "peak_memory_bytes") or 0) / 2**20 or None,
            "source": text(found, "data_source"),
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
        "others": of_other_runs(run),
        "machines": sorted({row["device"] for row in rows if row["device"]}),
        "packed": text(run.score or {}, "packed.sha256"),
    }


def of_other_runs(run: Run) -> list[str]:
    """The stages whose record is of another run than the one shown.

    DVC restores checkpoints and metrics of an earlier run, while `metrics/runs/` keeps the latest. A record is of
    another run if a later stage, or the score, names a different checkpoint of that stage.
    """
    made = {stage: digest for stage, found in run.records.items() if (digest := text(found, "checkpoint"))}
    used = {"quantize": {text(run.score or {}, "packed.sha256")} - {""}}
    for found in run.records.values():
        for path, digest in group(found, "made_of").items():
            if isinstance(digest, str) and (stage := MADE_BY.get(Path(path).stem)) is not None:
                used.setdefault(stage, set()).add(digest)
    return [stage for stage in CHECKPOINT_OF if stage in made and used.get(stage, set()) - {made[stage]}]
