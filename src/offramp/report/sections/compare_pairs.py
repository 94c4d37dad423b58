"""Matched pairs: what changes from the first to the second, with intervals over shared documents."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from offramp.report.comparison_words import (
    SHARES,
    distinct,
    figure_format,
    figure_name,
    heads_name,
    in_sentence,
)
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
    percent_tick,
    plain_tick,
)
from offramp.report.html import figure, fragment, stack, table, text
from offramp.report.plot.drawing import SERIES_COUNT, Key, legend
from offramp.report.plot.rows import Point, Row, RowPlot, Track
from offramp.studies.comparison.results import Comparison, PairDifference

SURE = 0.05
"""Largest adjusted p-value of a difference that is called one."""

CHARTED_PAIRS = 24

COLUMNS = (
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
            "pairs", caption, COLUMNS, [_row(pair) for pair in ranked], "difference"
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


def _row(pair: PairDifference) -> list[DataCell]:
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
