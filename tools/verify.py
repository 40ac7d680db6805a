"""Checks a packed model from its file alone: structure, digest, storage, operations, accuracy on the test set, scores.

What the file says about itself, and what metrics/score.json says about it, is measured again. Exit code 1 when
anything differs, with a line `FAILED key: claimed x, measured y`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _tool import MANIFEST, METRICS, PACKED, ToolError, front, open_split, parameters, read_json, training_digest

from micronet.scoring.packed_counts import CHOICE

if TYPE_CHECKING:
    import numpy as np

    from micronet.packed.module import PackedModule
    from micronet.scoring.records import Operation

CLAIMS = METRICS / "score.json"


class Report:
    """One line for every fact, and how many of them are wrong."""

    def __init__(self) -> None:
        self.failures = 0

    def ok(self, key: str, text: str) -> None:
        print(f"ok     {key:<28} {text}", flush=True)

    def note(self, key: str, text: str) -> None:
        """A fact that nothing was claimed about, or that cannot be checked."""
        print(f"note   {key:<28} {text}", flush=True)

    def failed(self, line: str) -> None:
        self.failures += 1
        print(f"FAILED {line}", flush=True)

    def same(self, key: str, claimed: Any, measured: Any, text: str) -> None:
        if claimed == measured:
            self.ok(key, text)
        else:
            self.failed(f"{key}: claimed {claimed}, measured {measured}")


def counts_of(ops: list[Operation]) -> dict[str, tuple[Counter[int], Counter[int]]]:
    """{step: (multiplications, additions)} with {bits: count}; what ends a step belongs to it."""
    found: dict[str, tuple[Counter[int], Counter[int]]] = {}
    for op in ops:
        if op.rules == "deck":
            continue
        name = op.name.removesuffix(".requantize").removesuffix(".maximum").removesuffix(f".{CHOICE}")
        multiplications, additions = found.setdefault(name, (Counter(), Counter()))
        for bits, count in op.multiplications:
            multiplications[bits] += count
        for bits, count in op.additions:
            additions[bits] += count
    return found


def _show(counts: tuple[Counter[int], Counter[int]]) -> str:
    parts = (dict(sorted((+counter).items())) for counter in counts)
    return "multiplications {}, additions {} by width".format(*parts)


def check_operations(
    model: PackedModule, ops: list[Operation], images: np.ndarray, strict_images: int, report: Report
) -> None:
    """The challenge's counts and the module's logits against the reference's. `images`: (N, 3, 32, 32) uint8."""
    import torch

    from micronet.data.images import normalise
    from micronet.packed.reference import predict, run

    logits = model(normalise(torch.from_numpy(images))).numpy()
    some, networks = images[:strict_images], range(len(model.packed.networks))
    strict = [run(model.packed, some, network=network, strict=True) for network in networks]
    claimed = counts_of(ops)
    measured: dict[str, tuple[Counter[int], Counter[int]]] = {}
    for counts in (counts for _, counters in strict for counts in counters):
        pair = measured.setdefault(counts.name, (Counter(), Counter()))
        pair[0].update(counts.multiplications)
        pair[1].update(counts.additions)
    differing = 0
    for name in sorted(claimed.keys() | measured.keys()):
        mine, theirs = (side.get(name, (Counter(), Counter())) for side in (claimed, measured))
        if _show(mine) != _show(theirs):
            differing += 1
            report.failed(f"operations.{name}: claimed {_show(mine)}, measured {_show(theirs)}")
    if not differing:
        report.ok(
            "operations",
            f"counts of {len(claimed)} steps are what the numpy reference did on {strict_images} of the test images, "
            "number by number, each partial sum inside its proven width",
        )
    expected = predict(model.packed, images)
    wrong = int((expected != logits).any(axis=1).sum())
    for network, (exact, _) in zip(networks, strict, strict=True):
        wrong += int((run(model.packed, some, network=network)[0] != exact).any(axis=1).sum())
    report.same("logits.differing", 0, wrong, f"equal in numpy and torch on {len(images):,} test images, every one")


