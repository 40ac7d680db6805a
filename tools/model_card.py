"""Writes the model card of the packed model from metrics/, params.yaml and a measurement of the file on the test set.

Nothing in it is typed by hand, and the same inputs give the same text. A file that metrics/score.json or params.yaml
do not speak of gets no card.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from pathlib import Path
from typing import Any

from _tool import (
    MANIFEST,
    METRICS,
    PACKED,
    TRAINING_STAGES,
    ToolError,
    front,
    open_split,
    parameters,
    read_json,
    training_digest,
)

CARD = Path("release/MODEL_CARD.md")
CHECKPOINT_OF = dict(
    zip(TRAINING_STAGES, ("teacher", "student", "distilled", "pruned", "retrained", "quantized"), strict=True)
)
LOGITS = {
    "integer": "Its logits are integers of one scale an image, which the file does not hold: their order is the answer,"
    " and they are no probabilities.",
    "half": "Its logits are floats that may differ in the last bits from machine to machine, and no probabilities.",
}
SIGMAS = 1.959964  # of a normal distribution's central 95 %


def wilson(correct: int, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, in percent.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    share, spread = correct / images, SIGMAS**2 / images
    middle = share + spread / 2
    reach = SIGMAS * math.sqrt(share * (1 - share) / images + spread / (4 * images))
    low, high = ((middle + side * reach) / (1 + spread) for side in (-1, 1))
    return 100 * max(low, 0.0), 100 * min(high, 1.0)


def _table(head: str, align: str, rows: list[list[str]]) -> str:
    """Markdown. `head`: titles, `, ` between them; `align`: l or r for each column."""
    rule = ["---:" if side == "r" else "---" for side in align]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head.split(", "), rule, *rows))


def _test_accuracies() -> dict[str, str]:
    """Test accuracy of each checkpoint, as text, from `metrics/path.csv`."""
    path = METRICS / "path.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {
            row["stage"]: f"{float(row['test_accuracy_percent']):.2f} %" if row["test_accuracy_percent"] else "-"
            for row in rows
        }
    except FileNotFoundError:
        raise ToolError(f"{path}: there is no such file; `python stages/score.py` makes it") from None
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise ToolError(f"{path}: cannot be read ({error!r}); `python stages/score.py` makes it anew") from None


def _stages() -> tuple[str, list[dict[str, Any]]]:
    """The table of how it was made, and the records of the runs."""
    tested, rows, runs = _test_accuracies(), [], []
    for stage in TRAINING_STAGES:
        made_by = f"python stages/{stage}.py"
        metrics = read_json(METRICS / f"{stage}.json", made_by)
        run = read_json(METRICS / "runs" / f"{stage}.json", made_by)
        runs.append(run)
        try:
            rows.append(
                [
                    stage,
                    f"{metrics['epochs']}",
                    f"{metrics['validation_accuracy_percent']:.2f} %",
                    tested.get(CHECKPOINT_OF[stage], "-"),
                    f"{run['seconds']:,.0f}",
                    f"{run['images_per_second']:,.0f}",
                    f"{run['device']}, {run['precision']}",
                    f"`{run['commit']}`" if run["commit"] else "unknown",
                ]
            )
        except KeyError as error:
            raise ToolError(f"{METRICS}: the results of {stage} lack {error}; `{made_by}` makes them anew") from None
    head = "stage, epochs, validation, test, seconds, images a second, device, commit"
    return _table(head, "lrrrrrll", rows), runs


def _scores(score: dict[str, Any]) -> str:
    rows = []
    for rules, kind in (("challenge", "ops"), ("deck", "flops")):
        part = score[rules]
        rows.append(
            [
                rules,
                f"{part[kind]:,.0f}",
                f"{part[f'score_{kind}']:.6f}",
                f"{part['params']:,.0f}",
                f"{part['score_params']:.6f}",
                f"**{part['score']:.6f}**",
            ]
        )
    return _table("rules, operations, their part, parameters, their part, score", "lrrrrr", rows)


def card(params_path: Path, params: parameters.Params) -> str:
    """The text of the card; measures the packed file on the test set.

    Raises:
        MicronetError: an input is missing or damaged, or the file is another one than score.json or params speak of.
    """
    score = read_json(METRICS / "score.json", "python stages/score.py")
    if not PACKED.is_file():
        raise ToolError(f"{PACKED}: there is no such file; `python stages/quantize.py` makes it, or `dvc pull`")
    stages, runs = _stages()

    from micronet.packed.module import load_packed
    from micronet.scoring.measurement import class_accuracies, differences, measure, predictions

    model = load_packed(PACKED)
    packed = model.packed
    if packed.metadata.get("params_digest") != training_digest(params):
        raise ToolError(f"{params_path}: did not make {PACKED}; `make repro` brings them together")
    test = open_split(params, "test")
    wrong = differences(score, measure(PACKED, model, test, params.score.batch_size))
    if wrong:
        raise ToolError(f"{METRICS / 'score.json'}: {wrong[0]}; `make verify` lists every difference")
    predicted = predictions(model, test, params.score.batch_size)
    correct = int((predicted == test.labels).sum())
    low, high = wilson(correct, len(test))
    by_class = class_accuracies(predicted, test.labels)
    manifest = read_json(MANIFEST, "python stages/prepare_data.py")
    images = {name: facts["images"] for name, facts in manifest["splits"].items()}

    size, payload = packed.file_bytes, packed.payload_bits / 8
    outside = f"{size - payload:,.0f} bytes ({100 * (size - payload) / size:.1f} %)"
    spec, once = packed.spec or {"name": "unknown"}, score["one_pass"]
    settings = ", ".join(f"{key} {value}" for key, value in spec.items() if key != "name")
    remarks = "Seconds include the validation after each epoch; validation is of the weights as they are stored."
    if any(str(run["commit"]).endswith("-dirty") for run in runs):
        remarks += " `-dirty`: some files differed from that commit."
    twice = (
        f"- {score['flipped_images_percent']:.2f} % of the test images took a second, mirrored pass: those whose two "
        f"greatest logits\n  differ by less than {packed.flip_margin}, a margin that validation images set. "
        f"Both passes are charged.\n  In one pass it is right on {once['test_accuracy_percent']:.2f} %.\n"
        if packed.flip_margin
        else ""
    )
    commit = f"`{runs[-1]['commit']}`" if runs[-1]["commit"] else "unknown"
    seconds = sum(run["seconds"] for run in runs)
    accuracy = f"**{100 * correct / len(test):.2f} %** of {len(test):,} test images ({correct:,} right)"
    classes = [[name, f"{value:.1f} %"] for name, value in by_class.items()]
    return f"""# Model card: {spec["name"]} for {manifest["dataset"]}, packed

