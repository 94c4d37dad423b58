"""Strategies from the results of a study's tasks: leagues, tuned policies, replays and decoding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offramp.decoding.measurement.results import BenchResult
from offramp.kit.defaults import LOCAL
from offramp.kit.typed import from_json
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.content import (
    answer_text,
    characters_per_second,
    gain_of,
    interval_estimate,
    league_strategy,
    skipped,
)
from offramp.studies.comparison.results import Row, Strategy, floor_text, place_text
from offramp.studies.entries import BYTES
from offramp.studies.task import Cell
from offramp.tuning.ranking import FULL_MODEL

TUNED = "tuned"
NEVER = "never"


@dataclass(frozen=True)
class Finished:
    """A cell that is done: its task's recipe, what it needs, and its result."""

    cell: Cell
    recipe: Mapping[str, Any]
    needs: Mapping[str, str]
    result: Mapping[str, Any]


def league_strategies(row: Row, found: Finished) -> Iterator[Strategy]:
    """The best member of every family at every floor, predicted."""
    for entry in found.result["entries"]:
        yield league_strategy(
            entry,
            _where(row, found),
            in_seconds=machine_of(found) != BYTES,
            characters_per_token=row.characters_per_token,
        )


def tuned_strategies(row: Row, found: Finished) -> Iterator[Strategy]:
    """The tuner's answer at every floor, predicted on documents that neither search nor certificate saw."""
    for tuned in found.result["tuned"]:
        seconds = tuned["seconds_per_token"]["value"]
        yield Strategy(
            **_where(row, found),
            family=TUNED,
            policy=tuned["policy"],
            kv=tuned["kv"],
            floor=floor_text(tuned["floor"]["value"]),
            basis="predicted",
            agreement=Estimate(**tuned["quality"]),
            skip_ratio=Estimate(**tuned["skip_ratio"]),
            net_speedup=Estimate(**tuned["net_speedup"]),
            probe_share=tuned["probe_share"],
            gain=gain_of(tuned["gain"]),
            seconds_per_token=seconds,
            characters_per_second=characters_per_second(row.characters_per_token, seconds),
        )


def replayed_strategies(row: Row, found: Finished) -> Iterator[Strategy]:
    """One policy of the study's file, predicted; it is held against the study's floors (`floor_of`)."""
    replay = found.result["replay"]
    yield Strategy(
        **_where(row, found),
        family=found.cell.policy,
        policy=replay["policy"],
        kv=replay["kv"],
        floor="",
        basis="predicted",
        agreement=Estimate(**found.result["agreement"]),
        skip_ratio=Estimate(**found.result["skip_ratio"]),
        net_speedup=Estimate(**found.result["net_speedup"]),
        probe_share=replay["probe_share"],
        seconds_per_token=replay["seconds_per_token"],
        characters_per_second=characters_per_second(row.characters_per_token, replay["seconds_per_token"]),
        reachable=replay["reachable"],
        gain=gain_of(replay["gain"]),
    )


def floor_of(agreement: Estimate, floors: Sequence[float]) -> str:
    """The floor that a policy is held against which was chosen for none: the strictest that its agreement
    reaches, else the loosest, which it misses."""
    reached = [floor for floor in floors if agreement.value is not None and agreement.value >= floor]
    return floor_text(max(reached, default=min(floors)))


def decoded_strategies(row: Row, found: Finished) -> Iterator[Strategy]:
    """Plain decoding and the best policies of the league, for real; the league's fastest is its choice.

    Nothing if no policy of the league exits.
    """
    bench = found.result["bench"]
    if bench is None:
        return
    certified = "certify" in found.needs
    contenders = {contender["name"]: contender for contender in bench["contenders"]}
    result = from_json(BenchResult, bench)
    yield _plain_strategy(row, found, contenders[bench["plain"]])
    for place, choice in enumerate(found.result["chosen"]):
        timed = contenders[choice["contender"]]
        left_out = timed["left_out"]
        seconds = None if timed["seconds_per_token"] is None else timed["seconds_per_token"]["value"]
        quality = choice["free_running"]
        credit, over = credit_of(result, choice["contender"], choice["floor"])
        yield Strategy(
            **_where(row, found),
            family=choice["family"],
            policy=choice["policy"],
            kv=choice["kv"],
            floor=floor_text(choice["floor"]),
            basis="measured",
            agreement=interval_estimate(None if quality is None else quality["agreement"], "not judged"),
            skip_ratio=skipped(
                None if timed["counted"] is None else timed["counted"]["layers"], row.exits[-1]
            ),
            net_speedup=interval_estimate(timed["ratio"], left_out or "not timed"),
            seconds_per_token=seconds,
            characters_per_second=characters_per_second(choice["characters_per_token"], seconds),
            answer=answer_text(timed["answer"], timed["resolution"], bench["defects"], left_out),
            chosen=place == 0 or certified,
            gain=gain_of(timed["gain"]),
            credit=credit,
            credit_over=over,
        )


