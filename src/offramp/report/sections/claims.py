"""What a comparison claims: matched pairs, trends over models, and whether a score predicts what is saved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from offramp.report.data_table import (
    DataCell,
    DataColumn,
    DataTable,
    estimate_cell,
    facet_cell,
    number_cell,
    reasons,
)
from offramp.report.formats import (
    NumberFormat,
    counted,
    decimal,
    estimate_text,
    interval_text,
    percent,
    percent_tick,
    plain_tick,
)
from offramp.report.html import Kind, figure, fragment, stack, table, text
from offramp.report.names import (
    SHARES,
    distinct,
    figure_format,
    figure_name,
    floor_order,
    floor_shown,
    heads_name,
    in_sentence,
    is_share,
    machine_shown,
    named,
)
from offramp.report.plot.drawing import SERIES_COUNT, Key, legend, nice_range
from offramp.report.plot.plot import Axis, Curve, Plot, Series
from offramp.report.plot.rows import Point, Row, RowPlot, Track
from offramp.studies.comparison.results import SAVING, Comparison, PairDifference, ScoreValidity, Trend
from offramp.studies.comparison.validity import ORACLE
from offramp.tuning.from_scores import BASES_NEEDED

SURE = 0.05
"""Largest adjusted p-value of a difference that is called one."""

CHARTED_PAIRS = 24

PAIR_COLUMNS = (
    DataColumn("pair", "Pair", facet="model"),
    DataColumn("workload", "Workload", facet="workload"),
    DataColumn("heads", "Exit heads", facet="heads"),
    DataColumn("figure", "Figure"),
    DataColumn("first", "First", numeric=True),
    DataColumn("second", "Second", numeric=True),
    DataColumn("difference", "Second less first", numeric=True),
    DataColumn("adjusted", "p, adjusted", numeric=True),
    DataColumn("p", "p", numeric=True),
    DataColumn("documents", "Documents", numeric=True),
)


def pairs_section(comparison: Comparison) -> Markup:
    """What the pairs say, a forest plot of each figure, and the table; nothing without pairs."""
    pairs = comparison.pairs
    if not pairs:
        return Markup()
    figures = distinct([pair.figure for pair in pairs])
    drawn = [[one for one in pairs if one.figure == name] for name in figures]
    ranked = sorted(pairs, key=lambda pair: (pair.adjusted is None, pair.adjusted or 0.0))
    caption = "Every difference, the surest first"
    return fragment(
        "comparison",
        "pairs",
        said=said(pairs),
        figures=[
            forest_figure(here) for here in drawn if any(one.difference.low is not None for one in here)
        ],
        differences=DataTable(
            "pairs", caption, PAIR_COLUMNS, [_pair_row(pair) for pair in ranked], "difference"
        ).html(),
        notes=reasons([pair.difference for pair in pairs]),
    )


def sure(pair: PairDifference) -> bool:
    """Whether a difference holds after adjustment."""
    return pair.adjusted is not None and pair.adjusted < SURE


def said(pairs: Sequence[PairDifference]) -> list[str]:
    """What is sure, one sentence a pair; that nothing is sure is an answer."""
    found = []
    for kind, first, second in dict.fromkeys((pair.kind, pair.first, pair.second) for pair in pairs):
        here = [pair for pair in pairs if (pair.kind, pair.first, pair.second) == (kind, first, second)]
        surely = [pair for pair in here if sure(pair)]
        name = f"{first} → {second} ({kind})"
        if surely:
            changes = "; ".join(
                f"{in_sentence(figure_name(pair.figure))} on {pair.workload} {_change(pair)}"
                for pair in surely[:3]
            )
            more = f"; and {len(surely) - 3} more" if len(surely) > 3 else ""
            found.append(
                f"{name}: {len(surely)} of {counted(len(here), 'difference')} sure: {changes}{more}."
            )
        elif all(pair.p_value is None for pair in here):
            found.append(f"{name}: nothing can be said, too few documents.")
        else:
            found.append(f"{name}: no difference is sure.")
    return found


def _change(pair: PairDifference) -> str:
    """ "falls by 0.070"; a share changes by points, since percent could be of itself."""
    value = pair.difference.value or 0.0
    size = figure_format(pair.figure)(abs(value)).replace(" %", " points")
    return f"{'falls' if value < 0 else 'rises'} by {size}"


def signed(number: NumberFormat) -> NumberFormat:
    """A number format that writes the sign of what is above nothing."""
    return lambda value: f"+{number(value)}" if value > 0 else number(value)


def forest_figure(pairs: Sequence[PairDifference]) -> Markup:
    """One figure's differences, a row a pair and a dot a workload, around no difference."""
    key = pairs[0].figure
    number = signed(figure_format(key))
    tick = percent_tick if key in SHARES else plain_tick
    workloads = distinct([pair.workload for pair in pairs])
    colours = {name: place % SERIES_COUNT for place, name in enumerate(workloads)}
    rows: dict[str, list[Track]] = {}
    for pair in pairs:
        found = pair.difference
        if found.value is not None:
            said = f"{pair_name(pair)}, {pair.workload}: {estimate_text(found, number)}"
            shape = 0 if sure(pair) else 4
            point = Point(found.value, said, found.low, found.high, colours[pair.workload], shape)
            rows.setdefault(pair_name(pair), []).append(Track((point,)))
    drawn = [Row(name, tuple(tracks)) for name, tracks in rows.items()]
    note = "Second less first. Filled: sure after adjustment; hollow: not."
    if len(drawn) > CHARTED_PAIRS:
        note += f" The first {CHARTED_PAIRS} of {len(drawn)} pairs are drawn."
    title = figure_name(key)
    rule = (0.0, "no difference")
    plot = RowPlot(title, note, drawn[:CHARTED_PAIRS], rule=rule, number=signed(tick))
    data = table(
        ["Pair", "Workload", "Difference", "95 % interval", "p, adjusted"],
        [
            [
                pair_name(pair),
                pair.workload,
                "undefined" if pair.difference.value is None else number(pair.difference.value),
                interval_text(pair.difference.low, pair.difference.high, number) or "none",
                probability(pair.adjusted),
            ]
            for pair in pairs
        ],
        caption=title,
        numeric_from=2,
    )
    names = legend([Key(name, place) for name, place in colours.items()]) if len(colours) > 1 else ""
    return figure(title, note, plot.svg(), data, legend=names, kind="measured")


