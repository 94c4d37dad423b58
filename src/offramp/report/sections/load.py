"""Contenders under load: at which rates exits pay, latency over requests per second, and what was served."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from markupsafe import Markup

from offramp.files import write_text_atomically
from offramp.report.drawing import SERIES_COUNT, Key, drawn, legend, log_ticks
from offramp.report.formats import (
    counted,
    decimal,
    duration,
    estimate_text,
    listed,
    percent,
    plain_tick,
    signed_percent,
    thousandths,
    times,
)
from offramp.report.html import fragment
from offramp.report.names import PLACE
from offramp.report.plots import WIDE, Axis, Box, Curve, Plot, PlotSeries, ReferenceLine
from offramp.report.table import Cell, Column, Table
from offramp.scoring.estimate import Estimate
from offramp.serving.results import (
    LoadExecution,
    LoadPoint,
    LoadResult,
    LoadServer,
    RungShare,
    ServedAside,
    rate_text,
)
from offramp.studies.comparison.results import Comparison, UnderLoad

MARGIN = 0.05
"""Of the logarithm of rates, beyond the first and the last."""
Reading = Callable[[LoadPoint], Estimate | None]


def headline(result: LoadResult) -> str:
    """At which loads exits pay, in one sentence."""
    best = f"{result.best.name} " if result.best else ""
    return f"{best}{result.answer}, on {result.machine}."


def sentences(result: LoadResult) -> list[str]:
    """The same of every other contender with exits, and what it is all held against."""
    others = [server.name for server in result.with_exits if server != result.best]
    rivals = [server.name for server in result.servers if server not in result.with_exits]
    floor = f" that keep {100 * result.floor:g} % of the tokens" if result.floor is not None else ""
    return [
        *(f"{name} {result.answer_of(name)}." for name in others),
        f"It pays where the p95 of a request's seconds is, as far as its interval tells, more than "
        f"{percent(result.worth, 0)} shorter than that of the best without exits{floor} "
        f"({listed(rivals)}), or where none of those keeps up. Latency is time that a request is served in, "
        "capacity is time that it would have waited.",
    ]


def circumstances(result: LoadResult) -> str:
    """What arrives and how it is served, in a sentence."""
    asked, attention = result.asked, "padded" if result.padded else "paged"
    return (
        f"{result.model} on {result.workload}, predicted on {result.machine} ({attention} attention): "
        f"{asked['arrivals']} arrivals, lengths {asked['lengths']}, "
        f"{counted(asked['requests'], 'request')} a rate and seed, {counted(asked['seeds'], 'seed')}; "
        f"up to {asked['rows']} rows and {asked['budget']} tokens a step, "
        f"rows leave by {asked['rule']}, K and V of skipped layers by {asked['kv']}."
    )


def load_page(result: LoadResult) -> str:
    """A page of its own as HTML; the same result gives the same bytes."""
    execution = result.execution
    rungs = [(point.contender, point.rate, share) for point in result.points for share in point.rungs]
    tables = {
        "contenders": SERVERS.html(result.servers),
        "rates": rates_table(result).html(_ordered(result)),
        "rungs": RUNGS.html(rungs),
        "served": ""
        if execution is None
        else fragment("load", "served", execution_lines(execution), COMPARED.html(execution.compared)),
    }
    title = f"At which load does early exit pay on {result.model}?"
    figures = [latency_figure(result), ratio_figure(result)]
    notes = [*result.notes, circumstances(result)]
    return fragment("load", "page", title, headline(result), sentences(result), figures, tables, notes)


def write_load_page(result: LoadResult, path: Path) -> Path:
    """Write it in one step and return its path. Raises OfframpError if the disk is full."""
    write_text_atomically(path, load_page(result))
    return path


def rows_text(rows: Sequence[int] | None) -> str | None:
    """Numbers of rows as ranges: "1 to 4, 9 to 16 rows"; nothing where there is nobody to ask."""
    if rows is None:
        return None
    found: list[list[int]] = []
    for count in rows:
        if found and found[-1][-1] == count - 1:
            found[-1][1:] = [count]
        else:
            found.append([count])
    return f"{', '.join(' to '.join(map(str, ends)) for ends in found)} rows" if found else "no rows"


def at_most(capacity: float) -> str:
    """Requests per second that are served at most."""
    return f"{capacity:.3g} requests/s"


def _ordered(result: LoadResult) -> list[LoadPoint]:
    return [point for server in result.servers for point in result.of(server.name)]


def _figure(point: LoadPoint, name: str = "p95_e2el") -> Estimate | None:
    return None if point.figures is None else point.figures.get(name)


def _shown(estimate: Estimate | None, number: Callable[[float], str]) -> str:
    return "saturated" if estimate is None else estimate_text(estimate, number)


def _ends(result: LoadResult) -> tuple[float, float]:
    return math.log10(result.rates[0]) - MARGIN, math.log10(result.rates[-1]) + MARGIN


def _rates_axis(result: LoadResult) -> Axis:
    ends = _ends(result)
    return Axis("requests per second", ends, lambda value: rate_text(10**value), log_ticks(*ends))


def _series(
    name: str, place: int, points: Sequence[LoadPoint], of: Reading, number: Callable[[float], str], log: bool
) -> PlotSeries:
    """A contender's readings over the logarithm of the rate."""

    def curve(end: str) -> Curve:
        values = [getattr(of(point), end, None) for point in points]
        found = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
        return np.asarray(np.log10(np.where(found > 0, found, np.nan)) if log else found)

    said = [f"{name}: {_shown(of(point), number)} at {point.rate:g} requests/s" for point in points]
    rates = np.log10([point.rate for point in points])
    colour = place % SERIES_COUNT
    return PlotSeries(name, rates, curve("value"), colour, colour, curve("low"), curve("high"), said=said)


