"""What the ranking of families, the tuner and other machines answer, one line each, for page and terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from offramp.report.findings import HEADLINE_FLOOR
from offramp.report.formats import estimate_text, listed, percent, times, whole_percent
from offramp.report.run_result import WorkloadResult
from offramp.report.verdict_words import LOCAL, machine_name, short_certificate
from offramp.tuning.ranking import MachineAnswer, RankedPolicy
from offramp.tuning.verdict import Decision

DECISION_WORDS: dict[Decision, str] = {
    "pays": "yes",
    "does not pay": "no",
    "too close to call": "too close to call",
    "not enough documents": "not enough documents",
}


def nearest_floor(floors: Sequence[float]) -> float:
    """The floor nearest to 95 % agreement. Raises ValueError if there is none."""
    return min(floors, key=lambda floor: abs(floor - HEADLINE_FLOOR))


def families_at(entries: Sequence[RankedPolicy], floor: float) -> list[RankedPolicy]:
    """The families at one floor, the fastest first; those without a speed last."""
    found = [entry for entry in entries if entry.floor == floor]
    return sorted(found, key=lambda entry: (-family_speed(entry), entry.family))


def family_speed(entry: RankedPolicy) -> float:
    """The net speedup, below everything if undefined."""
    value = entry.net_speedup.value
    return float("-inf") if value is None else value


def best_of_league(workload: WorkloadResult) -> RankedPolicy | None:
    """The family that was chosen at the main floor, on documents that do not judge it; None without a league.

    The fastest reachable one where it was not kept which was chosen.
    """
    if not workload.league:
        return None
    floor = nearest_floor([entry.floor for entry in workload.league])
    able = [entry for entry in families_at(workload.league, floor) if entry.reachable]
    return next((entry for entry in able if entry.chosen), able[0] if able else None)


def exits_early(entry: RankedPolicy) -> bool:
    """Whether its policy leaves layers out: plain decoding with a smaller head does not."""
    return entry.policy != "never" and not entry.full_depth


def fastest_exiting(entries: Sequence[RankedPolicy]) -> RankedPolicy | None:
    """The fastest reachable policy at the main floor that exits at all; None if there is none."""
    if not entries:
        return None
    floor = nearest_floor([entry.floor for entry in entries])
    able = [entry for entry in families_at(entries, floor) if entry.reachable and exits_early(entry)]
    return able[0] if able else None


def league_answer(workload: WorkloadResult) -> str | None:
    """The best family in one line, None without a league."""
    entry = best_of_league(workload)
    return None if entry is None else league_words(entry)


def league_words(entry: RankedPolicy) -> str:
    """One family in a few words."""
    floor = whole_percent(entry.floor)
    if entry.policy == "never":
        return f"nothing beats plain decoding at {floor} agreement"
    if entry.net_speedup.value is None:
        return f"no speed at {floor} agreement: {entry.net_speedup.undefined or 'no reason recorded'}"
    return (
        f"{entry.family}, {estimate_text(entry.net_speedup, times)} at {floor} agreement, "
        f"probes are {percent(entry.probe_share)} of its cost"
    )


def certificate_answer(workload: WorkloadResult) -> str | None:
    """What is certified, floor by floor, None if nothing was tuned."""
    return "; ".join(short_certificate(tuned) for tuned in workload.tuned) or None


def machines_answer(workload: WorkloadResult) -> str | None:
    """Whether it would pay on this machine and where else, in few words; None if not asked."""
    if not workload.machines:
        return None
    answers = answers_at_main_floor(workload.machines)
    own = [answer for answer in answers if answer.machine == LOCAL]
    others = [answer for answer in answers if answer.machine != LOCAL]
    parts = [f"on this machine {batch_words(own)}"] if own else []
    open_first: tuple[Decision, ...] = ("pays", "too close to call")
    for decision in open_first:
        batches: dict[str, list[str]] = {}
        for answer in others:
            if answer.decision == decision:
                batches.setdefault(answer.machine, []).append(str(answer.batch))
        if batches:
            parts.append(f"{DECISION_WORDS[decision]} on {places(batches)}")
            break
    else:
        if others:
            parts.append(f"no on {listed(list(dict.fromkeys(answer.machine for answer in others)))}")
    return "; ".join(parts)


def places(batches: Mapping[str, Sequence[str]]) -> str:
    """Machines with their batch sizes, those with the same ones together: "a100 and h100 at batch 1"."""
    groups: dict[str, list[str]] = {}
    for machine, sizes in batches.items():
        groups.setdefault(listed(list(sizes)), []).append(machine)
    return ", ".join(f"{listed(machines)} at batch {sizes}" for sizes, machines in groups.items())


def answers_at_main_floor(answers: Sequence[MachineAnswer]) -> list[MachineAnswer]:
    """The answers at the floor nearest to 95 %, in their order."""
    floor = nearest_floor([answer.floor for answer in answers])
    return [answer for answer in answers if answer.floor == floor]


def machines_sentence(answers: Sequence[MachineAnswer]) -> str:
    """ "on this machine no; on h100 yes at batch 1, no at batch 8 and 32": at the main floor."""
    by_machine: dict[str, list[MachineAnswer]] = {}
    for answer in answers_at_main_floor(answers):
        by_machine.setdefault(answer.machine, []).append(answer)
    return "; ".join(
        f"on {machine_name(machine)} {batch_words(found)}" for machine, found in by_machine.items()
    )


def batch_words(answers: Sequence[MachineAnswer]) -> str:
    """The decisions of one machine by batch size; one word if they are all the same."""
    by_decision: dict[Decision, list[str]] = {}
    for answer in answers:
        by_decision.setdefault(answer.decision, []).append(str(answer.batch))
    if len(by_decision) == 1:
        return DECISION_WORDS[answers[0].decision]
    return ", ".join(
        f"{DECISION_WORDS[decision]} at batch {listed(batches)}" for decision, batches in by_decision.items()
    )
