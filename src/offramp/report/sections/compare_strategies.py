"""The league of strategies: families side by side, then every strategy, predicted beside measured."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from offramp.report.comparison_answers import FLOORS_KEPT, NEVER, floor_kept, has_defect
from offramp.report.comparison_words import distinct, floor_order, floor_shown, machine_shown
from offramp.report.data_table import (
    NOTHING,
    PLACE_COLUMNS,
    DataCell,
    DataColumn,
    DataTable,
    estimate_cell,
    facet_cell,
    number_cell,
    place_cells,
    reasons,
)
from offramp.report.formats import decimal, duration, gain_text, percent, times
from offramp.report.html import breakable, fragment, policy_code, small, stack, styled, text
from offramp.studies.comparison.results import Comparison, Strategy

UNDERSCORE = re.compile("(?<=_)")
MOST_WORKLOADS = 6
"""The table of families has a column for each of so many workloads at most."""


@dataclass(frozen=True)
class Standing:
    """A strategy in one place: predicted, measured, or both."""

    predicted: Strategy | None
    measured: Strategy | None

    @property
    def shown(self) -> Strategy:
        """Where its names are read off."""
        one = self.predicted or self.measured
        assert one is not None  # a standing is made of at least one
        return one

    @property
    def rank(self) -> tuple[bool, int, bool, float]:
        """Sorts what can be followed before oracles, what keeps its floor before the rest, then by speed.

        What has a defect has no speed.
        """
        both = [one for one in (self.predicted, self.measured) if one is not None and not has_defect(one)]
        known = [one.net_speedup.value for one in both if one.net_speedup.value is not None]
        place = FLOORS_KEPT.index(floor_kept(self.shown))
        return (not self.shown.reachable, place, not known, -known[0] if known else 0.0)


def strategies_section(comparison: Comparison) -> Markup:
    """Families side by side and every strategy; nothing without strategies."""
    if not comparison.strategies:
        return Markup()
    standings = sorted(beside(comparison.strategies), key=lambda standing: standing.rank)
    notes = reasons([one.net_speedup for one in comparison.strategies])
    families = families_table(comparison.strategies)
    return fragment("comparison", "strategies", families, strategies_table(standings), notes)


def beside(strategies: Sequence[Strategy]) -> list[Standing]:
    """Each prediction with the measurement of the same policy in the same place; what has no other, alone."""
    measured = [one for one in strategies if one.basis == "measured"]
    by_key: dict[tuple[str, ...], list[int]] = {}
    for place, one in enumerate(measured):
        by_key.setdefault(_key(one), []).append(place)
    used: set[int] = set()
    found = []
    for one in strategies:
        if one.basis == "measured":
            continue
        match = next((p for p in by_key.get(_key(one), ()) if measured[p].floor in ("", one.floor)), None)
        if match is not None:
            used.add(match)
        found.append(Standing(one, None if match is None else measured[match]))
    found += [Standing(None, one) for place, one in enumerate(measured) if place not in used]
    return found


def _key(one: Strategy) -> tuple[str, ...]:
    return (one.model, one.workload, one.heads, one.machine, one.policy, one.kv)


def families_table(strategies: Sequence[Strategy]) -> Markup:
    """Each family's predicted speed at a floor on a machine: how often it wins, medians, by workload."""
    predicted = [one for one in strategies if one.basis == "predicted" and one.net_speedup.value is not None]
    workloads = distinct([one.workload for one in predicted])
    if len(distinct([one.family for one in predicted])) < 2:
        return Markup()
    shown = workloads if 1 < len(workloads) <= MOST_WORKLOADS else []
    groups: dict[tuple[str, str, str], list[Strategy]] = {}
    for one in predicted:
        groups.setdefault((one.machine, one.floor, one.family), []).append(one)
    cells = _fastest_speeds(predicted)
    columns = [
        DataColumn("family", "Family"),
        DataColumn("floor", "Floor", facet="floor"),
        DataColumn("median", "Median net speed", numeric=True, kind="predicted"),
        DataColumn("wins", "Fastest in", numeric=True),
        DataColumn("range", "Slowest to fastest", numeric=True),
        *[DataColumn(f"on-{name}", f"On {name}", numeric=True) for name in shown],
        DataColumn("machine", "Machine", facet="machine"),
    ]
    ranked = sorted(groups.items(), key=lambda item: _family_rank(*item))
    body = []
    for (machine, floor, family), here in ranked:
        wins = sum(_keeps(one) and _speed(one) >= cells[_cell(one)] for one in here)
        missed = sum(floor_kept(one) == "missed" for one in here)
        note = f"misses the floor in {missed} of {len(here)}" if missed else ""
        unranked = _oracle(here) or not floor
        speeds = [_speed(one) for one in here]
        row = [
            DataCell(stack(_family(family), "out of reach" if _oracle(here) else note)),
            facet_cell(floor_shown(floor)),
            number_cell(_median(here), times),
            DataCell(NOTHING) if unranked else DataCell(text(f"{wins} of {len(here)}"), wins),
            DataCell(text(f"{decimal(min(speeds), 3)} to {times(max(speeds))}"), max(speeds)),
        ]
        for name in shown:
            there = [one for one in here if one.workload == name]
            row.append(number_cell(_median(there) if there else None, times))
        row.append(facet_cell(machine_shown(machine)))
        body.append(row)
    caption = "Families side by side: medians over models" + (" and workloads" if len(workloads) > 1 else "")
    return DataTable("families", caption, columns, body).html()