def check(arguments: argparse.Namespace) -> int:
    """The checks of one file in the order of their cost; the exit code."""
    path = Path(arguments.file)
    claims_path = Path(arguments.claims) if arguments.claims else None
    if claims_path is None and path.resolve() == PACKED.resolve():
        claims_path = CLAIMS
    params = parameters.load(arguments.params)

    from rich.console import Console

    import models
    from micronet.files import write_json
    from micronet.packed.module import load_packed
    from micronet.scoring.challenge import challenge_score
    from micronet.scoring.counting import operations
    from micronet.scoring.measurement import differences, measure, passes, predictions
    from micronet.scoring.tables import layer_table

    report = Report()
    model = load_packed(path)
    claims = read_json(claims_path, "python stages/score.py") if claims_path else None
    packed = model.packed
    size = packed.file_bytes
    outside = size - packed.payload_bits / 8
    report.ok("structure", f"{len(packed.steps)} steps, {packed.arithmetic} arithmetic, every length and range checked")
    report.ok("digest", packed.digest)
    report.note("size", f"{size:,} bytes, {outside:,.0f} of them ({100 * outside / size:.1f} %) outside of the payload")

    if packed.spec is None:
        raise ToolError(f"{path}: names no architecture, so its operations cannot be compared with one")
    try:
        for spec in packed.specs:
            models.check(spec)
    except models.SpecError as error:
        raise ToolError(f"{path}: names an architecture that cannot be built: {error}") from None
    ops = operations(model)
    price = challenge_score(ops, [1.0] * len(packed.networks))
    stored = sum(op.storage_bits for op in ops if op.rules != "deck")
    text = f"{stored:,} bits in {len(ops)} operations are all of the payload's"
    report.same("storage_bits", stored, packed.payload_bits, text)
    report.same(
        "storage_parameters",
        32 * price.params,
        packed.payload_bits,
        f"{price.params:,.2f} of 32 bits, as the challenge charges",
    )

    test = open_split(params, "test")
    if packed.arithmetic == "integer":
        images = test.images[: arguments.reference_images].numpy()
        check_operations(model, ops, images, min(arguments.strict_images, len(images)), report)
    else:
        report.note("operations", "16-bit floats: there is no integer reference to compare them with")

    measured = measure(path, model, test, params.score.batch_size)
    text = f"{measured['macs']:,}, as ptflops counts for the architecture that the file names"
    report.same("macs", measured["ptflops_macs"], measured["macs"], text)

    made = packed.metadata
    if "validation_accuracy_percent" in made:
        validation = open_split(params, "validation")
        correct = int((predictions(model, validation, params.score.batch_size) == validation.labels).sum())
        accuracy = f"{100 * correct / len(validation):.4f}"
        text = f"{accuracy} % of {len(validation):,} images, as the file claims"
        report.same("validation_accuracy_percent", made["validation_accuracy_percent"], accuracy, text)
    else:
        report.note("validation accuracy", "the file claims none")
    if made.get("params_digest") == training_digest(params):
        report.ok("params", f"the file was made with those of {arguments.params}")
    else:
        report.note("params", f"the file was made with others than those of {arguments.params}")

    lines = [] if claims is None else differences(claims, measured)
    for line in lines:
        report.failed(line)
    if claims is None:
        report.note("claims", "none but the file's own; --claims names a score.json to compare with")
    elif not lines:
        report.ok("claims", f"all of {claims_path}, exactly")

    dataset = read_json(MANIFEST, "python stages/prepare_data.py").get("dataset")
    taken = passes(model, test, params.score.batch_size)
    Console(width=max(Console().width, 180)).print(layer_table(ops, str(path), taken))
    if len(taken) > 1:
        cascade = measured["cascade"]
        rows = zip(cascade["images_percent"], cascade["alone_test_accuracy_percent"], strict=True)
        for number, (share, alone) in enumerate(rows, 1):
            print(f"network {number:<7} {share:.2f} % of the test images; alone on all of them {alone:.2f} %")
    if packed.flip_margin:
        flipped = measured["flipped_images_percent"]
        print(f"mirrored too    {flipped:.2f} % of the test images: both scores charge {taken[-1]:.4f} passes")
    print(f"test accuracy   {measured['test_accuracy_percent']:.2f} % of {len(test):,} images of {dataset}")
    for rules, kind in (("challenge", "ops"), ("deck", "flops")):
        part = measured[rules]
        print(
            f"{rules + ' score':<15} {part['score']:.6f} = {part[f'score_{kind}']:.6f} operations ({part[kind]:,.0f}) "
            f"+ {part['score_params']:.6f} parameters ({part['params']:,.0f})"
        )
    print(f"sha256          {measured['packed']['sha256']}")
    if arguments.save:
        write_json(arguments.save, measured)
    if report.failures:
        print(f"verify: {path}: {report.failures} of the claims are wrong", file=sys.stderr)
    return 1 if report.failures else 0


def main(argv: list[str] | None = None) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="verify", description=__doc__, formatter_class=form)
    parser.add_argument("file", nargs="?", default=str(PACKED), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--params", default="params.yaml", metavar="PATH", help="for the data; default: %(default)s")
    parser.add_argument(
        "--claims", metavar="PATH", help=f"a score.json; default: {CLAIMS} when FILE is {PACKED}, else none"
    )
    parser.add_argument("--save", metavar="PATH", help="write what was measured, as a score.json")
    parser.add_argument(
        "--reference-images", type=int, default=300, metavar="N", help="logits compared; default: %(default)s"
    )
    parser.add_argument(
        "--strict-images", type=int, default=2, metavar="N", help="operations counted; default: %(default)s"
    )
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.strict_images <= arguments.reference_images:
        parser.error("--strict-images: must be from 1 to --reference-images")
    return front("verify", lambda: check(arguments))


if __name__ == "__main__":
    sys.exit(main())
