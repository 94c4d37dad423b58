"""What is known of each cell (a model on a text, on a machine, at a floor), of runs and comparisons alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from markupsafe import Markup

from offramp.defaults import WORTH
from offramp.display import ShownAsHtml
from offramp.policies.figures import NEVER
from offramp.report.formats import (
    counted,
    percent,
    times,
)
from offramp.report.html import fragment
from offramp.report.names import (
    FLOOR,
    MACHINE,
    TRACE,
    floor_order,
    floor_shown,
    line_name,
    machine_shown,
)
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.report.sections.strategies import (
    believed,
    fastest,
    floor_kept,
    replayed,
)
from offramp.report.table import NOTHING, Cell, Column, Table, attributes, estimated
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import (
    Comparison,
    Passed,
    Place,
    Row,
    StrategyResult,
)
from offramp.tuning.certificate import Candidate, Certificate
from offramp.tuning.floor import SHARES, Floor
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import INCONCLUSIVE, Decision, Speed, Verdict, decide, decision_of, from_main

OverallDecision = Decision | Literal["depends on the text", "undefined"]

Detail = TypeVar("Detail", Verdict, Tuned)
"""What a finding rests on: a run's verdict, or an answer of the tuner as a comparison keeps it."""


@dataclass(frozen=True)
class Finding(ShownAsHtml, Generic[Detail]):
    """One cell: what was found there, and how it is known."""

    at: Place
    floor: Floor
    decision: Decision
    policy: str
    """What was judged, with its `kv`: "never" if nothing is faster."""
    kv: str | None
    speed: Speed | None
    """By which it was decided, None if there is none."""
    predicted: Estimate
    """Net speed by replay or from prices."""
    measured: Estimate | None
    """By the stopwatch, None if the policy was not timed, or not so that it can be believed."""
    kept: Estimate | None
    """Share of the tokens that it generated itself which are the full model's choice, None if it was not
    executed."""
    certified: Passed
    """How its floor was shown to be kept, "" if it was not."""
    missed: bool
    """Whether it was decoded and kept less than the floor."""
    missing: tuple[str, ...]
    """What would settle it."""
    detail: Detail
    credit: Estimate | None = None
    """Over the best decoder without exits, as timed, by which a comparison decides; None of a policy that was
    not timed."""

    def to_dict(self) -> dict[str, Any]:
        """The finding as plain numbers and texts; None where something is not known."""
        speed = {} if self.speed is None else vars(self.speed)
        kept = self.kept or Estimate(None)
        return {
            "model": line_name(self.model, self.heads),
            "workload": self.workload,
            "machine": self.machine,
            "floor": str(self.floor),
            "decision": self.decision,
            "policy": self.policy,
            "kv": self.kv,
            "tried": None if self.tried is None else str(self.tried.policy),
            "tried_kv": None if self.tried is None else self.tried.kv,
            "certified": self.certified,
            **{f"speed_{name}": speed.get(name) for name in ("value", "low", "high", "how")},
            **{f"kept_{name}": getattr(kept, name) for name in ("value", "low", "high")},
            "missing": list(self.missing),
        }

    @property
    def tried(self) -> Candidate | None:
        """Where nothing is certified, the candidate that was decoded last: the speed is its own."""
        return self.detail.tried if isinstance(self.detail, Verdict) else None

    @property
    def model(self) -> str:
        """As shown, transforms included."""
        return self.at.model

    @property
    def heads(self) -> str:
        """What exits are read through, "" for the model's own head."""
        return self.at.heads

    @property
    def workload(self) -> str:
        """The text's name."""
        return self.at.workload

    @property
    def machine(self) -> str:
        """The machine's name, or "bytes moved"."""
        return self.at.machine

    @property
    def exits(self) -> bool:
        """Whether a policy that exits early is shown to keep the floor, at a speed that is known."""
        return self.certified != "" and self.policy != NEVER and self.predicted.value is not None

    @property
    def unknown(self) -> bool:
        """Whether it is open, and not even certified."""
        return self.decision == INCONCLUSIVE and not self.certified

    @property
    def timed(self) -> bool:
        """Whether the stopwatch decided it."""
        return self.speed is not None and self.speed.how == "measured"

    @property
    def speedup(self) -> float:
        """The speed that decides, below everything if there is none."""
        return float("-inf") if self.speed is None else self.speed.value

    @property
    def cell(self) -> tuple[str, str, str]:
        """Model, text and machine: it pays there if it does so at any floor."""
        return (line_name(self.model, self.heads), self.workload, self.machine)

    @property
    def place(self) -> str:
        """Where it holds: "smollm2 on prose, h100, at 95 % agreement"."""
        name, workload, machine = self.cell
        return f"{name} on {workload}, {machine_shown(machine)}, at {floor_shown(self.floor)}"


