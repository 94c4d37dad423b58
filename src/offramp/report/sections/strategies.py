"""Strategies of a comparison: families side by side, and every strategy, predicted beside measured."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from offramp.policies.cost_breakdown import GAIN_PARTS
from offramp.report.formats import decimal, duration, gain_text, percent, times, whole
from offramp.report.html import breakable, fragment, policy_code, stack, styled
from offramp.report.names import distinct, floor_order, floor_shown, machine_shown
from offramp.report.places import FLOOR, PLACE
from offramp.report.ranking import Standing, beside, floor_kept, floor_note
from offramp.report.table import NOTHING, Cell, Column, Table, attributes, estimated, reasons
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, Place, Strategy
from offramp.tuning.floor import Floor

UNDERSCORE = re.compile("(?<=_)")
"""Where a family's name may break."""
MOST_WORKLOADS = 6
"""The table of families has a column for each of so many workloads at most."""


def _place(standing: Standing) -> Place:
    return standing.shown.place


def _name_cell(standing: Standing) -> Cell:
    """The family, that an oracle is out of reach, and the policy."""
    one = standing.shown
    oracle = "" if one.reachable else "oracle, out of reach"
    # Not folded: a browser sorts thousands of rows with a fold in each ten times as slowly.
    page = stack(breakable(one.family, UNDERSCORE), oracle)
    page += Markup() if one.plain else policy_code(str(one.policy))
    return Cell(one.family, value=one.family, html=page)


def _predicted_cell(standing: Standing) -> Cell:
    found = standing.predicted
    return Cell(NOTHING) if found is None else estimated(found.net_speedup, times)


def _measured_cell(standing: Standing) -> Cell:
    """The stopwatch's answer; one with a defect is struck out and sorted last."""
    found = standing.measured
    if found is None:
        return Cell(NOTHING)
    if found.defect:
        value = found.net_speedup.value
        shown = "undefined" if value is None else times(value)
        struck = fragment("comparison", "struck", shown) + styled(found.answer, "invalid")
        return Cell("DEFECT", tone="invalid", html=struck)
    return estimated(found.net_speedup, times, found.answer)


def _credit_cell(standing: Standing) -> Cell:
    """What exits add to the best decoder without them of the same turns, or why that is not known."""
    found = standing.measured
    if found is None or found.plain or found.defect:
        return Cell(NOTHING)
    if found.credit.value is None:
        return Cell(NOTHING, below=found.credit.undefined or "")
    return estimated(found.credit, times, f"over {found.credit_over}")


def _agreement_cell(standing: Standing) -> Cell:
    """Agreement, that it is below the floor, and what it was in decoding where both are known."""
    one, measured = standing.shown, standing.measured
    decoded = ""
    if measured is not None and measured is not one and measured.agreement.value is not None:
        decoded = f"decoded for real {percent(measured.agreement.value)}"
    missed = floor_kept(one) == "missed"
    cell = estimated(one.agreement, percent, "" if missed else floor_note(one), decoded)
    return replace(cell, wrong=floor_note(one) if missed else "")


def _basis_cell(standing: Standing) -> Cell:
    bases = tuple(one.basis for one in (standing.predicted, standing.measured) if one is not None)
    return Cell(" and ".join(bases), value=standing.shown.basis, facets=bases)


def _time_cell(standing: Standing) -> Cell:
    """Seconds per token, the measured ones below the predicted ones."""
    both = (standing.predicted, standing.measured)
    predicted, measured = (None if one is None else one.seconds_per_token for one in both)
    seconds = measured if predicted is None else predicted
    if seconds is None:
        return Cell(NOTHING)
    below = "" if predicted is None or measured is None else f"measured {duration(measured)}"
    return Cell(duration(seconds), below=below, value=seconds)


def _characters(standing: Standing) -> float | None:
    """Characters per second, as measured where it was."""
    found = [one.characters_per_second for one in (standing.measured, standing.predicted) if one is not None]
    return next((value for value in found if value is not None), None)


