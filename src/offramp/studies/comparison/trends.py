"""How figures move with generation, release and size: Theil-Sen slopes over independent models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from offramp.scoring.estimate import Estimate
from offramp.scoring.rank_correlation import LEVEL, holm
from offramp.studies.comparison.results import SAVING, ModelFacts, Row, Trend, share_saved

MODELS_NEEDED = 4
"""Models below which a slope has no interval."""

ENUMERATED = 7
"""Up to so many models with ties, every order is counted instead of approximated."""

SCORES = (
    "composite",
    "representation",
    "increment",
    "calibration",
    "first_match_skip",
    "saturation_skip",
)

Values = NDArray[np.float64]
Points = tuple[tuple[str, float, float], ...]
"""Model, where it stands, figure."""


@dataclass(frozen=True)
class Property:
    """What a figure may move with. of: its value, None if not known. within: whether only within a family."""

    name: str
    unit: str
    of: Callable[[ModelFacts], float | None]
    within: bool = False


PROPERTIES = (
    Property("generation", "generation", lambda facts: facts.generation, within=True),
    Property("released", "year", lambda facts: _years(facts.released)),
    Property(
        "log10 parameters",
        "tenfold size",
        lambda facts: math.log10(facts.parameters) if facts.parameters else None,
    ),
)


def trends_of(rows: Sequence[Row]) -> tuple[Trend, ...]:
    """Every trend with at least two values of the property, p-values adjusted over all of them (Holm).

    One point for each base: its untransformed model, the one that is called like the base, or of stage
    "base", before others. Models that one of the two is not known of are left out.
    """
    found = [trend for group in _groups(rows) for trend in _raw_trends(group)]
    adjusted = holm([trend.p_value for trend in found])
    return tuple(
        replace(trend, adjusted=value, claim=_claim(trend, value))
        for trend, value in zip(found, adjusted, strict=True)
    )


@dataclass(frozen=True)
class _Group:
    """Rows of one workload through one kind of heads, one for each base."""

    workload: str
    heads: str
    rows: tuple[Row, ...]


def _groups(rows: Sequence[Row]) -> list[_Group]:
    found: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        if not row.model.transform:
            by_base = found.setdefault((row.workload, row.heads), {})
            by_base.setdefault(row.model.base, []).append(row)
    return [
        _Group(*where, tuple(min(of_base, key=_standing) for of_base in by_base.values()))
        for where, by_base in sorted(found.items())
    ]


def _standing(row: Row) -> tuple[bool, bool, str]:
    """How well a model stands for its base; the smallest does best."""
    facts = row.model
    return facts.name != facts.base, facts.stage != "base", facts.name


def _families(rows: Sequence[Row], property_: Property) -> list[tuple[str, list[Row]]]:
    if not property_.within:
        return [("", list(rows))]
    known = sorted({row.model.family for row in rows if row.model.family})
    return [(family, [row for row in rows if row.model.family == family]) for family in known]


def _figures(rows: Sequence[Row]) -> dict[str, Callable[[Row], float | None]]:
    """Scores, and the share of time that the league's choice saves at each floor on each machine."""

    def score(name: str) -> Callable[[Row], float | None]:
        return lambda row: row.scores[name].value if name in row.scores else None

    def saving(place: str) -> Callable[[Row], float | None]:
        return lambda row: share_saved(row.exit_speedup[place]) if place in row.exit_speedup else None

    places = sorted({place for row in rows for place in row.exit_speedup})
    return {name: score(name) for name in SCORES} | {f"{SAVING}{place}": saving(place) for place in places}


def _points(rows: Sequence[Row], property_: Property, figure: Callable[[Row], float | None]) -> Points:
    pairs = [(row.model.shown, property_.of(row.model), figure(row)) for row in rows]
    return tuple(
        (name, x, y)
        for name, x, y in sorted(pairs, key=lambda pair: pair[0])
        if x is not None and y is not None
    )


