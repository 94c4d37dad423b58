"""Strategies from the results of a study's tasks: leagues, tuned policies, replays and decoding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from offramp.kit.defaults import LOCAL
from offramp.policies.figures import PLAIN_DECODING, PolicyFigures, shared_fields
from offramp.policies.replay import ReplayIntervals
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import FloorOn, Place, Row, Strategy
from offramp.studies.entries import BYTES
from offramp.studies.task import Cell, Task
from offramp.studies.work.decode import DecodedChoice
from offramp.studies.work.replay import Replayed
from offramp.timing.results import TOO_FEW_PROMPTS, BenchResult, Contender
from offramp.tuning.floor import Floor
from offramp.tuning.pool import FULL_MODEL
from offramp.tuning.ranking import RankedPolicy

TUNED = "tuned"
BY_DEFINITION = "by definition"


@dataclass(frozen=True)
class Finished:
    """A cell that is done, with its task and that task's result."""

    cell: Cell
    task: Task
    result: Any

    @property
    def machine(self) -> str:
        """The cell's; what is timed is timed on this one."""
        return self.cell.machine or LOCAL

    def on(self, row: Row) -> Place:
        """Where its strategies hold."""
        return row.on(self.machine)


def agreement_floor(value: float) -> Floor:
    """A floor on agreement: what studies ask for."""
    return Floor("agreement", value)


def strategies_of(row: Row, cells: Sequence[Finished], floors: Sequence[float]) -> Iterator[Strategy]:
    """Every strategy that was replayed, tuned or decoded on a row. floors: those of the study."""
    for finished in cells:
        if finished.cell.kind in STRATEGIES:
            for strategy in STRATEGIES[finished.cell.kind](row, finished):
                floor, characters = strategy.floor, strategy.characters_per_second
                if strategy.basis == "predicted":
                    characters = characters_per_second(row.characters_per_token, strategy.seconds_per_token)
                yield replace(
                    strategy,
                    floor=floor or floor_of(strategy.agreement, floors),
                    characters_per_second=characters,
                )


def floor_of(agreement: Estimate, floors: Sequence[float]) -> Floor:
    """The floor that a policy is held against which was chosen for none: the strictest that its agreement
    reaches, else the loosest, which it misses."""
    reached = [floor for floor in floors if agreement.value is not None and agreement.value >= floor]
    return agreement_floor(max(reached, default=min(floors)))


def characters_per_second(
    characters_per_token: float | None, seconds_per_token: float | None
) -> float | None:
    """Speed in text instead of tokens; None where one of the two is not known."""
    if characters_per_token is None or not seconds_per_token:
        return None
    return characters_per_token / seconds_per_token


def league_strategies(row: Row, finished: Finished) -> Iterator[Strategy]:
    """The best member of every family at every floor, predicted."""
    for ranked in finished.result.entries:
        yield Strategy(
            **shared_fields(ranked, PolicyFigures),
            place=finished.on(row),
            family=ranked.family,
            floor=agreement_floor(ranked.floor),
            basis="predicted",
            seconds_per_token=None if finished.machine == BYTES else ranked.seconds_per_token.value,
            chosen=ranked.chosen,
        )


def tuned_strategies(row: Row, finished: Finished) -> Iterator[Strategy]:
    """The tuner's answer at every floor, predicted on documents that neither search nor certificate saw."""
    for tuned in finished.result.tuned:
        yield Strategy(
            **{**shared_fields(tuned, PolicyFigures), "agreement": tuned.quality},
            place=finished.on(row),
            family=TUNED,
            floor=tuned.floor,
            basis="predicted",
            seconds_per_token=tuned.seconds_per_token.value,
        )


def replayed_strategies(row: Row, finished: Finished) -> Iterator[Strategy]:
    """One policy of the study's file, predicted; it is held against the study's floors (`floor_of`)."""
    replayed: Replayed = finished.result
    figures = shared_fields(replayed.replay, PolicyFigures) | {"reference_agreement": None}
    intervals = shared_fields(replayed, ReplayIntervals)
    yield Strategy(
        **{**figures, **intervals},
        place=finished.on(row),
        family=finished.cell.policy,
        floor=None,
        basis="predicted",
        seconds_per_token=replayed.replay.seconds_per_token,
    )


def decoded_strategies(row: Row, finished: Finished) -> Iterator[Strategy]:
    """Plain decoding and the best policies of the league, for real; the league's fastest is its choice.

    Nothing if no policy of the league exits.
    """
    decoding, place = finished.result, finished.on(row)
    bench = decoding.bench
    if bench is None:
        return
    sure = Estimate(1.0, no_interval=BY_DEFINITION)
    yield _timed(
        Strategy(
            place=place,
            family=FULL_MODEL,
            policy=PLAIN_DECODING,
            kv="",
            floor=agreement_floor(finished.task.recipe["floor"]),
            basis="measured",
            agreement=sure,
            skip_ratio=Estimate(0.0, no_interval=BY_DEFINITION),
            net_speedup=sure,
        ),
        bench,
        bench.contender(bench.plain),
        decoding.characters_per_token,
    )
    for rank, choice in enumerate(decoding.chosen):
        yield _decoded(row, finished, choice, chosen=rank == 0 or "certify" in finished.task.needs)


