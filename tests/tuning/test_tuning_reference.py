"""Floors on agreement with the untransformed model, of which the transform alone loses some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_tuning_executed import Scripted, lossless
from tuning_traces import easy_and_hard

from offramp.costs.machine_registry import find_machine
from offramp.errors import InputError
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.policy import ExitPolicy
from offramp.report.sections.tuned import CANDIDATES, certificate_sentence, facts, status
from offramp.tracing.trace import Trace
from offramp.tuning import executed
from offramp.tuning.executed import DecodingLimits
from offramp.tuning.fixed_sequence import Deadline
from offramp.tuning.floor import FloorKind, parse_floor, token_losses
from offramp.tuning.predict import predict
from offramp.tuning.ranking import machine_answers, ranking
from offramp.tuning.replayed_verdicts import judge
from offramp.tuning.tune import tune
from offramp.tuning.tuned import Tuned, read_tuned, write_tuned
from policy_traces import make_trace

FLOOR: FloorKind = "reference_agreement"


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
    with pytest.raises(InputError, match="clip must be left out"):
        parse_floor(f"{FLOOR}=0.9", 1.0)


def test_a_policy_is_certified_against_the_untransformed_model(trace: Trace, tmp_path: Path) -> None:
    tuned = tune(trace, {FLOOR: 0.95}, "h100")
    assert not tuned.plain
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
    assert tuned.plain
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


# -- executed: by a scripted model


def executed_by(kept: dict[str, float], others: float = 0.0, **options: Any) -> tuple[Tuned, Scripted]:
    """Tuned at 90 %, each policy keeping what is said of it, the others losing as much as is said."""

    def loses(policy: ExitPolicy, kv: str) -> float:
        return 1.0 - kept[str(policy)] if str(policy) in kept else others

    executor = Scripted(transformed(easy_and_hard(60, wrong=0.002), 0.97), loses, kind=FLOOR)
    return executor.tuned(**options), executor


def test_what_passes_is_certified_by_the_originals_choices() -> None:
    tuned, executor = executed_by({})
    first, *faster, drafts = tuned.candidates
    # The full model is tested first, at the price of plain decoding.
    assert (first.policy, first.predicted_speed, first.passed) == (PLAIN_DECODING, 1.0, True)
    assert executor.decoded[0][0] == "never"
    assert first.rerun == pytest.approx(0.97, abs=0.01)
    named = [CANDIDATES.columns[1].cell((tuned, one)).shown.partition(" · ")[2] for one in tuned.candidates]
    assert named == ["", *(one.kv for one in (*faster, drafts))], "the full model skips no layer"
    assert all(one.rerun <= first.rerun and one.predicted_speed > 1.0 for one in faster)
    assert (drafts.lossless, drafts.replayed) == (True, first.replayed)
    assert tuned.policy == faster[-1].policy
    assert tuned.certificate.executed
    assert (tuned.certificate.tested, tuned.certificate.passed) == (1 + len(faster), 1 + len(faster))
    assert "are the original full model's choice on the same prefix" in tuned.answer
    assert "executed reference agreement 100.0 %" in tuned.answer
    assert tuned.executed_agreement is None
    assert tuned.executed_reference_agreement is not None
    assert tuned.quality == tuned.reference_agreement
    shown = dict(facts(tuned))
    assert shown["executed agreement with the original model"].startswith("100.0 %")
    assert "executed agreement" not in shown
    assert status(tuned) == "certified"
    assert "this policy departs from the original model on at most 10 % of tokens" in certificate_sentence(
        tuned
    )


def test_a_full_model_below_the_floor_is_said_and_nothing_else_is_tried() -> None:
    tuned, executor = executed_by({"never": 0.6})
    assert tuned.plain
    assert {policy for policy, *_ in executor.decoded} == {"never"}
    assert executor.reruns == []
    # No drafts either: its output is below.
    assert [one.policy for one in tuned.candidates] == [PLAIN_DECODING]
    assert tuned.answer.startswith(
        f"not certified: the full model by itself, without any exit, is below {FLOOR}=0.9 (too much lost"
    )
    assert tuned.candidates[0].executed == pytest.approx(0.6, abs=0.1)
    assert "no exit was tried. Only the original model is known to keep that floor." in tuned.answer
    assert "drafts" not in tuned.answer
    assert not tuned.certificate.holds
    assert tuned.certificate.kv is None
    assert status(tuned) == "not certified"
    late, _ = executed_by({}, limits=DecodingLimits(seconds=1e-9))
    assert late.answer.startswith("inconclusive: the time was used up by the test of the full model itself")


def test_a_full_model_that_alone_passes_is_certified() -> None:
    tuned, executor = executed_by({"never": 1.0}, others=0.5)
    assert tuned.plain
    assert executor.reruns
    assert tuned.certificate.holds
    assert tuned.certificate.empirical_risk == 0.0
    assert "keys and values" not in tuned.certificate.assumption
    assert tuned.answer.startswith("the full model is certified after 23 documents of up to 16 new tokens: ")
    assert "not certified: threshold:signal=" in tuned.answer
    assert "The full model stays. Faster is speculate with " in tuned.answer
    assert tuned.net_speedup.value == 1.0
    assert "the full model, without any exit, departs from the original" in certificate_sentence(tuned)


def test_time_that_ends_behind_the_full_models_own_test_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deadline, "over", property(lambda clock: bool(decoded)))
    decoded: list[str] = []
    monkeypatch.setattr(executed.Proposals, "calibrate", lambda proposals, risk: decoded.append("all"))
    tuned, _ = executed_by({}, limits=DecodingLimits(seconds=60.0))
    assert tuned.answer.startswith("the full model is certified after 23 documents")
    assert "the time was used up before anything with exits was decoded" in tuned.answer


def test_an_executor_without_the_reference_leaves_such_a_floor_to_a_replay() -> None:
    trace = transformed(easy_and_hard(60, wrong=0.002), 0.97)
    executor = Scripted(trace, lossless)
    tuned = tune(trace, {FLOOR: 0.9}, "h100", executor=executor)
    assert not tuned.certificate.executed
    assert executor.decoded == []
    assert "This is a replay bound" in tuned.answer
    few = Scripted(trace, lossless, kind=FLOOR, documents=12).tuned()
    assert few.answer.startswith("not certifiable: 12 documents, 22 needed")
    assert "The full model stays. It agrees with the original one on 97" in few.answer