Generated by `make release` from `metrics/`, `params.yaml` and the packed file; no number is typed by hand.

## What it is

A classifier of 32 x 32 colour images into {packed.classes} classes ({", ".join(by_class)}), in one
file: `{PACKED}`, {size:,} bytes, sha256 `{score["packed"]["sha256"]}`.

- Architecture: {spec["name"]} ({settings}); arithmetic: {packed.arithmetic}.
- {packed.nonzero_parameters:,} of {packed.parameters:,} stored values are not zero.
- {score["macs"]:,} multiply-accumulates a pass when it is dense (ptflops counts {score["ptflops_macs"]:,}),
  {score["nonzero_macs"]:,} without those of zero weights.
{twice}
## Accuracy

{accuracy}, 95 % interval {low:.2f} to {high:.2f} % (Wilson).

The interval is about the choice of test images. All numbers are those of one run with one seed ({params.seed}):
how much another seed would change is not in it.

{_table("class, test accuracy", "lr", classes)}

## MicroNet score

Lower is better; the reference, a ResNet-18 in 16 bits, is 1 in each part. Operations and parameters count in units
of 32 bits.

{_scores(score)}

The challenge's rules count what the file holds and what inference does with it: {packed.payload_bits:,} bits of
payload, which are {payload:,.0f} of the file's {size:,} bytes; the other {outside} are header
and table, which the rules do not charge. In one pass, with plain sums of products instead
of factored ones and a mask bit for every weight instead of blocks, the same network would score
{once["plain_challenge_score"]:.6f}. The deck's rules count the architecture as it was designed.

## How it was made

{images["train"]:,} images to train on, {images["validation"]:,} held out of them to choose with, {images["test"]:,} to
test with: `{MANIFEST}` has their checksums. The last stage ran at commit {commit}; {seconds:,.0f} seconds of
training in all.

{stages}

{remarks} Test accuracies were measured afterwards, by `score`; no stage that trains reads the test set.

The params, `{params_path.name}`:

```yaml
{params_path.read_text(encoding="utf-8").rstrip()}
```

## Limits of use

- It names one of its {packed.classes} classes for any image, whatever that shows; it was measured on no other data.
- The classes are not equally easy: {_extremes(by_class)}.
- {LOGITS[packed.arithmetic]}
- The score is arithmetic and storage under two rule books, not time or energy: those depend on hardware that skips
  zeros and adds narrow numbers.
- Some test images of CIFAR-10 have near duplicates among its training images (Barz and Denzler 2020,
  arXiv:1902.00423): expect less on new photographs.

## How to check it

`make verify` measures all of this again from the file alone and fails when anything differs from `metrics/score.json`.
[docs/format.md](../docs/format.md) specifies file and arithmetic to the bit, with a decoder in numpy.
"""


def _extremes(by_class: dict[str, float]) -> str:
    worst, best = (choose(by_class, key=lambda name: by_class[name]) for choose in (min, max))
    return f"{by_class[worst]:.1f} % for {worst}, {by_class[best]:.1f} % for {best}"


def main(argv: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="model_card", description=__doc__, formatter_class=form)
    parser.add_argument("--params", default="params.yaml", metavar="PATH", help="default: %(default)s")
    parser.add_argument("--out", default=str(CARD), metavar="PATH", help="default: %(default)s")
    arguments = parser.parse_args(argv)

    def work() -> int:
        path = Path(arguments.params)
        text = card(path, parameters.load(path))
        from micronet.files import write_atomically

        write_atomically(arguments.out, text)
        print(f"{arguments.out}: written")
        return 0

    return front("model_card", work)


if __name__ == "__main__":
    sys.exit(main())
