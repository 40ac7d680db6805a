"""Checks a packed model from its file alone: structure, digest, storage, operations, accuracy on the test set, scores.

Everything that the file and metrics/score.json claim is measured again. Exit code 1 if anything differs, with a line
`FAILED key: claimed x, measured y`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from _tool import (
    MANIFEST,
    PACKED,
    PARAMS,
    SHOWN,
    ToolError,
    add_params,
    arguments_of,
    front,
    open_split,
    parameters,
    read_json,
    training_digest,
    watch,
)
from published import CLAIMS, published, with_data

from micronet.errors import shown
from micronet.scoring.packed_counts import CHOICE

if TYPE_CHECKING:
    import numpy as np

    from micronet.data.images import Split
    from micronet.packed.model import PackedModel
    from micronet.packed.module import PackedModule
    from micronet.scoring.records import Operation
    from micronet.scoring.references import References

FINDING_INDENT = 9  # columns: indent of a finding's continuation lines on a terminal
LONGEST_FINDING = 4000  # characters: a step's counts by bit width are long, and our own

Counts = tuple[Counter[int], Counter[int]]  # multiplications, additions: {bits: count}


@dataclass(frozen=True)
class Finding:
    """One fact: as claimed, not as claimed, or not claimed or checkable."""

    kind: Literal["ok", "note", "FAILED"]
    key: str
    text: str

    def __str__(self) -> str:
        key, text = shown(self.key), shown(self.text, LONGEST_FINDING)
        return f"FAILED {key}: {text}" if self.kind == "FAILED" else f"{self.kind:<6} {key:<28} {text}"


def same(key: str, claimed: Any, measured: Any, text: str) -> Finding:
    """`text` is for a claim that holds."""
    if claimed == measured:
        return Finding("ok", key, text)
    return Finding("FAILED", key, f"claimed {shown(claimed, SHOWN)}, measured {shown(measured, SHOWN)}")


@dataclass(frozen=True)
class Subject:
    """A packed model, the claims about it, and what measuring it takes; measured when first needed."""

    path: Path
    model: PackedModule
    claims_path: Path | None
    claims: dict[str, Any] | None
    params: parameters.Params
    manifest: Path
    arguments: argparse.Namespace

    @cached_property
    def operations(self) -> list[Operation]:
        from micronet.scoring import counting

        return counting.operations(self.model)

    @cached_property
    def test(self) -> Split:
        return open_split(self.params, "test", self.manifest)

    @cached_property
    def measured(self) -> dict[str, Any]:
        """The content score.json would have."""
        from micronet.scoring.measurement import measure

        return measure(self.path, self.model, self.test, self.params.score.batch_size, self.references, watch=watch)

    @cached_property
    def references(self) -> References:
        from micronet.scoring.references import of_params

        return of_params(self.params)


def open_published(arguments: argparse.Namespace) -> Subject:
    """The subject of a name, its data prepared if there is no manifest. Raises `MicronetError`."""
    found = published(arguments.name)
    os.chdir(found.folder)
    arguments.file, arguments.params, arguments.claims = str(found.file), str(found.params), str(found.claims)
    if not found.file.is_file():
        way = "`dvc repro pipelines/dvc.yaml` makes it"
        raise ToolError(f"{found.folder / found.file}: there is no such file; {way}")
    with_data(found)
    return open_subject(arguments, found.manifest)


def open_subject(arguments: argparse.Namespace, manifest: Path = MANIFEST) -> Subject:
    """Raises `MicronetError`: the file, or one that makes claims about it, is missing or damaged."""
    path = Path(arguments.file)
    claims_path = Path(arguments.claims) if arguments.claims else None
    if claims_path is None and path.resolve() == PACKED.resolve():
        claims_path = CLAIMS
    params = parameters.load(arguments.params)

    from micronet.packed.module import load_packed

    model = load_packed(path)
    claims = read_json(claims_path, "python stages/score.py") if claims_path else None
    return Subject(path, model, claims_path, claims, params, manifest, arguments)


def check_structure(subject: Subject) -> Iterator[Finding]:
    """What reading the file has already shown, and that it names an architecture."""
    import models

    packed, said = subject.model.packed, shown(subject.path, SHOWN)
    size, outside = packed.file_bytes, packed.file_bytes - packed.payload_bits / 8
    text = f"{len(packed.steps)} steps, {packed.arithmetic} arithmetic, every length and range checked"
    yield Finding("ok", "structure", text)
    yield Finding("ok", "digest", packed.digest)
    text = f"{size:,} bytes, {outside:,.0f} of them ({100 * outside / size:.1f} %) outside of the payload"
    yield Finding("note", "size", text)
    if packed.spec is None:
        raise ToolError(f"{said}: names no architecture, so its operations cannot be compared with one")
    try:
        for spec in packed.specs:
            models.check_known(spec)
            models.check(spec)
    except models.SpecError as error:
        raise ToolError(f"{said}: names an architecture that cannot be built: {shown(error, SHOWN)}") from None


def check_storage(subject: Subject) -> Iterator[Finding]:
    """The counted operations store the whole payload, and the challenge charges for it."""
    from micronet.scoring.books import CHALLENGE, STRICT

    packed, ops = subject.model.packed, subject.operations
    once = [1.0] * len(packed.networks)
    price, strict = (book.score(ops, once) for book in (CHALLENGE, STRICT))
    stored = sum(op.storage_bits for op in ops if op.rules != "deck")
    text = f"{stored:,} bits in {len(ops)} operations are all of the payload's"
    yield same("storage_bits", stored, packed.payload_bits, text)
    text = f"{price.params:,.2f} of 32 bits, as the challenge charges"
    yield same("storage_parameters", 32 * price.params, packed.payload_bits, text)
    text = f"{strict.params:,.2f} of 32 bits under strict rules, with masks of one level"
    yield same("strict_parameters", 32 * strict.params, packed.payload_bits + finer_masks(packed), text)


def finer_masks(packed: PackedModel) -> int:
    """Bits saved by multi-level masks over a single-level one, or over none, computed from the codes alone."""
    import numpy as np

    from micronet.packed.steps import Conv, Linear

    saved = 0
    for step in packed.steps:
        if not isinstance(step, Conv | Linear) or not step.weights.mask:
            continue
        weights, filled = step.weights, step.weights.codes.reshape(-1) != 0
        width = max(weights.bits, 2)  # of codes that include a 0
        forms = [width * len(filled)]
        for block in range(1, 10):  # one bit per block, and all codes of nonzero blocks
            starts = np.arange(0, len(filled), block)
            found, sizes = np.add.reduceat(filled, starts, dtype=int), np.diff(starts, append=len(filled))
            some = found > 0
            codes = weights.bits if (found == sizes)[some].all() else width
            forms.append(len(starts) + codes * int(sizes[some].sum()))
        saved += max(0, min(forms) - step.stored("weight"))
    return saved


def counts_of(ops: list[Operation], rules: str) -> dict[str, Counts]:
    """The counts of each step under challenge or strict rules; what ends a step belongs to it."""
    from micronet.scoring.strict import challenge_work, strict_work

    work, found = strict_work if rules == "strict" else challenge_work, dict[str, Counts]()
    for op in ops:
        if op.rules == "deck":
            continue
        name = op.name.removesuffix(".requantize").removesuffix(".maximum").removesuffix(f".{CHOICE}")
        for counter, more in zip(found.setdefault(name, (Counter(), Counter())), work(op), strict=True):
            counter.update(more)
    return found


def _show(counts: Counts) -> str:
    parts = (dict(sorted((+counter).items())) for counter in counts)
    return "multiplications {}, additions {} by width".format(*parts)


def check_reference(subject: Subject) -> Iterator[Finding]:
    """Challenge and strict counts and the module's logits against the numpy reference."""
    packed, arguments = subject.model.packed, subject.arguments
    if packed.arithmetic != "integer":
        yield Finding("note", "operations", "16-bit floats: there is no integer reference to compare them with")
        return
    images = subject.test.images[: arguments.reference_images].numpy()

    from micronet.packed.reference import witness

    some, networks = images[: arguments.strict_images], range(len(packed.networks))
    exact = [witness(packed, some, network=network) for network in networks]
    for key, prefix in (("operations", ""), ("strict", "strict_")):
        measured: dict[str, Counts] = {}
        for counts in (counts for _, counters in exact for counts in counters):
            pair = measured.setdefault(counts.name, (Counter(), Counter()))
            pair[0].update(getattr(counts, f"{prefix}multiplications"))
            pair[1].update(getattr(counts, f"{prefix}additions"))
        yield from check_counts(key, counts_of(subject.operations, key), measured, len(some))
    yield check_logits(subject.model, images, [logits for logits, _ in exact])


