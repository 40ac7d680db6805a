"""Writes the results block of README.md, and docs/trust.md, from metrics/: no number in them is typed by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import documents
import seeds
from _tool import METRICS, ROOT, Facts, arguments_of, front, read_json, read_json_if_there
from released import check_released

from micronet import params as parameters
from micronet.files import write_atomically
from micronet.scoring.books import BOOKS

BEGIN, END = "<!-- results: written by `make docs` from metrics/ -->", "<!-- end of results -->"
FEWEST_SEEDS = 3  # that a headline is the mean of
PIPELINES = Path("pipelines")
MODELS = {  # beside the root's own
    "dense": "few multiply-accumulates, for the slides' rules",
    "refined": "dense, trained further on mixed images",
    "glance": "the cascade's front network",
    "cascade": "glance, plus a second network for images it is unsure of",
    "deck": "the slides' own recipe",
    "mnist": "handwritten digits; scores relative to its teacher",
}


def claims_of(name: str, root: Path) -> tuple[Facts, Path] | None:
    """What is claimed of a model, by its pipeline once that has run, and the file that says it; None: nothing is."""
    for path in (PIPELINES / name / "metrics/score.json", METRICS / name / "score.json"):
        found = read_json_if_there(root / path, "dvc repro pipelines/dvc.yaml")
        if found is not None:
            return found, path
    return None


def row(name: str, about: str, score: Facts, path: Path) -> dict[str, Any]:
    """A model's row; a score that was not counted when its metrics were written is None.

    `of_cifar10`: its scores are relative to what each rule book takes there, so that it can be compared with others.
    """
    scores = [score[book.name]["score"] if book.name in score else None for book in BOOKS]
    return {
        "name": name,
        "about": about,
        "accuracy": score["test_accuracy_percent"],
        "scores": scores,
        "bytes": score["packed"]["bytes"],
        "verify": "make score" if name == "record" else f"make verify NAME={name}",
        "path": path.as_posix(),
        "of_cifar10": "reference" not in score,
    }


def models(metrics: Path) -> list[dict[str, Any]]:
    """A row a published model, the root's first: of a metrics folder, and of pipelines/ beside it."""
    rows = [row("record", "sparse: nine weights in ten are zero", score_of(metrics), METRICS / "score.json")]
    for name, about in MODELS.items():
        if (found := claims_of(name, metrics.parent)) is not None:
            rows.append(row(name, about, *found))
    return rows


def score_of(metrics: Path) -> Facts:
    return read_json(metrics / "score.json", "python stages/score.py")


def facts(metrics: Path) -> dict[str, Any]:
    """What README and docs/trust.md are filled from: a metrics folder, and pipelines/ beside it."""
    return {
        "books": BOOKS,
        "models": models(metrics),
        "score": score_of(metrics),
        "test_images": read_json(metrics / "prepare_data.json", "python stages/prepare_data.py")["test_images"],
    }


def of_seeds(metrics: Path, params: Path) -> Facts | None:
    """`seeds.json` of the record's params, where it holds enough seeds for a mean."""
    found = read_json_if_there(metrics / "seeds.json", "make seeds")
    if found is None or len(found["rows"]) < FEWEST_SEEDS:
        return None
    return found if found["params_digest"] == seeds.recipe_digest(parameters.load(params)) else None


def render(metrics: Path, params: Path = ROOT / "params.yaml") -> str:
    """The block of README.md.

    Args:
        params: of the record.
    """
    return documents.render(
        "results", facts(metrics) | {"seeds": of_seeds(metrics, params), "seed": parameters.load(params).seed}
    )


def trust(metrics: Path) -> str:
    """docs/trust.md."""
    return documents.render("trust", facts(metrics))


def replaced(text: str, block: str) -> str:
    """README's text with the block between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{block}\n{END}{after}"


def main() -> int:
    readme = ROOT / "README.md"

    def work() -> int:
        check_released()
        write_atomically(readme, replaced(readme.read_text(encoding="utf-8"), render(ROOT / METRICS)))
        write_atomically(ROOT / "docs/trust.md", trust(ROOT / METRICS))
        return 0

    return front("results", work)


if __name__ == "__main__":
    arguments_of("results", __doc__).parse_args()
    sys.exit(main())
