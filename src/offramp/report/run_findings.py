"""What a run found, for a program: findings as plain values, where the page lies, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offramp.commands import RunCall, number_text
from offramp.display import ShownAsHtml
from offramp.files import safe_name
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.short_names import short_name
from offramp.report import POLICIES
from offramp.report.answer_words import headline
from offramp.report.findings import (
    Finding,
    OverallDecision,
    finding_of_verdict,
    main_findings,
    main_verdicts,
    run_decision,
)
from offramp.report.formats import counted, listed, percent, whole_percent
from offramp.report.run_reading import NOT_ASKED
from offramp.report.run_result import RunResult
from offramp.timing.accelerations import JOINED
from offramp.timing.baselines import QUANTISATIONS
from offramp.tracing.request import DEFAULT_TOKENS
from offramp.tuning.verdict import Verdict, from_main

MORE = 4.0
"""So many times the minutes that a run took are asked for where these did not settle it."""
MOST_MINUTES = 60.0
LOOSER = (0.9, 0.8)
"""Floors that are proposed in the place of stricter ones."""
MANY_DOCUMENTS = ("prose:short", "code:short", "math:short")
"""Texts that come with offramp, of enough short documents for any usual floor."""

TRAINED = (
    "What training brings is not predicted; docs/results/training.md has what it brought smollm2 in minutes."
)


@dataclass(frozen=True)
class NextStep:
    """What to do next."""

    reason: str
    command: str
    expected: str
    """What it may bring; "" where that is known already."""
    then: str = ""
    """The command after it, if it takes two."""


def next_step(run: RunResult) -> NextStep | None:
    """The next step of a finished run; None where nothing was judged, or nothing is left to try.

    Decode with what pays; else settle what is open, by more time or more text; else try exits that are
    trained.
    """
    findings = main_findings(run)
    call = run.call
    if run.progress is not None or call is None or not findings:
        return None
    paying = [finding for finding in findings if finding.decision == "pays"]
    if paying:
        best = max(paying, key=lambda finding: finding.speedup)
        policy = Path(run.folder) / POLICIES / policy_file(best.workload, best.detail.floor)
        return NextStep(
            f"Decode with what pays on {best.workload}: {short_name(best.policy)}.",
            call.on_model("generate", policy=policy, prompt="TEXT"),
            "",
        )
    return _decoding(run, call) or _more_text(run, call) or _quantised(run, call) or _trained_exits(run, call)


def policy_file(workload: str, floor: float) -> str:
    """The name of the file that holds what was tuned for a text at a floor."""
    return f"{safe_name(workload)}-tuned-{number_text(floor)}.json"


def _decoding(run: RunResult, call: RunCall) -> NextStep | None:
    """The same command, decoding if it did not, else with more minutes, where time is what is missing."""
    still_open = [
        (workload.name, verdict)
        for workload in run.workloads
        for verdict in workload.verdicts
        if verdict.lack is not None and verdict.lack != "data"
    ]
    if not still_open:
        return None
    name, first = min(still_open, key=lambda one: from_main(one[1].floor))
    where = f"{name} at {whole_percent(first.floor)} is {first.decision}"
    total = counted(sum(len(workload.verdicts) for workload in run.workloads), "answer")
    settles = f"{len(still_open)} of {total} may be settled."
    if NOT_ASKED in run.not_decoded.values():
        return NextStep(f"Decode for real: {where} by replay alone.", call.again(no_decode=None), settles)
    minutes = 0.0 if run.minutes is None else min(MOST_MINUTES, float(math.ceil(MORE * run.minutes)))
    if run.minutes is None or minutes <= run.minutes:
        return None
    missing = f"; missing: {listed(list(first.missing))}" if first.missing else ""
    return NextStep(
        f"Give it more time: {where}{missing}.",
        call.again(minutes=minutes),
        f"It goes on from what was decoded; {settles}",
    )


def _more_text(run: RunResult, call: RunCall) -> NextStep | None:
    """More of the text where too little was traced to judge it, or a looser floor than any that was asked for
    if its documents could certify that; else a text of more documents."""
    few = [finding for finding in main_findings(run) if finding.detail.lack == "data"]
    if not few:
        return None
    text, verdict = few[0].workload, few[0].detail
    floor, needed, certificate = whole_percent(verdict.floor), verdict.documents_needed, verdict.certificate
    if certificate is None and int(call.options.get("tokens", DEFAULT_TOKENS)) < DEFAULT_TOKENS:
        return NextStep(
            f"Trace more text: {floor} on {text} cannot be judged, since {verdict.reason}.",
            call.again(tokens=None, document_tokens=None, output=None),
            "",
        )
    at_hand, best = (0, 0.0) if certificate is None else (certificate.documents, certificate.best_floor)
    why = f"needs {counted(needed, 'document')} that lose nothing, and {at_hand:,} are at hand"
    if at_hand >= needed:
        why = f"is still open after all {counted(at_hand, 'document')} at hand"
    asked = min(judged.floor for workload in run.workloads for judged in workload.verdicts)
    looser = next((floor for floor in LOOSER if floor < asked and floor <= best), None)
    if looser is not None:
        return NextStep(
            f"Ask for less, or bring more text: {floor} on {text} {why}.",
            call.again(floor=[looser], output=None),
            "",
        )
    known = {workload.name for workload in run.workloads}
    other = next((name for name in MANY_DOCUMENTS if name not in known), None)
    if other is None:
        return None
    return NextStep(
        f"Bring more text, here one of many documents: {floor} on {text} {why}.",
        call.again(workload=[other], output=None),
        "",
    )


def _quantised(run: RunResult, call: RunCall) -> NextStep | None:
    """The same of the model in few bits, where that alone is faster than what was tried."""
    findings = main_findings(run)
    name, *others = {finding.detail.without.partition(JOINED)[0] for finding in findings}
    refused = all(finding.decision == "does not pay" for finding in findings)
    if not refused or others or name not in QUANTISATIONS or call.model is None:
        return None
    return NextStep(
        f"Ask the same of the model in few bits: {name} alone is the best baseline, and exits may add to it.",
        call.again(transform=[name], heads=None, output=None),
        "",
    )


def _trained_exits(run: RunResult, call: RunCall) -> NextStep | None:
    """Exits that are trained, where those that the model comes with were refused."""
    refused = all(finding.decision == "does not pay" for finding in main_findings(run))
    if not refused or run.training is not None or run.layers < 4 or call.model is None:
        return None
    workload = max(run.workloads, key=lambda one: one.card.representation.value or 0.0)
    exits = sorted({run.layers // 2, run.layers * 2 // 3})
    known = [
        f"{percent(float(workload.trace.agreement[:, place].mean()))} at exit {exit}"
        for place, exit in enumerate(workload.trace.exits.tolist())
        if exit in exits
    ]
    now = f": they agree with the full model on {listed(known)} of {workload.name}" if known else ""
    return NextStep(
        f"Train exits: read through the model's own head, the middle layers say too little{now}.",
        call.on_model(
            "exits train",
            workload=workload.name,
            at=",".join(map(str, exits)),
            output="exits",
        ),
        TRAINED,
        call.again(exits=None, heads="exits", output=None),  # which they bring
    )


def recommended_file(folder: Path, workload: str, verdict: Verdict) -> Path | None:
    """Where a run's folder has the policy that a verdict recommends; None where plain decoding stays."""
    speed = verdict.speed
    slower = verdict.decision == "does not pay" or speed is None or speed.value <= 1.0
    if not verdict.certified or verdict.policy == PLAIN_DECODING or slower:
        return None
    return folder / POLICIES / policy_file(workload, verdict.floor)