def finding_of_verdict(model: str, workload: str, verdict: Verdict) -> Finding[Verdict]:
    """A cell of a run: the verdict has been decided with what was executed and timed."""
    speed, decoding = verdict.speed, verdict.speed_of_tokens
    timed = decoding is not None and decoding.how == "measured"
    return Finding(
        at=Place(model, workload, heads="", machine=verdict.basis),
        floor=Floor("agreement", verdict.floor),
        decision=verdict.decision,
        policy=str(verdict.policy),
        kv=verdict.kv,
        speed=speed,
        predicted=verdict.net_speedup,
        measured=Estimate(decoding.value, decoding.low, decoding.high) if decoding and timed else None,
        kept=verdict.kept,
        certified=how_certified(verdict.certificate),
        missed=False,
        missing=verdict.missing,
        detail=verdict,
        credit=verdict.credit,
    )


def finding_of_answer(row: Row, answer: Tuned, measured: StrategyResult | None) -> Finding[Tuned]:
    """A cell of a comparison. measured: the same policy decoded in the same place, if it was.

    The study decided it. Of speeds, what was measured beats what was predicted, unless the policy missed its
    floor when it was decoded: that only shows that it is too slow.
    """
    missed = measured is not None and floor_kept(replace(measured, floor=answer.floor)) == "missed"
    speed = speed_of(answer.net_speedup, measured=False)
    if measured is not None:
        timed = speed_of(measured.net_speedup, measured=True)
        if not missed or decision_on(timed, certified=False) == "does not pay":
            speed = timed
    verdict = row.verdicts[answer.floor, answer.machine]
    return Finding(
        at=row.on(answer.machine),
        floor=answer.floor,
        decision=verdict.decision,
        policy=str(answer.policy),
        kv=answer.kv,
        speed=speed,
        predicted=answer.net_speedup,
        measured=None if measured is None else measured.net_speedup,
        kept=None if measured is None else measured.agreement,
        certified=how_certified(answer.certificate),
        missed=missed,
        missing=verdict.missing,
        detail=answer,
        credit=None if measured is None else measured.credit,
    )


def how_certified(certificate: Certificate | None) -> Passed:
    """How a floor was shown to be kept, "" if it was not."""
    if certificate is None or not certificate.holds:
        return ""
    return "executed" if certificate.executed else "replayed"


def speed_of(speedup: Estimate, *, measured: bool) -> Speed | None:
    """A net speedup as the rule reads it; a machine of a comparison is not at hand."""
    if speedup.value is None:
        return None
    how: Literal["measured", "predicted"] = "measured" if measured else "predicted"
    return Speed(speedup.value, speedup.low, speedup.high, how, machine="", at_hand=measured)


def decision_on(speed: Speed | None, *, certified: bool) -> Decision:
    """A decision on one policy by the rule of the verdict."""
    return decision_of(decide(worth=WORTH, credit=speed, certified=certified))


def main_verdict(workload: WorkloadResult) -> Verdict | None:
    """The verdict at the floor nearest to 95 % agreement, None if there is none."""
    return min(workload.verdicts, key=lambda verdict: from_main(verdict.floor), default=None)


def main_verdicts(run: RunResult) -> list[tuple[str, Verdict]]:
    """The main verdict of every text that has one, with the text's name."""
    verdicts = [(workload.name, main_verdict(workload)) for workload in run.workloads]
    return [(name, verdict) for name, verdict in verdicts if verdict is not None]