def pair_name(pair: PairDifference) -> str:
    """ "qwen3-8b → qwen3-8b-it", with the heads where they are not the model's own."""
    heads = heads_name(pair.heads)
    return f"{pair.first} → {pair.second}" + (f" · {pair.heads}" if heads == pair.heads else "")


def probability(value: float | None) -> str:
    """A p-value; "–" without one."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else decimal(value, 3)


def _pair_row(pair: PairDifference) -> list[DataCell]:
    number = figure_format(pair.figure)
    verdict = "" if pair.adjusted is None else "sure" if sure(pair) else "not sure"
    return [
        DataCell(stack(f"{pair.first} → {pair.second}", pair.kind), values=(pair.first, pair.second)),
        facet_cell(pair.workload),
        facet_cell(heads_name(pair.heads)),
        DataCell(text(figure_name(pair.figure))),
        number_cell(pair.first_value, number),
        number_cell(pair.second_value, number),
        estimate_cell(pair.difference, signed(number)),
        DataCell(stack(probability(pair.adjusted), verdict), pair.adjusted),
        DataCell(text(probability(pair.p_value)), pair.p_value),
        number_cell(pair.documents, lambda value: decimal(value, 0)),
    ]


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


VALIDITY_COLUMNS = (
    DataColumn("score", "Score"),
    DataColumn("basis", "Savings", facet="basis"),
    DataColumn("machine", "Machine", facet="machine"),
    DataColumn("floor", "Floor", facet="floor"),
    DataColumn("kendall", "Kendall τ-b", numeric=True),
    DataColumn("adjusted", "p, adjusted", numeric=True),
    DataColumn("spearman", "Spearman ρ", numeric=True),
    DataColumn("oracle", "Less the oracle's τ", numeric=True),
    DataColumn("error", "Error, model left out", numeric=True),
    DataColumn("null", "Error of guessing the median", numeric=True),
    DataColumn("within", "τ within one base", numeric=True),
    DataColumn("bases", "Independent models", numeric=True),
    DataColumn("cells", "Cells", numeric=True),
)


def validity_section(comparison: Comparison) -> Markup:
    """The claims, what the columns mean, and the table; nothing without one."""
    found = comparison.validity
    if not found:
        return Markup()
    ranked = sorted(
        found,
        key=lambda one: (one.basis, one.machine, floor_order(one.floor), -(one.kendall.value or -2.0)),
    )
    caption = "Each score on one workload against the savings on another workload of the same model"
    estimates = [estimate for one in found for estimate in (one.kendall, one.spearman, one.less_than_oracle)]
    scores = DataTable("validity", caption, VALIDITY_COLUMNS, [_validity_row(one) for one in ranked]).html()
    return fragment("comparison", "validity", claims(found), BASES_NEEDED, scores, reasons(estimates))


def claims(found: Sequence[ScoreValidity]) -> list[str]:
    """What is claimed, a sentence each, then of how many scores nothing is, and why if it is one reason."""
    lines = []
    for basis in dict.fromkeys(one.basis for one in found):
        here = [one for one in found if one.basis == basis]
        sure = [one for one in here if ranks_savings(one)]
        lines += [f"{_what(one)}: {one.claim.removeprefix(one.score).strip().rstrip('.')}." for one in sure]
        silent = [one.claim for one in here if not ranks_savings(one)]
        if silent:
            reason = silent[0].partition(": ")[2] if len(set(silent)) == 1 else ""
            of = f" of {len(silent)} of {counted(len(here), 'line')} of the table" if sure else ""
            why = f": {reason.rstrip('.')}" if reason else ""
            lines.append(f"Nothing is claimed{of} against {basis} savings{why}.")
    return lines


def ranks_savings(one: ScoreValidity) -> bool:
    """Whether there are models enough and the order is surely no chance, among all that were looked at."""
    low = one.kendall.low
    chance = one.adjusted is not None and one.adjusted > SURE
    return one.bases >= BASES_NEEDED and low is not None and low > 0 and not chance


def _what(one: ScoreValidity) -> str:
    place = f"{floor_shown(one.floor)}, {machine_shown(one.machine)}"
    return f"{figure_name(one.score)} against {one.basis} savings ({place})"


def _validity_row(one: ScoreValidity) -> list[DataCell]:
    return [
        DataCell(stack(figure_name(one.score), "the one to beat" if one.score == ORACLE else "")),
        facet_cell(one.basis),
        facet_cell(machine_shown(one.machine)),
        facet_cell(floor_shown(one.floor)),
        estimate_cell(one.kendall, decimal),
        DataCell(text(probability(one.adjusted)), one.adjusted),
        estimate_cell(one.spearman, decimal),
        estimate_cell(one.less_than_oracle, decimal),
        number_cell(one.error, percent),
        number_cell(one.null_error, percent),
        number_cell(one.within_base, decimal),
        number_cell(one.bases, lambda value: decimal(value, 0)),
        number_cell(one.cells, lambda value: decimal(value, 0)),
    ]
