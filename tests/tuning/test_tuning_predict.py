"""Predicting a tuned policy on other texts and other machines."""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.costs.machine import Roofline
from offramp.errors import InputError, PolicyError
from offramp.policies.decisions import replay_decisions
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.policy import ExitPolicy
from offramp.policies.replay import ReplayResult, replay
from offramp.policies.rules.fixed import Never, StaticExit
from offramp.policies.rules.threshold import Threshold
from offramp.policies.steps import group_into_steps
from offramp.scoring.estimate import Estimate
from offramp.tracing.manifest import DocumentRecord
from offramp.tracing.trace import Trace
from offramp.tuning import predict as predict_module
from offramp.tuning.bounds import two_sided_limits
from offramp.tuning.floor import Floor, document_losses, token_losses
from offramp.tuning.predict import MEASURED_SHARE, Prediction, predict
from offramp.tuning.pricing import pricing_of
from offramp.tuning.splits import digests
from offramp.tuning.tune import tune
from offramp.tuning.tuned import Tuned, read_tuned, shift_of, write_tuned
from offramp.workloads.shared_text import Sketcher, write_sketch
from policy_traces import make_shape, make_trace

POLICY = Threshold("max_prob", 0.8, (3, 5))
BOLD = Threshold("max_prob", 0.3, (3, 5))


def machine(name: str = "card", bandwidth: float = 1e9) -> Roofline:
    return Roofline(
        name=name,
        description="made up",
        source="made up",
        flops_per_second={"float32": 1e12, "bfloat16": 1e12},
        bytes_per_second=bandwidth,
        launch_seconds=0.0,
        decision_seconds=0.0,
    )


def named(
    trace: Trace, *, workload: str = "w", model: str = "m", dtype: str = "float32", **heads: Any
) -> Trace:
    """The trace with ids of its own and the provenance of a traced one."""
    trace.provenance = {
        "request": {
            "model": {"name": model, "fingerprint": f"fingerprint of {model}"},
            "workload": {"name": workload, "fingerprint": f"fingerprint of {workload}"},
            "dtype": dtype,
            **heads,
        }
    }
    trace.documents = tuple(
        DocumentRecord(f"{workload} {place}", record.tokens) for place, record in enumerate(trace.documents)
    )
    return trace


def a_trace(seed: int = 0, documents: int = 40, **options: Any) -> Trace:
    provenance = {key: options.pop(key) for key in ("workload", "model", "dtype", "heads") if key in options}
    return named(make_trace(seed=seed, tokens=12 * documents, documents=documents, **options), **provenance)


@functools.cache
def tuned_policy(floor: float = 0.6) -> Tuned:
    """A policy as the tuner leaves it: cheap to tune, on documents of the workload "w"."""
    trace = a_trace(shape=make_shape(6, head=30))
    found = tune(trace, {"agreement": floor}, machine())
    seen = np.arange(20, dtype=np.int64)
    # Whatever the tuner chose, these tests want one that probes.
    return replace(
        found,
        policy=POLICY,
        shift=shift_of(trace.subset(seen), POLICY),
        document_digests={"search": digests(trace, range(10)), "certify": digests(trace, range(10, 20))},
    )


def must_be_replayed(found: Prediction, replayed: ReplayResult) -> None:
    """The figures of a replay, within intervals."""
    assert found.agreement.value == pytest.approx(replayed.agreement)
    assert found.skip_ratio.value == pytest.approx(replayed.skip_ratio)
    assert found.net_speedup.value == pytest.approx(replayed.predicted_speedup)
    speedup = found.plain_seconds_per_token / found.seconds_per_token.value
    assert speedup == pytest.approx(replayed.predicted_speedup)
    assert found.probe_share == pytest.approx(replayed.probe_share)
    for estimate in (found.agreement, found.skip_ratio, found.net_speedup, found.quality):
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.value is not None
        assert estimate.low < estimate.value < estimate.high


def test_figures_are_those_of_a_replay() -> None:
    trace = a_trace(seed=1, workload="other")
    found = predict(replace(tuned_policy(), policy=BOLD), trace)
    replayed = replay(trace, BOLD)
    must_be_replayed(found, replayed)
    assert (found.documents, found.workload, found.machine) == (40, "other", "bytes moved")


