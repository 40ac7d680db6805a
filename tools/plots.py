"""Draws metrics/ as pictures, PNG and SVG: the curves of every stage that trained, and the path from teacher to file.

The same numbers give the same SVG, byte for byte (one version of matplotlib assumed).
"""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from _tool import METRICS, TRAINING_STAGES, ToolError, arguments_of, front, read_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUT = Path("docs/plots")
TRAIN, VALIDATION, RATE, PATH = "#7aa6c9", "#1f4e79", "#d9a441", "#1f4e79"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "svg.hashsalt": "micronet",  # element ids are random without it
}


def read_columns(path: Path, columns: tuple[str, ...], texts: tuple[str, ...] = ()) -> dict[str, list]:
    """Columns of a CSV as floats (an empty cell is NaN), those of `texts` as they are. Raises `ToolError`."""
    rows = read_csv(path, "make repro", columns)
    numbers = {name: [math.nan if row[name] is None else row[name] for row in rows] for name in columns}
    return numbers | {name: [row[name] for row in rows] for name in texts}


def _curve(axes: Axes, stage: str, curve: dict[str, list]) -> Axes:
    """Accuracies of one stage; the learning rate behind them on an axis of its own, which is given back."""
    from matplotlib.ticker import MaxNLocator

    epochs = curve["epoch"]
    marker = {"marker": "o", "markersize": 3} if len(epochs) <= 20 else {}
    rate = axes.twinx()
    rate.fill_between(epochs, curve["learning_rate"], color=RATE, alpha=0.12, linewidth=0)
    rate.plot(epochs, curve["learning_rate"], color=RATE, alpha=0.7, linewidth=1, label="learning rate", **marker)
    rate.set_ylim(0, 1.05 * max((value for value in curve["learning_rate"] if value > 0), default=1.0))
    rate.grid(False)
    rate.yaxis.set_major_locator(MaxNLocator(4))
    rate.tick_params(colors="#a87b22", labelsize=7, length=2)
    axes.set_zorder(rate.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.plot(epochs, curve["train_accuracy_percent"], color=TRAIN, linewidth=1.4, label="train", **marker)
    validation = curve["validation_accuracy_percent"]
    axes.plot(epochs, validation, color=VALIDATION, linewidth=1.8, label="validation", **marker)
    known = [value for value in validation if not math.isnan(value)]
    last = f"  {known[-1]:.2f} % at the end" if known else ""
    axes.set_title(stage, loc="left", fontweight="bold")
    axes.set_title(last, loc="right", fontsize=8, color="#444444")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.set_xlim(epochs[0] - 0.3, epochs[-1] + 0.3)
    axes.margins(y=0.08)
    return rate


def draw_curves(curves: dict[str, dict[str, list]]) -> Figure:
    """One axes a stage: accuracy in training and on validation, and the learning rate."""
    from matplotlib.figure import Figure

    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(4.1 * columns, 2.9 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    handles: list = []
    for place, (stage, curve) in enumerate(curves.items()):
        axes = grid[place // columns][place % columns]
        rate = _curve(axes, stage, curve)
        if place % columns == 0:
            axes.set_ylabel("accuracy in %")
        if place + columns >= len(curves):
            axes.set_xlabel("epoch")
        if not handles:
            handles = axes.get_lines()[:2] + rate.get_lines()[:1]
    for place in range(len(curves), rows * columns):
        grid[place // columns][place % columns].set_visible(False)
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    return figure


def label_points(figure: Figure, axes: Axes, points: list[tuple[float, float, str]], line: bool = True) -> None:
    """A label beside each point, on the side where it covers least of points, labels and the line between them.

    Args:
        line: there is one from each point to the next.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    places = axes.transData.transform([point[:2] for point in points])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in places]
    for (x, y), (to_x, to_y) in zip(places, places[1:] if line else [], strict=False):
        steps = max(1, int(math.hypot(to_x - x, to_y - y) / 4))
        inner = [(x + (to_x - x) * step / steps, y + (to_y - y) * step / steps) for step in range(1, steps)]
        taken += [Bbox.from_bounds(at_x - 1, at_y - 1, 2, 2) for at_x, at_y in inner]
    sides = [(9, 0), (-9, 0), (0, 9), (0, -9), (7, 7), (-7, 7), (7, -7), (-7, -7), (10, 20), (-10, 20), (10, -20)]
    frame = axes.get_window_extent()
    for x, y, text in points:
        found = []
        for order, (dx, dy) in enumerate([*sides, (-10, -20)]):
            label = axes.annotate(
                text,
                (x, y),
                (dx, dy),
                textcoords="offset points",
                ha="left" if dx > 0 else "right" if dx < 0 else "center",
                va="bottom" if dy > 0 else "top" if dy < 0 else "center",
                fontsize=8,
                linespacing=1.3,
            )
            box = label.get_window_extent(canvas.get_renderer())
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            found.append((not inside, box.count_overlaps(taken), order, label, box))
        best = min(found, key=lambda item: item[:3])
        for item in found:
            if item is not best:
                item[3].remove()
        taken.append(best[4])


def accuracy_against(axes: Axes, score: str) -> None:
    """The axes of accuracy over a logarithmic score, of which `score` says what it is."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(score)
    axes.set_ylabel("accuracy on the test set in %")


def draw_path(path: dict[str, list]) -> Figure:
    """Test accuracy against challenge score, checkpoint after checkpoint; those that were not measured are left out."""
    from matplotlib.figure import Figure

    columns = zip(path["challenge_score"], path["test_accuracy_percent"], path["stage"], strict=True)
    points = [(score, accuracy, stage) for score, accuracy, stage in columns if accuracy == accuracy and score > 0]
    if not points:
        raise ToolError("path.csv: holds no checkpoint whose test accuracy was measured; score.measure_path does that")
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.plot([point[0] for point in points], [point[1] for point in points], color=PATH, linewidth=1, alpha=0.35)
    colors = [PATH] * (len(points) - 1) + [RATE]
    axes.scatter([p[0] for p in points], [p[1] for p in points], c=colors, s=36, zorder=3)
    axes.margins(x=0.14, y=0.18)
    accuracy_against(axes, "MicroNet score under challenge rules (logarithmic; lower is better)")
    label_points(figure, axes, [(x, y, f"{stage}\n{y:.2f} % at {x:.4f}") for x, y, stage in points])
    return figure


def write(figure: Figure, base: Path) -> None:
    """`base`.png and `base`.svg, without the day they were drawn on."""
    from micronet.files import write_atomically

    for suffix, settings in ((".svg", {"metadata": {"Date": None}}), (".png", {"dpi": 150})):
        content = io.BytesIO()
        figure.savefig(content, format=suffix[1:], facecolor="white", **settings)
        write_atomically(base.with_suffix(suffix), content.getvalue())
        print(f"{base.with_suffix(suffix)}: written")


def draw(metrics: Path, out: Path) -> int:
    """All pictures of a metrics folder; the exit code."""
    import matplotlib

    found = {file.stem: file for file in sorted((metrics / "curves").glob("*.csv"))}
    if not found:
        raise ToolError(f"{metrics / 'curves'}: holds no curve; `make repro` trains, and each epoch adds to one")
    order = [stage for stage in TRAINING_STAGES if stage in found] + [s for s in found if s not in TRAINING_STAGES]
    columns = ("epoch", "learning_rate", "train_accuracy_percent", "validation_accuracy_percent")
    curves = {stage: read_columns(found[stage], columns) for stage in order}
    curves = {stage: curve for stage, curve in curves.items() if curve["epoch"]}  # a stage of 0 epochs has none
    if not curves:
        raise ToolError(f"{metrics / 'curves'}: no curve has an epoch")
    with matplotlib.rc_context(STYLE):
        write(draw_curves(curves), out / "curves")
        path = metrics / "path.csv"
        if not path.is_file():
            print(f"{path}: is not there yet, so the path is not drawn; `make score` makes it", file=sys.stderr)
            return 0
        numbers = ("challenge_score", "test_accuracy_percent")
        write(draw_path(read_columns(path, numbers, ("stage",))), out / "path")
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = arguments_of("plots", __doc__)
    parser.add_argument("--metrics", default=str(METRICS), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--out", default=str(OUT), metavar="FOLDER", help="default: %(default)s")
    arguments = parser.parse_args(argv)
    return front("plots", lambda: draw(Path(arguments.metrics), Path(arguments.out)))


if __name__ == "__main__":
    sys.exit(main())
