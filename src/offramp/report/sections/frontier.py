"""The frontier: every operating point of every threshold rule, with and without the price of its probes."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from offramp.policies.replay import Frontier
from offramp.report.formats import times, whole_percent
from offramp.report.html import fragment, table
from offramp.report.plot.drawing import nice_range
from offramp.report.plot.plot import TALL, Axis, Plot, Rule, Series
from offramp.report.run_result import WorkloadResult
from offramp.tuning.verdict import WORTH

LOWEST_AGREEMENT = 0.8
LOWEST_SPEED = 0.5
FLOORS = (0.99, 0.95, 0.9, 0.8)
Bill = Literal["speedup_without_probes", "speedup"]
PANELS: tuple[tuple[Bill, str], ...] = (
    ("speedup_without_probes", "Probes free: what papers often show"),
    ("speedup", "Probes paid for: what the machine has to do"),
)


def frontier_section(workload: WorkloadResult) -> Markup:
    """The same frontiers twice on the same axes, and the best points as a table."""
    frontiers = [frontier for frontier in workload.frontiers if len(frontier.agreement)]
    if not frontiers:
        return fragment("run", "frontier", drawn=False, why="No frontier was computed for this workload.")
    y_range = shared_range(frontiers)
    if y_range is None:
        why = "No rule has an operating point that keeps 80 % agreement at half of plain speed or more."
        return fragment("run", "frontier", drawn=True, why=why)
    plots = [panel(frontiers, bill, name, y_range) for bill, name in PANELS]
    panels = [
        {"name": name, "plot": plot.svg(), "below": below(frontiers, bill)}
        for plot, (bill, name) in zip(plots, PANELS, strict=True)
    ]
    legend, points = plots[0].legend(), best_points(frontiers)
    return fragment("run", "frontier", drawn=True, why="", legend=legend, panels=panels, points=points)


def shown(frontier: Frontier, bill: Bill) -> NDArray[np.bool_]:
    """Which points lie within the picture: bool [points]."""
    return np.asarray((frontier.agreement >= LOWEST_AGREEMENT) & (getattr(frontier, bill) >= LOWEST_SPEED))


def shared_range(frontiers: list[Frontier]) -> tuple[float, float] | None:
    """One vertical axis for both panels."""
    values = [float(v) for f in frontiers for bill, _ in PANELS for v in getattr(f, bill)[shown(f, bill)]]
    return nice_range(values, include=(1.0, 1.0 + WORTH)) if values else None


def below(frontiers: list[Frontier], bill: Bill) -> str:
    """The rules that are too slow for the picture, in words with their best speed."""
    names = []
    for frontier in frontiers:
        near = getattr(frontier, bill)[frontier.agreement >= LOWEST_AGREEMENT]
        if len(near) and near.max() < LOWEST_SPEED:
            names.append(f"{rule_name(frontier)} (at best {times(float(near.max()))})")
    if not names:
        return ""
    start = f"Below the picture, slower than {LOWEST_SPEED:g} × everywhere: "
    return start + "; ".join(names) + "."


def panel(frontiers: list[Frontier], bill: Bill, name: str, y_range: tuple[float, float]) -> Plot:
    """One of the two panels."""
    signals = list(dict.fromkeys(frontier.signal for frontier in frontiers))
    sets = list(dict.fromkeys(frontier.exits for frontier in frontiers))
    series = []
    for frontier in frontiers:
        kept = shown(frontier, bill)
        colour, shape = signals.index(frontier.signal), sets.index(frontier.exits)
        # One set of exits: the marker may tell signals apart as well, for readers who see no colour.
        shape = colour if len(sets) == 1 else shape
        x, y = frontier.agreement[kept], getattr(frontier, bill)[kept]
        series.append(Series(rule_name(frontier), x, y, colour, shape))
    floors = tuple(Rule("x", floor, whole_percent(floor)) for floor in (0.9, 0.95, 0.99))
    levels = (
        Rule("y", 1.0, "plain decoding", "below"),
        Rule("y", 1.0 + WORTH, f"worth it: {whole_percent(WORTH)} faster", "below"),
    )
    return Plot(
        title=name,
        description=(
            "Predicted net speedup against agreement with the full model; the two panels share their axes."
        ),
        x=Axis("agreement with the full model", (LOWEST_AGREEMENT, 1.0), whole_percent, ticks=6),
        y=Axis("predicted speed, plain decoding = 1", y_range, "{:.2f}".format),
        series=tuple(series),
        rules=floors + levels,
        size=TALL,
    )


def rule_name(frontier: Frontier) -> str:
    """The rule in words: its signal and the exits it checks."""
    exits, signal = frontier.exits, frontier.signal.replace("_", " ")
    if len(exits) <= 4:
        return f"{signal}, layer{'s' if len(exits) > 1 else ''} {', '.join(map(str, exits))}"
    return f"{signal}, {len(exits)} layers from {exits[0]} to {exits[-1]}"


def threshold_text(threshold: float) -> str:
    """A threshold; the infinite one never lets a token leave."""
    return f"{threshold:.4g}" if math.isfinite(threshold) else "never exits"


def best_points(frontiers: list[Frontier]) -> Markup:
    """The fastest point of each rule that keeps each floor."""
    rows = []
    for frontier in frontiers:
        for floor in FLOORS:
            kept = np.flatnonzero(frontier.agreement >= floor)
            if not len(kept):
                rows.append([rule_name(frontier), whole_percent(floor), *["no such point"] * 4])
                continue
            i = kept[np.argmax(frontier.speedup[kept])]
            free = frontier.speedup_without_probes[kept].max()
            rows.append(
                [
                    rule_name(frontier),
                    whole_percent(floor),
                    times(float(free)),
                    times(float(frontier.speedup[i])),
                    threshold_text(float(frontier.threshold[i])),
                    f"{100 * frontier.skip_ratio[i]:.1f} %",
                ]
            )
    header = [
        "Rule",
        "Agreement kept",
        "Best, probes free",
        "Best, probes paid",
        "Its threshold",
        "Its layers skipped",
    ]
    return table(
        header, rows, caption="Fastest operating point of each rule at each agreement, on the same documents"
    )
