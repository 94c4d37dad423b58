"""One finding per cell, of a run as of a comparison."""

from __future__ import annotations

from dataclasses import replace

import pytest
from decoding_examples import decoded_run
from report_examples import example_run
from test_comparison_headline import compared, saving, strategy
from test_report_headline import certificate, verdict

from offramp.report.findings import finding_of_verdict, findings_of, main_findings, main_verdicts
from offramp.report.ranking import ways_ranked
from offramp.report.summary import summarise
from offramp.scoring.estimate import Estimate


def test_a_run_and_a_comparison_find_the_same_of_the_same_cell():
    speed = Estimate(1.08, 1.061, 1.099)
    mine = finding_of_verdict("gpt2", "prose", replace(verdict("pays", 1.08, 1.061, 1.099), basis="local"))
    measured = strategy(speed, answer="faster", agreement=Estimate(0.9625))
    row = saving(Estimate(1.02), policy="static:exit=20")
    (theirs,) = findings_of(compared(row, strategies=(replace(measured, policy="static:exit=20"),)))
    for name in (
        "model",
        "workload",
        "machine",
        "floor",
        "decision",
        "policy",
        "certified",
        "kept",
        "measured",
    ):
        assert getattr(mine, name) == getattr(theirs, name), name
    assert mine.timed
    assert theirs.timed
    assert mine.speedup == theirs.speedup == 1.08


@pytest.mark.parametrize(
    ("made", "certified"),
    [
        (certificate(), "executed"),
        (certificate(executed=False), "replayed"),
        (certificate(holds=False), ""),
        (None, ""),
    ],
)
def test_how_a_floor_was_shown_to_be_kept(made, certified):
    found = finding_of_verdict("gpt2", "prose", verdict("too close to call", certificate=made))
    assert found.certified == certified
    assert found.exits is (certified != "")
    assert (found.speed, found.measured, found.timed) == (None, None, False)


def test_the_main_findings_of_a_run_are_its_main_verdicts():
    run = example_run()
    assert [(one.workload, one.detail) for one in main_findings(run)] == main_verdicts(run)


def test_what_is_certified_keeps_its_floor_whatever_few_prompts_say():
    run = decoded_run(example_run())
    first, workload = run.decoding[0], run.workloads[0]
    policy = replace(first.policies[1], floor=0.99)  # far below that on the prompts of the timing
    first = replace(first, policies=(policy,))
    sure = replace(
        verdict("pays", 1.1, floor=0.99, policy=policy.policy),
        kv=policy.kv,
        executed_agreement=Estimate(0.995, 0.985, 1.0),
    )
    for verdicts, misses in (((sure,), False), ((), True)):
        found = ways_ranked(first, replace(workload, verdicts=verdicts))
        assert next(one for one in found if one.policy is not None).misses is misses


def test_measured_seconds_are_plain_over_the_measured_speed():
    run = decoded_run(example_run())
    entries = [one for one in summarise(run)["predicted"] if one["measured_seconds_per_token"] is not None]
    assert entries
    speeds = {(w.name, v.floor): v.speed for w in run.workloads for v in w.verdicts}
    for one in entries:
        expected = one["plain_seconds_per_token"] / speeds[one["workload"], one["floor"]].value
        assert one["measured_seconds_per_token"] == pytest.approx(expected)
