"""The figures of a row that a leaderboard shows: scores, EAS with its reach, certified speeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from offramp.report.comparison_answers import NEVER, NOT_CERTIFIABLE
from offramp.report.comparison_words import distinct, figure_name, floor_order, floor_shown, machine_shown
from offramp.report.formats import NumberFormat, decimal, percent, thousandths, times
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Row, Saving

COMPONENTS = ("representation", "increment", "calibration")
SPEED = "speed-"
"""Begins the key of a column of certified speeds; its floor follows."""
OWN_TEXT = "bits per byte of a model's own answers say nothing about a text that others share"
NO_SAVING = Estimate(None)
"""What stands for the speed where nothing is certified; `without_speed` says why."""


@dataclass(frozen=True)
class Figure:
    """A column of the leaderboard: how a row's estimate is found and written. note: a line below it."""

    key: str
    name: str
    of: Callable[[Row], Estimate]
    number: NumberFormat
    note: Callable[[Row], str] = lambda row: ""


def score(row: Row, key: str) -> Estimate:
    """A score of a row; undefined if it has none of that name."""
    return row.scores.get(key, Estimate(None, undefined="not scored"))


def figures_of(rows: Sequence[Row]) -> list[Figure]:
    """The columns that these rows have something for, the composite last: it is not shown to predict."""
    found = [
        Figure(
            f"{SPEED}{floor}",
            f"Net speed, {floor_shown(floor)}",
            partial(speed_at, floor=floor),
            times,
            partial(speed_note, floor=floor),
        )
        for floor in floors_of(rows)
    ]
    found += [Figure(key, figure_name(key), partial(score, key=key), thousandths) for key in COMPONENTS]
    found.append(
        Figure("saturation", figure_name("saturation_skip"), partial(score, key="saturation_skip"), percent)
    )
    found += [
        Figure(
            f"eas-{name.replace(' ', '-')}",
            f"EAS, {name}",
            partial(eas_estimate, name=name),
            thousandths,
            partial(eas_reach, name=name),
        )
        for name in distinct([variant_name(one) for row in rows for one in row.eas])
    ]
    if any(row.bits_per_byte is not None for row in rows):
        found.append(Figure("bits", "Bits per byte", bits_per_byte, thousandths))
    return [*found, Figure("composite", "Composite", partial(score, key="composite"), thousandths)]


def bits_per_byte(row: Row) -> Estimate:
    """The row's bits per byte, without an interval; undefined for what the model wrote itself."""
    return Estimate(None, undefined=OWN_TEXT) if row.own_text else Estimate(row.bits_per_byte)


def variant_name(variant: Mapping[str, Any]) -> str:
    """ "centred logit" or, with another weight than the usual, "centred logit, α 0.3"."""
    name = str(variant["similarity"]).replace("_", " ")
    return name if variant["alpha"] == 0.5 else f"{name}, α {variant['alpha']:g}"


def variant_of(row: Row, name: str) -> Mapping[str, Any] | None:
    """The row's variant of EAS of that name."""
    return next((one for one in row.eas if variant_name(one) == name), None)


def eas_estimate(row: Row, name: str) -> Estimate:
    """The variant's value."""
    found = variant_of(row, name)
    return Estimate(None, undefined="not scored") if found is None else Estimate(**found["score"])


def eas_reach(row: Row, name: str) -> str:
    """The range that the variant can reach: "of 0.18 to 0.67"."""
    found = variant_of(row, name)
    if found is None or found["floor"] is None or found["ceiling"] is None:
        return ""
    return f"of {decimal(found['floor'])} to {decimal(found['ceiling'])}"


def floors_of(rows: Sequence[Row]) -> list[str]:
    """Every floor that something was tuned for, the strictest first."""
    return sorted({saving.floor for row in rows for saving in row.savings}, key=floor_order)


def best_saving(row: Row, floor: str) -> Saving | None:
    """The row's fastest certified answer at a floor over machines; None if none is certified."""
    certified = [one for one in row.savings if one.floor == floor and one.certified]
    return max(certified, key=lambda one: one.net_speedup.value or 0.0, default=None)


def speed_at(row: Row, floor: str) -> Estimate:
    """The best certified net speed at a floor; undefined if nothing is certified."""
    saving = best_saving(row, floor)
    return NO_SAVING if saving is None else saving.net_speedup


def without_speed(row: Row, floor: str) -> str:
    """Why a row has no certified speed at a floor."""
    here = [saving for saving in row.savings if saving.floor == floor]
    if not here:
        return "not asked"
    return NOT_CERTIFIABLE if any(saving.lacks for saving in here) else "nothing faster"


def speed_note(row: Row, floor: str) -> str:
    """Machine of the best certified speed, or that the best is never to exit."""
    saving = best_saving(row, floor)
    if saving is None:
        return ""
    return "never exits" if saving.policy == NEVER else machine_shown(saving.machine)


def exits_at(rows: Sequence[Row], floor: str) -> bool:
    """Whether a policy that exits early is certified at a floor on any row."""
    savings = [best_saving(row, floor) for row in rows]
    return any(saving is not None and saving.policy != NEVER for saving in savings)