def _gain_column(part: str) -> Column[Standing]:
    """A part of the gain, for data alone."""

    def value(standing: Standing) -> float | None:
        gain = standing.shown.gain
        return None if gain is None else float(getattr(gain, part))

    return Column("", value, data=float, key=f"gain_{part}")


STRATEGIES: Table[Standing] = Table(
    (
        Column("Strategy", _name_cell, data=str, key="family"),
        Column("Net speed", _predicted_cell, times, key="predicted", kind="predicted", numeric=True),
        Column("Net speed", _measured_cell, times, key="measured", kind="measured", numeric=True),
        Column(
            "Over the best without exits",
            _credit_cell,
            times,
            key="over",
            kind="measured",
            numeric=True,
            on="page",
        ),
        *(column.over(_place) for column in PLACE),
        FLOOR.over(lambda standing: standing.shown.floor),
        Column("Basis", _basis_cell, data=str, facet="basis", on="page"),
        Column("Agreement", _agreement_cell, percent, data=Estimate),
        Column(
            "Layers skipped",
            lambda standing: standing.shown.skip_ratio,
            percent,
            data=Estimate,
            key="skip_ratio",
            on="page",
        ),
        Column(
            "Spent on probes",
            lambda standing: standing.shown.probe_share,
            percent,
            data=float,
            key="probe_share",
            on="page",
        ),
        Column(
            "Saved of plain decoding, priced",
            lambda standing: gain_text(standing.shown.gain) or None,
            key="saved",
            idle=NOTHING,
            on="page",
        ),
        Column("Time per token", _time_cell, duration, key="time", numeric=True, on="page"),
        Column("Characters per second", _characters, whole, key="characters", numeric=True, on="page"),
        *attributes(str, "shown.policy", "shown.kv", "shown.answer"),
        *attributes(bool, "shown.reachable", "shown.chosen"),
        *attributes(Estimate, "shown.net_speedup", "shown.credit"),
        *attributes(str, "shown.credit_over"),
        *attributes(float, "shown.seconds_per_token", "shown.characters_per_second"),
        *map(_gain_column, GAIN_PARTS),
    ),
    caption="Every strategy: what keeps its floor first, the fastest of it first, oracles last",
    name="strategies",
)
"""On a page a strategy's prediction and measurement stand beside each other; data have a line for each."""


def apart(strategies: Sequence[Strategy]) -> list[Standing]:
    """Each strategy alone, as data have them."""
    return [Standing(one, None) if one.basis == "predicted" else Standing(None, one) for one in strategies]


def strategies_section(comparison: Comparison) -> Markup:
    """Families side by side and every strategy; nothing without strategies."""
    if not comparison.strategies:
        return Markup()
    standings = sorted(beside(comparison.strategies), key=lambda standing: standing.rank)
    notes = reasons([one.net_speedup for one in comparison.strategies])
    families = families_table(comparison.strategies)
    return fragment("comparison", "strategies", families, STRATEGIES.html(standings), notes)


def fastest_of_each(comparison: Comparison) -> list[Standing]:
    """The fastest strategies that can be followed, one for each place and floor; those that miss it last."""
    standings = sorted(beside(comparison.strategies), key=lambda standing: standing.rank)
    best: dict[tuple[object, ...], Standing] = {}
    for standing in standings:
        if standing.shown.reachable:
            best.setdefault((standing.shown.place, standing.shown.floor), standing)
    return sorted(best.values(), key=lambda standing: (standing.rank, floor_order(standing.shown.floor)))


