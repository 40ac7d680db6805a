"""Scores and operations as tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from micronet.errors import shown
from micronet.printing import print_wrapped, show
from micronet.scoring.books import BOOKS, RuleBook
from micronet.scoring.records import ONCE, Operation, macs
from micronet.scoring.references import OF_CIFAR10, References, reference_of

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from micronet.data.images import Split


def _millions(count: float) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.2f} G"
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count:,.0f}"


def _whole(count: int) -> str:
    """At most nine characters."""
    return f"{count:,}" if count < 1e7 else _millions(count)


def _score(score: float) -> str:
    """At most six characters up to a score of 99,999."""
    digits = 4 if score < 9.99995 else 3 if score < 99.9995 else 2 if score < 999.995 else 0
    return f"{score:.{digits}f}"


def _number(count: float) -> str:
    return f"{count:,.0f}" if count else ""


def relative_to(references: References | None) -> str:
    """What scores mean, for the title of a table: lower is better, and relative to what."""
    if references in (None, OF_CIFAR10):
        return "lower is better; the deck's group: 0.0357"
    assert references is not None
    return f"lower is better; relative to {references.name}"


def _title(said: str, references: References | None) -> str:
    """A title with what its scores mean, on a line of its own if a table of 80 columns would break it."""
    meaning = f"({relative_to(references)})"
    return f"{said} {meaning}" if len(f"{said} {meaning}") < 76 else f"{said}\n{meaning}"


def score_table(rows: Iterable[Mapping[str, Any]], references: References | None = None) -> Table:
    """The stages of the path as a table. `rows`: the columns of `metrics/path.csv`, None if not measured."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = _title("Test accuracy, MicroNet score", references)
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0, pad_edge=False)  # fits 80 columns
    table.add_column("stage")
    columns = ("accuracy", "parameters", "non-zero", "MACs", *(book.name for book in BOOKS))
    for column in columns:
        table.add_column(column, justify="right")
    forms: dict[str, Callable[[Any], str]] = {
        "test_accuracy_percent": lambda value: f"{value:.2f} %",
        "parameters": _whole,
        "nonzero_parameters": _whole,
        "macs": _millions,
        **{f"{book.name}_score": _score for book in BOOKS},
    }
    for row in rows:
        cells = ("-" if row.get(key) is None else form(row[key]) for key, form in forms.items())
        table.add_row(Text(shown(row["stage"], 40)), *cells)
    return table


def cost_table(rows: Iterable[Mapping[str, Any]], references: References) -> Table:
    """The future cost of a network, one row for each form of it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = _title("Cost of the untrained student", references)
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("network")
    for column in ("zeros", "parameters", "bits", "bytes", "MACs", *(book.name for book in BOOKS)):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["network"],
            row.get("zeros", ""),
            _whole(row["parameters"]),
            row["bits"],
            _whole(row["bytes"]),
            _millions(row["macs"]),
            *(_score(row[f"{book.name}_score"]) if f"{book.name}_score" in row else "-" for book in BOOKS),
        )
    return table


WORST = 10  # classes in the table, if there are many


def class_table(accuracies: Mapping[str, float | None], images: Mapping[str, int]) -> Table:
    """The accuracy of each class in percent; only the worst ones of more than `WORST` classes.

    Args:
        accuracies: None for a class without test images.
        images: how many of each class were measured.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    ranked = sorted(accuracies.items(), key=lambda item: 101.0 if item[1] is None else item[1])
    title = "Accuracy of each class" if len(ranked) <= WORST else f"The worst {WORST} of {len(ranked)} classes"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class")
    for column in ("accuracy", "test images"):
        table.add_column(column, justify="right")
    for name, accuracy in ranked[:WORST]:
        said = "-" if accuracy is None else f"{accuracy:.2f} %"
        table.add_row(Text(shown(name, 40)), said, f"{images[name]:,}")
    return table


