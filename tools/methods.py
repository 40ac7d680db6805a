"""Draws what each method achieved here, from metrics/: the pictures of docs/explanation/, as SVG.

The same numbers give the same SVG, byte for byte (given one version of matplotlib).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _tool import METRICS, Facts, arguments_of, front, read_csv, read_json, read_json_if_there
from plots import OUT, PATH, RATE, STYLE, TRAIN, read_columns, say_start, write
from published import MODELS, claims_of

from micronet.scoring.books import BOOKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#888888"
SHADES = ("#c3d5e6", "#7aa6c9", "#4478a8", "#1f4e79", "#0b2a47")  # light to dark, for ordered series
VALIDATION = "validation_accuracy_percent"


def canvas(width: float, height: float, **more: Any) -> tuple[Figure, Any]:
    """A figure of this size in inches and its axes, an array if `more`, for `Figure.subplots`, asks for several.

    No window and no shared state: pyplot is not used.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**more)


def pruning(metrics: Path) -> Figure:
    """Accuracy against the share of zeros: the student pruned in one shot, and the release, pruned during training."""
    tried: list[Facts] = read_json(metrics / "bench_choices.json", "make choices")["pruned_at_once"]
    done = read_json(metrics / "prune.json", "python stages/prune.py")
    figure, axes = canvas(7.2, 4.0)
    for exponent, color in zip(sorted({one["cost_exponent"] for one in tried}), SHADES[1:], strict=False):
        mine = [(100 * one["amount"], one[VALIDATION]) for one in tried if one["cost_exponent"] == exponent]
        axes.plot(
            *zip(*mine, strict=True),
            color=color,
            marker="o",
            markersize=4,
            label=f"at once, cost_exponent {exponent:g}",
        )
    zeros = 100 * done["zero_weights"] / done["prunable_weights"]
    axes.plot(
        [zeros],
        [done[VALIDATION]],
        "o",
        color=RATE,
        markersize=9,
        label=f"trained for {done['epochs']} epochs while weights went",
    )
    axes.set_xlabel("weights that are zero, in %")
    axes.set_ylabel("validation accuracy in %")
    axes.legend(frameon=False, loc="lower left")
    say_start(axes, "y")
    return figure


def retraining(metrics: Path) -> Figure:
    """Validation accuracy of every epoch of prune and retrain, one after the other."""
    columns = ("epoch", "learning_rate", VALIDATION)
    curves = {stage: read_columns(metrics / f"curves/{stage}.csv", columns) for stage in ("prune", "retrain")}
    figure, axes = canvas(7.2, 3.6)
    start = 0.0
    for (stage, curve), color in zip(curves.items(), (TRAIN, PATH), strict=True):
        epochs = [start + epoch for epoch in curve["epoch"]]
        axes.plot(
            epochs,
            curve[VALIDATION],
            color=color,
            marker="o" if len(epochs) < 10 else None,
            markersize=4,
            label=f"{stage}, {len(epochs)} epochs",
        )
        start = epochs[-1] if epochs else start
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy in %")
    axes.legend(frameon=False, loc="lower right")
    say_start(axes, "y")
    return figure


def networks(metrics: Path) -> list[tuple[str, Facts]]:
    """The released models of a single network, with their `quantize` metrics."""
    found = [("record", read_json(metrics / "quantize.json", "python stages/quantize.py"))]
    for name in MODELS:
        if (claims := claims_of(name, metrics.parent)) is None:
            continue
        if (
            facts := read_json_if_there(metrics.parent / claims[1].with_name("quantize.json"), "make repro")
        ) is not None:
            found.append((name, facts))
    return found