def check_counts(key: str, claimed: dict[str, Counts], measured: dict[str, Counts], images: int) -> Iterator[Finding]:
    """One finding per step that differs, or a single one if none does. `key`: operations or strict."""
    none: Counts = Counter(), Counter()
    differing = False
    for name in sorted(claimed.keys() | measured.keys()):
        mine, theirs = _show(claimed.get(name, none)), _show(measured.get(name, none))
        if mine != theirs:
            differing = True
            yield Finding("FAILED", f"{key}.{name}", f"claimed {mine}, measured {theirs}")
    if not differing:
        text = (
            f"counts of {len(claimed)} steps are what the numpy reference did on {images} of the test images, "
            "number by number, each partial sum inside its proven width"
        )
        yield Finding("ok", key, text if key == "operations" else f"under strict rules, {text}")


def check_logits(model: PackedModule, images: np.ndarray, exact: list[np.ndarray]) -> Finding:
    """Logits of numpy and torch against those of the reference's exact run. `images`: (N, C, H, W) uint8.

    Args:
        exact: the reference's logits of each network, for the first images.
    """
    import torch

    from micronet.data.images import normalise
    from micronet.packed.reference import predict, run

    logits = model(normalise(torch.from_numpy(images))).numpy()
    wrong = int((predict(model.packed, images) != logits).any(axis=1).sum())
    for network, known in enumerate(exact):
        found = run(model.packed, images[: len(known)], network=network)
        wrong += int((found != known).any(axis=1).sum())
    return same("logits.differing", 0, wrong, f"equal in numpy and torch on {len(images):,} test images, every one")


