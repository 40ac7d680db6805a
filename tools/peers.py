"""Draws the released models beside the slides and other published results: accuracy against deck score.

Our numbers come from metrics/. The same numbers give the same SVG, byte for byte (given one version of matplotlib).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _tool import METRICS, arguments_of, front
from plots import OUT, PATH, RATE, STYLE, accuracy_against, label_points, say_start, write
from results import facts

from micronet.scoring.books import BOOKS, DECK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Others' results on CIFAR-10 under the slides' rules: score, accuracy. Groups of the same course state 90 % and more.
BOUND = "90 % or more"
PEERS = (
    (0.0357, 90.9, "the slides"),
    (0.0137, 90.0, BOUND),
    (0.0352, 90.0, BOUND),
    (0.0569, 90.0, BOUND),
)
THRESHOLDS = {90.0: "the course's threshold", 90.9: "what the slides claim"}
LEAST = 89.0  # percent: networks that only serve others are left out


def ours(metrics: Path) -> list[tuple[float, float, str]]:
    """Deck score, accuracy and name of the released CIFAR-10 models that are used on their own."""
    place = BOOKS.index(DECK)
    found: list[dict[str, Any]] = [model for model in facts(metrics)["models"] if model["of_cifar10"]]
    return [(model["scores"][place], model["accuracy"], model["name"]) for model in found if model["accuracy"] >= LEAST]


def draw(points: list[tuple[float, float, str]]) -> Figure:
    """Ours as circles, the slides as a square, groups that state a bound as upward arrows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    for accuracy, what in THRESHOLDS.items():
        axes.axhline(accuracy, color="#888888", linewidth=0.8, linestyle="--", zorder=1)
        axes.annotate(what, (0, accuracy), (3, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
                      fontsize=7, color="#666666")  # fmt: skip
    bounded = [peer for peer in PEERS if peer[2] == BOUND]
    named = [peer for peer in PEERS if peer[2] != BOUND]
    axes.scatter([x for x, _, _ in points], [y for _, y, _ in points], c=PATH, s=40, zorder=3, label="this project")
    axes.scatter([x for x, _, _ in named], [y for _, y, _ in named], c=RATE, s=36, marker="s", zorder=3)
    axes.scatter([x for x, _, _ in bounded], [y for _, y, _ in bounded], c=RATE, s=44, marker="^", zorder=3,
                 label=f"other groups, who state {BOUND}")  # fmt: skip
    axes.margins(x=0.3, y=0.2)
    accuracy_against(axes, "score under the slides' rules (logarithmic; lower is better)")
    say_start(axes, "y")
    label_points(figure, axes, [*points, *named], levels=list(THRESHOLDS))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def main(argv: list[str] | None = None) -> int:
    parser = arguments_of("peers", __doc__)
    parser.add_argument("--metrics", default=str(METRICS), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--out", default=str(OUT), metavar="FOLDER", help="default: %(default)s")
    arguments = parser.parse_args(argv)

    def work() -> int:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            write(draw(ours(Path(arguments.metrics).resolve())), Path(arguments.out) / "peers")
        return 0

    return front("peers", work)


if __name__ == "__main__":
    sys.exit(main())
