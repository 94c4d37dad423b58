"""What training exits cost and bought: break-even by hand, words for nothing, one row a text and floor."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from answer_examples import certificate
from decoding_examples import NEVER, SHORT, decoded
from report_examples import example_run

from comparison_examples import example_comparison
from offramp.policies.grammar import parse_policy
from offramp.report.comparison_page import render_comparison
from offramp.report.page import render
from offramp.report.run_result import Decoded, RunResult
from offramp.report.sections.training import answers, bought, minutes, tokens_text
from offramp.report.summary import summarise
from offramp.studies.work.heads import Training
from offramp.timing.results import LOOKUP, Cluster, Contender
from offramp.tuning.certificate import Candidate
from offramp.tuning.verdict import Speed
from page_reader import Page

TRAINING = Training("block", (15, 20), 60_000, 900, 1200.0)
POLICY = "threshold:signal=margin,value=0.9,exits=20"
STATIC = "generate(static cache)"


def clocked(credit: float) -> Decoded:
    """The policy in turns with all that needs no exits, 1.25 times as fast as plain decoding.

    credit: its speed over the head cut to the short list.
    """
    speeds = {f"{POLICY} (propagate)": 1.25, SHORT: 1.25 / credit, NEVER: 0.99, STATIC: 0.95}
    found = decoded("prose", POLICY, others=False)
    contenders = [
        replace(one, clusters=tuple(Cluster(0, place, math.log(speeds[one.name]), 4) for place in range(6)))
        if one.name in speeds
        else one
        for one in found.bench.contenders
    ]
    lookup = Contender(LOOKUP, "peer", left_out="stateful models", full_depth=True)
    return replace(found, bench=replace(found.bench, contenders=(*contenders, lookup)))


def trained_run(credit: float = 1.25) -> RunResult:
    """The example's prose at 90 %: certified, 1.25 times as fast, plain decoding 58.3 ms a token."""
    run = example_run()
    prose = run.workloads[0]
    speed = Speed(1.25, 1.2, 1.3, "measured", "local", True)
    found = certificate(True, 300, 22, executed=True)
    verdicts = tuple(
        replace(one, policy=parse_policy(POLICY), kv="propagate", speed=speed, certificate=found)
        if one.floor == 0.9
        else one
        for one in prose.verdicts
    )
    workloads = (replace(prose, verdicts=verdicts), *run.workloads[1:])
    return replace(run, workloads=workloads, training=TRAINING, decoding=(clocked(credit),))


def test_training_is_paid_back_by_the_time_that_is_saved() -> None:
    found = {(one.place.workload, one.floor.value): one for one in bought(trained_run(), TRAINING)}
    assert len(found) == sum(len(workload.verdicts) for workload in example_run().workloads)
    gain = found["prose", 0.9]
    assert gain.saved.value == pytest.approx(0.2)
    assert (gain.saved.low, gain.saved.high) == (pytest.approx(1 - 1 / 1.2), pytest.approx(1 - 1 / 1.3))
    assert gain.paid_back == pytest.approx(1200.0 / (0.2 * 0.0583))
    assert found["prose", 0.99].saved.value is None


def test_training_is_paid_back_by_its_credit_alone() -> None:
    """Nobody has to train for what the cut head saves, nor knows it where that took no turns."""
    (gain,) = (one for one in bought(trained_run(1.1), TRAINING) if one.saved.value is not None)
    assert (gain.saved.value, gain.credit.value) == (pytest.approx(0.2), pytest.approx(1.1))
    assert gain.paid_back == pytest.approx(1200.0 / ((0.2 - 0.12) * 0.0583))
    (slower,) = (one for one in bought(trained_run(0.97), TRAINING) if one.saved.value is not None)
    assert (slower.paid_back, slower.never) == (None, True)
    run = trained_run()
    bench = run.decoding[0].bench
    without = replace(bench, contenders=tuple(one for one in bench.contenders if one.name != SHORT))
    for decoding in ((replace(run.decoding[0], bench=without),), ()):
        untimed = replace(run, decoding=decoding)
        (gain,) = (one for one in bought(untimed, TRAINING) if one.saved.value is not None)
        assert (gain.credit.value, gain.paid_back, gain.never) == (None, None, False)
        assert "not known" in Page(render(untimed)).text