def _drawn_values(series: Sequence[PlotSeries]) -> Curve:
    """All that is drawn of some lines, their intervals too: float64 [values], finite ones."""
    curves = [curve for line in series for curve in (line.y, line.low, line.high) if curve is not None]
    values = np.concatenate(curves) if curves else np.zeros(0)
    return np.asarray(values[np.isfinite(values)])


def latency_figure(result: LoadResult) -> Markup:
    """p95 of a request's seconds over the rate, a line a contender; markers where it was served."""
    measured = () if result.execution is None else result.execution.points
    series, keys = [], []
    for place, server in enumerate(result.servers):
        line = _series(server.name, place, result.of(server.name), _figure, duration, True)
        series.append(replace(line, markers=0 if measured else 7))
        keys.append(Key(server.name, line.colour, line.shape))
        own = [point for point in measured if point.contender == server.name and point.figures]
        if own:
            served = _series(f"{server.name}, served", place, own, _figure, duration, True)
            series.append(replace(served, style="", whiskers=True))
    finite = _drawn_values(series)
    if not len(finite):
        return Markup()
    ends = float(finite.min()) - MARGIN, float(finite.max()) + MARGIN
    note = (
        "Nineteen of twenty requests are done within this time, from arrival to the last token. A line is "
        "predicted, with its interval over seeds, and ends where more requests arrive than are served"
        f"{'; a marker was served' if measured else ''}."
    )
    seconds = Axis("p95 of a request", ends, lambda value: duration(10**value), log_ticks(*ends))
    axes = _rates_axis(result), seconds
    plot = Plot("Latency over load", note, *axes, tuple(series), size=WIDE, style="wide")
    data = rates_table(result).only("Contender", "Requests", "p95 of a request").html(_ordered(result))
    return drawn(plot, data, legend=legend(keys))


def ratio_figure(result: LoadResult) -> Markup:
    """How many times as long the best without exits takes, rates at which the best contender pays shaded."""
    best, asked = (
        result.best,
        [place for place, server in enumerate(result.servers) if server in result.with_exits],
    )
    series = []
    for place in asked:
        name = result.servers[place].name
        series.append(_series(name, place, result.of(name), lambda point: point.ratio, times, False))
    finite = _drawn_values(series)
    if best is None or not len(finite):
        return Markup()
    bottom, top = min(float(finite.min()), 0.9), max(float(finite.max()), 1.1)
    first, last = _ends(result)
    boxes = []
    for interval in result.paying(best.name):
        low, high = (None if end is None else math.log10(end) for end in (interval.low, interval.high))
        sides = first if low is None else low, last if high is None else high
        boxes.append(Box(*sides, bottom, top, "pays-area", f"{best.name} pays: {interval.benefit}"))
    note = (
        "p95 of the best without exits over that of each contender, on the same demands: above 1 exits are "
        f"faster. Shaded: where {best.name} pays. No point where one of the two is saturated."
    )
    ratio = Axis("times as long without exits", (bottom, top), plain_tick)
    rules = (ReferenceLine("y", 1.0, "as fast as without exits"),)
    axes, title = (_rates_axis(result), ratio), "What exits gain over load"
    plot = Plot(title, note, *axes, tuple(series), tuple(boxes), rules, WIDE, style="wide")
    rows = [point for point in _ordered(result) if point.ratio is not None]
    data = rates_table(result).only("Contender", "Requests", "Without exits over it").html(rows)
    keys = [Key(line.name, line.colour, line.shape) for line in series]
    return drawn(plot, data, legend=legend(keys))


