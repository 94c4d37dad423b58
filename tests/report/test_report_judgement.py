"""Measured beats predicted: the rule, what the headline makes of it, and what it never does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from decoding_examples import PLAIN, contender, decoded, with_decoding
from report_examples import example_run

from offramp.decoding.bench.results import Interval
from offramp.report.headline import caveats, headline, overall_decision
from offramp.report.judgement import judge_measured
from offramp.scoring.estimate import Estimate
from offramp.tuning.results import Verdict

POLICY = "threshold:signal=margin,value=0.9,exits=20"


def verdict(decision: str, value: float, low: float, high: float, policy: str = POLICY, **changes) -> Verdict:
    speed = Estimate(value, low, high)
    made = Verdict(
        floor=0.95,
        decision=decision,
        reason="because",
        policy=policy,
        agreement=Estimate(0.96, 0.95, 0.97),
        skip_ratio=Estimate(0.1),
        net_speedup=speed,
        net_speedup_flops=speed,
        fit_agreement=0.96,
        fit_documents=32,
        report_documents=32,
        documents_needed=45,
        floor_held=True,
        basis="local",
    )
    return replace(made, **changes)


PAYS = verdict("pays", 1.12, 1.10, 1.14)
NOT = verdict("does not pay", 1.02, 1.01, 1.03)
OPEN = verdict("too close to call", 1.06, 1.02, 1.10)
NEVER = verdict("does not pay", 1.0, 1.0, 1.0, policy="never")


def measured_at(value: float, low: float | None, high: float | None, policy: str = POLICY, **options):
    """A measurement of the policy with this net speedup."""
    made = decoded("prose", policy, grid=False, **options)
    own = contender(f"{policy} (propagate)", "policy", PLAIN / value, ratio=Interval(value, low, high))
    others = [c for c in made.bench.contenders if c.name != own.name]
    return replace(made, bench=replace(made.bench, contenders=(own, *others)))


def run_of(made: Verdict, *decodings):
    run = example_run()
    workload = replace(run.workloads[0], verdicts=(made,))
    return with_decoding(replace(run, workloads=(workload,)), *decodings)


@pytest.mark.parametrize(
    ("predicted", "measured", "decision"),
    [
        (PAYS, (1.11, 1.08, 1.13), "pays"),
        (PAYS, (1.05, 1.02, 1.08), "too close to call"),
        (PAYS, (1.11, None, None), "too close to call"),
        (PAYS, (0.97, 0.95, 0.99), "does not pay"),
        (PAYS, (1.02, 1.01, 1.049), "does not pay"),
        (OPEN, (0.97, 0.95, 0.99), "does not pay"),
        (OPEN, (1.06, 1.03, 1.09), "too close to call"),
        (OPEN, (1.12, 1.10, 1.14), "too close to call"),
        (NOT, (1.12, 1.10, 1.14), "too close to call"),
        (NOT, (1.04, 1.00, 1.08), "does not pay"),
        (NOT, (0.97, 0.95, 0.99), "does not pay"),
    ],
)
def test_the_rule(predicted, measured, decision):
    run = run_of(predicted, measured_at(*measured))
    judgement = judge_measured(run, run.workloads[0], predicted)
    assert judgement.decision == overall_decision(run) == decision
    assert judgement.speed == measured[0]
    assert judgement.predicted == predicted.net_speedup.value
    if decision != predicted.decision:
        assert judgement.why is not None


def test_a_measurement_with_a_defect_changes_nothing():
    run = run_of(PAYS, measured_at(0.9, 0.89, 0.91, sound=False))
    judgement = judge_measured(run, run.workloads[0], PAYS)
    assert (judgement.decision, judgement.measured) == ("pays", None)
    assert "predicted to decode 12.0 % faster" in headline(run)
    assert any(note.startswith("The measurement on prose has a defect") for note in caveats(run))


@pytest.mark.parametrize("change", [{"policy": "static:exit=3"}, {"basis": "h100"}])
def test_a_measurement_of_something_else_changes_nothing(change):
    made = replace(PAYS, **change)
    run = run_of(made, measured_at(0.9, 0.89, 0.91))
    assert judge_measured(run, run.workloads[0], made).measured is None
    assert overall_decision(run) == "pays"


def test_another_strategy_is_another_measurement():
    made = measured_at(0.9, 0.89, 0.91)
    recomputed = replace(made, policies=tuple(replace(p, kv="recompute") for p in made.policies))
    assert overall_decision(run_of(PAYS, recomputed)) == "pays"


def test_a_policy_predicted_to_pay_but_measured_not_is_not_headlined_as_paying():
    run = run_of(PAYS, measured_at(0.97, 0.95, 0.99))
    assert headline(run) == (
        "Early exit would not pay for smollm2 on prose: at 95 % agreement the best policy, predicted to "
        "decode 12.0 % faster, was measured to decode 3.0 % slower than plain decoding."
    )
    small = run_of(PAYS, measured_at(1.02, 1.01, 1.03))
    assert "was measured to decode only 2.0 % faster, less than the 5 %" in headline(small)


def test_a_promise_kept_is_quoted_as_measured():
    run = run_of(PAYS, measured_at(1.11, 1.08, 1.13))
    assert headline(run) == (
        "Early exit would pay for smollm2 on prose: at 95 % agreement the best policy was measured to decode "
        "11.0 % faster (8.0 to 13.0 %)."
    )


def test_doubt_names_prediction_and_measurement():
    run = run_of(PAYS, measured_at(1.05, 1.02, 1.08))
    assert (
        "was predicted to decode 12.0 % faster; it was measured to decode 5.0 % faster (2.0 to 8.0 %), which "
        "leaves it open"
    ) in headline(run)


def test_own_text_below_the_floor_is_no_promise():
    made = measured_at(1.11, 1.08, 1.13)
    chosen = made.policies[0]
    kept = replace(chosen.free_running, agreement=Interval(0.9, 0.88, 0.92))
    made = replace(made, policies=(replace(chosen, free_running=kept),))
    run = run_of(PAYS, made)
    assert overall_decision(run) == "too close to call"
    assert "only 90.0 % of the generated tokens are the full model's" in headline(run)


@pytest.mark.parametrize(
    ("agreement", "speed", "decision"),
    [
        (0.97, (1.12, 1.10, 1.14), "too close to call"),
        (0.90, (1.12, 1.10, 1.14), "does not pay"),
        (0.97, (1.02, 1.01, 1.03), "does not pay"),
    ],
)
def test_never_to_exit_is_doubted_only_by_a_fast_and_faithful_policy(agreement, speed, decision):
    run = run_of(NEVER, measured_at(*speed, agreement=agreement))
    assert overall_decision(run) == decision
    if decision == "too close to call":
        assert f"replay chose never to exit, but {POLICY} was measured to decode 12.0 % faster" in headline(
            run
        )


def test_texts_that_differ_say_what_was_measured():
    run = example_run()
    workloads = (
        replace(run.workloads[0], verdicts=(PAYS,)),
        replace(run.workloads[1], verdicts=(PAYS,)),
    )
    run = with_decoding(replace(run, workloads=workloads), measured_at(0.97, 0.95, 0.99))
    assert overall_decision(run) == "depends on the text"
    assert headline(run) == (
        "For smollm2, early exit would pay on code (12.0 % faster), would not pay on prose (3.0 % slower): "
        "decoding speed, measured on prose and predicted elsewhere, at 95 % agreement."
    )