def main_findings(run: RunResult) -> list[Finding[Verdict]]:
    """What a run found at its main floor, for each text that could be judged."""
    return [finding_of_verdict(run.model_name, name, verdict) for name, verdict in main_verdicts(run)]


def findings_of(comparison: Comparison) -> list[Finding[Tuned]]:
    """Every answer of the tuner, with a measurement of its policy that may be believed."""
    measured = {
        (strategy.place, strategy.policy, strategy.kv): strategy
        for strategy in believed(comparison.strategies)
    }
    return [
        finding_of_answer(row, answer, measured.get((row.on(answer.machine), answer.policy, answer.kv)))
        for row in comparison.rows
        for answer in row.answers
    ]


def best_certified(findings: Sequence[Finding[Tuned]]) -> Finding[Tuned] | None:
    """The fastest policy that exits and is certified; one that surely pays before one that may."""
    exiting = [finding for finding in findings if finding.exits]
    paying = [finding for finding in exiting if finding.decision == "pays"]
    return max(paying or exiting, key=lambda finding: finding.speedup, default=None)


def cell_decisions(findings: Sequence[Finding[Tuned]]) -> dict[tuple[str, str, str], Decision]:
    """Whether it pays in each cell, at any of its floors.

    A policy that keeps a strict floor keeps a looser one: a floor at which nothing is certified stands open
    only where none looser was found not to pay.
    """
    by_cell: dict[tuple[str, str, str], list[Finding[Tuned]]] = {}
    for finding in findings:
        by_cell.setdefault(finding.cell, []).append(finding)
    return {cell: _cell_decision(here) for cell, here in by_cell.items()}


def _cell_decision(findings: Sequence[Finding[Tuned]]) -> Decision:
    refused = [finding.floor for finding in findings if finding.decision == "does not pay"]
    return _first(
        finding.decision
        for finding in findings
        if finding.certified or not any(_is_looser(floor, finding.floor) for floor in refused)
    )


def _first(decisions: Iterable[Decision]) -> Decision:
    """What several say together: that it pays anywhere, else what is open, else that it does not pay."""
    said = set(decisions)
    return next((decision for decision in ("pays", INCONCLUSIVE) if decision in said), "does not pay")


def _is_looser(floor: Floor, than: Floor) -> bool:
    """Whether a floor of the same kind allows more: a share the lower it is, a loss the higher."""
    if floor.kind != than.kind:
        return False
    return floor.value < than.value if floor.kind in SHARES else floor.value > than.value


def run_decision(run: RunResult) -> OverallDecision:
    """The decision that all texts of a run share, or that they differ."""
    decisions = {finding.decision for finding in main_findings(run)}
    if not decisions:
        return "undefined"
    return decisions.pop() if len(decisions) == 1 else "depends on the text"


def comparison_decision(comparison: Comparison) -> OverallDecision:
    """Whether early exit pays anywhere by what was certified, else whether the fastest is too slow."""
    if decisions := cell_decisions(findings_of(comparison)):
        return _first(decisions.values())
    best = fastest(believed(comparison.strategies)) or fastest(replayed(comparison.strategies))
    if best is None:
        return "undefined"
    return decision_on(speed_of(best.net_speedup, measured=best.basis == "measured"), certified=False)


@dataclass(frozen=True)
class JudgedFinding:
    """An answer in its row, with what was found of it."""

    row: Row
    finding: Finding[Tuned]


def judged(comparison: Comparison) -> list[JudgedFinding]:
    """Every answer of the tuner."""
    rows = [row for row in comparison.rows for _ in row.answers]
    return list(map(JudgedFinding, rows, findings_of(comparison)))


def _predicted_cell(judged: JudgedFinding) -> Cell:
    finding = judged.finding
    return estimated(finding.predicted, times) if finding.certified else Cell(NOTHING)


def _measured(judged: JudgedFinding) -> Estimate | None:
    return judged.finding.measured


