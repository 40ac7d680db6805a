"""Prices a checkpoint of a stage under the slides' and the challenge's rules, without the test set: a JSON.

`python sweeps/price.py quantize --json FILE` in the folder where the stage ran. A packed model that sees some images
twice is charged for those of the validation images.
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
    """`deck_score` and `challenge_score`; a float network is priced at 16 bits a weight."""
    from micronet.scoring.challenge import challenge_score
    from micronet.scoring.counting import operations
    from micronet.scoring.deck import deck_score
    from micronet.scoring.records import ONCE

    path = Path(f"checkpoints/{CHECKPOINT_OF[stage]}.safetensors")
    passes: tuple[float, ...] = ONCE
    ops: list[Operation]
    if stage == "quantize":
        from micronet.data.store import open_split
        from micronet.packed.module import load_packed
        from micronet.scoring.measurement import passes as measured

        params, module = parameters.load(), load_packed(path)
        passes = measured(module, open_split(params.data, "validation"))
        ops = operations(module.packed)
    else:
        from micronet.training.checkpoint import load

        ops = operations(load(path).model())
    return {"deck_score": deck_score(ops, passes).score, "challenge_score": challenge_score(ops, passes).score}


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
