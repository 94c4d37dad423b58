"""Strategies of a comparison: how fast, how they stand to their floors, and families side by side."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from markupsafe import Markup

from offramp.policies.cost_breakdown import GAIN_PARTS
from offramp.report.formats import duration, gain_text, percent, thousandths, times, whole
from offramp.report.html import breakable, fragment, policy_code, stack, styled
from offramp.report.names import FLOOR, PLACE, distinct, floor_order, floor_shown, machine_shown
from offramp.report.table import NOTHING, Cell, Column, Table, attributes, estimated, reasons
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, StrategyResult
from offramp.tuning.floor import Floor


def fastest(strategies: Iterable[StrategyResult]) -> StrategyResult | None:
    """The fastest of those that exit, can be followed and keep a floor; speed alone is no answer.

    One that reaches its floor comes before one that may have missed it by chance: the interval of its
    agreement does not lie wholly below the floor.
    """
    known = [
        strategy
        for strategy in strategies
        if strategy.reachable and strategy.net_speedup.value is not None and not strategy.plain
        if floor_kept(strategy) in ("kept", "perhaps")
    ]
    return max(known, key=lambda one: (floor_kept(one) == "kept", one.net_speedup.value or 0.0), default=None)


FLOORS_KEPT = ("kept", "perhaps", "not asked", "missed")
"""How a strategy may stand to its floor, the best first."""


def floor_kept(strategy: StrategyResult) -> str:
    """How a strategy stands to its floor, of `FLOORS_KEPT`.

    "perhaps": agreement is below it, but its interval is not, or agreement is not known. Without an interval
    agreement itself must reach the floor. Floors of another kind were checked where the strategy was chosen.
    """
    floor, agreement = strategy.floor, strategy.agreement
    if floor is None:
        return "not asked"
    if floor.kind != "agreement":
        return "kept"
    if agreement.value is None:
        return "perhaps"
    if agreement.value >= floor.value:
        return "kept"
    return "perhaps" if agreement.high is not None and agreement.high >= floor.value else "missed"


def believed(strategies: Sequence[StrategyResult]) -> list[StrategyResult]:
    """What was measured in decoding, without a defect."""
    return [
        strategy
        for strategy in strategies
        if strategy.basis == "measured" and not strategy.defect and strategy.net_speedup.value is not None
    ]


def decoded_for_real(strategies: Sequence[StrategyResult]) -> list[StrategyResult]:
    """Policies that were decoded for real, with a defect or without; plain decoding is none."""
    return [strategy for strategy in strategies if strategy.basis == "measured" and not strategy.plain]


def why_no_answer(strategies: Sequence[StrategyResult]) -> str:
    """How many of the policies decoded for real are no answer, and why: "3 below their floor"."""
    all_decoded = decoded_for_real(strategies)
    known = believed(all_decoded)
    broken = sum(strategy.defect for strategy in all_decoded)
    missed = sum(floor_kept(one) == "missed" for one in known)
    silent = len(all_decoded) - broken - len(known)
    reasons = {"with a defect": broken, "below their floor": missed, "without a speed": silent}
    return ", ".join(f"{count:,} {why}" for why, count in reasons.items() if count)


def replayed(strategies: Sequence[StrategyResult]) -> list[StrategyResult]:
    """What was predicted by replay."""
    return [strategy for strategy in strategies if strategy.basis == "predicted"]


@dataclass(frozen=True)
class Paired:
    """A strategy in one place: predicted, measured, or both."""

    predicted: StrategyResult | None
    measured: StrategyResult | None

    @property
    def shown(self) -> StrategyResult:
        """Where its names are read off."""
        one = self.predicted or self.measured
        assert one is not None  # a standing is made of at least one
        return one

    @property
    def rank(self) -> tuple[bool, int, bool, float]:
        """Sorts what can be followed before oracles, what keeps its floor before the rest, then by speed.

        What has a defect has no speed.
        """
        both = [one for one in (self.predicted, self.measured) if one is not None and not one.defect]
        known = [strategy.net_speedup.value for strategy in both if strategy.net_speedup.value is not None]
        place = FLOORS_KEPT.index(floor_kept(self.shown))
        return (not self.shown.reachable, place, not known, -known[0] if known else 0.0)


def beside(strategies: Sequence[StrategyResult]) -> list[Paired]:
    """Each prediction with the measurement of the same policy in the same place; what has no other, alone."""
    measured = [strategy for strategy in strategies if strategy.basis == "measured"]
    by_key: dict[tuple[object, ...], list[int]] = {}
    for place, one in enumerate(measured):
        by_key.setdefault(_key(one), []).append(place)
    used: set[int] = set()
    pairs = []
    for strategy in strategies:
        if strategy.basis == "measured":
            continue
        match = next(
            (p for p in by_key.get(_key(strategy), ()) if measured[p].floor in (None, strategy.floor)), None
        )
        if match is not None:
            used.add(match)
        pairs.append(Paired(strategy, None if match is None else measured[match]))
    pairs += [Paired(None, one) for place, one in enumerate(measured) if place not in used]
    return pairs


def _key(strategy: StrategyResult) -> tuple[object, ...]:
    return (strategy.place, strategy.policy, strategy.kv)


def floor_note(strategy: StrategyResult) -> str:
    """That a strategy misses its floor, or may; "" if it keeps it, or none was asked."""
    if floor_kept(strategy) == "missed":
        return "misses the floor"
    below = floor_kept(strategy) == "perhaps" and strategy.agreement.value is not None
    return "below the floor, perhaps by chance" if below else ""


UNDERSCORE = re.compile("(?<=_)")
"""Where a family's name may break."""
MOST_WORKLOADS = 6
"""The table of families has a column for each of so many workloads at most."""


