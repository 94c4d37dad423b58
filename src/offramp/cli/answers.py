"""What `offramp run` asks of one text: verdicts, league, tuned policies, other machines, break-even."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offramp.costs.hardware import find_machine
from offramp.costs.machine import Machine
from offramp.errors import InputError
from offramp.policies.policy_cost import prices_of, seconds_of
from offramp.report.formats import whole_percent
from offramp.report.ranking import fastest_exiting
from offramp.tracing.trace import Trace
from offramp.tuning.bounds import documents_needed
from offramp.tuning.break_even import BreakEven, break_even
from offramp.tuning.judging import Halves, halves_of, judge
from offramp.tuning.ranking import MachineAnswer, RankedPolicy, machine_answers, ranking
from offramp.tuning.splits import split_documents
from offramp.tuning.verdict import WORTH, Verdict
from offramp.workloads.workload import Workload

FLOORS = (0.99, 0.95, 0.90)

MAIN_FLOOR = 0.95

OTHER_MACHINES = ("h100", "l4")
"""Shown beside the machine at hand: a data-centre card and a small one."""

BATCHES = (1, 8, 32)

DELTA = 0.1
"""The chance that a headline is wrong: shared by the texts that it is about."""


BESIDE_CERTIFYING = 2
"""Documents that do not certify, at the least: one is searched on, and one reported."""


def require_documents(workloads: Sequence[Workload]) -> None:
    """Refuse texts on which no floor of a run could be certified, before anything is loaded.

    Raises InputError with how many documents there are, and how many are needed.
    """
    needed = {floor: documents_needed(1.0 - floor, DELTA) + BESIDE_CERTIFYING for floor in FLOORS}
    loosest = min(FLOORS)
    for workload in workloads:
        found = len(workload.documents)
        if found < needed[loosest]:
            listed = ", ".join(
                f"{count} for {whole_percent(floor)}" for floor, count in sorted(needed.items())
            )
            raise InputError(
                f"not enough documents: {workload.name} has {found}, and a floor on agreement needs more: "
                f"{listed}, even if nothing is lost on any of them",
                where=f"--workload {workload.name}",
                fix="give more texts (a text file is split into documents at its blank lines), or measure "
                "the layers alone: offramp trace, then offramp score",
            )


@dataclass(frozen=True)
class Answers:
    """The answers on one workload."""

    verdicts: tuple[Verdict, ...]
    league: tuple[RankedPolicy, ...] = ()
    machines: tuple[MachineAnswer, ...] = ()
    break_even: tuple[BreakEven, ...] = ()


def answers_of(trace: Trace, machine: Machine | None, worth: float = WORTH) -> Answers:
    """Every answer that the trace alone allows; speed is in bytes moved without a machine."""
    if not searchable(trace):
        return Answers(judge(trace, FLOORS, worth, machine=machine))
    # Searched once for all who choose, so that they cannot contradict each other.
    halves = halves_of(trace)
    verdicts = judge(trace, FLOORS, worth, machine=machine, halves=halves)
    entries = ranking(trace, machine, FLOORS, halves=halves)
    closest = fastest_exiting(entries)
    costs = prices_of(trace).bytes if machine is None else seconds_of(trace, machine)
    return Answers(
        verdicts=verdicts,
        league=entries,
        machines=_on_machines(trace, machine, halves, worth),
        break_even=break_even(trace, "never" if closest is None else closest.policy, costs),
    )


def searchable(trace: Trace) -> bool:
    """Whether a policy can be searched on some documents and judged on others."""
    return len(trace.exits) > 1 and len(split_documents(trace, 0)[0]) > 0


def _on_machines(
    trace: Trace, machine: Machine | None, halves: Halves, worth: float
) -> tuple[MachineAnswer, ...]:
    others = [find_machine(name) for name in OTHER_MACHINES if machine is None or name != machine.name]
    answers = machine_answers(trace, others, BATCHES, MAIN_FLOOR, worth=worth, halves=halves)
    if machine is None:
        return answers
    # A profile answers for the batch sizes it was timed at, and not far beyond.
    batches = getattr(machine, "batches", BATCHES)
    own = machine_answers(trace, [machine], batches, MAIN_FLOOR, worth=worth, halves=halves)
    return (*own, *answers)
