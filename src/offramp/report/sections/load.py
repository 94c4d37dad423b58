"""Contenders under load: at which rates exits pay, latency over requests per second, and what was served."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from markupsafe import Markup

from offramp.files import write_text_atomically
from offramp.kit.numbers import whole_runs
from offramp.report.drawing import SERIES_COUNT, Key, drawn, legend
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
from offramp.report.plots import WIDE, Axis, Box, Plot, PlotSeries, ReferenceLine
from offramp.report.table import NOTHING, Cell, Column, Table
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

RATES = Axis("requests per second", number=rate_text, log=True)
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
        "It pays where it is certified and the p95 of a request's seconds is, as far as its interval tells, "
        f"more than {percent(result.worth, 0)} shorter than that of the best without exits{floor} "
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
        "rates": POINTS.html(_ordered(result)),
        "rungs": RUNGS.html(rungs),
        "served": ""
        if execution is None
        else fragment("load", "served", execution_lines(execution), COMPARED.html(execution.compared)),
    }
    title = f"At which load does early exit pay on {result.model}?"
    figures = [
        _figure_of(latency_plot(result), result, "p95 of a request"),
        _figure_of(ratio_plot(result), result, "Without exits over it"),
    ]
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
    runs = [f"{first} to {last}" if first < last else f"{first}" for first, last in whole_runs(rows)]
    return f"{', '.join(runs) or 'no'} rows"


def at_most(capacity: float) -> str:
    """Requests per second that are served at most."""
    return f"{capacity:.3g} requests/s"


def _ordered(result: LoadResult) -> list[LoadPoint]:
    return [point for server in result.servers for point in result.of(server.name)]


def _figure(point: LoadPoint, name: str = "p95_e2el") -> Estimate | None:
    return None if point.figures is None else point.figures.get(name)


def _shown(estimate: Estimate | None, number: Callable[[float], str]) -> str:
    return "saturated" if estimate is None else estimate_text(estimate, number)


def _line(
    place: int, name: str, points: Sequence[LoadPoint], of: Reading, number: Callable[[float], str]
) -> PlotSeries:
    """A contender's readings over the rate."""
    value, low, high = (
        np.array([getattr(of(point), end, None) for point in points], dtype=np.float64)
        for end in ("value", "low", "high")
    )
    said = [f"{name}: {_shown(of(point), number)} at {point.rate:g} requests/s" for point in points]
    rates, colour = np.array([point.rate for point in points]), place % SERIES_COUNT
    return PlotSeries(name, rates, value, colour, colour, low, high, said=said)


def latency_plot(result: LoadResult) -> Plot:
    """p95 of a request's seconds over the rate, a line a contender; markers where it was served."""
    measured = () if result.execution is None else result.execution.points
    series = []
    for place, server in enumerate(result.servers):
        line = _line(place, server.name, result.of(server.name), _figure, duration)
        series.append(replace(line, markers=0 if measured else 7))
        own = [point for point in measured if point.contender == server.name and point.figures]
        served = _line(place, f"{server.name}, served", own, _figure, duration)
        series += [replace(served, style="", whiskers=True)] if own else []
    note = (
        "Nineteen of twenty requests are done within this time, from arrival to the last token. A line is "
        "predicted, with its interval over seeds, and ends where more requests arrive than are served"
        f"{'; a marker was served' if measured else ''}."
    )
    seconds = Axis("p95 of a request", number=duration, log=True)
    return Plot("Latency over load", note, RATES, seconds, tuple(series), size=WIDE, style="wide")


def ratio_plot(result: LoadResult) -> Plot:
    """How many times as long the best without exits takes, rates at which the best contender pays shaded."""
    series = tuple(
        _line(place, server.name, result.of(server.name), lambda point: point.ratio, times)
        for place, server in enumerate(result.servers)
        if server in result.with_exits
    )
    best = result.best.name if result.best else ""
    boxes = tuple(
        Box(
            *(interval.low or 0.0, interval.high or math.inf, -math.inf, math.inf, "pays-area"),
            f"{best} pays: {interval.benefit}",
        )
        for interval in result.paying(best)
    )
    pays = f"Shaded over the whole height: where {best} pays" if boxes else "Exits pay at no rate"
    note = (
        "p95 of the best without exits over that of each contender, on the same demands: above 1 exits are "
        f"faster. {pays}. No point where one of the two is saturated."
    )
    ratio = Axis("times as long without exits", number=plain_tick, include=(0.9, 1.1))
    rules = (ReferenceLine("y", 1.0, "as fast as without exits"),)
    title = "What exits gain over load"
    return Plot(title, note, RATES, ratio, series, boxes, rules, WIDE, style="wide")


def keys_of(plot: Plot) -> list[Key]:
    """What its lines are called."""
    return [Key(line.name, line.colour, line.shape) for line in plot.series if line.style]


def _figure_of(plot: Plot, result: LoadResult, column: str) -> Markup:
    """A plot with the same numbers as a table; nothing where there is nothing to draw."""
    data = POINTS.only("Contender", "Requests", column).html(_ordered(result))
    return drawn(plot, data, legend=legend(keys_of(plot))) if plot.svg() else Markup()


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


def _column(name: str, figure: str, number: Callable[[float], str]) -> Column[LoadPoint]:
    """A figure of a contender at a rate."""

    def shown(point: LoadPoint) -> Estimate | Cell | None:
        return Cell("saturated", tone="quiet") if point.saturated else _figure(point, figure)

    return Column(name, shown, number)


def _goodput(point: LoadPoint) -> Estimate | None:
    return _figure(point, "request_goodput")


POINTS: Table[LoadPoint] = Table(
    (
        Column("Contender", lambda point: point.contender),
        Column("Requests per second", lambda point: point.rate, "{:g}".format),
        _column("p95 of a request (e2el)", "p95_e2el", duration),
        _column("Mean e2el", "mean_e2el", duration),
        _column("p95 ttft", "p95_ttft", duration),
        _column("p95 tpot", "p95_tpot", duration),
        _column("p99 itl", "p99_itl", duration),
        _column("request_throughput", "request_throughput", "{:.3g}/s".format),
        Column("request_goodput", _goodput, "{:.3g}/s".format, idle=NOTHING),
        _column("Rows", "rows", decimal),
        _column("Layers a token", "layers", decimal),
        _column("Tokens kept", "agreement", percent),
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
