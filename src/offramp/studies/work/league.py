"""The ranking of policies on a trace and a machine, and the verdicts at the study's floors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from offramp.costs.machine import Machine
from offramp.costs.machine_registry import find_machine
from offramp.defaults import BYTES, FLOORS, MAIN_FLOOR, SEED, WORTH
from offramp.kit.numbers import NotNegative, Number, Whole
from offramp.studies.work.inputs import PricedWork, trace_of
from offramp.studies.work.work import WorkContext
from offramp.tracing.trace import Trace
from offramp.tuning.break_even import BreakEven
from offramp.tuning.ranking import MachineAnswer, RankedPolicy
from offramp.tuning.replayed_verdicts import Halves
from offramp.tuning.verdict import Verdict, from_main

if TYPE_CHECKING:
    from offramp.studies.task import TaskCost
    from offramp.studies.task_costs import Sizes

SECONDS_PER_FACT = 5e-5
OTHER_MACHINES = ("h100", "l4")
"""Shown beside the machine at hand: a data-centre card and a small one."""
BATCHES = (1, 32)


@dataclass(frozen=True)
class Ranking:
    """Every family's best member, and the verdicts by replay, per floor."""

    machine: str
    machine_source: str
    floors: tuple[Number, ...]
    entries: tuple[RankedPolicy, ...]
    verdicts: tuple[Verdict, ...]
    why_empty: str | None
    """None where something is."""
    machines: tuple[MachineAnswer, ...] = ()
    """The best policy on other machines and batch sizes, where details were asked for."""
    break_even: tuple[BreakEven, ...] = ()
    """What would have to change for a policy to pay, where details were asked for."""


@dataclass(frozen=True, kw_only=True)
class LeagueWork(PricedWork[Ranking]):
    """Ranks policies. Needs no model."""

    kind = "league"

    floors: tuple[Number, ...] = FLOORS
    worth: NotNegative = WORTH
    details: bool = False
    """Whether for other machines too, and what would have to change."""
    seed: Whole = SEED

    def cost(self, sizes: Sizes) -> TaskCost:
        """It reads its trace once for each floor."""
        return sizes.reading_a_trace(SECONDS_PER_FACT, rounds=len(self.floors))

    def run(self, context: WorkContext) -> Ranking:
        """Search and judge; a trace too small for that gives a result that says so.

        Raises what `offramp.tuning` raises, OfframpError for a machine that is not the recipe's.
        """
        trace, machine = trace_of(context, self.trace), self.machine_used(context)
        return ranking_of(trace, machine, self.floors, self.worth, self.seed, details=self.details)


def ranking_of(
    trace: Trace,
    machine: Machine | None,
    floors: tuple[float, ...],
    worth: float,
    seed: int,
    *,
    details: bool = False,
) -> Ranking:
    """Everything that the trace alone allows; speed is in bytes moved without a machine."""
    from offramp.policies.prices import costs_of
    from offramp.policies.whole_request import request_of
    from offramp.tracing.progress import say
    from offramp.tuning.break_even import break_even
    from offramp.tuning.ranking import ranking
    from offramp.tuning.replayed_verdicts import halves_of, judge
    from offramp.tuning.verdict_words import ceiling_line, refusal_words

    why, request = why_not_halved(trace, seed), request_of(trace, machine)
    if request is not None:
        say(ceiling_line(request, worth))
        why = refusal_words(request, worth) or why
    # Searched once for all who choose, so that they cannot contradict each other.
    halves = halves_of(trace, seed) if why is None else None
    verdicts = judge(trace, floors, worth, seed=seed, machine=machine, halves=halves)
    entries = () if halves is None else ranking(trace, machine, floors, seed, halves=halves)
    name, source = (BYTES, "") if machine is None else (machine.name, machine.source)
    plain = Ranking(name, source, floors, entries, verdicts, why)
    if not details or halves is None:
        return plain
    closest = fastest_exiting(entries)
    costs = costs_of(trace, "bytes") if machine is None else costs_of(trace, machine)
    broken_even = break_even(trace, "never" if closest is None else closest.policy, costs)
    answers = _on_machines(trace, machine, halves, worth)
    return Ranking(name, source, floors, entries, verdicts, why, answers, broken_even)


def fastest_exiting(entries: Sequence[RankedPolicy]) -> RankedPolicy | None:
    """The fastest policy at the main floor that leaves layers out and that a decoder can follow, if any."""
    floor = min((entry.floor for entry in entries), key=from_main, default=None)
    able = [entry for entry in entries if entry.floor == floor and entry.reachable and entry.exits_early]
    return min(able, key=lambda entry: (-(entry.net_speedup.value or -math.inf), entry.family), default=None)


def _on_machines(
    trace: Trace, machine: Machine | None, halves: Halves, worth: float
) -> tuple[MachineAnswer, ...]:
    from offramp.tuning.ranking import machine_answers

    others = [find_machine(name) for name in OTHER_MACHINES if machine is None or name != machine.name]
    answers = machine_answers(trace, others, BATCHES, MAIN_FLOOR, worth=worth, halves=halves)
    if machine is None:
        return answers
    # A profile answers for the batch sizes it was timed at, and not far beyond.
    batches = getattr(machine, "batches", BATCHES)
    own = machine_answers(trace, [machine], batches, MAIN_FLOOR, worth=worth, halves=halves)
    return (*own, *answers)


def why_not_halved(trace: Trace, seed: int) -> str | None:
    """Why no policy can be chosen on one half of the documents and judged on the other; None if one can."""
    from offramp.tuning.splits import split_documents

    if len(trace.exits) < 2:
        return "the trace holds no exit before the last: there is no policy to search"
    if not len(split_documents(trace, seed)[0]):
        return "one document cannot both choose policies and judge them: trace at least 40 documents"
    return None
