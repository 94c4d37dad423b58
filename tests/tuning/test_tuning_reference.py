"""Floors on agreement with the untransformed model, of which the transform alone loses some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tuning_traces import easy_and_hard

from offramp.costs.hardware import find_machine
from offramp.errors import InputError
from offramp.tracing.trace import Trace
from offramp.tuning.floor import parse_floor, token_losses
from offramp.tuning.judging import judge
from offramp.tuning.predict import predict
from offramp.tuning.ranking import machine_answers, ranking
from offramp.tuning.tune import tune
from offramp.tuning.tuned import read_tuned, write_tuned
from policy_traces import make_trace

FLOOR = "reference_agreement"


def transformed(trace: Trace, kept: float, seed: int = 5) -> Trace:
    """The trace of a model whose untransformed form says the same on a share of the tokens."""
    same = np.random.default_rng(seed).random(trace.token_count) < kept
    trace.reference_top1 = np.where(same, trace.fact("top1")[:, -1], 999).astype(np.int32)
    return trace


@pytest.fixture(scope="module")
def trace() -> Trace:
    return transformed(easy_and_hard(documents=400, wrong=0.002), 0.99)


def test_losses_are_counted_against_the_untransformed_model() -> None:
    top1 = np.array([[1, 7, 7], [7, 7, 7], [1, 5, 7]], dtype=np.int32)
    trace = make_trace(tokens=3, layers=3, documents=1, top1=top1)
    with pytest.raises(InputError, match="model without transforms"):
        token_losses(trace, parse_floor(f"{FLOOR}=0.9"))
    trace.reference_top1 = np.array([7, 7, 5], dtype=np.int32)
    losses = token_losses(trace, parse_floor(f"{FLOOR}=0.9"))
    np.testing.assert_array_equal(losses, [[1, 0, 0], [0, 0, 0], [1, 0, 1]])
    assert parse_floor(f"{FLOOR}=0.9").risk == pytest.approx(0.1)
    with pytest.raises(InputError, match="not clipped"):
        parse_floor(f"{FLOOR}=0.9", 1.0)


def test_a_policy_is_certified_against_the_untransformed_model(trace: Trace, tmp_path: Path) -> None:
    tuned = tune(trace, {FLOOR: 0.95}, "h100")
    assert tuned.policy_text != "never"
    assert tuned.certificate.holds
    assert "agree with the original full model" in tuned.answer
    assert tuned.quality.value is not None
    assert tuned.quality.value >= 0.95
    assert tuned.reference_agreement is not None
    # The full model is on the front with the transform's own loss.
    assert tuned.front[0].risk == pytest.approx(0.01, abs=0.005)
    assert all(point.risk >= tuned.front[0].risk for point in tuned.front)
    write_tuned(tmp_path / "policy.json", tuned)
    assert read_tuned(tmp_path / "policy.json").reference_agreement == tuned.reference_agreement
    found = predict(tuned, trace, hardware="h100", unseen=True)
    assert found.reference_agreement is not None
    assert found.reference_agreement.value == pytest.approx(0.98, abs=0.02)


def test_a_transform_that_breaks_the_floor_by_itself_is_said_to() -> None:
    trace = transformed(easy_and_hard(), 0.9)
    tuned = tune(trace, {FLOOR: 0.95}, "h100")
    assert tuned.policy_text == "never"
    assert "It agrees with the original one on " in tuned.answer
    assert tuned.reference_agreement is not None
    assert tuned.reference_agreement.value == pytest.approx(0.9, abs=0.02)


def test_every_answer_carries_it() -> None:
    plain = easy_and_hard(60)
    assert all(verdict.reference_agreement is None for verdict in judge(plain, (0.95,)))
    assert tune(plain, {"agreement": 0.95}, "h100").reference_agreement is None
    trace = transformed(easy_and_hard(60, wrong=0.002), 0.9)
    machine = find_machine("h100")
    answers = [*judge(trace, (0.95,), machine=machine), *ranking(trace, machine, (0.95,))]
    answers += machine_answers(trace, [machine], (1,), 0.95)
    assert tune(trace, {"agreement": 0.95}, "h100", batch=2).reference_agreement is not None
    for answer in answers:
        reference = answer.reference_agreement
        assert reference is not None
        assert reference.value is not None
        assert reference.value < answer.agreement.value


def test_what_cannot_be_judged_is_undefined(trace: Trace) -> None:
    alone = trace.subset(np.array([0]))
    assert all(verdict.reference_agreement.undefined for verdict in judge(alone))