def credit_of(result: BenchResult, name: str, floor: float) -> tuple[Estimate, str]:
    """A contender's credit at a floor, and the name of what it is over.

    Undefined, with the reason, unless all that needs no exits took turns with it.
    """
    missing, credit = result.untimed_rivals, result.credit(name, floor)
    if missing:
        which = " and ".join(missing)
        return Estimate(None, undefined=f"not timed beside it: {which}"), ""
    if credit is None:
        return Estimate(None, undefined="its times on the prompts say nothing"), ""
    return Estimate(credit.value, credit.low, credit.high), credit.over


def _plain_strategy(row: Row, found: Finished, timed: Mapping[str, Any]) -> Strategy:
    """The full model, decoded by the fastest plain decoder of the measurement."""
    bench, seconds = found.result["bench"], timed["seconds_per_token"]["value"]
    return Strategy(
        **_where(row, found),
        family=FULL_MODEL,
        policy=NEVER,
        kv="",
        floor=floor_text(found.recipe["floor"]),
        basis="measured",
        agreement=Estimate(1.0, no_interval="by definition"),
        skip_ratio=Estimate(0.0, no_interval="by definition"),
        net_speedup=Estimate(1.0, no_interval="by definition"),
        seconds_per_token=seconds,
        characters_per_second=characters_per_second(found.result["characters_per_token"], seconds),
        answer=answer_text(timed["answer"], timed["resolution"], bench["defects"]),
    )


def measured_speedups(found: Finished, entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Net speedup that the stopwatch gives what the league chose, by floor and machine.

    Where it chose never to exit, 1: plain decoding saves nothing of its own time, and no stopwatch need say
    so. Else of the league's fastest policy that exits; nothing if the timing has a defect, or left it out.
    found: a decode cell. entries: of the league whose policies it decoded.
    """
    if "certify" in found.needs:
        return _of_verdicts(found)
    place = place_text(floor_text(found.recipe["floor"]), machine_of(found))
    if _chooses_never(entries, found.recipe["floor"]):
        return {place: 1.0}
    bench, choices = found.result["bench"], found.result["chosen"]
    if bench is None:
        return {}
    speedups = {contender["name"]: contender["ratio"] for contender in bench["contenders"]}
    fastest = speedups[choices[0]["contender"]] if choices else None
    if bench["defects"] or fastest is None:
        return {}
    return {place: fastest["value"]}


def _of_verdicts(found: Finished) -> dict[str, float]:
    """Net speedup of each floor's policy that was certified, or tried for a certificate."""
    bench = found.result["bench"]
    if bench is None or bench["defects"]:
        return {}
    speedups = {contender["name"]: contender["ratio"] for contender in bench["contenders"]}
    return {
        place_text(floor_text(choice["floor"]), machine_of(found)): speedups[choice["contender"]]["value"]
        for choice in found.result["chosen"]
        if speedups[choice["contender"]] is not None
    }


def _chooses_never(entries: Sequence[Mapping[str, Any]], floor: float) -> bool:
    """Whether the choice of a league at a floor is plain decoding; an empty league chose nothing."""
    return any(
        entry["chosen"] and entry["policy"] == NEVER and math.isclose(entry["floor"], floor)
        for entry in entries
    )


def machine_of(found: Finished) -> str:
    """The machine of a cell; what is timed is timed on this one."""
    return found.cell.machine or LOCAL


def _where(row: Row, found: Finished) -> dict[str, Any]:
    names = {"model": row.model.shown, "workload": row.workload, "heads": row.heads}
    return {**names, "machine": machine_of(found)}


STRATEGIES: Mapping[str, Callable[[Row, Finished], Iterator[Strategy]]] = {
    "league": league_strategies,
    "tune": tuned_strategies,
    "certify": tuned_strategies,
    "replay": replayed_strategies,
    "decode": decoded_strategies,
}
"""By the kind of task."""
