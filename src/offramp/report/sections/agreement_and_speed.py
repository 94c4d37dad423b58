"""The picture of a run: agreement against speed of all that was decoded, text by text."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from offramp.defaults import MAIN_FLOOR, WORTH
from offramp.policies.short_names import SHORT_HEAD
from offramp.report.curves import rounded
from offramp.report.drawing import nice_range
from offramp.report.formats import (
    limits_of,
    percent,
    short_source,
    times,
    too_wide,
    whole_percent,
)
from offramp.report.html import fragment
from offramp.report.names import distinct
from offramp.report.plots import PANEL, Axis, Plot, PlotSeries, ReferenceLine
from offramp.report.run_result import RunResult
from offramp.report.table import Column, Table
from offramp.report.timing import Way, best_without_exits, kept_text, ways_by_text
from offramp.scoring.estimate import Estimate
from offramp.tuning.verdict import from_main

LOWEST = 0.7
"""What keeps less is named below its panel, and not drawn: nobody decodes with it."""


LABELS = {SHORT_HEAD: "short list", "never exit": "never exit", "prompt lookup": "lookup"}
"""Ways whose names stand beside their points; those of policies are letters."""


def _label(name: str) -> str:
    """Beside the point of what has no exits."""
    return LABELS.get(name) or ("plain" if name.startswith("generate(") else name)


RING = 4
"""The marker of what was not timed, or on too few prompts."""


def picture(run: RunResult) -> Markup:
    """A panel a text, and what the letters mean; nothing where no way was decoded."""
    by_text = ways_by_text(run)
    exiting = [one.name for ways in by_text.values() for one in ways if one.exits and one.kept is not None]
    letters = {name: _letter(place) for place, name in enumerate(dict.fromkeys(exiting))}
    panels = [drawn for name, ways in by_text.items() if (drawn := _panel(run, name, ways, letters))]
    if not panels:
        return Markup()
    data = WAYS.html([(name, way) for name, ways in by_text.items() for way in ways])
    return fragment("run", "picture", panels, [(letter, name) for name, letter in letters.items()], data)


def _letter(place: int) -> str:
    letters = string.ascii_uppercase
    return letters[place] if place < len(letters) else f"{letters[place % 26]}{place // 26}"


def speed_text(way: Way) -> str:
    """A speed with its interval, and how it is known."""
    speed = way.speed
    if speed is None:
        return "not known"
    if way.timed is None:
        return f"{times(speed.value)} predicted"
    limits = limits_of(speed, times)
    return f"{times(speed.value)} measured{f' ({limits})' if limits else ''}"


WAYS: Table[tuple[str, Way]] = Table(
    (
        Column("Text", lambda row: row[0]),
        Column("Way to decode", lambda row: row[1].name),
        Column("Agreement kept", lambda row: kept_text(row[1])),
        Column("Speed over plain decoding", lambda row: speed_text(row[1])),
    ),
    caption="Agreement kept and speed of every way to decode",
)


def _panel(run: RunResult, name: str, ways: Sequence[Way], letters: dict[str, str]) -> dict[str, Any] | None:
    """One text; None without a point."""
    known = [(way, way.kept, way.speed) for way in ways if way.kept is not None and way.speed is not None]
    drawn = [(one, kept, speed) for one, kept, speed in known if kept.value >= LOWEST]
    if not drawn:
        return None
    verdicts = next((workload.verdicts for workload in run.workloads if workload.name == name), ())
    floors = sorted({verdict.floor for verdict in verdicts})
    rules = [ReferenceLine("x", floor, whole_percent(floor)) for floor in floors]
    main = min(verdicts, key=lambda verdict: from_main(verdict.floor), default=None)
    best = best_without_exits(ways, *((MAIN_FLOOR,) if main is None else (main.floor, main.without)))
    levels: list[float] = []
    if best is not None and best.speed is not None:
        worth = verdicts[0].worth if verdicts else WORTH
        levels = [best.speed.value, best.speed.value * (1 + worth)]
        rules.append(ReferenceLine("y", levels[0], "best without exits", "below"))
        rules.append(ReferenceLine("y", levels[1], f"{whole_percent(worth)} above it"))
    lost = 1.0 - min([*floors, *[kept.value for _, kept, _ in drawn], 0.98])
    heights = [end for _, _, speed in drawn for end in _ends(speed)]
    groups = (
        ("without exits", 5, 1, [point for point in drawn if not point[0].exits]),
        ("exits, timed", 0, 0, [point for point in drawn if point[0].exits and not point[0].unsure]),
        ("exits, unsure", 0, RING, [point for point in drawn if point[0].exits and point[0].unsure]),
    )
    plot = Plot(
        title=f"Agreement kept and speed on {name}",
        description="Up is faster than plain decoding, right is closer to the full model's choices.",
        x=Axis("agreement kept", (1 - 1.12 * lost, 1 + 0.12 * lost), rounded, _shares(lost)),
        y=Axis("speed, plain decoding = 1", nice_range([*heights, *levels], include=(1.0,)), "{:.2f}".format),
        series=tuple(_series(*group, letters) for group in groups if group[3]),
        rules=tuple(rules),
        size=PANEL,
    )
    below = distinct([letters.get(one.name, one.name) for one, kept, _ in known if kept.value < LOWEST])
    return {
        "name": short_source(name),
        "plot": plot.svg(),
        "below": f"Below {percent(LOWEST, 0)} agreement, not drawn: {', '.join(below)}." if below else "",
    }


def _shares(lost: float) -> tuple[float, ...]:
    """Ticks at whole shares: the full model's, and how much is lost at most."""
    step = 0.01 if lost <= 0.03 else 0.02 if lost <= 0.06 else 0.05 if lost <= 0.2 else 0.1
    return tuple(1.0 - step * place for place in range(int(lost / step + 1e-9) + 1))


def _ends(speed: Estimate[float]) -> list[float]:
    """What the axis has to hold of a speed: an interval that says nothing needs no room."""
    if speed.low is None or speed.high is None or too_wide(speed):
        return [speed.value]
    return [speed.low, speed.high]


def _series(
    name: str,
    colour: int,
    shape: int,
    points: list[tuple[Way, Estimate[float], Estimate[float]]],
    letters: dict[str, str],
) -> PlotSeries:
    """The points of one kind, with their intervals as lines."""
    ends = [_ends(speed) for _, _, speed in points]
    return PlotSeries(
        name,
        np.array([kept.value for _, kept, _ in points]),
        np.array([speed.value for _, _, speed in points]),
        colour,
        shape,
        np.array([end[0] for end in ends]),
        np.array([end[-1] for end in ends]),
        style="",
        markers=len(points),
        whiskers=True,
        said=[f"{one.name}: {speed_text(one)}, keeps {kept_text(one)}" for one, _, _ in points],
        labels=[letters.get(one.name) or _label(one.name) for one, _, _ in points],
    )
