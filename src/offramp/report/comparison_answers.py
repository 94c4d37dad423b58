"""Whether early exit pays in each cell of a comparison, and which strategies count for that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from offramp.report.comparison_words import SHARE_FLOORS, floor_shown, machine_shown, row_name
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.content import DEFECT
from offramp.studies.comparison.results import Comparison, Row, Saving, Strategy
from offramp.tuning.verdict import WORTH, Decision, Speed, decide

NEVER = "never"
NOT_CERTIFIABLE = "not certifiable"


@dataclass(frozen=True)
class Answer:
    """One row's answer of the tuner. measured: the same policy decoded in the same place, if it was."""

    row: Row
    saving: Saving
    measured: Strategy | None = None

    @property
    def decision(self) -> str:
        """Whether it pays: not where nothing faster was found, open where nothing could be certified.

        By the one rule (`offramp.tuning.verdict.decide`): it pays only if what was decoded is certified, and
        a replay bound never says so. What was measured beats what was predicted. A policy that missed its
        floor when decoded does not pay for sure, whatever its certificate says.
        """
        if self.saving.lacks:
            return NOT_CERTIFIABLE
        if not self.saving.certified or self.saving.policy == NEVER:
            return "does not pay"
        certified = self.saving.executed and not self.missed
        return decision_on(self.net_speedup, certified=certified, measured=self.timed is not None)

    @property
    def missed(self) -> bool:
        """Whether the policy was decoded and kept less than this floor."""
        return self.measured is not None and _missed(self.measured, self.saving.floor)

    @property
    def timed(self) -> Strategy | None:
        """The measurement that answers. One that missed the floor only shows that the policy is too slow."""
        if self.measured is None or not self.missed:
            return self.measured
        slow = decision_on(self.measured.net_speedup, certified=False, measured=True) == "does not pay"
        return self.measured if slow else None

    @property
    def net_speedup(self) -> Estimate:
        """As measured where that answers, else as predicted."""
        return (self.timed or self.saving).net_speedup

    @property
    def exits(self) -> bool:
        """Whether a policy that exits early is certified."""
        return (
            self.saving.certified
            and self.saving.policy != NEVER
            and self.saving.net_speedup.value is not None
        )

    @property
    def place(self) -> str:
        """Where it holds: "smollm2 on prose, h100, at 95 % agreement"."""
        where = f"{row_name(self.row)} on {self.row.workload}, {machine_shown(self.saving.machine)}"
        return f"{where}, at {floor_shown(self.saving.floor)}"

    @property
    def cell(self) -> tuple[str, str, str]:
        """Row and machine: a cell pays if it does so at any floor."""
        return (row_name(self.row), self.row.workload, self.saving.machine)


def decision_on(speedup: Estimate, *, certified: bool, measured: bool) -> Decision:
    """A decision on one policy by the rule of the verdict. A machine of a comparison is not at hand."""
    speed = None
    if speedup.value is not None:
        how: Literal["measured", "predicted"] = "measured" if measured else "predicted"
        speed = Speed(speedup.value, speedup.low, speedup.high, how, machine="", at_hand=measured)
    return decide(worth=WORTH, speed=speed, certified=certified, refuted=False)


def cell_decisions(answers: Iterable[Answer]) -> dict[tuple[str, str, str], str]:
    """Whether it pays in each cell, at any of its floors.

    A policy that keeps a strict floor keeps a looser one: a floor that could not be certified stands open
    only where none looser was found not to pay.
    """
    by_cell: dict[tuple[str, str, str], list[Answer]] = {}
    for answer in answers:
        by_cell.setdefault(answer.cell, []).append(answer)
    return {cell: _cell_decision(here) for cell, here in by_cell.items()}


def paying_cells(answers: Iterable[Answer]) -> tuple[int, int]:
    """In how many cells it pays: as measured at any floor, and as predicted alone."""
    paying = [answer for answer in answers if answer.decision == "pays"]
    timed = {answer.cell for answer in paying if answer.timed is not None}
    return len(timed), len({answer.cell for answer in paying} - timed)


def _cell_decision(answers: Sequence[Answer]) -> str:
    for decision in ("pays", "too close to call"):
        if any(answer.decision == decision for answer in answers):
            return decision
    refused, unknown = (
        [answer.saving.floor for answer in answers if answer.decision == decision]
        for decision in ("does not pay", NOT_CERTIFIABLE)
    )
    settled = all(any(_is_looser(floor, than) for floor in refused) for than in unknown)
    return "does not pay" if settled else NOT_CERTIFIABLE