def _name_cell(standing: Paired) -> Cell:
    """The family, that an oracle is out of reach, and the policy."""
    one = standing.shown
    oracle = "" if one.reachable else "oracle, out of reach"
    # Not folded: a browser sorts thousands of rows with a fold in each ten times as slowly.
    page = stack(breakable(one.family, UNDERSCORE), oracle)
    page += Markup() if one.plain else policy_code(str(one.policy))
    return Cell(one.family, value=one.family, html=page)


def _predicted_cell(standing: Paired) -> Cell:
    predicted = standing.predicted
    return Cell(NOTHING) if predicted is None else estimated(predicted.net_speedup, times)


def _measured_cell(standing: Paired) -> Cell:
    """The stopwatch's answer; one with a defect is struck out and sorted last."""
    measured = standing.measured
    if measured is None:
        return Cell(NOTHING)
    if measured.defect:
        value = measured.net_speedup.value
        shown = "undefined" if value is None else times(value)
        struck = fragment("comparison", "struck", shown) + styled(measured.answer, "invalid")
        return Cell("DEFECT", tone="invalid", html=struck)
    return estimated(measured.net_speedup, times, measured.answer)


def _credit_cell(standing: Paired) -> Cell:
    """What exits add to the best decoder without them of the same turns, or why that is not known."""
    measured = standing.measured
    if measured is None or measured.plain or measured.defect:
        return Cell(NOTHING)
    if measured.credit.value is None:
        return Cell(NOTHING, below=measured.credit.undefined or "")
    return estimated(measured.credit, times, f"over {measured.credit_over}")


def _agreement_cell(standing: Paired) -> Cell:
    """Agreement, that it is below the floor, and what it was in decoding where both are known."""
    one, measured = standing.shown, standing.measured
    decoded = ""
    if measured is not None and measured is not one and measured.agreement.value is not None:
        decoded = f"decoded for real {percent(measured.agreement.value)}"
    missed = floor_kept(one) == "missed"
    cell = estimated(one.agreement, percent, "" if missed else floor_note(one), decoded)
    return replace(cell, wrong=floor_note(one) if missed else "")


def _basis_cell(standing: Paired) -> Cell:
    bases = tuple(one.basis for one in (standing.predicted, standing.measured) if one is not None)
    return Cell(" and ".join(bases), value=standing.shown.basis, facets=bases)


def _time_cell(standing: Paired) -> Cell:
    """Seconds per token, the measured ones below the predicted ones."""
    both = (standing.predicted, standing.measured)
    predicted, measured = (None if strategy is None else strategy.seconds_per_token for strategy in both)
    seconds = measured if predicted is None else predicted
    if seconds is None:
        return Cell(NOTHING)
    below = "" if predicted is None or measured is None else f"measured {duration(measured)}"
    return Cell(duration(seconds), below=below, value=seconds)


def _characters(standing: Paired) -> float | None:
    """Characters per second, as measured where it was."""
    known = [
        strategy.characters_per_second
        for strategy in (standing.measured, standing.predicted)
        if strategy is not None
    ]
    return next((value for value in known if value is not None), None)


def _gain(part: str, standing: Paired) -> float | None:
    gain = standing.shown.gain
    return None if gain is None else float(getattr(gain, part))


