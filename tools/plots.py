"""Draws metrics/ as PNG and SVG: the curves of every stage that trained, and the path from teacher to file.

The same numbers give the same SVG, byte for byte (given one version of matplotlib).
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _tool import METRICS, ToolError, arguments_of, front, read_csv

from micronet.pipeline import TRAINING_STAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUT = Path("docs/plots")
TRAIN, VALIDATION, RATE, PATH = "#7aa6c9", "#1f4e79", "#d9a441", "#1f4e79"
# Which checkpoint the next one is made from, or taught by.
STEPS = (("teacher", "distilled"), ("student", "distilled"), ("distilled", "pruned"), ("pruned", "retrained"),
         ("retrained", "quantized"))  # fmt: skip
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
    """Columns of a CSV as floats (an empty cell is NaN), those of `texts` as text. Raises `ToolError`."""
    rows = read_csv(path, "make repro", columns)
    numbers = {name: [math.nan if row[name] is None else row[name] for row in rows] for name in columns}
    return numbers | {name: [row[name] for row in rows] for name in texts}


def say_start(axes: Axes, side: str) -> None:
    """Notes in an axis label that the axis does not start at 0, since readers compare lengths."""
    axis, low = (axes.yaxis, axes.get_ylim()[0]) if side == "y" else (axes.xaxis, min(axes.get_xlim()))
    if low > 0:
        between = "\n" if side == "y" else " "
        axis.set_label_text(f"{axis.label.get_text()}{between}(begins at {low:.3g}, not at 0)")


def _curve(axes: Axes, stage: str, curve: dict[str, list]) -> None:
    """A stage's accuracies, and the shape of its learning rate, whose peak takes a fifth of the height."""
    from matplotlib.ticker import MaxNLocator

    epochs, rates = curve["epoch"], curve["learning_rate"]
    low, high = axes.get_ylim()
    peak = max((value for value in rates if value > 0), default=1.0)
    heights = [low + 0.2 * (high - low) * rate / peak for rate in rates]
    axes.fill_between(epochs, heights, low, color=RATE, alpha=0.3, linewidth=0, label="learning rate")
    axes.annotate(f"rate up to {peak:.2g}", (1, 0), (-3, 18), xycoords="axes fraction", textcoords="offset points",
                  ha="right", fontsize=7, color="#8a6414")  # fmt: skip
    axes.plot(epochs, curve["train_accuracy_percent"], color=TRAIN, linewidth=1.4, label="train")
    axes.plot(epochs, curve["validation_accuracy_percent"], color=VALIDATION, linewidth=1.8, label="validation")
    axes.set_title(stage, loc="left", fontweight="bold")
    if (last := _last(curve)) is not None:
        axes.set_title(f"  {last:.2f} % at the end", loc="right", fontsize=8, color="#444444")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.set_xlim(epochs[0], epochs[-1])


def _last(curve: dict[str, list]) -> float | None:
    """The final validation accuracy, if any."""
    return next((value for value in reversed(curve["validation_accuracy_percent"]) if not math.isnan(value)), None)


