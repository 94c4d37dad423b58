"""Policies ranked by family: each at its best, ranked by the time it would really take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from markupsafe import Markup

from offramp.defaults import BYTES
from offramp.policies.short_names import short_name
from offramp.report.answer_words import credit_sentence, credits_of, reference_line
from offramp.report.drawing import Key, drawn, legend
from offramp.report.formats import (
    estimate_text,
    faster,
    gain_text,
    interval_text,
    percent,
    signed_percent,
    times,
    whole_percent,
)
from offramp.report.html import fragment, text
from offramp.report.plots import Bar, PlotRow, Point, RowPlot, Track
from offramp.report.run_result import WorkloadResult
from offramp.report.table import Cell, Column, Table, estimated, folded
from offramp.scoring.estimate import Estimate
from offramp.tuning.ranking import RankedPolicy
from offramp.tuning.verdict import from_main


@dataclass(frozen=True)
class BalancePart:
    """A stretch of a bar. cost: as a share of plain decoding's. colour: 0 to 5."""

    name: str
    cost: float
    colour: int


@dataclass(frozen=True)
class Balance:
    """One policy's cost per token against plain decoding's (= 1)."""

    name: str
    saved: float
    """By layers not run."""
    spent: tuple[BalancePart, ...]
    """On top."""
    change: Estimate[float]
    """Of the whole, 0 = as plain decoding."""

    def row(self, reach: tuple[float, float]) -> PlotRow:
        """What is saved to the left of plain decoding, what is spent to the right; below it what remains.

        reach: of the axis; what is longer is cut, and what remains beyond it is said in words alone.
        """
        bars, start = [], -self.saved
        for part in (BalancePart("saved by leaving early", self.saved, 0), *self.spent):
            said = f"{self.name}, {part.name}: {percent(part.cost)} of plain decoding"
            bars.append(Bar(start, start + part.cost, said, part.colour))
            start += part.cost
        words = signed_percent(self.change.value)
        tracks = [Track(bars=tuple(bar for bar in bars if bar.start < bar.end))]
        if reach[0] <= self.change.value <= reach[1]:
            tracks.append(Track((Point(self.change, f"{self.name}: {words}", colour=None),)))
        return PlotRow(self.name, tuple(tracks), words)


def reach_of(balances: Sequence[Balance]) -> tuple[float, float]:
    """An axis on which savings can be read: at most three times as far to the right as to the left."""
    saved = max([0.08, *[balance.saved for balance in balances]])
    spent = max([0.08, *[sum(part.cost for part in balance.spent) for balance in balances]])
    return -1.06 * saved, min(1.06 * spent, 3.0 * saved)


BALANCES: Table[Balance] = Table(
    (
        Column("Family", lambda balance: balance.name),
        Column("Saved by leaving early", lambda balance: balance.saved, percent),
        Column("Spent on top", lambda balance: sum(part.cost for part in balance.spent), percent),
        Column("Change of cost", lambda balance: estimate_text(balance.change, signed_percent)),
    ),
    caption="Saved and spent, as shares of plain decoding's cost per token",
    words=1,
)


def balance_figure(entries: Sequence[RankedPolicy], reach: tuple[float, float]) -> Markup:
    """What each policy saves and spends, on one axis of that reach; nothing where none has a speed."""
    balances = [balance for balance in map(balance_of, entries) if balance is not None]
    keys = dict.fromkeys((part.name, part.colour) for entry in entries for part in parts_of(entry))
    plot = RowPlot(
        "Saved and spent",
        "Left of the line: what leaving early saves of plain decoding's cost per token. Right: what probes "
        "and repair cost. The dot is what remains, with its 95 % interval; left is cheaper.",
        [balance.row(reach) for balance in balances],
        reach,
        (0.0, "plain decoding"),
        "left",
        number=partial(signed_percent, digits=0),
        style="wide",
    )
    patches = legend([Key(name, colour, None) for name, colour in keys])
    return drawn(plot, BALANCES.html(balances), legend=patches) if balances else Markup()


REPAIR = "repair of keys and values"
PROBES = "probes"
# What a token's cost goes to, by part of the breakdown: the name shown and its colour. Order of drawing.
PARTS: Mapping[str, tuple[str, int]] = {
    "layers": ("layers", 0),
    "rest": ("layers, head and the rest", 0),
    "exit head": ("output head", 2),
    "short head": ("output head", 2),
    "final head": ("output head", 2),
    "overhead": ("program around", 5),
    "K,V projection": (REPAIR, 3),
    "K,V map": (REPAIR, 3),
    "probe": (PROBES, 1),
}
ON_TOP = (REPAIR, PROBES)
OUT_OF_REACH = "Out of reach: oracles that know the full model's answer, at 100 % agreement"
SHOWN = 8
MUCH_SLOWER = 0.67


def families_section(workload: WorkloadResult) -> Markup:
    """The families ranked by net speed at the main floor, the oracles apart; nothing without a ranking."""
    if not workload.league:
        return Markup()
    main = min((entry.floor for entry in workload.league), key=from_main)
    entries = families_at(workload.league, main)
    reachable = [entry for entry in entries if entry.reachable]
    oracles = [entry for entry in entries if not entry.reachable]
    shown = [*reachable[:SHOWN], *oracles]
    reach = reach_of([balance for balance in map(balance_of, reachable) if balance is not None])
    counted = "bytes" if any(v.basis == BYTES for v in workload.verdicts) else "time"
    keep = whole_percent(main)
    ranked = [(rank, one) for rank, one in enumerate(reachable[:SHOWN], 1)]
    caption = f"Families of policies at {keep} agreement, the fastest first"
    if len(reachable) > SHOWN:
        caption += f", {SHOWN} of {len(reachable)}; summary.json has all"
    return fragment(
        "run",
        "families",
        answer=summary_of(reachable, main, counted),
        credit=[credit_sentence(credit) for credit in credits_of(workload.league) if credit.floor == main],
        floor=keep,
        figure=balance_figure(shown, reach),
        best=families_table(keep).html([*ranked, *[(0, one) for one in oracles]], caption=caption),
    )