def _is_looser(floor: str, than: str) -> bool:
    """Whether a floor of the same kind allows more."""
    (kind, _, value), (other, _, limit) = floor.partition("="), than.partition("=")
    if kind != other:
        return False
    return float(value) < float(limit) if kind in SHARE_FLOORS else float(value) > float(limit)


def answers_of(comparison: Comparison) -> list[Answer]:
    """Every answer of the tuner, with a measurement of its policy that may be believed."""
    measured = {
        (one.model, one.workload, one.heads, one.machine, one.policy, one.kv): one
        for one in believed(comparison.strategies)
    }
    return [
        Answer(row, one, measured.get((*_place(row), one.machine, one.policy, one.kv)))
        for row in comparison.rows
        for one in row.savings
    ]


def _place(row: Row) -> tuple[str, str, str]:
    return row.model.shown, row.workload, row.heads


def best_certified(comparison: Comparison) -> Answer | None:
    """The fastest policy that exits and is certified; one that surely pays before one that may."""
    found = [answer for answer in answers_of(comparison) if answer.exits]
    paying = [answer for answer in found if answer.decision == "pays"]
    return max(paying or found, key=lambda answer: answer.net_speedup.value or 0.0, default=None)


def fastest(strategies: Iterable[Strategy]) -> Strategy | None:
    """The fastest of those that exit, can be followed and keep a floor; speed alone is no answer.

    One that reaches its floor comes before one that may have missed it by chance.
    """
    known = [
        one
        for one in strategies
        if one.reachable and one.net_speedup.value is not None and one.policy != NEVER and keeps_floor(one)
    ]
    return max(known, key=lambda one: (floor_kept(one) == "kept", one.net_speedup.value or 0.0), default=None)


FLOORS_KEPT = ("kept", "perhaps", "not asked", "missed")
"""How a strategy may stand to its floor, the best first."""


def floor_kept(one: Strategy) -> str:
    """How a strategy stands to its floor, of `FLOORS_KEPT`.

    "perhaps": agreement is below it, but its interval is not, or agreement is not known. Without an interval
    agreement itself must reach the floor. Floors of another kind were checked where the strategy was chosen.
    """
    kind, _, value = one.floor.partition("=")
    agreement = one.agreement
    if not one.floor:
        return "not asked"
    if kind != "agreement":
        return "kept"
    if agreement.value is None:
        return "perhaps"
    if agreement.value >= float(value):
        return "kept"
    return "perhaps" if agreement.high is not None and agreement.high >= float(value) else "missed"


def _missed(one: Strategy, floor: str) -> bool:
    """Whether a strategy misses a floor, be it its own or another."""
    return floor_kept(replace(one, floor=floor)) == "missed"


def keeps_floor(one: Strategy) -> bool:
    """Whether a floor was asked for, and the interval of agreement does not lie wholly below it."""
    return floor_kept(one) in ("kept", "perhaps")


def believed(strategies: Sequence[Strategy]) -> list[Strategy]:
    """What was measured in decoding, without a defect."""
    return [
        one
        for one in strategies
        if one.basis == "measured" and not has_defect(one) and one.net_speedup.value is not None
    ]


def decoded(strategies: Sequence[Strategy]) -> list[Strategy]:
    """Policies that were decoded for real, with a defect or without; plain decoding is none."""
    return [one for one in strategies if one.basis == "measured" and one.policy != NEVER]


def why_no_answer(strategies: Sequence[Strategy]) -> str:
    """How many of the policies decoded for real are no answer, and why: "3 below their floor"."""
    all_decoded = decoded(strategies)
    known = believed(all_decoded)
    broken = sum(map(has_defect, all_decoded))
    missed = sum(floor_kept(one) == "missed" for one in known)
    silent = len(all_decoded) - broken - len(known)
    reasons = {"with a defect": broken, "below their floor": missed, "without a speed": silent}
    return ", ".join(f"{count:,} {why}" for why, count in reasons.items() if count)


def has_defect(one: Strategy) -> bool:
    """Whether something is wrong with a timing."""
    return one.answer.startswith(DEFECT)


def replayed(strategies: Sequence[Strategy]) -> list[Strategy]:
    """What was predicted by replay."""
    return [one for one in strategies if one.basis == "predicted"]


def overall_decision(comparison: Comparison) -> str:
    """Whether early exit pays anywhere by what was certified, else whether the fastest is too slow."""
    decisions = set(cell_decisions(answers_of(comparison)).values())
    if decisions:
        order = ("pays", "too close to call", NOT_CERTIFIABLE, "does not pay")
        return next(decision for decision in order if decision in decisions)
    found = fastest(believed(comparison.strategies)) or fastest(replayed(comparison.strategies))
    if found is None:
        return "undefined"
    return decision_on(found.net_speedup, certified=False, measured=found.basis == "measured")