def draw_curves(curves: dict[str, dict[str, list]]) -> Figure:
    """Training and validation accuracy, one panel per stage, all on one axis; stages of one epoch in a sentence."""
    from matplotlib.figure import Figure

    long = {stage: curve for stage, curve in curves.items() if len(curve["epoch"]) > 1}
    columns = min(3, max(1, len(long)))
    rows = max(1, -(-len(long) // columns))
    figure = Figure(figsize=(max(6.0, 3.8 * columns), 2.7 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    names = ("train_accuracy_percent", "validation_accuracy_percent")
    values = [value for curve in long.values() for name in names for value in curve[name] if not math.isnan(value)]
    if values:
        grid[0].set_ylim(max(0, 10 * math.floor(min(values) / 10)), 100)
    for place, (stage, curve) in enumerate(long.items()):
        _curve(grid[place], stage, curve)
        grid[place].tick_params(labelleft=place % columns == 0)
        if place % columns == 0:
            grid[place].set_ylabel("accuracy in %")
        if place + columns >= len(long):
            grid[place].set_xlabel("epoch")
    for axes in grid[len(long) :]:
        axes.set_visible(False)
    ends = [f"{stage}: one epoch, to {last:.2f} % on validation" for stage, curve in curves.items()
            if stage not in long and (last := _last(curve)) is not None]  # fmt: skip
    if ends:
        figure.supxlabel("; ".join(ends), fontsize=8, color="#444444", x=0.01, ha="left")
    if long:
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def frame_of(axes: Axes) -> tuple[float, float, float, float]:
    """Left, lower, right and upper end of the plot area, in pixels."""
    box = axes.get_window_extent()
    return box.x0, box.y0, box.x1, box.y1


def label_points(
    figure: Figure,
    axes: Axes,
    points: list[tuple[float, float, str]],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]] = (),
    levels: Sequence[float] = (),
) -> None:
    """Labels each point on the side where the label covers least of the points, labels and lines.

    Args:
        lines: their endpoints. levels: heights of full-width horizontal lines.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    places = axes.transData.transform([point[:2] for point in points])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in places]
    x0, y0, x1, y1 = frame_of(axes)
    taken += [Bbox.from_bounds(x0, axes.transData.transform((1, height))[1] - 1, x1 - x0, 2) for height in levels]
    for (x, y), (to_x, to_y) in (axes.transData.transform(ends) for ends in lines):
        steps = max(1, int(math.hypot(to_x - x, to_y - y) / 4))
        inner = [(x + (to_x - x) * step / steps, y + (to_y - y) * step / steps) for step in range(1, steps)]
        taken += [Bbox.from_bounds(at_x - 1, at_y - 1, 2, 2) for at_x, at_y in inner]
    sides = [(9, 0), (-9, 0), (0, 9), (0, -9), (7, 7), (-7, 7), (7, -7), (-7, -7), (10, 20), (-10, 20), (10, -20)]
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
            inside = x0 <= box.x0 and box.x1 <= x1 and y0 <= box.y0 and box.y1 <= y1
            found.append((not inside, box.count_overlaps(taken), order, label, box))
        best = min(found, key=lambda item: item[:3])
        for item in found:
            if item is not best:
                item[3].remove()
        taken.append(best[4])


def accuracy_against(axes: Axes, score: str) -> None:
    """Axes of accuracy over a logarithmic score, labelled with `score`."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(score)
    axes.set_ylabel("accuracy on the test set in %")


def merged(points: list[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Merges points in one place into one, with both names."""
    found: dict[tuple[float, float], list[str]] = {}
    for x, y, name in points:
        found.setdefault((x, y), []).append(name)
    return [(x, y, ", ".join(names)) for (x, y), names in found.items()]


def draw_path(path: dict[str, list]) -> Figure:
    """Test accuracy against challenge score, one arrow per step; unmeasured checkpoints are left out."""
    from matplotlib.figure import Figure

    columns = zip(path["challenge_score"], path["test_accuracy_percent"], path["stage"], strict=True)
    points = [(score, accuracy, stage) for score, accuracy, stage in columns if accuracy == accuracy and score > 0]
    if not points:
        raise ToolError("path.csv: holds no checkpoint whose test accuracy was measured; score.measure_path does that")
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    there = {stage: (x, y) for x, y, stage in points}
    steps = [(there[one], there[next_one]) for one, next_one in STEPS if one in there and next_one in there]
    for start, end in steps:
        taught = start == there.get("teacher")
        style = {"arrowstyle": "-|>", "color": "#8a6414" if taught else PATH, "linestyle": "--" if taught else "-",
                 "alpha": 0.6, "shrinkA": 6, "shrinkB": 6}  # fmt: skip
        if start != end:
            axes.annotate("", end, start, arrowprops=style)
    final = points[-1]
    axes.scatter([x for x, _, _ in points], [y for _, y, _ in points], s=40, zorder=3,
                 c=[RATE if point is final else PATH for point in points])  # fmt: skip
    axes.margins(x=0.16, y=0.2)
    accuracy_against(axes, "MicroNet score under challenge rules (logarithmic; lower is better)")
    say_start(axes, "y")
    labels = [(x, y, f"{names}\n{y:.2f} % at {x:.4f}") for x, y, names in merged(points)]
    label_points(figure, axes, labels, lines=steps)
    handles = [axes.plot([], [], color=PATH, alpha=0.6, label="the next checkpoint, of the same network")[0]]
    if "teacher" in there:
        handles += axes.plot([], [], color="#8a6414", alpha=0.6, linestyle="--", label="gives the answers to learn")
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def write(figure: Figure, base: Path, kinds: Sequence[str] = ("svg", "png")) -> None:
    """`base` in each format, without a creation date."""
    from micronet.files import write_atomically

    settings: dict[str, dict[str, Any]] = {"svg": {"metadata": {"Date": None}}, "png": {"dpi": 150}}
    for kind in kinds:
        content = io.BytesIO()
        figure.savefig(content, format=kind, facecolor="white", **settings[kind])
        write_atomically(base.with_suffix(f".{kind}"), content.getvalue())
        print(f"{base.with_suffix(f'.{kind}')}: written")


def draw(metrics: Path, out: Path) -> int:
    """All plots of a metrics folder; the exit code."""
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