def test_a_policy_that_is_not_certified_bought_nothing() -> None:
    run = trained_run()
    prose = run.workloads[0]
    verdicts = tuple(
        replace(one, certificate=certificate(False, 300, 22, executed=True)) for one in prose.verdicts
    )
    run = replace(run, workloads=(replace(prose, verdicts=verdicts),))
    said = answers(bought(run, TRAINING))
    assert len(said) == len(prose.verdicts)
    assert all("this training bought nothing" in sentence for sentence in said)


def test_a_candidate_whose_certificate_is_open_is_not_called_nothing() -> None:
    run = trained_run()
    prose = run.workloads[0]
    tried = Candidate(parse_policy(POLICY), "recompute", 0.96, 0.96, 0.956, 72, 1.07, None, "time used up")
    verdicts = tuple(
        replace(
            one, policy=parse_policy("never"), certificate=None, tried=tried if one.floor == 0.95 else None
        )
        for one in prose.verdicts
    )
    run = replace(run, workloads=(replace(prose, verdicts=verdicts),))
    at_99, at_95, _ = answers(bought(run, TRAINING))
    assert "bought nothing" in at_99
    assert "it is open what this training bought" in at_95


def test_the_page_says_it_and_draws_it_only_where_exits_were_trained() -> None:
    page = render(trained_run())
    shown = Page(page).text
    assert "Exits of the kind block at layers 15 and 20 were trained on 60,000 tokens for 900 steps" in shown
    assert "20 minutes with all that belongs to it" in shown
    assert "At 90 %, executed and certified, it saves of plain decoding's time: prose 20.0 %" in shown
    assert "paid back after 103,000 generated tokens" in shown
    assert "At 99 % this training bought nothing" in shown
    assert 'id="training"' in page
    assert 'id="training"' not in render(example_run())


def test_the_page_counts_what_the_exits_took_before_that_others_began_from() -> None:
    executed = replace(TRAINING, kind="executed", seconds=1800.0, seconds_before=1200.0, tokens_before=60_000)
    run = replace(trained_run(), training=executed)
    said = (
        "30 minutes with all that belongs to it, 20 minutes of which for the trained model or exits that it"
    )
    assert f"{said} began from" in Page(render(run)).text
    assert "began from" not in Page(render(trained_run())).text
    (gain,) = (one for one in bought(run, executed) if one.saved.value is not None)
    assert gain.paid_back == pytest.approx(1800.0 / (0.2 * 0.0583))


def test_a_comparison_shows_it_beside_the_untrained_model() -> None:
    comparison = example_comparison()
    page = render_comparison(comparison)
    shown = Page(page).text
    assert "were trained on 60,000 tokens for 900 steps: 20 minutes" in shown
    assert "At 95 %, executed and certified, it saves of plain decoding's time: prose 20.0 %" in shown
    assert "paid back after 240,000 generated tokens" in shown
    assert "At 90 % it is open what this training bought" in shown  # a replay bound is no execution
    assert ", paid in 240,000" in page
    assert ", replayed only" in page
    assert "paid in 120,000" not in page
    assert "At 99 % this training bought nothing" in shown
    assert 'id="trainings"' in page
    untrained = replace(comparison, rows=comparison.rows[1:], trained=())
    assert 'id="trainings"' not in render_comparison(untrained)


def test_the_summary_holds_the_same() -> None:
    found = summarise(trained_run())["training"]
    assert (found["kind"], found["seconds"], found["exits"]) == ("block", 1200.0, [15, 20])
    paid = {(one["workload"], one["floor"]["value"]): one["paid_back"] for one in found["bought"]}
    assert paid["prose", 0.9] == pytest.approx(1200.0 / (0.2 * 0.0583))
    assert paid["prose", 0.99] is None
    assert summarise(example_run())["training"] is None


@pytest.mark.parametrize(
    ("tokens", "text"), [(7.2, "7"), (950.0, "950"), (102_916.0, "103,000"), (1_254_000.0, "1.25 million")]
)
def test_tokens_in_three_digits(tokens: float, text: str) -> None:
    assert tokens_text(tokens) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(40.0, "40 seconds"), (720.0, "12 minutes"), (5400.0, "1.5 hours")]
)
def test_long_times(seconds: float, text: str) -> None:
    assert minutes(seconds) == text