def _decoded(row: Row, finished: Finished, choice: DecodedChoice, *, chosen: bool) -> Strategy:
    """A policy as it was decoded. chosen: for its floor."""
    bench: BenchResult = finished.result.bench
    contender, quality = bench.contender(choice.contender), choice.free_running
    credit, over = credit_of(bench, choice.contender, choice.floor)
    layers = None if contender.counted is None else contender.counted.layers
    strategy = Strategy(
        place=finished.on(row),
        family=choice.family,
        policy=choice.policy,
        kv=choice.kv,
        floor=agreement_floor(choice.floor),
        basis="measured",
        agreement=_measured(None if quality is None else quality.agreement, "not judged"),
        skip_ratio=skipped(layers, row.exits[-1]),
        net_speedup=_measured(contender.ratio, contender.left_out or "not timed"),
        chosen=chosen,
        gain=contender.gain,
        credit=credit,
        credit_over=over,
    )
    return _timed(strategy, bench, contender, choice.characters_per_token)


def _timed(
    strategy: Strategy, bench: BenchResult, contender: Contender, characters_per_token: float | None
) -> Strategy:
    """With what the stopwatch says of its contender."""
    seconds = None if contender.seconds_per_token is None else contender.seconds_per_token.value
    return replace(
        strategy,
        seconds_per_token=seconds,
        characters_per_second=characters_per_second(characters_per_token, seconds),
        answer=answer_text(contender, bench.defects),
        defect=contender.left_out is None and contender.answer == "defect",
    )


def _measured(interval: Estimate[float] | None, undefined: str) -> Estimate:
    """An estimate of a measurement. undefined: why there is none."""
    if interval is None:
        return Estimate(None, undefined=undefined)
    no_interval = TOO_FEW_PROMPTS if interval.low is None else None
    return Estimate(interval.value, interval.low, interval.high, no_interval=no_interval)


def skipped(layers_per_token: float | None, layers: int) -> Estimate:
    """Share of layers not executed, of those that hooks counted per new token."""
    if layers_per_token is None:
        return Estimate(None, undefined="layers were not counted")
    return Estimate(1.0 - layers_per_token / layers, no_interval="counted, not resampled")


def answer_text(contender: Contender, defects: Sequence[str]) -> str:
    """What a timing answers, in words: "faster", "unresolved at ± 3.4 %", "defect: ...", "left out: ..."."""
    if contender.left_out is not None:
        return f"left out: {contender.left_out}"
    if contender.answer == "defect":
        return f"defect: {'; '.join(defects)}" if defects else "defect"
    if contender.answer == "unresolved" and contender.resolution is not None:
        return f"unresolved at ± {100 * contender.resolution:.1f} %"
    return contender.answer


def credit_of(bench: BenchResult, name: str, floor: float) -> tuple[Estimate, str]:
    """A contender's credit at a floor, and the name of what it is over.

    Undefined, with the reason, unless all that needs no exits took turns with it.
    """
    missing, credit = bench.untimed_rivals, bench.credit(name, floor)
    if missing:
        which = " and ".join(missing)
        return Estimate(None, undefined=f"not timed beside it: {which}"), ""
    if credit is None:
        return Estimate(None, undefined="its times on the prompts say nothing"), ""
    return Estimate(credit.value, credit.low, credit.high), credit.over


def league_speedups(finished: Finished) -> dict[FloorOn, float]:
    """Net speedup of what the league chose at each floor."""
    return {
        (agreement_floor(ranked.floor), finished.machine): ranked.net_speedup.value
        for ranked in finished.result.entries
        if ranked.chosen and ranked.net_speedup.value is not None
    }


def measured_speedups(finished: Finished, entries: Sequence[RankedPolicy]) -> dict[FloorOn, float]:
    """Net speedup that the stopwatch gives what the league chose.

    Where it chose never to exit, 1: plain decoding saves nothing of its own time, and no stopwatch need say
    so. Else of the league's fastest policy that exits, or of each floor's where they were to be certified;
    nothing if the timing has a defect, or left it out.
    finished: a decode cell. entries: of the league whose policies it decoded.
    """
    certified, decoding = "certify" in finished.task.needs, finished.result
    if not certified:
        floor = finished.task.recipe["floor"]
        if _chooses_never(entries, floor):
            return {(agreement_floor(floor), finished.machine): 1.0}
    bench: BenchResult | None = decoding.bench
    if bench is None or bench.defects:
        return {}
    ratios = {contender.name: contender.ratio for contender in bench.contenders}
    return {
        (agreement_floor(choice.floor), finished.machine): ratio.value
        for choice in (decoding.chosen if certified else decoding.chosen[:1])
        if (ratio := ratios[choice.contender]) is not None
    }


def _chooses_never(entries: Sequence[RankedPolicy], floor: float) -> bool:
    """Whether the choice of a league at a floor is plain decoding; an empty league chose nothing."""
    return any(ranked.chosen and ranked.plain and math.isclose(ranked.floor, floor) for ranked in entries)


STRATEGIES: Mapping[str, Callable[[Row, Finished], Iterator[Strategy]]] = {
    "league": league_strategies,
    "tune": tuned_strategies,
    "certify": tuned_strategies,
    "replay": replayed_strategies,
    "decode": decoded_strategies,
}
"""By the kind of task."""
