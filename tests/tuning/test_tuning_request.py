"""The verdict of requests with a source: the ceiling first, then the speed of requests beside decoding's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tuning_traces import easy_and_hard

from offramp.kit.typed import from_json, to_json
from offramp.models.shape import EncoderShape
from offramp.policies.grammar import parse_policy
from offramp.policies.whole_request import request_of
from offramp.scoring.estimate import Estimate
from offramp.tracing.trace import Trace
from offramp.tuning.predict import predict
from offramp.tuning.ranking import machine_answers
from offramp.tuning.replayed_verdicts import judge
from offramp.tuning.tune import tune
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import Speed, TimedPolicy, Verdict, settle
from policy_traces import timed

PLAIN = 8.0 * 25.0
"""Seconds of the tokens of a request on the made-up machine: 25 of 8 seconds."""


def machine(once: float) -> Any:
    """Checks take a hundredth of a layer's second, an encoder so many seconds."""
    free = [0.01, 0.02]
    return timed(
        probe_seconds=dict.fromkeys(timed().probe_seconds, free),
        encoder_seconds=((20.0, once),),
        name="local",
    )


@pytest.fixture(scope="module")
def trace() -> Trace:
    found = easy_and_hard(100)
    found.shape = replace(found.shape, encoder=EncoderShape(5000, 20.0, 30))
    return found


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(*anything: object) -> None:
        raise AssertionError("something is searched")

    for module in ("job", "replayed_verdicts"):
        monkeypatch.setattr(f"offramp.tuning.{module}.search_pool", search)


@pytest.mark.usefixtures("no_search")
def test_a_ceiling_below_the_worth_is_the_answer_before_any_search(trace: Trace) -> None:
    slow = machine(20 * PLAIN)
    ceiling = (20 * PLAIN + PLAIN) / (20 * PLAIN + 25 * 5.0)
    said = f"at most {ceiling:.3f} × as fast (on local), if all its 25.0 tokens left at exit 3"
    for verdict in judge(trace, machine=slow):
        assert verdict.decision == "does not pay"
        assert said in verdict.reason
        assert verdict.request is not None
        assert verdict.request.ceiling == pytest.approx(ceiling)
        assert verdict.missing == ()
    tuned = tune(trace, {"agreement": 0.9}, slow)
    assert tuned.plain
    assert said in tuned.answer
    assert to_json(tuned)["request"]["ceiling"] == pytest.approx(ceiling)
    assert from_json(Tuned, to_json(tuned)) == tuned
    assert settle(verdict, tuned).decision == "does not pay"
    # A smaller worth is searched for.
    with pytest.raises(AssertionError, match="something is searched"):
        judge(trace, worth=0.01, machine=slow)


def test_a_verdict_by_replay_is_of_requests_and_keeps_decodings_speed(trace: Trace) -> None:
    found, text = (judge(one, (0.9,), machine=machine(PLAIN))[0] for one in (trace, easy_and_hard(100)))
    request = found.request
    assert request is not None
    assert found.decoding == text.speed
    assert found.speed is not None
    assert found.decoding is not None
    assert found.speed.value == pytest.approx(2 / (1 + 1 / found.decoding.value))
    assert found.credit is not None
    assert found.credit.value == pytest.approx(found.speed.value)  # plain decoding is the best without
    assert found.net_speedup == text.net_speedup
    assert f"a whole request is {found.speed.value:.3f} × as fast" in found.reason
    assert from_json(Verdict, to_json(found)) == found
    assert text.request is None
    assert not {"request", "decoding"} & set(to_json(text))


def test_a_measured_gain_in_decoding_that_is_none_of_requests_does_not_pay(trace: Trace) -> None:
    """Half of a request is its encoder: decoding 1.08 (to 1.10) × as fast is at most 1.048 ×."""
    local = machine(PLAIN)
    verdict = judge(trace, (0.9,), machine=local)[0]
    tuned = tune(trace, {"agreement": 0.9}, local)
    certificate = replace(tuned.certificate, executed=True, holds=True, stopped_after=40)
    tuned = replace(tuned, policy=parse_policy("static:exit=4"), certificate=certificate)
    speed = Speed(1.08, 1.07, 1.10, "measured", "local", at_hand=True)
    timing = TimedPolicy(speed, Estimate(1.08, 1.07, 1.10))
    assert settle(replace(verdict, request=None), tuned, timing).decision == "pays"
    settled = settle(verdict, tuned, timing)
    assert settled.decision == "does not pay"
    assert settled.decoding == speed
    assert settled.speed is not None
    assert settled.speed.high == pytest.approx(2 / (1 + 1 / 1.10))
    assert "the speed of a plain request (" in settled.reason
    assert "its decoding alone measured 1.080 × the speed of plain decoding" in settled.reason
    # Over a decoder without exits of half the seconds: 1.5 plain tokens' time a request, not 2.
    double = TimedPolicy(replace(speed, value=2.0, low=1.9, high=2.1), Estimate(1.0, 0.9, 1.1), "int8")
    beside = settle(verdict, tuned, double)
    assert beside.credit is not None
    assert beside.credit.high == pytest.approx(1.5 / (1 + 0.5 / 1.1))


def test_bytes_moved_certify_no_gain_of_requests(trace: Trace) -> None:
    """The encoder's bytes are the least that it takes: a timing of decoding alone decides no request."""
    verdict = judge(trace, (0.9,))[0]
    tuned = tune(trace, {"agreement": 0.9}, None)
    certificate = replace(tuned.certificate, executed=True, holds=True, stopped_after=40)
    tuned = replace(tuned, policy=parse_policy("static:exit=4"), certificate=certificate)
    timing = TimedPolicy(Speed(1.5, 1.4, 1.6, "measured", "local", at_hand=True), Estimate(1.5, 1.4, 1.6))
    settled = settle(verdict, tuned, timing)
    assert settled.decision == "inconclusive"
    assert any("a timing of the encoder" in missing for missing in settled.missing)


def test_other_machines_and_predictions_are_of_requests_too(trace: Trace) -> None:
    answers = machine_answers(trace, [machine(20 * PLAIN)], (1, 4), 0.9)
    assert {answer.decision for answer in answers} == {"does not pay"}
    found = predict("static:exit=3", trace, hardware=machine(PLAIN))
    assert found.request == request_of(trace, machine(PLAIN))
    assert found.request_speedup is not None
    assert found.net_speedup.value is not None
    assert found.request_speedup.value == pytest.approx(2 / (1 + 1 / found.net_speedup.value))
    assert "request" not in to_json(predict("static:exit=3", easy_and_hard(100)))
