"""Prices a stage's checkpoint under every rule book, without the test set, as JSON.

`python sweeps/price.py quantize --json FILE` in the folder where the stage ran. A packed model that sees some images
twice is charged for the share measured on validation images.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from micronet import params as parameters  # noqa: E402 - the lines above make it importable
from micronet.files import write_json  # noqa: E402
from micronet.front import Parser, front, without_prompt  # noqa: E402
from micronet.pipeline import CHECKPOINT_OF  # noqa: E402

if TYPE_CHECKING:
    from micronet.scoring.records import Operation


def scores(stage: str) -> dict[str, float]:
    """The score under each rule book, as in `deck_score`; a float network is priced at 16 bits per weight."""
    from micronet.data.datasets import described
    from micronet.scoring.books import BOOKS
    from micronet.scoring.counting import operations
    from micronet.scoring.records import ONCE
    from micronet.scoring.references import of_params, reference_of

    params, path = parameters.load(), Path(f"checkpoints/{CHECKPOINT_OF[stage]}.safetensors")
    passes: tuple[float, ...] = ONCE
    ops: list[Operation]
    if stage == "quantize":
        from micronet.data.store import open_split
        from micronet.packed.module import load_packed
        from micronet.scoring.measurement import passes as measured

        module = load_packed(path)
        passes = measured(module, open_split(params.data, "validation"))
        ops = operations(module.packed)
    else:
        from micronet.training.checkpoint import load

        ops = operations(load(path).model(), described(params.data).shape)
    against = of_params(params)
    return {f"{book.name}_score": book.score(ops, passes, reference_of(book, against)).score for book in BOOKS}


def main() -> int:
    without_prompt()
    parser = Parser(description=__doc__)
    parser.add_argument("stage", choices=CHECKPOINT_OF)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where to write it")
    arguments = parser.parse_args()
    return front("price", partial(_work, arguments.stage, arguments.json))


def _work(stage: str, path: Path) -> None:
    write_json(path, scores(stage))


if __name__ == "__main__":
    sys.exit(main())