@dataclass(frozen=True, repr=False)
class Findings(ShownAsHtml):
    """What `offramp.run` found: iterate over it for the finding at every text and floor."""

    result: RunResult = field(repr=False)
    """Everything that the page shows."""
    folder: Path
    """Of the run, a study of one model."""
    report: Path
    """Its page."""
    summary: Mapping[str, Any] = field(repr=False)
    """What its summary.json holds."""

    @property
    def decision(self) -> OverallDecision:
        """The decision at the main floor that all texts share, or that it depends on the text."""
        return run_decision(self.result)

    @property
    def headline(self) -> str:
        """The answer in a sentence or two."""
        return headline(self.result)

    @property
    def main(self) -> tuple[Finding[Verdict], ...]:
        """The finding at the main floor of every text that could be judged."""
        return tuple(main_findings(self.result))

    @property
    def recommended(self) -> dict[str, Path | None]:
        """By text, the policy to decode with at the main floor, as `offramp.generate(policy=...)` takes it.

        None where plain decoding stays: nothing is certified, or what is was timed and not found faster.
        """
        return {name: recommended_file(self.folder, name, one) for name, one in main_verdicts(self.result)}

    def __iter__(self) -> Iterator[Finding[Verdict]]:
        for workload in self.result.workloads:
            for verdict in workload.verdicts:
                yield finding_of_verdict(self.result.model_name, workload.name, verdict)

    def __len__(self) -> int:
        return sum(len(workload.verdicts) for workload in self.result.workloads)

    def __repr__(self) -> str:
        return f"Findings({self.decision}: {self.headline} Report: {self.report})"

    def to_dicts(self) -> list[dict[str, Any]]:
        """Every finding as plain numbers and texts (see `Finding.to_dict`)."""
        return [finding.to_dict() for finding in self]