def _family_rank(
    group: tuple[str, str, str], here: Sequence[Strategy]
) -> tuple[str, tuple[str, float], bool, bool, float, str]:
    """Sorts oracles last, before them what misses its floor in most places, then by speed."""
    machine, floor, family = group
    missed = sum(floor_kept(one) == "missed" for one in here) * 2 > len(here)
    return (machine, floor_order(floor), _oracle(here), missed, -_median(here), family)


def _fastest_speeds(predicted: Sequence[Strategy]) -> dict[tuple[str, ...], float]:
    """The fastest speed in every place at every floor, of what can be followed and keeps the floor."""
    found: dict[tuple[str, ...], float] = {}
    for one in predicted:
        if _keeps(one):
            found[_cell(one)] = max(found.get(_cell(one), 0.0), _speed(one))
    return found


def _keeps(one: Strategy) -> bool:
    return one.reachable and floor_kept(one) == "kept"


def _cell(one: Strategy) -> tuple[str, ...]:
    return (one.model, one.workload, one.heads, one.machine, one.floor)


def _speed(one: Strategy) -> float:
    return one.net_speedup.value or 0.0


def _median(strategies: Sequence[Strategy]) -> float:
    return statistics.median(_speed(one) for one in strategies)


def _oracle(strategies: Sequence[Strategy]) -> bool:
    return not any(one.reachable for one in strategies)


CAPTION = "Every strategy: what keeps its floor first, the fastest of it first, oracles last"
COLUMNS = (
    DataColumn("strategy", "Strategy"),
    DataColumn("predicted", "Net speed", numeric=True, kind="predicted"),
    DataColumn("measured", "Net speed", numeric=True, kind="measured"),
    *PLACE_COLUMNS,
    DataColumn("machine", "Machine", facet="machine"),
    DataColumn("floor", "Floor", facet="floor"),
    DataColumn("basis", "Basis", facet="basis"),
    DataColumn("agreement", "Agreement", numeric=True),
    DataColumn("skipped", "Layers skipped", numeric=True),
    DataColumn("probes", "Spent on probes", numeric=True),
    DataColumn("saved", "Saved of plain decoding"),
    DataColumn("time", "Time per token", numeric=True),
    DataColumn("characters", "Characters per second", numeric=True),
)


def strategies_table(standings: Sequence[Standing]) -> Markup:
    """Every strategy."""
    rows = [strategy_cells(standing) for standing in standings]
    return DataTable("strategies", CAPTION, COLUMNS, rows).html()


def strategy_cells(standing: Standing) -> list[DataCell]:
    """One strategy as cells."""
    one, predicted, measured = standing.shown, standing.predicted, standing.measured
    bases = tuple(basis for basis, has in (("predicted", predicted), ("measured", measured)) if has)
    return [
        DataCell(_name(one)),
        DataCell(NOTHING) if predicted is None else estimate_cell(predicted.net_speedup, times),
        _measured_cell(measured),
        *place_cells(one.model, one.workload, one.heads),
        facet_cell(machine_shown(one.machine)),
        facet_cell(floor_shown(one.floor)),
        facet_cell(" and ".join(bases), *bases),
        _agreement_cell(standing),
        estimate_cell(one.skip_ratio, percent),
        number_cell(one.probe_share, percent),
        DataCell(text(gain_text(one.gain) or NOTHING)),
        _beside(*(None if one is None else one.seconds_per_token for one in (predicted, measured))),
        number_cell(_characters(standing), lambda value: f"{value:,.0f}"),
    ]


def _family(name: str) -> Markup:
    """A family's name, which may break after its signs."""
    return breakable(name, UNDERSCORE)


def _name(one: Strategy) -> Markup:
    """The family, that an oracle is out of reach, and the policy."""
    name = stack(_family(one.family), "" if one.reachable else "oracle, out of reach")
    return name if one.policy == NEVER else name + policy_code(one.policy)


def _agreement_cell(standing: Standing) -> DataCell:
    """Agreement, that it is below the floor, and what it was in decoding where both are known."""
    one, measured = standing.shown, standing.measured
    cell, said = estimate_cell(one.agreement, percent), floor_note(one)
    mark = styled(said, "invalid") if floor_kept(one) == "missed" else small(said)
    if measured is not None and measured is not one and measured.agreement.value is not None:
        mark += small(f"decoded for real {percent(measured.agreement.value)}")
    return DataCell(cell.html + mark, cell.value)


def floor_note(one: Strategy) -> str:
    """That a strategy misses its floor, or may; "" if it keeps it, or none was asked."""
    if floor_kept(one) == "missed":
        return "misses the floor"
    below = floor_kept(one) == "perhaps" and one.agreement.value is not None
    return "below the floor, perhaps by chance" if below else ""


def _measured_cell(measured: Strategy | None) -> DataCell:
    """The stopwatch's answer; one with a defect is struck out and sorted last."""
    if measured is None:
        return DataCell(NOTHING)
    cell = estimate_cell(measured.net_speedup, times)
    if has_defect(measured):
        value = measured.net_speedup.value
        struck = text("undefined" if value is None else times(value))
        return DataCell(fragment("comparison", "struck", struck) + styled(measured.answer, "invalid"))
    return DataCell(stack(cell.html, measured.answer), cell.value)


def _beside(predicted: float | None, measured: float | None) -> DataCell:
    """Seconds per token, the measured ones below the predicted ones."""
    if predicted is None and measured is None:
        return DataCell(NOTHING)
    if predicted is None or measured is None:
        return number_cell(predicted if measured is None else measured, duration)
    return DataCell(stack(duration(predicted), f"measured {duration(measured)}"), predicted)


def _characters(standing: Standing) -> float | None:
    """Characters per second, as measured where it was."""
    found = [one.characters_per_second for one in (standing.measured, standing.predicted) if one is not None]
    return next((value for value in found if value is not None), None)