def families_at(entries: Sequence[RankedPolicy], floor: float) -> list[RankedPolicy]:
    """The families at one floor, the fastest first; those without a speed last."""

    def rank(entry: RankedPolicy) -> tuple[bool, float, str]:
        speed = entry.net_speedup.value
        return speed is None, -(speed or 0.0), entry.family

    return sorted((entry for entry in entries if entry.floor == floor), key=rank)


Ranked = tuple[int, RankedPolicy]
"""A family with its rank, 0 of an oracle."""


def families_table(keep: str) -> Table[Ranked]:
    """Families, each with its best policy. keep: the floor, in words."""
    return Table(
        (
            Column("Family and its best policy", _family_cell),
            Column(
                f"Speed at {keep}", lambda row: estimated(row[1].net_speedup, times, gain_text(row[1].gain))
            ),
            Column("Layers skipped", lambda row: row[1].skip_ratio, percent),
            Column(
                "Agreement",
                lambda row: estimated(row[1].agreement, percent, reference_line(row[1].reference_agreement)),
            ),
        ),
        groups=Column("", lambda row: "" if row[1].reachable else OUT_OF_REACH),
        style="league",
    )


def _family_cell(row: Ranked) -> Cell:
    rank, entry = row
    name = f"{rank}. {entry.family}" if rank else entry.family
    return Cell(name, html=text(name) + folded(short_name(entry.policy), str(entry.policy)))


def balance_of(entry: RankedPolicy) -> Balance | None:
    """What the policy saves and spends; None if it has no speed."""
    speed = entry.net_speedup
    if not speed.value:
        return None
    parts = parts_of(entry)
    rest = sum(part.cost for part in parts if part.name not in ON_TOP)
    spent = [part for part in parts if part.name in ON_TOP and part.cost > 0]
    if rest > 1:  # for example a linear lens before the head
        spent.insert(0, BalancePart("heavier head and the rest", rest - 1, 2))
    low, high = (1 / end - 1 if end else None for end in (speed.high, speed.low))
    name = entry.family if entry.reachable else f"{entry.family}, out of reach"
    return Balance(name, max(1 - rest, 0.0), tuple(spent), Estimate(1 / speed.value - 1, low, high))


def parts_of(entry: RankedPolicy) -> tuple[BalancePart, ...]:
    """The parts of a token's time, plain decoding's time = 1; probes and all else where no more is known."""
    seconds = entry.seconds_per_token.value
    if not entry.net_speedup.value or not seconds:
        return ()
    known = entry.parts or {
        "rest": seconds - entry.probe_seconds,
        "probe": entry.probe_seconds,
    }
    scale = 1 / (entry.net_speedup.value * seconds)
    shown: dict[tuple[str, int], float] = {}
    for part, look in PARTS.items():
        if part in known:
            shown[look] = shown.get(look, 0.0) + scale * known[part]
    return tuple(BalancePart(name, time, colour) for (name, colour), time in shown.items())


def summary_of(reachable: Sequence[RankedPolicy], floor: float, counted: str) -> str:
    """Who wins, who loses, and what decides it."""
    exiting = [e for e in reachable if e.exits_early and e.net_speedup.value is not None]
    keep = f"At {whole_percent(floor)} agreement"
    if not exiting:
        return f"{keep} no family has a policy that beats the full model: the best choice is never to exit."
    winners = [entry for entry in exiting if (entry.net_speedup.value or 0.0) > 1]
    if len(exiting) == 1:
        said = f"{keep} the one family that exits is {'' if winners else 'not '}faster than plain decoding."
    else:
        count = "none" if not winners else "all" if len(winners) == len(exiting) else str(len(winners))
        verb = "is" if len(winners) == 1 else "are"
        said = f"{keep} {count} of {len(exiting)} families {verb} faster than plain decoding."
    parts = [said]
    parts.append(f"The best, {words_on(exiting[0], counted)}.")
    if len(exiting) > 1:
        parts.append(f"The slowest, {words_on(exiting[-1], counted)}.")
    return " ".join(parts)


def words_on(entry: RankedPolicy, counted: str) -> str:
    """One family's speed with what it skips and what its probes take."""
    value = entry.net_speedup.value or 1.0
    if value < MUCH_SLOWER:
        speed = f"takes {1 / value:.1f} × the {counted}"
    else:
        low, high = entry.net_speedup.low, entry.net_speedup.high
        interval = "" if low == high else interval_text(low, high, lambda speed: signed_percent(speed - 1))
        speed = f"is {faster(value)}{f' ({interval})' if interval else ''}"
    skipped = entry.skip_ratio.value
    skips = "" if skipped is None else f"it skips {percent(skipped)} of the layers and "
    said = f"{entry.family}, {speed}: {skips}spends {percent(entry.probe_share)} of its {counted} on probes"
    if value > 1.0 and not entry.gains_by_exits:
        said += "; leaving early saves less than the error of its speed, the shorter output head the rest"
    return said
