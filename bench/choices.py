"""What two settings of the compression were chosen by, on validation images: `mirror_answers` and `cost_exponent`.

The teacher's accuracy alone and averaged over mirror images; the distilled student's accuracy and price when pruned in
one shot, without training, ranked with each exponent. Batch norm statistics are re-estimated before each measurement.
Writes metrics/bench_choices.json, shown in docs/record.md.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

from _bench import arguments, describe, engine, write

EXPONENTS, AMOUNTS = (0.0, 0.25, 0.5), (0.5, 0.65, 0.75, 0.8, 0.85)
NORM_IMAGES = 2_000  # training images for the statistics
BITS, ACCUMULATOR_BITS = 4, 14  # the price of a weight, an activation and a sum


def main() -> int:
    args = arguments(__doc__.splitlines()[0], "metrics/bench_choices.json")
    import torch
    from torch import nn

    from micronet import params
    from micronet.compress.calibration import recalibrate_batch_norm, training_batches
    from micronet.compress.pruning import apply_masks, global_masks
    from micronet.data.images import Split
    from micronet.data.store import open_split
    from micronet.scoring.challenge import challenge_score
    from micronet.scoring.counting import operations
    from micronet.training.checkpoint import load
    from micronet.training.distillation import answering
    from micronet.training.evaluation import evaluate
    from micronet.training.hardware import machine

    everything = params.load("params.yaml")
    here = machine(engine(args.device))
    training = open_split(everything.data, "train").images[:NORM_IMAGES]
    validation = open_split(everything.data, "validation")

    class Mirrored(nn.Module):
        """The teacher as `mirror_answers` queries it."""

        def __init__(self, teacher: nn.Module):
            super().__init__()
            self.answer = answering(teacher, here, mirror=True)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.answer(images)

    def accuracy(model: nn.Module, split: Split = validation) -> float:
        return evaluate(model, split, here)[1]

    teacher = load("checkpoints/teacher.safetensors").model().to(here.device)
    answers = {"plain": accuracy(teacher), "mirror": accuracy(Mirrored(teacher))}
    distilled = load("checkpoints/distilled.safetensors").model()
    rows: list[dict[str, Any]] = []
    for exponent in EXPONENTS:
        for amount in AMOUNTS:
            model = copy.deepcopy(distilled).to(here.device, memory_format=here.memory_format)
            apply_masks(model, global_masks(model, amount, cost_exponent=exponent))
            recalibrate_batch_norm(model, training_batches(training, everything.prune.train.augment, 0))
            ops = operations(model, weight_bits=BITS, activation_bits=BITS, accumulator_bits=ACCUMULATOR_BITS)
            rows.append(
                {
                    "cost_exponent": exponent,
                    "amount": amount,
                    "challenge_score": challenge_score(ops).score,
                    "validation_accuracy_percent": accuracy(model),
                }
            )
            print(" ".join(f"{key} {value:g}" for key, value in rows[-1].items()), file=sys.stderr)
    write(args.output, {"machine": describe(here), "teacher_accuracy_percent": answers, "pruned_at_once": rows})
    print(f"the teacher: {answers['plain']:.2f} % alone, {answers['mirror']:.2f} % with mirror images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
