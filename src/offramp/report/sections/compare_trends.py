"""Trends: how a figure moves with the generation, the release or the size of models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from offramp.report.comparison_words import figure_format, figure_name, heads_name, is_share, named
from offramp.report.formats import NumberFormat, decimal, interval_text, percent_tick
from offramp.report.html import Kind, figure, fragment, table
from offramp.report.plot.plot import Axis, Curve, Plot, Series
from offramp.report.plot.scale import nice_range
from offramp.report.sections.compare_pairs import SURE, signed
from offramp.studies.comparison.results import Comparison, Trend
from offramp.studies.comparison.savings import SAVING

CHARTED = 12
AXES = {
    "generation": "generation",
    "released": "year of release",
    "log10 parameters": "log₁₀ of the number of parameters",
}


def trends_section(comparison: Comparison) -> Markup:
    """What holds, the charts, and every slope as a table; nothing without trends."""
    trends = comparison.trends
    if not trends:
        return Markup()
    claims = [
        f"{place(trend)[:1].upper()}{place(trend)[1:]}: {named(trend.claim, trend.figure)}"
        for trend in trends
        if claims_something(trend)
    ]
    silent = len(trends) - sum(claims_something(trend) for trend in trends)
    if silent:
        claims.append(
            f"Nothing is claimed of {'the other ' if claims else ''}{silent} of {len(trends)} trends."
        )
    ranked = sorted(trends, key=lambda trend: (not claims_something(trend), -trend.models))
    shown = [trend for trend in ranked if len(trend.points) > 1][:CHARTED]
    figures = [trend_figure(trend) for trend in shown]
    return fragment(
        "comparison", "trends", claims, figures, f"Every slope ({len(ranked):,})", trends_table(ranked)
    )


def claims_something(trend: Trend) -> bool:
    """Whether the slope's interval leaves out 0, and it is no chance find among all trends."""
    low, high = trend.slope.low, trend.slope.high
    chance = trend.adjusted is not None and trend.adjusted > SURE
    return low is not None and high is not None and (low > 0 or high < 0) and not chance


def heading(trend: Trend) -> str:
    """ "Composite against generation, on prose"."""
    return f"{figure_name(trend.figure)} against {AXES.get(trend.against, trend.against)}, {place(trend)}"


def place(trend: Trend) -> str:
    """ "on prose, Llama only"."""
    own = heads_name(trend.heads) == trend.heads != ""
    family = f", {trend.family} only" if trend.family else ""
    return f"on {trend.workload}{family}{f', {trend.heads}' if own else ''}"


def trend_figure(trend: Trend) -> Markup:
    """The models of one trend with its line."""
    number = figure_format(trend.figure)
    plot = trend_plot(trend)
    rows = [[name, f"{x:g}", number(y)] for name, x, y in trend.points]
    data = table(["Model", trend.against, figure_name(trend.figure)], rows, caption=heading(trend))
    kind: Kind = "predicted" if trend.figure.startswith(SAVING) else "measured"
    return figure(heading(trend), named(trend.claim, trend.figure), plot.svg(), data, kind=kind)


def trend_plot(trend: Trend) -> Plot:
    """A point a model, and the estimated line where it lies within the plot."""
    number: NumberFormat = percent_tick if is_share(trend.figure) else "{:.3g}".format
    x, y = [x for _, x, _ in trend.points], [y for _, _, y in trend.points]
    heights = nice_range(y)
    said = [f"{name}: {number(value)} at {at:g}" for name, at, value in trend.points]
    names = [name for name, _, _ in trend.points]
    models = Series("models", curve(x), curve(y), style="", markers=len(x), said=said, labels=names)
    ends = line_ends(trend, heights) if heights else []
    line = Series("estimate", curve([at for at, _ in ends]), curve([v for _, v in ends]), 1, markers=0)
    return Plot(
        title=heading(trend),
        description=trend.claim,
        x=Axis(AXES.get(trend.against, trend.against), nice_range(x), "{:g}".format),
        y=Axis(figure_name(trend.figure).partition(", ")[0], heights, number),
        series=(line, models),
    )


def line_ends(trend: Trend, heights: tuple[float, float]) -> list[tuple[float, float]]:
    """The ends of the estimated line from the first to the last point, cut where it leaves these heights."""
    slope, intercept = trend.slope.value, trend.intercept
    if slope is None or intercept is None:
        return []
    ends = [min(x for _, x, _ in trend.points), max(x for _, x, _ in trend.points)]
    if slope:
        crossings = sorted((height - intercept) / slope for height in heights)
        ends = [min(max(end, crossings[0]), crossings[1]) for end in ends]
    found = [(end, intercept + slope * end) for end in ends]
    low, high = heights
    within = all(low - 1e-9 <= height <= high + 1e-9 for _, height in found)
    return found if ends[0] < ends[1] and within else []


def curve(values: Sequence[float]) -> Curve:
    """Numbers as an array."""
    return np.array(values, dtype=np.float64)


def trends_table(trends: Sequence[Trend]) -> Markup:
    """Every slope."""
    rows = []
    for trend in trends:
        number = signed(lambda value: decimal(value, 4))
        slope = "undefined" if trend.slope.value is None else number(trend.slope.value)
        limits = interval_text(trend.slope.low, trend.slope.high, number) or "none"
        rows.append([heading(trend), slope, limits, str(trend.models), named(trend.claim, trend.figure)])
    header = ["Trend", "Slope per unit", "95 % interval", "Models", "What is claimed"]
    return table(header, rows, caption="Theil–Sen slopes")