def test_another_machine_changes_the_seconds_and_nothing_else() -> None:
    trace = a_trace(seed=1, workload="other")
    slow, fast = (predict(tuned_policy(), trace, hardware=machine("x", rate)) for rate in (1e9, 2e9))
    assert slow.seconds_per_token.value == pytest.approx(2.0 * fast.seconds_per_token.value)
    assert slow.net_speedup.value == pytest.approx(fast.net_speedup.value)
    assert slow.quality == fast.quality
    assert (slow.risk_low, slow.risk_high) == (fast.risk_low, fast.risk_high)
    assert any("Tuned for card, predicted for x" in note for note in slow.notes)


def test_a_prediction_says_what_a_stopwatch_said_of_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: twice as fast saves a half; four fifths of that are 0.4, so 1 / 0.6."""
    trace = a_trace(seed=1, workload="other")
    found = predict(replace(tuned_policy(), policy=BOLD), trace, hardware=machine())
    assert found.net_speedup.value is not None
    assert found.net_speedup.value > 1.0
    saved = 1.0 - 1.0 / found.net_speedup.value
    share = MEASURED_SHARE
    shares = [part for part in (share.value, share.low, share.high) if part is not None]
    expected = [1.0 / (1.0 - part * saved) for part in shares]
    assert found.as_measured is not None
    assert [found.as_measured.value, found.as_measured.low, found.as_measured.high] == pytest.approx(expected)
    monkeypatch.setattr(predict_module, "MEASURED_SHARE", Estimate(0.8, 0.5, 1.1))
    held = replace(found, net_speedup=Estimate(2.0))
    by_hand = predict_module.expected(held, pricing_of(trace, machine(), 1, "propagate"))
    assert by_hand is not None
    assert by_hand.value == pytest.approx(1 / 0.6)
    # Eleven tenths of 10 parts in 11 are all of the time: nothing is too fast.
    fastest = predict_module.expected(
        replace(found, net_speedup=Estimate(11.0)), pricing_of(trace, machine(), 1, "propagate")
    )
    assert fastest is not None
    assert (fastest.low, fastest.high) == (None, None)


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (BOLD, {}),  # bytes are no seconds
        (BOLD, {"hardware": machine(), "batch": 4}),
        (Never(), {"hardware": machine()}),
        (StaticExit(3), {"hardware": machine()}),
    ],
)
def test_nothing_is_said_of_what_was_not_timed_so(policy: ExitPolicy, options: dict[str, Any]) -> None:
    assert predict(policy, a_trace(seed=1), **options).as_measured is None


@pytest.mark.parametrize("batch", [3, 8])
def test_a_batch_is_judged_as_it_is_replayed(batch: int) -> None:
    whole = a_trace(seed=1, documents=170, workload="other")
    # Documents of several lengths, so that steps lose rows.
    kept = np.flatnonzero(whole.position <= whole.document % 7 + 4)
    facts = {name: whole.fact(name)[kept] for name in ("top1", "max_prob", "nll", "kl_to_final")}
    trace = named(Trace.from_facts(facts, document=whole.document[kept], shape=whole.shape), workload="other")
    tuned = replace(tuned_policy(), policy=BOLD)
    found = predict(tuned, trace, hardware=machine(), batch=batch, seed=3)
    replayed = replay(trace, BOLD, machine=machine(), batch=batch, seed=3)
    must_be_replayed(found, replayed)
    assert found.seconds_per_token.value == pytest.approx(replayed.seconds_per_token)
    assert found.plain_seconds_per_token == pytest.approx(replayed.plain_seconds_per_token)
    # Limits from whole groups, each one independent draw.
    steps = group_into_steps(trace.document, batch, 3)
    lost = (trace.top1 != trace.top1[:, -1:])[np.arange(trace.token_count), replayed.exits - 1]
    by_group: dict[int, list[float]] = {}
    for document in range(170):
        rows = np.flatnonzero(trace.document == document)
        by_group.setdefault(int(steps[rows[0]]), []).append(float(lost[rows].mean()))
    means = np.array([np.mean(group) for _, group in sorted(by_group.items()) if len(group) == batch])
    assert len(means) == 170 // batch
    assert (found.risk_low, found.risk_high) == pytest.approx(two_sided_limits(means, found.delta), rel=1e-6)


def test_few_groups_give_no_interval() -> None:
    found = predict(POLICY, a_trace(seed=1), hardware=machine(), batch=16)
    assert found.net_speedup.no_interval == "3 groups of 16 documents; an interval needs 20, 320 documents"
    assert any("3 groups of 16 documents give no interval; 20 are needed." in note for note in found.notes)
    assert found.batching == "lockstep"
    with pytest.raises(PolicyError, match="a batch of 41 needs as many documents, the trace has 40"):
        predict(POLICY, a_trace(seed=1), hardware=machine(), batch=41)


def test_batch_and_key_values_are_those_of_tuning_unless_given() -> None:
    trace, tuned = a_trace(seed=1, workload="other"), replace(tuned_policy(), batch=4)
    assert predict(tuned, trace, hardware=machine()) == predict(tuned, trace, hardware=machine(), batch=4)
    assert predict(tuned, trace, hardware=machine(), batch=1).batch == 1
    # Bytes are counted at batch 1 only.
    in_bytes = predict(tuned, trace)
    assert in_bytes.batch == 1
    assert any("Tuned at batch 4, predicted at batch 1" in note for note in in_bytes.notes)
    again = replace(tuned_policy(), kv="recompute")
    assert predict(again, trace, hardware=machine()) == predict(
        again, trace, hardware=machine(), kv="recompute"
    )
    assert predict(again, trace, hardware=machine()) != predict(
        again, trace, hardware=machine(), kv="propagate"
    )


def test_an_oracle_is_said_to_be_out_of_reach() -> None:
    found = predict("oracle:which=saturation", a_trace())
    assert not found.reachable
    assert any(note.startswith("An oracle") for note in found.notes)
    assert predict(POLICY, a_trace()).reachable


@pytest.mark.parametrize(("floor", "answer"), [(0.6, "holds"), (0.95, "broken"), (0.79, "not decided")])
def test_whether_the_floor_holds(floor: float, answer: str) -> None:
    bold = Threshold("max_prob", 0.4, (3, 5))
    trace = a_trace(seed=1, documents=60, workload="other")
    tuned = tuned_policy()
    tuned = replace(
        tuned,
        policy=bold,
        floor=replace(tuned.floor, value=floor),
        certificate=replace(tuned.certificate, delta=0.08),
    )
    found = predict(tuned, trace)
    assert found.delta == 0.08
    losses = document_losses(trace, token_losses(trace, tuned.floor), replay_decisions(bold, trace).exits)
    assert (found.risk_low, found.risk_high) == two_sided_limits(losses, found.delta)
    assert found.floor_answer == answer
    assert found.quality.value == pytest.approx(1.0 - losses.mean())
    assert any("do not decide" in note for note in found.notes) == (answer == "not decided")


def test_a_floor_in_nats_is_judged_in_nats() -> None:
    trace = a_trace(seed=1, workload="other")
    tuned = replace(tuned_policy(), floor=Floor("kl", 0.5, clip=1.0))
    found = predict(tuned, trace)
    kl = np.clip(trace.fact("kl_to_final").astype(np.float64), 0.0, 1.0)
    kl[:, -1] = 0.0
    exits = replay_decisions(POLICY, trace).exits
    taken = kl[np.arange(trace.token_count), exits - 1]
    means = [taken[trace.document == document].mean() for document in range(40)]
    assert found.quality.value == pytest.approx(float(np.mean(means)), rel=1e-5)
    assert found.risk_low is not None
    assert found.risk_high is not None
    assert found.risk_low <= np.mean(means) <= found.risk_high
    assert found.floor_answer == ("holds" if found.risk_high <= 0.5 else "not decided")


def test_a_large_shift_is_said_in_words_and_a_small_one_is_not() -> None:
    trace = a_trace(seed=9, workload="other")
    small = predict(tuned_policy(), trace)
    assert [row.tuned.exit for row in small.shift] == [3, 5]
    largest = max(abs(row.other.agreement - row.tuned.agreement) for row in small.shift)
    assert any("The texts differ" in note for note in small.notes) == (largest >= 0.02)
    worse = np.array(trace.top1)
    worse[:, :-1] = 99
    top1 = {name: np.array(trace.fact(name)) for name in ("max_prob", "nll", "kl_to_final")}
    facts: dict[str, Any] = {"top1": worse, **top1}
    other = named(
        Trace.from_facts(facts, document=trace.document, shape=trace.shape, position=trace.position),
        workload="other",
    )
    found = predict(tuned_policy(), other)
    (said,) = (note for note in found.notes if "The texts differ" in note)
    assert "agrees with the full model in 0.0 % of the tokens here" in said


def test_documents_of_another_workload_that_share_text_are_refused_or_left_out(tmp_path: Path) -> None:
    """Known from the tuned policy's own file."""
    said = [
        " ".join(f"word{n}" for n in np.random.default_rng(place).integers(9999, size=60))
        for place in range(80)
    ]
    sketches = [write_sketch(Sketcher().sketch(text)) for text in said]
    write_tuned(tmp_path / "p.json", replace(tuned_policy(), document_texts={"search": tuple(sketches[:15])}))
    trace = a_trace(seed=1, workload="other")
    texts = [*sketches[10:15], *sketches[40:75]]
    trace.documents = tuple(
        replace(record, text=text) for record, text in zip(trace.documents, texts, strict=True)
    )
    policy = str(tmp_path / "p.json")
    assert read_tuned(policy).document_texts == {"search": tuple(sketches[:15])}
    with pytest.raises(InputError, match="5 of the trace's documents were used to tune the policy, or share"):
        predict(policy, trace)
    found = predict(policy, trace, unseen=True)
    assert found.documents == 35
    assert any("5 documents were left out" in note for note in found.notes)
    assert not any("by their ids alone" in note for note in found.notes)
    assert any("by their ids alone" in note for note in predict(tuned_policy(), trace).notes)