def rows_of(axes: Axes, names: list[str]) -> None:
    """One row per name, the first on top, without an axis line."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def packing(metrics: Path) -> Figure:
    """Bytes of each released network, as 32-bit floats and as a packed file."""
    from matplotlib.ticker import FuncFormatter

    found = networks(metrics)
    figure, axes = canvas(7.2, 1.2 + 0.42 * len(found))
    axes.set_xscale("log")
    for place, (_, facts) in enumerate(found):
        floats, file = 4 * facts["parameters"], facts["file_bytes"]
        axes.plot([file, floats], [place, place], color="#cccccc", linewidth=2, zorder=1)
        middle = ((floats * file) ** 0.5, place)
        axes.annotate(f"{floats / file:.0f} times smaller", middle, (0, 4), textcoords="offset points", ha="center")
    places = range(len(found))
    axes.scatter([4 * facts["parameters"] for _, facts in found], places, c=GREY, s=40, label="32-bit floats", zorder=2)
    axes.scatter([facts["file_bytes"] for _, facts in found], places, c=PATH, s=40, label="packed file", zorder=2)
    rows_of(axes, [name for name, _ in found])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("bytes (logarithmic)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def rule_books(metrics: Path) -> Figure:
    """Both parts of each released model's score, one panel per rule book, on common axes."""
    from matplotlib.ticker import FuncFormatter

    score = read_json(metrics / "score.json", "python stages/score.py")
    claims = {"record": score} | {
        name: found[0] for name in MODELS if name != "mnist" and (found := claims_of(name, metrics.parent)) is not None
    }
    figure, grid = canvas(9.6, 1.6 + 0.36 * len(claims), ncols=len(BOOKS), sharex=True, sharey=True)
    for axes, book in zip(grid, BOOKS, strict=True):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.tick_params(axis="y", length=0)
        axes.set_title(book.name, loc="left", fontweight="bold")
        for place, found in enumerate(claims.values()):
            if book.name in found:
                parts = found[book.name]
                storage, work = parts["score_params"], parts[f"score_{book.counts}"]
                axes.plot([storage, work], [place, place], color="#cccccc", linewidth=1.5, zorder=1)
                axes.scatter([storage], [place], c=RATE, s=30, zorder=2, label="storage" if not place else None)
                axes.scatter([work], [place], c=PATH, s=30, zorder=2, label="operations" if not place else None)
    rows_of(grid[0], list(claims))
    figure.supxlabel("part of the score (logarithmic; lower is better)", fontsize=9)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def second_passes(metrics: Path) -> Figure:
    """Validation accuracy of the cascade against its deck score, one line per share of mirrored images."""
    columns = ("network_2", "mirrored_too", VALIDATION, "deck_score")
    shares = read_csv(metrics / "cascade/shares.csv", "python tools/cascade.py", columns)
    figure, axes = canvas(7.2, 4.2)
    mirrored = sorted({row["mirrored_too"] for row in shares})
    for share, color in zip(mirrored, SHADES, strict=False):
        mine = [(row["deck_score"], row[VALIDATION]) for row in shares if row["mirrored_too"] == share]
        axes.plot(*zip(*mine, strict=True), color=color, marker="o", markersize=3.5, label=f"{share:g} %")
    plain = [row for row in shares if row["mirrored_too"] == mirrored[0]]
    for row in (plain[0], plain[2], plain[4]):
        point, said = (row["deck_score"], row[VALIDATION]), f"{row['network_2']:g} % go on"
        axes.annotate(said, point, (-8, 3), textcoords="offset points", ha="right", fontsize=8)
    axes.margins(x=0.22)
    axes.set_xlabel("score under the slides' rules (lower is better)")
    axes.set_ylabel("validation accuracy in %")
    axes.legend(title="mirrored too", frameon=False, loc="lower right")
    say_start(axes, "y")
    return figure


PICTURES: dict[str, Callable[[Path], Figure]] = {
    "pruning": pruning,
    "retraining": retraining,
    "packing": packing,
    "rule_books": rule_books,
    "second_passes": second_passes,
}


def main(argv: list[str] | None = None) -> int:
    parser = arguments_of("methods", __doc__)
    parser.add_argument("--metrics", default=str(METRICS), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--out", default=str(OUT / "methods"), metavar="FOLDER", help="default: %(default)s")
    arguments = parser.parse_args(argv)

    def work() -> int:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            for name, draw in PICTURES.items():
                write(draw(Path(arguments.metrics).resolve()), Path(arguments.out) / name, ("svg",))
        return 0

    return front("methods", work)


if __name__ == "__main__":
    sys.exit(main())
