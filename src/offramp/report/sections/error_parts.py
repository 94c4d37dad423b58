"""The error of a prediction split into its parts: layers, probes, repair, head, overhead, other exits."""

from __future__ import annotations

from offramp.decoding.measurement.results import Forecast
from offramp.report.charts.drawing import SERIES_COUNT
from offramp.report.charts.error_chart import ErrorPart, ErrorRow, error_svg
from offramp.report.decoded import Decoded, DecodedPolicy
from offramp.report.forecasts import part_name, short_name
from offramp.report.formats import decimal, milliseconds
from offramp.report.markup import element, figure, table, text

COLOURS = {"layers": 0, "probes": 1, "heads": 2, "K,V repair": 3, "overhead": 5}
ELSEWHERE = "exits taken elsewhere than on the trace"
ELSEWHERE_COLOUR = 4


def error_figure(decoded: Decoded) -> str:
    """Error by part for every policy whose parts were timed; nothing without any."""
    shown = [(p, p.forecast) for p in decoded.policies if p.forecast is not None and p.forecast.parts]
    if not shown:
        return ""
    rows = [error_row(policy, forecast) for policy, forecast in shown]
    note = (
        "Right of the dashed line a part was predicted too dear, left of it too cheap. Parts are timed "
        "by a stopwatch within the loop, in a run apart, given the exits that were taken; the diamond is the "
        "whole error, so parts and whole need not add up exactly."
    )
    title = "Where the prediction was wrong"
    return figure(title, note, error_svg(title, note, rows), error_table(shown), legend=legend_of(rows))


def error_row(policy: DecodedPolicy, forecast: Forecast) -> ErrorRow:
    """One policy's parts and its whole error."""
    parts = [
        ErrorPart(part_name(part.part), 1000 * (part.priced - part.measured), colour_of(part.part))
        for part in forecast.parts
    ]
    if forecast.trace_error is not None:
        parts.append(ErrorPart(ELSEWHERE, 1000 * forecast.trace_error, ELSEWHERE_COLOUR))
    total = None if forecast.predicted is None else 1000 * (forecast.predicted - forecast.measured.value)
    words = "no prediction" if total is None else f"{'+' if total > 0 else ''}{decimal(total, 2)} ms"
    return ErrorRow(short_name(policy), words, tuple(parts), total)


def colour_of(part: str) -> int:
    """The colour of a part; a part of another room's own gets one too."""
    return COLOURS.get(part, len(part) % SERIES_COUNT)


def legend_of(rows: list[ErrorRow]) -> str:
    """One patch for each part that is drawn."""
    names = {part.name: part.colour for row in rows for part in row.parts if part.error}
    items = "".join(
        element("li", element("span", class_=f"patch s{colour}") + text(name))
        for name, colour in names.items()
    )
    return element("ul", items, class_="legend")


def error_table(shown: list[tuple[DecodedPolicy, Forecast]]) -> str:
    """Every part of every policy: priced beside measured."""
    rows = []
    for policy, forecast in shown:
        name = short_name(policy)
        for part in forecast.parts:
            error = f"{decimal(1000 * (part.priced - part.measured), 2)} ms"
            cells = [milliseconds(part.priced), milliseconds(part.measured), error]
            rows.append([name, part_name(part.part), *cells])
        if forecast.predicted is not None and forecast.trace_error is not None:
            moved = f"{decimal(1000 * forecast.trace_error, 2)} ms"
            cells = [milliseconds(forecast.predicted), milliseconds(forecast.priced), moved]
            rows.append([name, ELSEWHERE, *cells])
    header = ["Policy", "Part", "Predicted", "Measured", "Error"]
    caption = (
        "Time per token by part, priced and measured; last, by the exits of the trace and by the policy's own"
    )
    return table(header, rows, caption=caption, numeric_from=2)