@dataclass(frozen=True)
class Family:
    """A family's predictions at a floor on a machine, and in how many places it is the fastest."""

    name: str
    machine: str
    floor: Floor | None
    strategies: tuple[Strategy, ...]
    wins: int

    @property
    def speeds(self) -> list[float]:
        """Their net speeds."""
        return [_speed(one) for one in self.strategies]

    @property
    def oracle(self) -> bool:
        """Whether nobody can follow it."""
        return not any(one.reachable for one in self.strategies)

    @property
    def missed(self) -> int:
        """How often it misses the floor."""
        return sum(floor_kept(one) == "missed" for one in self.strategies)

    @property
    def rank(self) -> tuple[object, ...]:
        """Sorts oracles last, before them what misses its floor in most places, then by speed."""
        mostly_missed = self.missed * 2 > len(self.strategies)
        median = statistics.median(self.speeds)
        return (self.machine, floor_order(self.floor), self.oracle, mostly_missed, -median, self.name)

    def median_on(self, workload: str) -> float | None:
        """The median net speed on a workload, None where it was not tried."""
        speeds = [_speed(one) for one in self.strategies if one.place.workload == workload]
        return statistics.median(speeds) if speeds else None


def _family_cell(family: Family) -> Cell:
    missed = f"misses the floor in {family.missed} of {len(family.strategies)}" if family.missed else ""
    below = "out of reach" if family.oracle else missed
    return Cell(family.name, below=below, html=breakable(family.name, UNDERSCORE))


def _wins_cell(family: Family) -> Cell:
    if family.oracle or family.floor is None:
        return Cell(NOTHING)
    return Cell(f"{family.wins} of {len(family.strategies)}", value=family.wins)


def _range_cell(family: Family) -> Cell:
    slowest, fastest = min(family.speeds), max(family.speeds)
    return Cell(f"{decimal(slowest, 3)} to {times(fastest)}", value=fastest)


def families_table(strategies: Sequence[Strategy]) -> Markup:
    """Each family's predicted speed at a floor on a machine: how often it wins, medians, by workload."""
    predicted = [one for one in strategies if one.basis == "predicted" and one.net_speedup.value is not None]
    workloads = distinct([one.place.workload for one in predicted])
    if len(distinct([one.family for one in predicted])) < 2:
        return Markup()
    shown = workloads if 1 < len(workloads) <= MOST_WORKLOADS else []
    columns: tuple[Column[Family], ...] = (
        Column("Family", _family_cell),
        Column("Floor", lambda family: floor_shown(family.floor), facet="floor"),
        Column(
            "Median net speed",
            lambda family: statistics.median(family.speeds),
            times,
            key="median",
            numeric=True,
            kind="predicted",
        ),
        Column("Fastest in", _wins_cell, key="wins", numeric=True),
        Column("Slowest to fastest", _range_cell, key="range", numeric=True),
        *map(_workload_column, shown),
        Column("Machine", lambda family: machine_shown(family.machine), facet="machine"),
    )
    caption = "Families side by side: medians over models" + (" and workloads" if len(workloads) > 1 else "")
    ranked = sorted(families_of(predicted), key=lambda family: family.rank)
    return Table(columns, caption=caption, name="families").html(ranked)


def _workload_column(name: str) -> Column[Family]:
    return Column(f"On {name}", lambda family: family.median_on(name), times, key=f"on-{name}", numeric=True)


def families_of(predicted: Sequence[Strategy]) -> list[Family]:
    """The families at each floor on each machine; a win is the fastest, of what can be followed and keeps the
    floor."""
    groups: dict[tuple[str, Floor | None, str], list[Strategy]] = {}
    fastest: dict[tuple[object, ...], float] = {}
    for one in predicted:
        groups.setdefault((one.place.machine, one.floor, one.family), []).append(one)
        if _keeps(one):
            fastest[one.place, one.floor] = max(fastest.get((one.place, one.floor), 0.0), _speed(one))
    return [
        Family(
            name,
            machine,
            floor,
            tuple(here),
            sum(_keeps(one) and _speed(one) >= fastest[one.place, one.floor] for one in here),
        )
        for (machine, floor, name), here in groups.items()
    ]


def _keeps(one: Strategy) -> bool:
    return one.reachable and floor_kept(one) == "kept"


def _speed(one: Strategy) -> float:
    return one.net_speedup.value or 0.0