def check_macs(subject: Subject) -> Iterator[Finding]:
    """Multiply-accumulates against ptflops."""
    measured = subject.measured
    text = f"{measured['macs']:,}, as ptflops counts for the architecture that the file names"
    yield same("macs", measured["ptflops_macs"], measured["macs"], text)


def check_own_claims(subject: Subject) -> Iterator[Finding]:
    """The file's own claims: its validation accuracy, and the params that made it."""
    from micronet.scoring.measurement import predictions

    made, params = subject.model.packed.metadata, subject.params
    key = "validation_accuracy_percent"
    if key in made:
        validation = open_split(params, "validation", subject.manifest)
        predicted = predictions(subject.model, validation, params.score.batch_size, watch)
        correct = int((predicted == validation.labels).sum())
        accuracy = f"{100 * correct / len(validation):.4f}"
        yield same(key, made[key], accuracy, f"{accuracy} % of {len(validation):,} images, as the file claims")
    else:
        yield Finding("note", "validation accuracy", "the file claims none")
    if made.get("params_digest") == training_digest(params):
        yield Finding("ok", "params", f"the file was made with those of {subject.arguments.params}")
    else:
        yield Finding("note", "params", f"the file was made with others than those of {subject.arguments.params}")


def unpriced(claims: dict[str, Any]) -> list[str]:
    """The rule books missing from a score.json written before they existed."""
    from micronet.scoring.books import BOOKS

    once = claims.get("one_pass")
    priced = once.keys() if isinstance(once, dict) else ()
    return [book.name for book in BOOKS if book.name not in claims and f"{book.name}_score" not in priced]


def without(measured: dict[str, Any], books: Collection[str]) -> dict[str, Any]:
    """The score.json content without these rule books: their scores, also in one pass, and their references."""
    names = {*books, *(f"{book}_score" for book in books)}
    return {
        key: without(value, books) if key in ("one_pass", "reference") else value
        for key, value in measured.items()
        if key not in names
    }