def _policy_cell(judged: JudgedFinding) -> Cell:
    """The policy, what the tuner says, how it passed, and that it missed its floor when it was decoded."""
    finding = judged.finding
    missed = ""
    if finding.missed and finding.kept is not None:
        kept = percent(finding.kept.value or 0.0)
        missed = f"Decoded, it kept {kept} of the full model's tokens: less than the floor."
    passed = f"Passed: {passed_how(finding)}." if finding.exits else ""
    code = "" if finding.policy == NEVER else finding.policy
    said = (finding.detail.answer, missed, passed)
    return Cell(code=code, below=said, value=finding.policy)


def _verdict_cell(judged: JudgedFinding) -> Cell:
    return Cell(judged.finding.decision, tone=judged.finding.decision)


CERTIFIED: Table[JudgedFinding] = Table(
    (
        *(column.over(lambda judged: judged.row) for column in TRACE),
        MACHINE.over(lambda judged: judged.finding.machine),
        FLOOR.over(lambda judged: judged.finding.floor),
        Column("Verdict", _verdict_cell, key="answer"),
        Column("Net speed", _predicted_cell, times, key="speed", numeric=True, kind="predicted"),
        Column("Net speed", _measured, times, key="measured", numeric=True, kind="measured"),
        Column("Policy, and what the tuner says", _policy_cell, data=str, key="policy"),
        Column("", lambda judged: judged.finding.predicted, data=Estimate, key="net_speedup"),
        *attributes(str, "finding.detail.answer"),
        Column("", lambda judged: "; ".join(judged.finding.missing), data=str, key="missing"),
        Column("", lambda judged: judged.finding.detail.certificate.holds, data=bool, key="certified"),
        *attributes(bool, "finding.detail.certificate.executed"),
        *attributes(
            int, "finding.detail.certificate.documents", "finding.detail.certificate.documents_needed"
        ),
        Column("", lambda judged: judged.finding.detail.documents_in_all, data=int, key="documents_in_all"),
    ),
    caption="Answers of the tuner, the fastest first",
    name="certified",
    noun="answer",
)


def certified_section(comparison: Comparison) -> Markup:
    """Every answer of the tuner; nothing if nothing was tuned."""
    answers = judged(comparison)
    if not answers:
        return Markup()
    findings = [answer.finding for answer in answers]
    ranked = sorted(
        answers, key=lambda answer: (not answer.finding.exits, -(answer.finding.predicted.value or 0.0))
    )
    return fragment("comparison", "certified", by_floor(findings), CERTIFIED.html(ranked))


def by_floor(answers: Sequence[Finding[Tuned]]) -> list[str]:
    """How many answers at each floor exit, pay, or are open without a certificate, and what they miss."""
    said = []
    for floor in sorted(dict.fromkeys(finding.floor for finding in answers), key=floor_order):
        here = [finding for finding in answers if finding.floor == floor]
        exits = sum(finding.exits for finding in here)
        pays = sum(finding.decision == "pays" for finding in here)
        unknown = [finding for finding in here if finding.unknown]
        tail = f" {len(unknown)} open without a certificate; {lacking(unknown)}." if unknown else ""
        has = (
            f"{exits} of {counted(len(here), 'answer')} {'is' if exits == 1 else 'are'} a policy that exits "
            f"early, and {pays or 'none'} of these surely {'pays' if pays == 1 else 'pay'}."
            if exits
            else f"no policy that exits early passed, in {counted(len(here), 'answer')}."
        )
        said.append(f"{floor_shown(floor)}: {has}{tail}")
    return said


MOST_MISSING = 3
"""Things that verdicts miss which are named."""


def passed_how(finding: Finding[Tuned]) -> str:
    """What a policy passed its floor by: decoding, or a replay alone."""
    return "certified" if finding.certified == "executed" else "by a replay bound, nothing decoded"


def lacking(findings: Sequence[Finding[Tuned]]) -> str:
    """What these miss, the most frequent first, in how many of them if not in all."""
    counts = Counter(missing for finding in findings for missing in finding.missing)
    said = [
        missing if count == len(findings) else f"{missing} (in {count:,})"
        for missing, count in counts.most_common(MOST_MISSING)
    ]
    others = len(counts) - len(said)
    return "missing: " + "; ".join([*said, *([counted(others, "other thing")] if others else [])])
