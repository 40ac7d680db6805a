"""Both loops for the same number of epochs on the same 10,000 images, three seeds: is the faster one as accurate?

Trains the laptop student without a teacher and measures on validation images. Writes metrics/bench_accuracy.json.
"""

from __future__ import annotations

import sys
from statistics import fmean, stdev

from _bench import STUDENT, TRAIN, arguments, describe, engine, write

SEEDS, EPOCHS, TRAINING_IMAGES = (0, 1, 2), 3, 10_000


def main() -> int:
    args = arguments(__doc__.splitlines()[0], "metrics/bench_accuracy.json")
    import plain
    import torch

    import models
    from micronet import params
    from micronet.data.images import Split
    from micronet.data.store import open_split
    from micronet.training.evaluation import evaluate
    from micronet.training.hardware import machine
    from micronet.training.loop import train
    from micronet.training.schedules import learning_rate

    data = params.load().data  # of the active recipe, whose images are prepared
    here = machine(engine(args.device))
    config = params.Train(epochs=EPOCHS, **TRAIN)
    everything = open_split(data, "train")
    training = Split(everything.images[:TRAINING_IMAGES].clone(), everything.labels[:TRAINING_IMAGES].clone())
    validation = open_split(data, "validation")
    pixels, labels = training.images.numpy(), training.labels.numpy()

    def rate(step: int, steps: int) -> float:
        return learning_rate(
            config.schedule, step, steps, peak=config.learning_rate, warmup_fraction=config.warmup_fraction
        )

    found: dict[str, list[float]] = {"plain": [], "ours": []}
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = models.build(STUDENT)
        plain.train(
            model, pixels, labels, epochs=EPOCHS, rate=rate, weight_decay=config.weight_decay, device=args.device
        )
        found["plain"].append(plain.accuracy(model.cpu(), validation.images.numpy(), validation.labels.numpy()))
        torch.manual_seed(seed)
        model = models.build(STUDENT)
        train(model, config=config, training=training, validation=validation, machine=here, seed=seed)
        found["ours"].append(evaluate(model, validation, here)[1])
        print(f"seed {seed}: plain {found['plain'][-1]:.2f} %, ours {found['ours'][-1]:.2f} %", file=sys.stderr)
    difference, spread = fmean(found["ours"]) - fmean(found["plain"]), max(stdev(values) for values in found.values())
    write(
        args.output,
        {
            "machine": describe(here),
            "training_images": TRAINING_IMAGES,
            "epochs": EPOCHS,
            "validation_accuracy_percent": found,
            "difference_of_means": difference,
            "largest_standard_deviation": spread,
        },
    )
    print(f"ours - plain: {difference:+.2f} points; the seeds' standard deviation is {spread:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