UNDER_LOAD: Table[UnderLoad] = Table(
    (
        *(column.over(lambda load: load.place) for column in PLACE),
        Column("Load", lambda load: load.load, data=str),
        Column("Exits", lambda load: load.answer, key="answer", data=str, prose=True),
        Column("Policy", lambda load: load.policy, key="policy", data=str, prose=True),
        Column("It serves at most", lambda load: load.capacity, at_most, key="capacity", data=Estimate),
        Column(
            "Without exits", lambda load: load.plain_capacity, at_most, key="plain_capacity", data=Estimate
        ),
    ),
    caption="At which requests per second exits pay, predicted",
    name="loads",
)


def loads_section(comparison: Comparison) -> Markup:
    """What policies come to under the loads of a study; nothing where it has none."""
    return (
        fragment("comparison", "loads", UNDER_LOAD.html(comparison.loads)) if comparison.loads else Markup()
    )


SERVERS: Table[LoadServer] = Table(
    (
        Column("Contender", lambda server: Cell(server.name, code=server.policy)),
        Column("Certificate", lambda server: server.certificate, prose=True),
        Column("Serves at most", lambda server: server.capacity, at_most),
        Column("Tokens kept", lambda server: server.agreement, percent, kind="replayed"),
        Column("Asked in steps of", lambda server: rows_text(server.asks_at)),
    ),
    caption="Who serves",
    words=2,
)
NAMED: dict[str, tuple[str, Callable[[float], str]]] = {
    "p95 of a request (e2el)": ("p95_e2el", duration),
    "Mean e2el": ("mean_e2el", duration),
    "p95 ttft": ("p95_ttft", duration),
    "p95 tpot": ("p95_tpot", duration),
    "p99 itl": ("p99_itl", duration),
    "request_throughput": ("request_throughput", "{:.3g}/s".format),
    "request_goodput": ("request_goodput", "{:.3g}/s".format),
    "Rows": ("rows", decimal),
    "Layers a token": ("layers", decimal),
    "Tokens kept": ("agreement", percent),
}
"""Columns of figures, by what they are called, with the name of the figure and how it is written."""


def rates_table(result: LoadResult) -> Table[LoadPoint]:
    """Every contender at every rate, in vLLM's names."""

    def figure(name: str) -> Callable[[LoadPoint], Estimate | Cell | None]:
        return lambda point: Cell("saturated", tone="quiet") if point.saturated else _figure(point, name)

    named = [
        (column, *of) for column, of in NAMED.items() if result.asked["slo"] or column != "request_goodput"
    ]
    return Table(
        (
            Column("Contender", lambda point: point.contender),
            Column("Requests per second", lambda point: point.rate, "{:g}".format),
            *(Column[LoadPoint](column, figure(name), number) for column, name, number in named),
            Column("Without exits over it", lambda point: point.ratio, times),
            Column("Gain", lambda point: point.benefit),
        ),
        caption="Every contender at every rate",
        words=1,
    )


RUNGS: Table[tuple[str, float, RungShare]] = Table(
    (
        Column("Contender", lambda row: row[0]),
        Column("Requests per second", lambda row: row[1], "{:g}".format),
        Column("From a queue of", lambda row: row[2].queue),
        Column("Policy", lambda row: row[2].policy),
        Column("Requests", lambda row: row[2].requests),
        Column("Tokens lost", lambda row: row[2].loss, lambda value: percent(value, 2)),
        Column("Promised at most", lambda row: row[2].promise, lambda value: percent(value, 2)),
        Column("Lost over promised", lambda row: row[2].loss_over_promise, thousandths),
    ),
    caption="What the rungs of the ladder lost. It holds as long as which texts come does not depend on the "
    "queue; where bursts bring harder texts it does not",
)
COMPARED: Table[ServedAside] = Table(
    (
        Column("Contender", lambda row: row.contender),
        Column("Requests per second", lambda row: row.rate, "{:g}".format),
        Column("Figure", lambda row: row.figure),
        Column("Predicted", lambda row: row.predicted, "{:.4g}".format, kind="predicted"),
        Column("Served", lambda row: row.served, "{:.4g}".format, kind="measured"),
        Column("Error", lambda row: row.error, signed_percent),
    ),
    caption="What was predicted of the demands that were served, beside what was measured",
)


def execution_lines(execution: LoadExecution) -> list[str]:
    """What a served comparison stands on, in sentences."""
    ratios = listed([f"{decimal(ratio)} at {rows}" for rows, ratio in execution.own.items()])
    return [
        "The full model's server against itself in the same turns: "
        f"{estimate_text(execution.a_a, thousandths)} (seconds of {execution.clock}).",
        f"Plain steps took {decimal(execution.drift, 3)} times what they were priced at; all prices are "
        "scaled by that.",
        "Our loop at full depth over transformers' own continuous batching, seconds of decoding, by requests "
        "at once: "
        f"{ratios}.",
    ]
