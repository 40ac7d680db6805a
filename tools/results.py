"""Writes the results block of README.md, and docs/trust.md, from metrics/: none of their numbers is typed by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import documents
import seeds
from _tool import METRICS, ROOT, Facts, arguments_of, front, read_json, read_json_if_there
from published import CLAIMS, MODELS, RECORD, claims_of
from released import check_released

from micronet import params as parameters
from micronet.files import write_atomically
from micronet.scoring.books import BOOKS

BEGIN, END = "<!-- results: written by `make docs` from metrics/ -->", "<!-- end of results -->"
FEWEST_SEEDS = 3  # that a headline is averaged over


def row(name: str, about: str, score: Facts, path: Path) -> dict[str, Any]:
    """A model's row; a score not yet counted when its metrics were written is None.

    `of_cifar10`: its scores are relative to each rule book's CIFAR-10 reference, so they can be compared with others.
    """
    scores = [score[book.name]["score"] if book.name in score else None for book in BOOKS]
    return {
        "name": name,
        "about": about,
        "accuracy": score["test_accuracy_percent"],
        "scores": scores,
        "bytes": score["packed"]["bytes"],
        "verify": "make score" if name == RECORD else f"make verify NAME={name}",
        "path": path.as_posix(),
        "of_cifar10": "reference" not in score,
    }


def models(metrics: Path) -> list[dict[str, Any]]:
    """One row per published model, the root's first: from a metrics folder, and pipelines/ beside it."""
    rows = [row(RECORD, "sparse: nine weights in ten are zero", score_of(metrics), CLAIMS)]
    for name, about in MODELS.items():
        if (found := claims_of(name, metrics.parent)) is not None:
            rows.append(row(name, about, *found))
    return rows


def score_of(metrics: Path) -> Facts:
    """The claims about the root's own model. Raises `ToolError`: the file is missing or damaged."""
    return read_json(metrics / CLAIMS.name, "python stages/score.py")


def facts(metrics: Path) -> dict[str, Any]:
    """The facts of README and docs/trust.md, from a metrics folder and pipelines/ beside it."""
    return {
        "books": BOOKS,
        "models": models(metrics),
        "score": score_of(metrics),
        "test_images": read_json(metrics / "prepare_data.json", "python stages/prepare_data.py")["test_images"],
    }


def of_seeds(metrics: Path, params: Path) -> Facts | None:
    """`seeds.json`, if it is of the record's params and has enough seeds for a mean."""
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
    """README's text with the block between its markers replaced."""
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
