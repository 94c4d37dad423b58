"""The error of a prediction split into its parts: layers, probes, repair, head, overhead, other exits."""

from __future__ import annotations

from offramp.decoding.bench.results import Forecast
from offramp.report.comparison_words import plain_tick
from offramp.report.decoded import Decoded, DecodedPolicy
from offramp.report.forecasts import part_name, short_name
from offramp.report.formats import decimal, milliseconds
from offramp.report.markup import figure, table
from offramp.report.plot.drawing import SERIES_COUNT, Key, legend
from offramp.report.plot.rows import Bar, Point, Row, RowPlot, Track

COLOURS = {"layers": 0, "probes": 1, "heads": 2, "K,V repair": 3, "overhead": 5}
ELSEWHERE = "exits taken elsewhere than on the trace"
ELSEWHERE_COLOUR = 4


def error_figure(decoded: Decoded) -> str:
    """Error by part for every policy whose parts were timed; nothing without any."""
    shown = [(p, p.forecast) for p in decoded.policies if p.forecast is not None and p.forecast.parts]
    if not shown:
        return ""
    plot = error_plot(shown)
    keys = {
        name: colour for policy, forecast in shown for name, error, colour in error_parts(forecast) if error
    }
    patches = legend([Key(name, colour, None) for name, colour in keys.items()])
    return figure(plot.title, plot.description, plot.svg(), error_table(shown), legend=patches)


def error_plot(shown: list[tuple[DecodedPolicy, Forecast]]) -> RowPlot:
    """A row a policy, in milliseconds per token: too dear to the right, too cheap to the left."""
    note = (
        "Right of the dashed line a part was predicted too dear, left of it too cheap. Parts are timed "
        "by a stopwatch within the loop, in a run apart, given the exits that were taken; the diamond is the "
        "whole error, so parts and whole need not add up exactly."
    )
    return RowPlot(
        title="Where the prediction was wrong",
        description=note,
        rows=[error_row(policy, forecast) for policy, forecast in shown],
        rule=(0.0, "predicted rightly"),
        unit="predicted less measured, ms per token",
        number=plain_tick,
        ticks=6,
        style="wide",
    )


def error_row(policy: DecodedPolicy, forecast: Forecast) -> Row:
    """One policy's parts as bars around nothing, and a diamond for its whole error."""
    name = short_name(policy)
    bars, below, above = [], 0.0, 0.0
    for part, error, colour in error_parts(forecast):
        start = above if error > 0 else below
        above, below = (above + error, below) if error > 0 else (above, below + error)
        bars.append(Bar(start, start + error, f"{part}: {decimal(error, 2)} ms", colour))
    if forecast.predicted is None:
        return Row(name, (Track(bars=tuple(bars)),), "no prediction")
    total = 1000 * (forecast.predicted - forecast.measured.value)
    whole = Point(total, f"{name}, whole error: {decimal(total, 2)} ms", colour=None, shape=3)
    words = f"{'+' if total > 0 else ''}{decimal(total, 2)} ms"
    return Row(name, (Track((whole,), tuple(bars)),), words)


def error_parts(forecast: Forecast) -> list[tuple[str, float, int]]:
    """Name, error in milliseconds per token (predicted less measured) and colour of every part."""
    parts = [
        (part_name(part.part), 1000 * (part.priced - part.measured), colour_of(part.part))
        for part in forecast.parts
    ]
    if forecast.trace_error is not None:
        parts.append((ELSEWHERE, 1000 * forecast.trace_error, ELSEWHERE_COLOUR))
    return parts


def colour_of(part: str) -> int:
    """The colour of a part; a part of another room's own gets one too."""
    return COLOURS.get(part, len(part) % SERIES_COUNT)


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
