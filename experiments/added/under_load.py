"""Exits under load: the pictures and the marked parts of docs/results/load.md, from what was kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from measured import KEPT, ROOT
from offramp.report.formats import thousandths, timed_text
from offramp.report.sections.load import (
    at_most,
    execution_lines,
    headline,
    keys_of,
    latency_plot,
    ratio_plot,
    rows_text,
)
from offramp.serving.results import LOADS, LoadExecution, LoadPoint, LoadResult, ServedAside, rate_text
from picture import of_page

PAGE = ROOT / "docs" / "results" / "load.md"
AIMS = {"request_throughput": 0.03, "mean_e2el": 0.05, "p95_e2el": 0.09, "p95_ttft": 0.12, "p95_tpot": 0.12}
"""How far a prediction may be from what was served, of each figure."""
CHANGE, CHANGE_AIM = "saved of mean_e2el", 0.2


def loads(folder: Path = KEPT / "load") -> dict[str, LoadResult]:
    """What `offramp load` wrote, by file name."""
    return {path.stem: LOADS.read(path) for path in sorted(folder.glob("*.json"))}


def answers_markdown(results: dict[str, LoadResult]) -> str:
    """The sentence of every contender with exits, and what each serves at most."""
    rows = ["| on | contender | tokens kept | asked in steps of | serves at most | exits |", "|---" * 6 + "|"]
    for result in results.values():
        exits = {server.name for server in result.with_exits}
        for server in result.servers:
            rows.append(
                f"| {result.model}, {result.machine} | {server.name} | {100 * server.agreement:.1f} % "
                f"| {rows_text(server.asks_at) or ''} | {at_most(server.capacity.value)} "
                f"| {f'**{result.answer_of(server.name)}**' if server.name in exits else ''} |"
            )
    return "\n".join(rows)


def _value(point: LoadPoint, name: str) -> str:
    figure = None if point.figures is None else point.figures.get(name)
    return "saturated" if figure is None else f"{figure.value:.3g}"


def rates_markdown(result: LoadResult) -> str:
    """Every contender at every rate that was served; where it is predicted, those with exits."""
    exits = {server.name for server in result.with_exits}
    predicted = [point for point in result.points if point.contender in exits and not point.saturated]
    points = predicted if result.execution is None else result.execution.points
    rows = [
        "| requests/s | contender | p95 of a request, s | mean, s | p95 ttft, s | p95 tpot, s | rows "
        "| layers a token | best without exits over it |",
        "|---" * 9 + "|",
    ]
    for point in sorted(points, key=lambda point: point.rate):
        names = ("p95_e2el", "mean_e2el", "p95_ttft", "p95_tpot", "rows", "layers")
        figures = " | ".join(_value(point, name) for name in names)
        ratio = "" if point.ratio is None else timed_text(point.ratio, thousandths)
        rows.append(f"| {point.rate:g} | {point.contender} | {figures} | {ratio} |")
    return "\n".join(rows)


def errors_markdown(execution: LoadExecution) -> str:
    """By figure the largest error of a prediction at each load, beside what it may be."""
    rates = sorted({aside.rate for aside in execution.compared})
    rows = [
        f"| figure | may be | {' | '.join(f'at {rate_text(rate)} requests/s' for rate in rates)} |",
        "|---" * (2 + len(rates)) + "|",
    ]
    for figure, aim in AIMS.items():
        errors = [max(abs(aside.error) for aside in _at(execution.compared, figure, rate)) for rate in rates]
        rows.append(
            f"| {figure} | {100 * aim:g} % | {' | '.join(f'{100 * error:.1f} %' for error in errors)} |"
        )
    said = [
        "; ".join(
            f"{100 * aside.predicted:.1f} % predicted, {100 * aside.served:.1f} % served ({aside.contender})"
            for aside in _at(execution.compared, CHANGE, rate)
        )
        for rate in rates
    ]
    rows.append(f"| {CHANGE} | {100 * CHANGE_AIM:g} % of it | {' | '.join(said)} |")
    return "\n".join(rows)


def _at(compared: Sequence[ServedAside], figure: str, rate: float) -> list[ServedAside]:
    return [aside for aside in compared if (aside.figure, aside.rate) == (figure, rate)]


def pictures(results: dict[str, LoadResult]) -> dict[str, str]:
    """Two SVG of every result, by file name."""
    found = {}
    for name, result in results.items():
        where = f"{result.model} on {result.machine.partition(' (')[0]}"
        served = "" if result.execution is None else "; a marker was served"
        for ending, plot, said in (
            ("", latency_plot(result), f"a line is predicted, with its interval over seeds{served}"),
            ("-gain", ratio_plot(result), f"predicted, with intervals over seeds; {paying(result)}"),
        ):
            found[f"load-{name}{ending}.svg"] = of_page(f"{plot.title}: {where}", plot, keys_of(plot), said)
    return found


def paying(result: LoadResult) -> str:
    """What is shaded over the whole height, beside intervals."""
    best = result.best.name if result.best else ""
    return "shaded over the whole height: exits pay" if result.paying(best) else "exits pay at no rate"


def marked(results: dict[str, LoadResult]) -> dict[str, str]:
    """The computed parts of the page, by name."""
    found = {"answers": answers_markdown(results)}
    for name, result in results.items():
        found[f"sentence-{name}"] = headline(result)
        found[f"rates-{name}"] = rates_markdown(result)
        if result.execution is not None:
            found[f"errors-{name}"] = errors_markdown(result.execution)
            found[f"said-{name}"] = "\n".join(f"- {said}" for said in execution_lines(result.execution))
    return found