def check_claims(subject: Subject) -> Iterator[Finding]:
    """The claims of a score.json."""
    from micronet.scoring.measurement import differences

    if subject.claims is None:
        text = "none but the file's own; --claims names a score.json to compare with"
        yield Finding("note", "claims", text)
        return
    unclaimed = unpriced(subject.claims)
    if unclaimed:
        yield Finding("note", "claims", f"{subject.claims_path} says nothing of {', '.join(unclaimed)}")
    lines = differences(subject.claims, without(subject.measured, unclaimed))
    for line in lines:
        yield Finding("FAILED", *line.split(": ", 1))
    if not lines:
        yield Finding("ok", "claims", f"all of {subject.claims_path}, exactly")


CHECKS = (  # cheapest first
    check_structure,
    check_storage,
    check_reference,
    check_macs,
    check_own_claims,
    check_claims,
)


def print_measured(subject: Subject) -> None:
    """The table of layers, the accuracy and the scores."""
    from micronet.printing import print_wrapped, show
    from micronet.scoring.books import BOOKS
    from micronet.scoring.measurement import passes
    from micronet.scoring.tables import layer_table

    measured, test = subject.measured, subject.test
    dataset = shown(read_json(subject.manifest, "python stages/prepare_data.py").get("dataset"), SHOWN)
    taken = passes(subject.model, test, subject.params.score.batch_size)
    show(layer_table(subject.operations, str(subject.path), taken, subject.references), splits=True)
    if len(taken) > 1:
        cascade = measured["cascade"]
        rows = zip(cascade["images_percent"], cascade["alone_test_accuracy_percent"], strict=True)
        for number, (share, alone) in enumerate(rows, 1):
            print_wrapped(f"network {number:<7} {share:.2f} % of the test images; alone on all of them {alone:.2f} %")
    if subject.model.packed.flip_margin:
        flipped = measured["flipped_images_percent"]
        print_wrapped(f"mirrored too    {flipped:.2f} % of the test images: all scores charge {taken[-1]:.4f} passes")
    print(f"test accuracy   {measured['test_accuracy_percent']:.2f} % of {len(test):,} images of {dataset}")
    for book in BOOKS:
        part, kind = measured[book.name], book.counts
        print_wrapped(
            f"{book.name + ' score':<15} {part['score']:.6f} = {part[f'score_{kind}']:.6f} operations "
            f"({part[kind]:,.0f}) + {part['score_params']:.6f} parameters ({part['params']:,.0f})"
        )
    if "reference" in measured:
        print(f"relative to     {subject.references.name}")
    print(f"sha256          {measured['packed']['sha256']}")


def verify(arguments: argparse.Namespace) -> int:
    """Prints each finding as it comes, then the measurements; the exit code."""
    if arguments.save:
        arguments.save = Path(arguments.save).absolute()
    subject = open_published(arguments) if arguments.name else open_subject(arguments)
    from micronet.printing import print_wrapped

    failures = 0
    for check in CHECKS:
        for finding in check(subject):
            print_wrapped(str(finding), indent=FINDING_INDENT)
            failures += finding.kind == "FAILED"
    print_measured(subject)
    if arguments.save:
        from micronet.files import write_json

        write_json(arguments.save, subject.measured)
    if failures:
        print(f"verify: {shown(subject.path, SHOWN)}: {failures} of the claims are wrong", file=sys.stderr)
    return 1 if failures else 0


def main(argv: list[str] | None = None) -> int:
    parser = arguments_of("verify", __doc__)
    parser.add_argument("file", nargs="?", default=str(PACKED), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--name", metavar="NAME", help="a published model; its file, params and claims are found by it")
    add_params(parser)
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
    if arguments.name and (arguments.claims or arguments.file != str(PACKED) or arguments.params != PARAMS):
        parser.error("--name: finds file, params and claims itself")
    return front("verify", lambda: verify(arguments))


if __name__ == "__main__":
    sys.exit(main())
