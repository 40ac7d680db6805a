"""The charts, as Vega-Lite without data: the page takes the numbers from each chart's table.

Colours are style sheet variables, so that a chart follows the page from light to dark and onto paper.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from report.labels import Place, places

INK, QUIET, GRID = "var(--ink)", "var(--quiet)", "var(--grid)"
MAIN, SECOND, THIRD, FOURTH = "var(--main)", "var(--second)", "var(--third)", "var(--fourth)"
ROW = 26  # pixels of a row of names
MOST_NUMBERS_IN_A_MATRIX = 12  # classes: with more, the cells have no room for their counts
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": FONT,
    "autosize": {"type": "fit-x", "contains": "padding"},
    "padding": {"left": 2, "right": 14, "top": 6, "bottom": 2},
    "view": {"stroke": None},
    "axis": {
        "labelColor": QUIET,
        "titleColor": QUIET,
        "gridColor": GRID,
        "domainColor": GRID,
        "tickColor": GRID,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelPadding": 6,
        "ticks": False,
        "domain": False,
        "labelLimit": 150,
    },
    "axisQuantitative": {"tickCount": 5},
    "legend": {
        "labelColor": INK,
        "titleColor": QUIET,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "orient": "top",
        "direction": "horizontal",
        "title": None,
        "symbolStrokeWidth": 0,
        "offset": 10,
        "symbolOpacity": 1,
    },
    "text": {"fill": INK, "fontSize": 12},
    "rule": {"stroke": QUIET},
    "bar": {"fill": MAIN, "cornerRadiusEnd": 2},
    "line": {"stroke": MAIN, "strokeWidth": 2},
    "point": {"filled": True, "size": 70, "opacity": 1, "strokeWidth": 0},
}

# On a logarithmic axis, errors have room where accuracies have none: 99 and 99.9 % are as far apart as 90 and 99.
_ERROR = "max(100 - datum.accuracy, 0.01)"
_LEAST_ERROR = 0.01
_ERRORS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70]
_FEW_ERRORS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
_NARROW = 3  # ratio of an axis's ends below which its ticks are evenly spaced
_SCORES = [digit * 10.0**power for power in range(-6, 4) for digit in (1, 2, 5)]
_STEPS = [digit * 10**power for power in range(5) for digit in (1, 2, 5)]
_COUNTS = [digit * 10**power for power in range(10) for digit in (1, 2, 5)]
_PERCENT = "datum.value + ' %'"


def error_ticks(accuracies: Iterable[float], *, few: bool = False) -> tuple[list[float], list[float]]:
    """The two ends of an axis covering some accuracies, as error (100 minus percent), and its ticks."""
    errors = [max(100 - accuracy, _LEAST_ERROR) for accuracy in accuracies]
    low, high = min(errors, default=1.0) / 1.04, max(errors, default=100.0) * 1.04
    if high / low > _NARROW:
        return [low, high], [error for error in (_FEW_ERRORS if few else _ERRORS) if low <= error <= high]
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = max(power * digit for digit in (1, 2, 5) if power * digit <= (high - low) / 3)
    first = math.ceil(low / step)
    return [low, high], [round(place * step, 6) for place in range(first, math.floor(high / step) + 1)]


def _error(
    kind: type[alt.X] | type[alt.Y],
    accuracies: Iterable[float],
    title: str | None = "accuracy",
    *,
    few: bool = False,
    overlap: Any = "greedy",
) -> Any:
    """The channel of an accuracy."""
    domain, ticks = error_ticks(accuracies, few=few)
    axis = alt.Axis(
        title=title,
        values=ticks,
        tickCount=2 * len(_ERRORS),
        labelExpr="format(100 - datum.value, '.6~r') + ' %'",
        labelOverlap=overlap,
    )
    return kind("error:Q", scale=alt.Scale(type="log", reverse=True, nice=False, padding=10, domain=domain), axis=axis)


def _score_axis() -> alt.Axis:
    return alt.Axis(
        title="score, lower is better", format="~r", values=_SCORES, tickCount=len(_SCORES), labelSeparation=8
    )


def _chart(height: int | None = None) -> alt.Chart:
    chart = alt.Chart(alt.NamedData("table"), width="container")
    return chart if height is None else chart.properties(height=height)


def _spec(chart: alt.TopLevelMixin, description: str) -> dict[str, Any]:
    """The specification of a chart, without the parts shared by all."""
    spec = {**chart.to_dict(), "description": description}
    for shared in ("$schema", "config", "data"):
        spec.pop(shared, None)
    return spec


def scores(description: str, books: Sequence[str], series: dict[str, str]) -> dict[str, Any]:
    """One row per rule book: this model's score, and those of others, where available.

    Args:
        series: the colour of each kind of mark, this model's first.
    """
    shapes = ["circle" if place == 0 else "diamond" for place in range(len(series))]
    domain: list[Any] = list(series)
    chart = (
        _chart(4 * ROW + 20)
        .mark_point(size=110)
        .encode(
            x=alt.X("score:Q", scale=alt.Scale(type="log", nice=False, padding=16), axis=_score_axis()),
            y=alt.Y("book:N", sort=list(books), title=None, axis=alt.Axis(grid=True, labelColor=INK)),
            color=alt.Color("series:N", scale=alt.Scale(domain=domain, range=list(series.values()))),
            shape=alt.Shape("series:N", scale=alt.Scale(domain=domain, range=shapes)),
            tooltip=["book:N", "series:N", alt.Tooltip("score:Q", format=".4f")],
        )
    )
    return _spec(chart, description)


@dataclass(frozen=True)
class Look:
    """The appearance of a kind of point, and whether its points are labelled."""

    colour: str
    area: float
    shape: str
    opacity: float = 1.0
    named: bool = False


def accuracy_against_score(
    description: str,
    books: Sequence[str],
    looks: Mapping[str, Look],
    points: Sequence[Mapping[str, Any]],
    line: float | None,
    heading: str,
) -> dict[str, Any]:
    """Points of accuracy over a score on logarithmic axes; a control selects the rule book.

    Args:
        looks: for each kind of point, `series`, topmost first.
        points: what is drawn of the table; the axes are as long as they need.
        line: an accuracy in percent to draw across.
        heading: of the control.
    """
    options = list(books)
    book = alt.param(
        name="book", value=options[0], bind=alt.binding_radio(options=options, labels=options, name=heading)
    )
    domain: list[Any] = list(looks)
    scale = alt.Scale(type="log", nice=False, padding=16)
    if len(points) == 1:  # one score is no range
        found = [points[0][name] for name in books if points[0].get(name)]
        scale = alt.Scale(type="log", nice=False, domain=[min(found) / 2, max(found) * 2])
    x = alt.X("x:Q", scale=scale, axis=_score_axis())
    accuracies = [point["accuracy"] for point in points] + ([] if line is None else [line])
    y, most = _error(alt.Y, accuracies, overlap=False), error_ticks(accuracies)[0][1]
    base = (
        _chart()
        .transform_calculate(
            x="datum[book]",
            error=_ERROR,
            place=f"indexof({json.dumps(domain)}, datum.series)",
        )
        .transform_calculate(
            area=f"{[look.area for look in looks.values()]}[datum.place]",
            shade=f"{[look.opacity for look in looks.values()]}[datum.place]",
        )
        .transform_filter(f"isValid(datum.x) && datum.x > 0 && isValid(datum.accuracy) && datum.error <= {most}")
    )
    drawn = {rules: [name for name in looks if _has(points, name, rules)] for rules in options}
    legend = alt.Legend(values=alt.expr(f"{json.dumps(drawn)}[book]"))
    marks = base.mark_point().encode(
        x=x,
        y=y,
        color=alt.Color(
            "series:N", legend=legend, scale=alt.Scale(domain=domain, range=[look.colour for look in looks.values()])
        ),
        shape=alt.Shape(
            "series:N", legend=legend, scale=alt.Scale(domain=domain, range=[look.shape for look in looks.values()])
        ),
        size=alt.Size("area:Q", scale=None),
        opacity=alt.Opacity("shade:Q", scale=None),
        order=alt.Order("place:Q", sort="descending"),
        tooltip=["series:N", "label:N", alt.Tooltip("accuracy:Q", format=".2f"), alt.Tooltip("x:Q", format=".4f")],
    )
    named: list[Any] = [name for name, look in looks.items() if look.named]
    stand = (
        f"({json.dumps({rules: _places(points, rules, named, line) for rules in options})}[book] || {{}})[datum.label]"
    )
    # The shared name of several points is at the first of them.
    names = (
        base.transform_filter(alt.FieldOneOfPredicate(field="series", oneOf=named))
        .transform_joinaggregate(first="min(x)", groupby=["series", "label"])
        .transform_filter("datum.x === datum.first")
        .mark_text(
            align=alt.expr(f"({stand} || [9, 4, 'left'])[2]"),
            dx=alt.expr(f"({stand} || [9, 4, 'left'])[0]"),
            dy=alt.expr(f"({stand} || [9, 4, 'left'])[1]"),
            baseline="alphabetic",
            fontSize=11,
            fill=INK,
        )
        .encode(x=x, y=y, text="label:N")
    )
    layers: list[Any] = [marks, names]
    if line is not None:
        layers.insert(0, _chart().mark_rule(strokeDash=[4, 4]).encode(y=alt.YDatum(100 - line)))
    return _spec(alt.layer(*layers).add_params(book).properties(width="container", height=420), description)


def _has(points: Sequence[Mapping[str, Any]], series: str, rules: str) -> bool:
    return any(point["series"] == series and (point.get(rules) or 0) > 0 for point in points)


def _places(
    points: Sequence[Mapping[str, Any]], rules: str, named: Sequence[str], line: float | None
) -> dict[str, Place]:
    """Where names go under a rule book; all points are kept clear."""
    here = sorted((point for point in points if (point.get(rules) or 0) > 0), key=lambda point: float(point[rules]))
    found = [
        (point[rules], max(100 - point["accuracy"], _LEAST_ERROR), point["label"] * (point["series"] in named))
        for point in here
    ]
    return places(found, None if line is None else 100 - line)


def path_accuracy(
    description: str, stages: Sequence[str], series: dict[str, str], accuracies: Iterable[float]
) -> dict[str, Any]:
    """One row per block of the pipeline: its accuracy on test and validation images."""
    domain: list[Any] = list(series)
    chart = (
        _chart(len(stages) * ROW + 10)
        .transform_fold(domain, as_=["series", "accuracy"])
        .transform_filter("isValid(datum.accuracy)")
        .transform_calculate(error=_ERROR)
        .mark_point(size=90)
        .encode(
            x=_error(alt.X, accuracies),
            y=alt.Y("stage:N", sort=list(stages), title=None, axis=alt.Axis(grid=True, labelColor=INK)),
            color=alt.Color("series:N", scale=alt.Scale(domain=domain, range=list(series.values()))),
            tooltip=["stage:N", "series:N", alt.Tooltip("accuracy:Q", format=".2f")],
        )
    )
    return _spec(chart, description)


def path_size(description: str, stages: Sequence[str], series: dict[str, str]) -> dict[str, Any]:
    """One row per block of the pipeline: its parameters, and the nonzero ones, joined by a line."""
    domain: list[Any] = list(series)
    y = alt.Y("stage:N", sort=list(stages), title=None, axis=alt.Axis(grid=True, labelColor=INK))
    x = alt.Scale(type="log", nice=False, padding=14)
    base = _chart(len(stages) * ROW + 10)
    joined = base.mark_rule(stroke=GRID, strokeWidth=4).encode(
        x=alt.X(f"{domain[0]}:Q", scale=x), x2=f"{domain[1]}:Q", y=y
    )
    points = (
        base.transform_fold(domain, as_=["series", "count"])
        .transform_filter("isValid(datum.count) && datum.count > 0")
        .mark_point(size=90)
        .encode(
            x=alt.X(
                "count:Q",
                scale=x,
                axis=alt.Axis(title="parameters", format="~s", values=_COUNTS, tickCount=len(_COUNTS)),
            ),
            y=y,
            color=alt.Color(
                "series:N",
                scale=alt.Scale(domain=domain, range=list(series.values())),
                legend=alt.Legend(labelExpr="replace(datum.label, '_', ' ')"),
            ),
            tooltip=["stage:N", "series:N", alt.Tooltip("count:Q", format=",d")],
        )
    )
    return _spec(alt.layer(joined, points).properties(width="container"), description)


def curve(description: str, series: dict[str, str], epochs: int, accuracies: Iterable[float]) -> dict[str, Any]:
    """A stage's accuracy by epoch, on the axis that all stages share.

    Args:
        accuracies: in percent, those the axis must cover.
    """
    domain: list[Any] = list(series)
    base = _chart(160).transform_fold(domain, as_=["series", "accuracy"]).transform_filter("isValid(datum.accuracy)")
    step = next((step for step in _STEPS if step * 4 >= epochs), _STEPS[-1])
    ticks = sorted({1, *range(step, epochs + 1, step)})
    chart = (
        base.transform_calculate(error=_ERROR)
        .mark_line(point=alt.OverlayMarkDef(size=30, filled=True) if epochs <= 20 else False)
        .encode(
            x=alt.X(
                "epoch:Q",
                title="epoch",
                scale=alt.Scale(domain=[1, epochs] if epochs > 1 else [0.5, 1.5], nice=False, padding=8),
                axis=alt.Axis(values=ticks, format="d", grid=False),
            ),
            y=_error(alt.Y, accuracies, None, few=True),
            color=alt.Color("series:N", scale=alt.Scale(domain=domain, range=list(series.values())), legend=None),
            tooltip=["epoch:Q", "series:N", alt.Tooltip("accuracy:Q", format=".2f")],
        )
    )
    return _spec(chart, description)


def layer_shares(
    description: str, books: Sequence[str], chosen: str, layers: Sequence[str], heading: str
) -> dict[str, Any]:
    """One bar per layer: its part of the score by storage and operations; a control selects the rule book."""
    book = alt.param(
        name="shown", value=chosen, bind=alt.binding_radio(options=list(books), labels=list(books), name=heading)
    )
    chart = (
        _chart(max(4, len(layers)) * 22 + 10)
        .transform_filter("datum.book === shown")
        .mark_bar()
        .encode(
            x=alt.X("share:Q", axis=alt.Axis(title="share of the score", labelExpr=_PERCENT)),
            y=alt.Y("layer:N", sort=list(layers), title=None, axis=alt.Axis(grid=False, labelColor=INK)),
            color=alt.Color("part:N", scale=alt.Scale(domain=["storage", "operations"], range=[MAIN, SECOND])),
            order=alt.Order("part:N", sort="descending"),
            tooltip=["layer:N", "part:N", alt.Tooltip("share:Q", format=".2f"), alt.Tooltip("score:Q", format=".6f")],
        )
        .add_params(book)
    )
    return _spec(chart, description)


def sparsity(description: str, layers: Sequence[str]) -> dict[str, Any]:
    """One bar per layer: its share of nonzero weights; beside it their bits."""
    base = _chart(max(4, len(layers)) * 22 + 10).encode(
        y=alt.Y("layer:N", sort=list(layers), title=None, axis=alt.Axis(grid=False, labelColor=INK))
    )
    axis = alt.Axis(title="weights that are not zero", labelExpr=_PERCENT, values=[0, 25, 50, 75, 100])
    x = alt.X("nonzero:Q", axis=axis, scale=alt.Scale(domain=[0, 116], nice=False))
    bars = base.mark_bar().encode(
        x=x,
        tooltip=["layer:N", alt.Tooltip("nonzero:Q", format=".1f"), "bits:Q", alt.Tooltip("weights:Q", format=",d")],
    )
    bits = base.mark_text(align="left", dx=6, fontSize=11).encode(x=x, text=alt.Text("said:N"))
    said = alt.layer(bars, bits).transform_calculate(said="datum.bits + (datum.bits === 1 ? ' bit' : ' bits')")
    return _spec(said.properties(width="container"), description)


def codes(description: str, layers: Sequence[str], first: str, every: str, heading: str) -> dict[str, Any]:
    """How often each weight code occurs in the layer that a control selects, initially `first`, or in all."""
    options = [*layers, every]
    chosen = alt.param(name="chosen", value=first, bind=alt.binding_select(options=options, name=heading))
    chart = (
        _chart(190)
        .transform_filter(f"chosen === {every!r} || datum.layer === chosen")
        .transform_aggregate(total="sum(count)", groupby=["code"])
        .transform_calculate(low="datum.code - 0.42", high="datum.code + 0.42")
        .mark_bar(cornerRadiusEnd=1)
        .encode(
            x=alt.X("low:Q", title="weight code", axis=alt.Axis(grid=False, format="d", tickMinStep=1, tickCount=8)),
            x2="high:Q",
            y=alt.Y("total:Q", title="weights", axis=alt.Axis(format="~s"), scale=alt.Scale(zero=True)),
            y2=alt.Y2Datum(0),
            tooltip=["code:Q", alt.Tooltip("total:Q", format=",d")],
        )
        .add_params(chosen)
    )
    return _spec(chart, description)


def confusion(description: str, classes: Sequence[str]) -> dict[str, Any]:
    """One square per pair of classes; right answers are muted, so that confusions stand out."""
    side = max(ROW, min(34, 900 // len(classes)))
    axis: dict[str, Any] = {"grid": False, "labelColor": INK, "labelLimit": 84}
    base = _chart(side * len(classes)).encode(
        x=alt.X("predicted:N", sort=list(classes), title="predicted", axis=alt.Axis(labelAngle=-45, **axis)),
        y=alt.Y("actual:N", sort=list(classes), title="actual", axis=alt.Axis(**axis)),
    )
    squares = base.mark_rect(stroke="var(--paper)", strokeWidth=2).encode(
        color=alt.Color("kind:N", legend=None, scale=alt.Scale(domain=["right", "wrong"], range=[GRID, FOURTH])),
        opacity=alt.Opacity(
            "shade:Q", legend=None, scale=alt.Scale(type="sqrt", domain=[0, 15], range=[0.05, 0.6], clamp=True)
        ),
        tooltip=["actual:N", "predicted:N", "images:Q", alt.Tooltip("percent:Q", format=".1f")],
    )
    layers: list[Any] = [squares]
    if len(classes) <= MOST_NUMBERS_IN_A_MATRIX:
        layers.append(base.mark_text(fontSize=11).encode(text="images:Q"))
    shaded = alt.layer(*layers).transform_calculate(shade="datum.kind === 'right' ? 15 : datum.percent")
    return _spec(shaded.properties(width="container"), description)


def calibration(description: str) -> dict[str, Any]:
    """Accuracy by confidence, beside that of a calibrated model."""
    x = alt.Scale(domain=[0, 100], nice=False)
    bars = (
        _chart(300)
        .mark_bar(opacity=0.35, cornerRadiusEnd=0, stroke="var(--paper)", strokeWidth=1)
        .encode(
            x=alt.X("from:Q", scale=x, axis=alt.Axis(title="confidence", labelExpr=_PERCENT, grid=False)),
            x2="to:Q",
            y=alt.Y("accuracy:Q", scale=x, axis=alt.Axis(title="accuracy", labelExpr=_PERCENT)),
            y2=alt.Y2Datum(0),
        )
    )
    wanted = _chart().mark_line(stroke=QUIET, strokeDash=[4, 4], strokeWidth=1.5).encode(x=alt.X("x:Q"), y=alt.Y("y:Q"))
    wanted.data = alt.InlineData([{"x": 0, "y": 0}, {"x": 100, "y": 100}])
    points = (
        _chart()
        .mark_point(size=70, fill=MAIN)
        .encode(
            x=alt.X("confidence:Q"),
            y=alt.Y("accuracy:Q"),
            tooltip=[alt.Tooltip("confidence:Q", format=".1f"), alt.Tooltip("accuracy:Q", format=".1f"), "images:Q"],
        )
    )
    return _spec(alt.layer(bars, wanted, points).properties(width="container", height=300), description)


def seeds(description: str) -> dict[str, Any]:
    """One point per seed: accuracy over score."""
    chart = (
        _chart(220)
        .mark_point(size=100, fill=MAIN)
        .encode(
            x=alt.X(
                "challenge:Q",
                scale=alt.Scale(zero=False, padding=20),
                axis=alt.Axis(title="challenge score", format=".4~r", tickCount=4),
            ),
            y=alt.Y(
                "accuracy:Q",
                scale=alt.Scale(zero=False, padding=20),
                axis=alt.Axis(title="validation accuracy", labelExpr=_PERCENT),
            ),
            tooltip=["seed:Q", alt.Tooltip("accuracy:Q", format=".2f"), alt.Tooltip("challenge:Q", format=".6f")],
        )
    )
    return _spec(chart, description)


def seconds(description: str, stages: Sequence[str]) -> dict[str, Any]:
    """One bar per stage: the minutes it took."""
    chart = (
        _chart(len(stages) * ROW + 10)
        .transform_calculate(minutes="datum.seconds / 60")
        .mark_bar()
        .encode(
            x=alt.X("minutes:Q", axis=alt.Axis(title="minutes")),
            y=alt.Y("stage:N", sort=list(stages), title=None, axis=alt.Axis(grid=False, labelColor=INK)),
            tooltip=["stage:N", alt.Tooltip("seconds:Q", format=",.1f")],
        )
    )
    return _spec(chart, description)
