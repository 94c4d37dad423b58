"""The next step of a run: the command that would most probably change its answer, and what it may bring."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from offramp.commands import command_line
from offramp.files import safe_name
from offramp.policies.short_names import short_name
from offramp.report import POLICIES
from offramp.report.findings import main_findings
from offramp.report.formats import counted, listed, percent, whole_percent
from offramp.report.run_result import RunResult
from offramp.tuning.verdict import OPEN, TOO_FEW, from_main

MORE = 4.0
"""So many times the minutes that a run took are asked for where these did not settle it."""
MOST_MINUTES = 60.0

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
    found = main_findings(run)
    if run.progress is not None or not found:
        return None
    paying = [one for one in found if one.decision == "pays"]
    if paying:
        best = max(paying, key=lambda one: one.speedup)
        policy = Path(run.folder) / POLICIES / policy_file(best.workload, best.detail.floor)
        return NextStep(
            f"Decode with what pays on {best.workload}: {short_name(best.policy)}.",
            command_line("generate", *run.model_argument, policy=policy, prompt="TEXT"),
            "",
        )
    return _more_time(run) or _more_text(run) or _trained_exits(run)


def policy_file(workload: str, floor: float) -> str:
    """The name of the file that holds what was tuned for a text at a floor."""
    return f"{safe_name(workload)}-tuned-{floor:g}.json"


def with_option(command: str, name: str, value: str) -> str:
    """A command of a run with one option more; of a call of Python with one keyword more."""
    if command.startswith("offramp.run("):
        return f"{command.removesuffix(')')}, {name}={value})"
    return f"{command} --{name} {value}"


def _more_time(run: RunResult) -> NextStep | None:
    """The same command with more minutes, where time is what is missing."""
    still_open = [
        (workload.name, verdict)
        for workload in run.workloads
        for verdict in workload.verdicts
        if verdict.decision in OPEN and verdict.decision != TOO_FEW
    ]
    if not still_open or not run.minutes:
        return None
    minutes = min(MOST_MINUTES, float(math.ceil(MORE * run.minutes)))
    if minutes <= run.minutes:
        return None
    name, first = min(still_open, key=lambda one: from_main(one[1].floor))
    total = sum(len(workload.verdicts) for workload in run.workloads)
    missing = f"; missing: {listed(list(first.missing))}" if first.missing else ""
    return NextStep(
        f"Give it more time: {name} at {whole_percent(first.floor)} is {first.decision}{missing}.",
        with_option(run.command, "minutes", f"{minutes:g}"),
        f"It goes on from what was decoded; {len(still_open)} of {counted(total, 'answer')} may be settled.",
    )


def _more_text(run: RunResult) -> NextStep | None:
    """A looser floor, where documents are too few for the main one."""
    few = [one for one in main_findings(run) if one.decision == TOO_FEW]
    if not few:
        return None
    first = few[0].detail
    loosest = 0.9 if first.floor > 0.9 else 0.8
    at_hand = 0 if first.certificate is None else first.certificate.documents
    return NextStep(
        f"Ask for less, or bring more text: {whole_percent(first.floor)} on {few[0].workload} needs "
        f"{counted(first.documents_needed, 'document')} that lose nothing, and {at_hand:,} are at hand.",
        with_option(run.elsewhere, "floor" if run.model_argument else "floors", f"{loosest:g}"),
        "",
    )


def _trained_exits(run: RunResult) -> NextStep | None:
    """Exits that are trained, where those that the model comes with were refused."""
    refused = all(one.decision == "does not pay" for one in main_findings(run))
    if not refused or run.training is not None or run.layers < 4 or not run.model_argument:
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
        command_line(
            "exits train",
            *run.model_argument,
            workload=workload.name,
            at=",".join(map(str, exits)),
            output="exits",
        ),
        TRAINED,
        with_option(run.elsewhere, "heads", "exits"),
    )