def test_the_full_model_needs_no_documents_of_its_own() -> None:
    """It keeps all of its own choices, on the documents that tuning used too."""
    found = predict(replace(tuned_policy(), policy=PLAIN_DECODING), a_trace())
    assert (found.agreement.value, found.net_speedup.value) == (1.0, 1.0)
    assert found.documents == len(a_trace().documents)
    assert not any("left out" in note for note in found.notes)


def test_documents_that_tuning_used_are_refused_or_left_out() -> None:
    same = a_trace()
    with pytest.raises(
        InputError, match="20 of the trace's documents were used to tune the policy"
    ) as refused:
        predict(tuned_policy(), same)
    assert "--unseen" in str(refused.value)
    assert re.search(r"document w \d+ of the trace", str(refused.value))
    found = predict(tuned_policy(), same, unseen=True)
    assert found.documents == 20
    replayed = replay(same.subset(np.arange(20, 40)), POLICY)
    assert found.agreement.value == pytest.approx(replayed.agreement)
    assert any("20 documents were left out" in note for note in found.notes)
    assert any("The same workload" in note for note in found.notes)
    with pytest.raises(InputError, match="all 20 documents of the trace were used"):
        predict(tuned_policy(), same.subset(np.arange(20)), unseen=True)


def test_documents_that_heads_were_fitted_on_are_left_out() -> None:
    heads = {"documents": {"fingerprint of other": ["other 0", "other 1"]}, "lens": False}
    trace = a_trace(seed=1, workload="other", heads=heads)
    assert predict(POLICY, trace).documents == 38
    assert predict(tuned_policy(), trace).documents == 38


def test_another_precision_is_noted() -> None:
    found = predict(tuned_policy(), a_trace(seed=1, workload="other", dtype="bfloat16"))
    assert any("Traced in bfloat16, tuned in float32" in note for note in found.notes)


def test_a_policy_without_a_floor() -> None:
    trace = a_trace(seed=1)
    found = predict(str(POLICY), trace)
    assert found == predict(POLICY, trace)
    assert (found.floor, found.floor_answer, found.risk_low, found.risk_high) == (None,) * 4
    assert found.delta == 0.1
    assert found.shift == ()
    assert found.quality == found.agreement


def test_the_full_model_changes_nothing() -> None:
    found = predict(Never(), a_trace(), hardware=machine(), batch=4)
    assert found.net_speedup.value == pytest.approx(1.0)
    assert (found.skip_ratio.value, found.agreement.value, found.probe_share) == (0.0, 1.0, 0.0)


def test_few_documents_give_no_interval() -> None:
    found = predict(StaticExit(3), a_trace(documents=6))
    assert found.net_speedup.low is None
    assert any("6 documents give no interval" in note for note in found.notes)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(PolicyError, match="exit 9"):
        predict(StaticExit(9), a_trace())