def layer_table(
    ops: Sequence[Operation], title: str, passes: Sequence[float] = ONCE, references: References | None = None
) -> Table:
    """Every operation as a row: shape, widths, counts for one pass, storage, its share of each score.

    Args:
        title: a path or name, shown literally; like the names of operations it is not markup.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shares = [_shares(book, ops, passes, references) for book in BOOKS]
    table = Table(title=Text(shown(title)), box=box.SIMPLE_HEAD)
    table.add_column("operation", no_wrap=True)
    table.add_column("output", no_wrap=True)
    columns = ("bits w/a/acc", "non-zero", "of", "MACs", "mult.", "add.", "storage bits")
    for column in (*columns, *(f"{book.name} %" for book in BOOKS)):
        table.add_column(column, justify="right", no_wrap=True)
    for op, *shared in zip(ops, *shares, strict=True):
        stored = 0 if op.rules == "deck" else op.storage_bits
        done = op if op.rules != "deck" else replace(op, multiplications=(), additions=())
        table.add_row(
            Text(shown(op.name, 80)),
            "x".join(map(str, op.output_shape)),
            f"{op.weight_bits}/{op.activation_bits}/{op.accumulator_bits}" if op.weights else "",
            _number(op.nonzeros),
            _number(op.weights),
            _number(macs([op])),
            _number(sum(count for _, count in done.multiplications)),
            _number(sum(count for _, count in done.additions)),
            _number(stored),
            *(f"{100 * share:.2f}" if share else "" for share in shared),
        )
    return table


def _shares(
    book: RuleBook, ops: Sequence[Operation], passes: Sequence[float], references: References | None
) -> list[float]:
    """The part of each operation in a rule book's score; they add up to 1."""
    price = book.score(ops, passes, reference_of(book, references))
    counts = [passes[op.network] * book.operations(op) for op in ops]
    bits = [book.bits(op) for op in ops]
    parts = ((price.score_operations, counts), (price.score_params, bits))
    whole = [(part / price.score / sum(each), each) for part, each in parts if sum(each)]
    return [sum(scale * each[index] for scale, each in whole) for index in range(len(ops))]


def show_results(
    rows: Iterable[Mapping[str, Any]],
    score: Mapping[str, Any],
    test: Split,
    references: References,
    path: Path,
    strangers: Collection[str] = (),
) -> None:
    """Prints the table of the path and, below it, the measurements of the packed model.

    Args:
        rows: of the path. score: the content of `score.json`. path: of the packed file.
        strangers: the checkpoints that belong to other params, or were made from other files.
    """
    marked = [{**row, "stage": f"{row['stage']} *"} if row["stage"] in strangers else row for row in rows]
    show(score_table(marked, references))
    if strangers:
        print_wrapped("* made with other params, or of other files, than these: the rows are not those of one run")
    if "class_accuracy_percent" in score:
        counts = test.labels.bincount(minlength=len(test.classes)).tolist()
        show(class_table(score["class_accuracy_percent"], dict(zip(test.classes, counts, strict=True))))
    images = len(test)
    packed, accuracy = score["packed"], score["test_accuracy_percent"]
    lines = [
        f"{accuracy:.2f} % of {images:,} test images, measured now on {path} read back",
        "the rule books:",
        *(f"  {book.name:<9} {book.about}" for book in BOOKS),
    ]
    if "balanced_accuracy_percent" in score:
        lines.append(f"{score['balanced_accuracy_percent']:.2f} % is the mean of the classes, the balanced accuracy")
    if score["flipped_images_percent"]:
        flipped = score["flipped_images_percent"]
        lines.append(f"{flipped:.2f} % of the images were seen mirrored too; both passes are charged")
    once = score["one_pass"]
    lines += [
        f"in one pass {once['test_accuracy_percent']:.2f} % at {once['challenge_score']:.4f} under challenge rules; "
        f"with plain sums of products, and a mask bit for every weight, {once['plain_challenge_score']:.4f}",
        f"{packed['bytes']:,} bytes, of which {packed['payload_bits'] / 8:,.0f} are payload",
    ]
    print_wrapped(*lines)
