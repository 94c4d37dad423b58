"""Strategies of a comparison: families side by side, every strategy, what is certified, text per byte."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from markupsafe import Markup

from offramp.report.caveats import lacking
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
from offramp.report.findings import NOT_CERTIFIABLE, Finding, findings_of
from offramp.report.formats import counted, decimal, duration, gain_text, percent, times
from offramp.report.headline import passed_how
from offramp.report.html import breakable, fragment, paragraph, pill, policy_code, small, stack, styled, text
from offramp.report.names import distinct, floor_order, floor_shown, machine_shown
from offramp.report.ranking import (
    Standing,
    believed,
    beside,
    fastest,
    floor_kept,
    floor_note,
    has_defect,
    replayed,
)
from offramp.studies.comparison.content import per_byte_notes
from offramp.studies.comparison.results import Comparison, Row, Saving, Strategy
from offramp.tuning.verdict import NEVER

UNDERSCORE = re.compile("(?<=_)")
MOST_WORKLOADS = 6
"""The table of families has a column for each of so many workloads at most."""


def strategies_section(comparison: Comparison) -> Markup:
    """Families side by side and every strategy; nothing without strategies."""
    if not comparison.strategies:
        return Markup()
    standings = sorted(beside(comparison.strategies), key=lambda standing: standing.rank)
    notes = reasons([one.net_speedup for one in comparison.strategies])
    families = families_table(comparison.strategies)
    return fragment("comparison", "strategies", families, strategies_table(standings), notes)


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
STRATEGY_COLUMNS = (
    DataColumn("strategy", "Strategy"),
    DataColumn("predicted", "Net speed", numeric=True, kind="predicted"),
    DataColumn("measured", "Net speed", numeric=True, kind="measured"),
    DataColumn("credit", "Over the best without exits", numeric=True, kind="measured"),
    *PLACE_COLUMNS,
    DataColumn("machine", "Machine", facet="machine"),
    DataColumn("floor", "Floor", facet="floor"),
    DataColumn("basis", "Basis", facet="basis"),
    DataColumn("agreement", "Agreement", numeric=True),
    DataColumn("skipped", "Layers skipped", numeric=True),
    DataColumn("probes", "Spent on probes", numeric=True),
    DataColumn("saved", "Saved of plain decoding, priced"),
    DataColumn("time", "Time per token", numeric=True),
    DataColumn("characters", "Characters per second", numeric=True),
)


def strategies_table(standings: Sequence[Standing]) -> Markup:
    """Every strategy."""
    rows = [strategy_cells(standing) for standing in standings]
    return DataTable("strategies", CAPTION, STRATEGY_COLUMNS, rows).html()


def strategy_cells(standing: Standing) -> list[DataCell]:
    """One strategy as cells."""
    one, predicted, measured = standing.shown, standing.predicted, standing.measured
    bases = tuple(basis for basis, has in (("predicted", predicted), ("measured", measured)) if has)
    return [
        DataCell(_name(one)),
        DataCell(NOTHING) if predicted is None else estimate_cell(predicted.net_speedup, times),
        _measured_cell(measured),
        _credit_cell(measured),
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


def _credit_cell(measured: Strategy | None) -> DataCell:
    """What exits add to the best decoder without them of the same turns, or why that is not known."""
    if measured is None or measured.policy == NEVER or has_defect(measured):
        return DataCell(NOTHING)
    credit = measured.credit
    if credit.value is None:
        return DataCell(small(credit.undefined or NOTHING))
    cell = estimate_cell(credit, times)
    return DataCell(stack(cell.html, f"over {measured.credit_over}"), cell.value)


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


CERTIFIED_COLUMNS = (
    *PLACE_COLUMNS,
    DataColumn("machine", "Machine", facet="machine"),
    DataColumn("floor", "Floor", facet="floor"),
    DataColumn("answer", "Verdict"),
    DataColumn("speed", "Net speed", numeric=True, kind="predicted"),
    DataColumn("measured", "Net speed", numeric=True, kind="measured"),
    DataColumn("policy", "Policy, and what the tuner says"),
)


def certified_section(comparison: Comparison) -> Markup:
    """Every answer of the tuner; nothing if nothing was tuned."""
    answers = findings_of(comparison)
    if not answers:
        return Markup()
    ranked = sorted(answers, key=lambda one: (not one.exits, -(one.predicted.value or 0.0)))
    caption = "Answers of the tuner, the fastest first"
    found = DataTable(
        "certified", caption, CERTIFIED_COLUMNS, [_certified_row(one) for one in ranked], "answer"
    )
    return fragment("comparison", "certified", by_floor(answers), found.html())


def by_floor(answers: list[Finding[Saving]]) -> list[str]:
    """How many answers at each floor exit, pay, or are not certifiable, and why."""
    said = []
    for floor in sorted(distinct([one.floor for one in answers]), key=floor_order):
        here = [one for one in answers if one.floor == floor]
        exits = sum(one.exits for one in here)
        pays = sum(one.decision == "pays" for one in here)
        unknown = [one for one in here if one.decision == NOT_CERTIFIABLE]
        tail = f" {len(unknown)} not certifiable: {lacking(unknown)}." if unknown else ""
        has = (
            f"{exits} of {counted(len(here), 'answer')} {'is' if exits == 1 else 'are'} a policy that exits "
            f"early, and {pays or 'none'} of these surely {'pays' if pays == 1 else 'pay'}."
            if exits
            else f"no policy that exits early passed, in {counted(len(here), 'answer')}."
        )
        said.append(f"{floor_shown(floor)}: {has}{tail}")
    return said


def _certified_row(one: Finding[Saving]) -> list[DataCell]:
    policy = Markup() if one.policy == NEVER else policy_code(one.policy)
    missed = how = Markup()
    if one.missed and one.kept is not None:
        kept = percent(one.kept.value or 0.0)
        said = f"Decoded, it kept {kept} of the full model's tokens: less than the floor."
        missed = paragraph(said, "invalid")
    if one.exits:
        how = paragraph(f"Passed: {passed_how(one)}.")
    return [
        *place_cells(one.model, one.workload, one.heads),
        facet_cell(machine_shown(one.machine)),
        facet_cell(floor_shown(one.floor)),
        DataCell(pill(one.decision)),
        estimate_cell(one.predicted, times) if one.certified else DataCell(NOTHING),
        DataCell(NOTHING) if one.measured is None else estimate_cell(one.measured, times),
        DataCell(policy + paragraph(one.detail.answer) + missed + how),
    ]


Places = dict[tuple[str, str, str, str], list[Strategy]]


def bytes_section(comparison: Comparison) -> Markup:
    """Bits per byte and characters per second; nothing where all models read the same tokens."""
    if not per_byte_notes(comparison.rows):
        return Markup()
    rows = [row for row in comparison.rows if row.bytes_per_token is not None and not row.own_text]
    places = with_characters(comparison.strategies)
    machines = distinct([machine for *_, machine in places])
    columns = [
        *PLACE_COLUMNS,
        DataColumn("bits", "Bits per byte", numeric=True),
        DataColumn("nll", "NLL per token, nats", numeric=True),
        DataColumn("bytes", "Bytes per token", numeric=True),
        DataColumn("characters", "Characters per token", numeric=True),
    ]
    for machine in machines:
        name = machine_shown(machine)
        columns.append(DataColumn(f"plain-{machine}", f"Characters per second, plain, {name}", numeric=True))
        columns.append(DataColumn(f"best-{machine}", f"… with the fastest strategy, {name}", numeric=True))
    body = [[*_text_cells(row), *_speed_cells(row, machines, places)] for row in rows]
    body.sort(key=lambda cells: (cells[1].html, cells[3].value is None, cells[3].value or 0.0))
    caption = "Every model on every workload, the fewest bits per byte first"
    return fragment("comparison", "bytes", DataTable("bytes", caption, columns, body).html())


def _text_cells(row: Row) -> list[DataCell]:
    nll = row.curves.get("nll", (None,))[-1]
    return [
        *place_cells(row.model.shown, row.workload, row.heads),
        number_cell(row.bits_per_byte, lambda value: decimal(value, 3)),
        number_cell(nll, decimal),
        number_cell(row.bytes_per_token, decimal),
        number_cell(row.characters_per_token, decimal),
    ]


def _speed_cells(row: Row, machines: Sequence[str], places: Places) -> list[DataCell]:
    """On each machine plain decoding's characters per second, and those of the fastest strategy."""
    cells = []
    for machine in machines:
        here = places.get((row.model.shown, row.workload, row.heads, machine), [])
        plain = next((one for one in here if one.policy == NEVER), None)
        best = fastest(replayed(here)) or fastest(believed(here))
        cells.append(number_cell(None if plain is None else plain.characters_per_second, whole))
        found = number_cell(None if best is None else best.characters_per_second, whole)
        said = f"{best.family}, {best.basis}" if best else ""
        cells.append(DataCell(stack(found.html, said), found.value))
    return cells


def with_characters(strategies: Sequence[Strategy]) -> Places:
    """The strategies whose characters per second are known, by model, workload, heads and machine."""
    places: Places = {}
    for one in strategies:
        if one.characters_per_second is not None:
            places.setdefault((one.model, one.workload, one.heads, one.machine), []).append(one)
    return places


def whole(value: float) -> str:
    """A count without decimals."""
    return f"{value:,.0f}"
