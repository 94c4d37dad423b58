"""A candidate whose certificate is open: shown wherever verdicts are, and never as certified."""

from __future__ import annotations

import io
from dataclasses import replace

import jsonschema
from page_reader import Page
from report_examples import example_run
from rich.console import Console

from offramp.report.headline import headline
from offramp.report.page import render
from offramp.report.run_result import RunResult
from offramp.report.summary import summarise, summary_schema
from offramp.report.terminal import print_summary
from offramp.scoring.estimate import Estimate
from offramp.tuning.certificate import Candidate, Certificate
from offramp.tuning.verdict import Speed

TRIED = Candidate("static:exit=20", "propagate", 0.98, 0.955, 0.9632, 56, 1.014, False, "time used up")
OPEN = Certificate(
    method="wsr", guarantee="", holds=False, delta=0.1, documents=120, empirical_risk=None, risk_bound=None,
    best_floor=0.95, documents_needed=59, tested=1, passed=0, assumption="", executed=True, kv="propagate",
    prompt_tokens=32, new_tokens=16, stopped_after=56,
)  # fmt: skip


def with_verdicts(run: RunResult, **changes) -> RunResult:
    """All verdicts of the run changed alike."""
    workloads = tuple(
        replace(one, verdicts=tuple(replace(verdict, **changes) for verdict in one.verdicts))
        for one in run.workloads
    )
    return replace(run, workloads=workloads)


def printed(run: RunResult) -> str:
    out = io.StringIO()
    print_summary(run, Console(file=out, width=140))
    return " ".join(out.getvalue().split())


def test_what_was_tried_is_shown_and_not_called_certified() -> None:
    run = with_verdicts(
        example_run(),
        policy="never",
        kv=None,
        decision="too close to call",
        certificate=OPEN,
        executed_agreement=None,
        tried=TRIED,
        speed=Speed(1.039, 0.97, 1.11, "measured", "local", True, 20.0),
        missing=("time to decode the documents that are at hand",),
    )
    said = headline(run)
    assert "kept 96.32 % as executed on 56 documents, not certified ≥" in said
    assert "measured 1.039 × (0.970 to 1.110 ×)" in said
    assert "missing: time to decode the documents that are at hand" in said
    page = Page(render(run))
    assert page.faults == []
    assert "nothing certified" in page.text
    assert "(tried, not certified)" in page.text
    assert "56 documents, not certified yet" in page.text
    assert "tried:" in page.text
    shown = printed(run)
    assert "never; tried: static exit 20 · propagate" in shown
    assert "96.3 %" in shown
    assert "1.039 ×" in shown
    summary = summarise(run)
    jsonschema.validate(summary, summary_schema())
    assert {one["tried"]["documents"] for one in summary["verdict"]["by_workload"]} == {56}


def test_a_certified_share_is_shown_where_no_time_was_left_for_fresh_documents() -> None:
    run = with_verdicts(
        example_run(),
        policy="static:exit=20",
        kv="propagate",
        certificate=replace(OPEN, holds=True, empirical_risk=0.021),
        executed_agreement=Estimate(None, undefined="the time was used up"),
    )
    page = Page(render(run))
    assert "nothing certified" not in page.text
    assert "kept 97.9 % as executed (certified ≥" in page.text
    shown = printed(run)
    assert "97.9 %" in shown
    assert "the time was used up" not in shown
