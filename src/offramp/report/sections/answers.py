"""The tuner's answers of a comparison, each held against its floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from offramp.policies.figures import NEVER
from offramp.report.comparison_words import lacking, passed_how
from offramp.report.findings import Finding, findings_of
from offramp.report.formats import counted, percent, times
from offramp.report.html import fragment
from offramp.report.names import floor_order, floor_shown
from offramp.report.places import FLOOR, MACHINE, TRACE
from offramp.report.table import NOTHING, Cell, Column, Table, attributes, estimated
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, Row, documents_in_all
from offramp.tuning.tuned import Tuned


@dataclass(frozen=True)
class Judged:
    """An answer in its row, with what was found of it."""

    row: Row
    finding: Finding[Tuned]


def judged(comparison: Comparison) -> list[Judged]:
    """Every answer of the tuner."""
    rows = [row for row in comparison.rows for _ in row.answers]
    return list(map(Judged, rows, findings_of(comparison)))


def _predicted_cell(judged: Judged) -> Cell:
    finding = judged.finding
    return estimated(finding.predicted, times) if finding.certified else Cell(NOTHING)


def _measured(judged: Judged) -> Estimate | None:
    return judged.finding.measured


def _policy_cell(judged: Judged) -> Cell:
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


def _verdict_cell(judged: Judged) -> Cell:
    return Cell(judged.finding.decision, tone=judged.finding.decision)


CERTIFIED: Table[Judged] = Table(
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
        Column("", lambda judged: documents_in_all(judged.finding.detail), data=int, key="documents_in_all"),
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
    findings = [one.finding for one in answers]
    ranked = sorted(answers, key=lambda one: (not one.finding.exits, -(one.finding.predicted.value or 0.0)))
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