STRATEGIES: Table[Paired] = Table(
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
        *(column.over(lambda standing: standing.shown.place) for column in PLACE),
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
        *(Column("", partial(_gain, part), data=float, key=f"gain_{part}") for part in GAIN_PARTS),
    ),
    caption="Every strategy: what keeps its floor first, the fastest of it first, oracles last",
    name="strategies",
)
"""On a page a strategy's prediction and measurement stand beside each other; data have a line for each."""


def apart(strategies: Sequence[StrategyResult]) -> list[Paired]:
    """Each strategy alone, as data have them."""
    return [
        Paired(strategy, None) if strategy.basis == "predicted" else Paired(None, strategy)
        for strategy in strategies
    ]


def strategies_section(comparison: Comparison) -> Markup:
    """Families side by side and every strategy; nothing without strategies."""
    if not comparison.strategies:
        return Markup()
    standings = sorted(beside(comparison.strategies), key=lambda standing: standing.rank)
    notes = reasons([strategy.net_speedup for strategy in comparison.strategies])
    families = families_table(comparison.strategies)
    return fragment("comparison", "strategies", families, STRATEGIES.html(standings), notes)


def fastest_of_each(comparison: Comparison) -> list[Paired]:
    """The fastest strategies that can be followed, one for each place and floor; those that miss it last."""
    standings = sorted(beside(comparison.strategies), key=lambda standing: standing.rank)
    best: dict[tuple[object, ...], Paired] = {}
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
    strategies: tuple[StrategyResult, ...]
    wins: int

    @property
    def speeds(self) -> list[float]:
        """Their net speeds."""
        return [_speed(strategy) for strategy in self.strategies]

    @property
    def oracle(self) -> bool:
        """Whether nobody can follow it."""
        return not any(strategy.reachable for strategy in self.strategies)

    @property
    def missed(self) -> int:
        """How often it misses the floor."""
        return sum(floor_kept(strategy) == "missed" for strategy in self.strategies)

    @property
    def rank(self) -> tuple[object, ...]:
        """Sorts oracles last, before them what misses its floor in most places, then by speed."""
        mostly_missed = self.missed * 2 > len(self.strategies)
        median = statistics.median(self.speeds)
        return (self.machine, floor_order(self.floor), self.oracle, mostly_missed, -median, self.name)

    def median_on(self, workload: str) -> float | None:
        """The median net speed on a workload, None where it was not tried."""
        speeds = [_speed(strategy) for strategy in self.strategies if strategy.place.workload == workload]
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
    return Cell(f"{thousandths(slowest)} to {times(fastest)}", value=fastest)


def families_table(strategies: Sequence[StrategyResult]) -> Markup:
    """Each family's predicted speed at a floor on a machine: how often it wins, medians, by workload."""
    predicted = [
        strategy
        for strategy in strategies
        if strategy.basis == "predicted" and strategy.net_speedup.value is not None
    ]
    workloads = distinct([strategy.place.workload for strategy in predicted])
    if len(distinct([strategy.family for strategy in predicted])) < 2:
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
        *(
            Column(
                f"On {name}", partial(Family.median_on, workload=name), times, key=f"on-{name}", numeric=True
            )
            for name in shown
        ),
        Column("Machine", lambda family: machine_shown(family.machine), facet="machine"),
    )
    caption = "Families side by side: medians over models" + (" and workloads" if len(workloads) > 1 else "")
    ranked = sorted(families_of(predicted), key=lambda family: family.rank)
    return Table(columns, caption=caption, name="families").html(ranked)


def families_of(predicted: Sequence[StrategyResult]) -> list[Family]:
    """The families at each floor on each machine; a win is the fastest, of what can be followed and keeps the
    floor."""
    groups: dict[tuple[str, Floor | None, str], list[StrategyResult]] = {}
    fastest: dict[tuple[object, ...], float] = {}
    for strategy in predicted:
        groups.setdefault((strategy.place.machine, strategy.floor, strategy.family), []).append(strategy)
        if _keeps(strategy):
            fastest[strategy.place, strategy.floor] = max(
                fastest.get((strategy.place, strategy.floor), 0.0), _speed(strategy)
            )
    return [
        Family(
            name,
            machine,
            floor,
            tuple(here),
            sum(_keeps(saving) and _speed(saving) >= fastest[saving.place, saving.floor] for saving in here),
        )
        for (machine, floor, name), here in groups.items()
    ]


def _keeps(strategy: StrategyResult) -> bool:
    return strategy.reachable and floor_kept(strategy) == "kept"


def _speed(strategy: StrategyResult) -> float:
    return strategy.net_speedup.value or 0.0