def _raw_trends(group: _Group) -> Iterator[Trend]:
    """Every trend of a group, nothing claimed yet."""
    for property_ in PROPERTIES:
        for family, members in _families(group.rows, property_):
            for figure, of in _figures(members).items():
                points = _points(members, property_, of)
                if len({x for _, x, _ in points}) > 1:
                    yield _trend(group, property_, family, figure, points)


def _trend(group: _Group, property_: Property, family: str, figure: str, points: Points) -> Trend:
    x = np.array([point[1] for point in points])
    y = np.array([point[2] for point in points])
    slope, intercept, p_value = theil_sen(x, y)
    return Trend(
        figure=figure,
        against=property_.name,
        family=family,
        workload=group.workload,
        slope=slope,
        intercept=intercept,
        models=len(points),
        claim="",
        points=points,
        heads=group.heads,
        p_value=p_value,
    )


def theil_sen(x: Values, y: Values) -> tuple[Estimate, float, float | None]:
    """Slope with its 95 % interval (Sen 1968), intercept, and two-sided p-value of Kendall's statistic.

    x, y: float64 [models], x with two values at least. Below 4 models: neither interval nor p-value.
    """
    found = stats.theilslopes(y, x, alpha=0.95)
    slope, intercept = float(found.slope), float(found.intercept)
    if len(x) < MODELS_NEEDED:
        noun = f"{len(x)} models; an interval needs {MODELS_NEEDED}"
        return Estimate(slope, no_interval=noun), intercept, None
    estimate = Estimate(slope, float(found.low_slope), float(found.high_slope))
    return estimate, intercept, kendall_p_value(x, y)


def kendall_p_value(x: Values, y: Values) -> float:
    """Two-sided p-value that x and y are unrelated, by Kendall's statistic; 1 where one of them is constant.

    Exact without ties and with up to 7 models, else by the normal approximation (Kendall 1970, chapter 4).
    """
    if len(set(x)) == 1 or len(set(y)) == 1:
        return 1.0
    tied = len(set(x)) < len(x) or len(set(y)) < len(y)
    if not tied or len(x) > ENUMERATED:
        return float(stats.kendalltau(x, y).pvalue)
    signs = np.sign(x[:, None] - x[None, :])
    other = np.sign(y[:, None] - y[None, :])
    orders = np.array(list(itertools.permutations(range(len(x)))))
    statistics = np.abs((other[orders[:, :, None], orders[:, None, :]] * signs).sum(axis=(1, 2)))
    return float(np.mean(statistics >= np.abs((signs * other).sum())))


def _claim(trend: Trend, adjusted: float | None) -> str:
    """One sentence: what is claimed of a trend, or why nothing is."""
    slope, count = trend.slope, trend.models
    if slope.low is None or slope.high is None or adjusted is None or slope.value is None:
        models = "model" if count == 1 else "models"
        return (
            f"no trend is claimed: {count} independently trained {models}, an interval needs {MODELS_NEEDED}"
        )
    interval = f"{slope.low:.3g} to {slope.high:.3g}"
    if slope.low <= 0.0 <= slope.high:
        return f"no trend is claimed: the slope's interval, {interval}, holds 0 ({count} models)"
    if adjusted > LEVEL:
        return (
            f"no trend is claimed: among all trends of the table, one like this may be chance "
            f"(p = {adjusted:.2g} after Holm, {count} models)"
        )
    moves = "rises" if slope.value > 0.0 else "falls"
    return (
        f"{trend.figure} {moves} by {abs(slope.value):.3g} per {UNITS[trend.against]} "
        f"(slope {interval}, p = {adjusted:.2g} after Holm, {count} models)"
    )


UNITS: Mapping[str, str] = {property_.name: property_.unit for property_ in PROPERTIES}


def _years(released: str | None) -> float | None:
    """A month as years: "2024-04" -> 2024.25."""
    if released is None:
        return None
    year, _, month = released.partition("-")
    return int(year) + (int(month or 1) - 1) / 12
