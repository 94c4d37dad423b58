"""Answers at batch sizes that were not timed say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuning_traces import easy_and_hard

from offramp.costs.machine import Machine
from offramp.costs.machine_registry import find_machine
from offramp.errors import InputError, PolicyError
from offramp.files import seal_of
from offramp.policies.grammar import parse_policy
from offramp.policies.replay import replay
from offramp.scoring.documents import document_rows
from offramp.tuning.bounds import METHODS
from offramp.tuning.certificate import losses_in_order, run_sequence
from offramp.tuning.floor import make_floor
from offramp.tuning.predict import predict
from offramp.tuning.pricing import pricing_of
from offramp.tuning.ranking import machine_answers
from offramp.tuning.splits import split_roles
from offramp.tuning.tune import tune
from offramp.tuning.tuned import Tuned, read_tuned, write_tuned
from offramp.tuning.verdict_words import meaning_of
from policy_traces import UNTIMED, make_shape, make_trace, timed, with_states


@pytest.fixture(scope="module")
def tuned() -> Tuned:
    return tune(easy_and_hard(wrong=0.002), {"agreement": 0.95}, "h100")


def test_the_fastest_certified_policy_is_found(tuned: Tuned) -> None:
    assert not tuned.plain
    assert parse_policy(str(tuned.policy)) == tuned.policy
    assert tuned.documents == {"heads": 0, "search": 60, "certify": 180, "report": 60}
    certificate = tuned.certificate
    assert certificate.holds
    assert (certificate.method, certificate.delta, certificate.documents) == ("wsr", 0.1, 180)
    assert certificate.documents_needed == 45
    assert certificate.risk_bound is not None
    assert certificate.empirical_risk is not None
    # The documents chose the policy: a confidence limit of it alone would be smaller, and not valid.
    assert certificate.empirical_risk < certificate.risk_bound == tuned.floor.risk
    # By hand: with 0.99 of the largest bet, (1 + 0.99 r / (1 - r))^180 = 10.
    risk = 1 - certificate.best_floor
    assert (1 + 0.99 * risk / (1 - risk)) ** 180 == pytest.approx(10)
    assert "teacher-forced" in certificate.assumption
    # A certificate of 25 tokens of each document says nothing of what comes after them.
    assert "on documents of 25 tokens drawn like those of texts" in certificate.assumption
    assert not certificate.executed
    assert (
        "keeps its floor in replay (with probability 0.9 over the documents drawn): on average over "
        "documents of 25 tokens like these, at least 95 % of the tokens agree"
    ) in tuned.answer
    assert "This is a replay bound: nothing was decoded" in tuned.answer
    assert "certified" not in tuned.answer
    assert tuned.net_speedup.low is not None
    assert tuned.net_speedup.low > 1.0
    assert tuned.machine == "h100"
    assert len(tuned.shift) == len(tuned.policy.checked_exits(6))
    assert tuned.provenance["machine"]["name"] == "h100"


def test_the_figures_are_those_of_the_report_documents(tuned: Tuned) -> None:
    trace = easy_and_hard(wrong=0.002)
    held = trace.subset(split_roles(trace, 0).report)
    result = replay(held, tuned.policy)
    assert tuned.quality.value == pytest.approx(result.agreement)
    assert tuned.skip_ratio.value == pytest.approx(result.skip_ratio)
    assert tuned.seconds_per_token.value is not None
    assert tuned.net_speedup.value == pytest.approx(
        tuned.plain_seconds_per_token / tuned.seconds_per_token.value
    )
    assert 0.0 < tuned.probe_share < 1.0


def test_the_front_begins_with_the_full_model_and_gets_faster(tuned: Tuned) -> None:
    speeds = [point.net_speedup for point in tuned.front]
    assert speeds == sorted(speeds)
    assert [point.risk for point in tuned.front] == sorted(point.risk for point in tuned.front)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 99),
    wrong=st.sampled_from([0.0, 0.01, 0.05, 0.2]),
    method=st.sampled_from(sorted(METHODS)),
    kind=st.sampled_from(["agreement", "kl"]),
)
def test_no_policy_is_certified_whose_bound_exceeds_the_floor(
    seed: int, wrong: float, method: str, kind: str
) -> None:
    found = tune(
        easy_and_hard(90, seed=seed, wrong=wrong),
        {kind: 0.9},
        None,
        method=method,
        clip=None if kind == "agreement" else 2.0,
    )
    certificate = found.certificate
    if found.plain:
        assert not certificate.holds
        assert certificate.risk_bound is None
        return
    assert certificate.empirical_risk is not None
    assert certificate.empirical_risk <= found.floor.risk + 1e-9
    assert certificate.holds == (method != "naive")
    if METHODS[method].confident:
        assert certificate.risk_bound is not None
        assert certificate.risk_bound <= found.floor.risk + 1e-9


def test_the_sequence_stops_at_the_first_failure() -> None:
    losses = np.zeros((100, 4))
    losses[:50, 1] = 0.5  # the second candidate fails, the bolder ones would pass
    costs = [4.0, 3.0, 2.0, 1.0]
    outcome = run_sequence(losses, costs, 0.05, 0.1, METHODS["wsr"])
    assert (outcome.tested, outcome.passed, outcome.chosen) == (2, 1, 0)
    loose = run_sequence(losses, costs, 0.05, 0.1, METHODS["naive"])
    assert (loose.tested, loose.passed, loose.chosen) == (4, 3, 3)
    assert run_sequence(np.ones((100, 2)), costs[:2], 0.05, 0.1, METHODS["hb"]).chosen is None
    assert run_sequence(np.zeros((100, 0)), [], 0.05, 0.1, METHODS["wsr"]).tested == 0


def test_losses_come_in_the_drawn_order_of_the_documents() -> None:
    trace = easy_and_hard(12, wrong=0.2)
    places = np.array([7, 2, 11])
    policy = parse_policy("static:exit=2")
    losses = losses_in_order(trace, places, [policy], make_floor({"agreement": 0.9}))
    for place, loss in zip(places, losses[:, 0], strict=True):
        rows = trace.document == place
        assert loss == pytest.approx(1 - trace.agreement[rows, 1].mean())
    assert document_rows(trace).count == 12


@pytest.mark.parametrize(
    ("documents", "floor", "answer"),
    [
        (
            12,
            0.99,
            "not certifiable: 8 documents, 230 needed (left to certify, of 12 traced); trace at least 382",
        ),
        (
            60,
            0.95,
            "not certifiable: 36 documents, 45 needed (left to certify, of 60 traced); trace at least 75",
        ),
        (2, 0.95, "not certifiable: 1 documents, 45 needed (left to certify, of 2 traced)"),
    ],
)
def test_too_few_documents_are_said_and_nothing_weaker_is_claimed(
    documents: int, floor: float, answer: str
) -> None:
    found = tune(easy_and_hard(documents), {"agreement": floor}, None)
    assert found.answer.startswith(answer)
    assert found.plain
    assert not found.certificate.holds
    assert found.certificate.tested == 0
    assert found.certificate.risk_bound is None


def test_documents_that_leave_none_to_search_on_are_too_few() -> None:
    # Nothing was searched, so it must not be said that nothing beats the full model.
    for documents in (1, 2):
        found = tune(easy_and_hard(documents), {"agreement": 0.95}, None, method="naive")
        said = f"not certifiable: no document is left to search on (of {documents} traced); trace at least 3"
        assert found.answer.startswith(said)
        assert found.plain
    assert tune(easy_and_hard(3), {"agreement": 0.95}, None, method="naive").policy != "never"


def test_documents_that_heads_were_fitted_on_are_said_to_be_missing() -> None:
    trace = easy_and_hard(80)
    fitted = [f"document {place}" for place in range(50)]
    heads = {"fingerprint": "h", "lens": False, "documents": {"w1": fitted}}
    trace.provenance["request"] = {**trace.provenance["request"], "heads": heads}
    found = tune(trace, {"agreement": 0.95}, None)
    assert found.documents["heads"] == 50
    said = (
        "not certifiable: 18 documents, 45 needed (left to certify, of 30 traced, 50 more fitted the exit "
        "heads); trace at least 125 in all"
    )
    assert found.answer.startswith(said)
    assert "exit heads" not in found.certificate.assumption
    # Whether other workloads hold the same text is not known.
    trace.provenance["request"]["heads"] = {**heads, "documents": {"w1": fitted, "w2": ["x", "y"]}}
    assumed = tune(trace, {"agreement": 0.95}, None).certificate.assumption
    assert "fitted on 2 documents of other workloads, taken to share no text with these" in assumed


def test_a_floor_in_nats_is_said_to_be_clipped() -> None:
    found = tune(easy_and_hard(100), {"kl": 0.9}, None, clip=2.0)
    assert found.certificate.holds
    assert "the KL to the full model is at most 0.9 nats (clipped at 2)" in found.answer
    assert "is at most 0.9 nats (clipped at 2)" in found.certificate.guarantee
    assert "a token's loss is cut to 0 to 2 nats" in found.certificate.assumption


def test_nothing_beats_the_full_model_where_the_head_costs_most() -> None:
    found = tune(easy_and_hard(100, head=100_000), {"agreement": 0.95}, None)
    assert found.plain
    assert found.answer.startswith("Nothing beats the full model here: on 20 documents, no policy")
    assert found.net_speedup.value == 1.0
    assert found.machine == "bytes moved"


def test_what_fails_its_test_is_not_given() -> None:
    # Right on the few search documents, wrong on most others.
    trace = easy_and_hard(100)
    wrong = ~np.isin(trace.document, split_roles(trace, 0).search)
    top1 = trace.fact("top1").copy()
    top1[wrong, :5] = 0
    facts = {
        name: trace.fact(name) for name in ("max_prob", "margin", "entropy", "hidden_cosine_to_previous")
    }
    other = make_trace(tokens=2500, documents=100, shape=make_shape(head=20), top1=top1, **facts)
    found = tune(other, {"agreement": 0.95}, None)
    assert found.plain
    assert "faster policies passed the test of agreement=0.95 on 60 documents" in found.answer
    assert found.certificate.tested == 1


def test_naive_and_crc_say_what_they_are() -> None:
    naive = tune(easy_and_hard(40), {"agreement": 0.95}, None, method="naive")
    assert not naive.plain
    assert naive.certificate.guarantee.startswith("no guarantee: the mean loss")
    assert not naive.certificate.holds
    assert "without a guarantee" in naive.answer
    crc = tune(easy_and_hard(40), {"agreement": 0.95}, None, method="crc")
    assert crc.certificate.holds
    assert crc.certificate.delta is None
    assert "on average over draws" in crc.certificate.guarantee


def test_the_same_seed_gives_the_same_answer(tuned: Tuned) -> None:
    assert tune(easy_and_hard(wrong=0.002), {"agreement": 0.95}, "h100") == tuned


def test_recomputing_is_priced(tuned: Tuned) -> None:
    found = tune(easy_and_hard(wrong=0.002), {"agreement": 0.95}, find_machine("h100"), kv="recompute")
    assert (found.kv, found.plain_seconds_per_token) == ("recompute", tuned.plain_seconds_per_token)


def test_a_batch_is_reported_in_lockstep(tuned: Tuned) -> None:
    trace = easy_and_hard(wrong=0.002)
    found = tune(trace, {"agreement": 0.95}, "h100", batch=8)
    assert found.batch == 8
    assert found.plain_seconds_per_token < tuned.plain_seconds_per_token
    result = replay(trace.subset(split_roles(trace, 0).report), found.policy, machine="h100", batch=8)
    assert found.quality.value == pytest.approx(result.agreement)
    assert found.skip_ratio.value == pytest.approx(result.skip_ratio)
    assert found.net_speedup.value == pytest.approx(result.predicted_speedup)
    assert found.quality.no_interval == "8 groups of 8 documents; an interval needs 20, 160 documents"
    few = tune(easy_and_hard(30), {"agreement": 0.9}, "h100", batch=8)
    assert few.net_speedup.undefined == "6 report documents do not fill a batch of 8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "wrs"}, "unknown method"),
        ({"hardware": "h1000"}, "unknown hardware"),
        ({"kv": "speculate"}, "does not search"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tune(easy_and_hard(12), {"agreement": 0.95}, **{"hardware": "h100", **options})


def test_a_trace_without_early_exits_is_refused() -> None:
    with pytest.raises(PolicyError, match="no exit before the last was traced"):
        tune(make_trace(exits=[6]), {"agreement": 0.95}, None)


def test_a_tuned_file_is_read_back_whole(tuned: Tuned, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    write_tuned(path, tuned)
    assert read_tuned(path) == replace(tuned, provenance=json.loads(json.dumps(tuned.provenance)))
    assert parse_policy(str(path)) == tuned.policy


def test_a_file_from_before_executed_certificates_is_read_as_a_replay_bound(
    tuned: Tuned, tmp_path: Path
) -> None:
    path = tmp_path / "policy.json"
    write_tuned(path, tuned)
    older = json.loads(path.read_text()) | {"schema_version": 2}
    for name in ("executed_agreement", "candidates", "sha256"):
        del older[name]
    for name in ("executed", "kv", "prompt_tokens", "new_tokens", "stopped_after"):
        del older["certificate"][name]
    path.write_text(sealed(older))
    found = read_tuned(path)
    assert found == replace(tuned, provenance=json.loads(json.dumps(tuned.provenance)))
    assert not found.certificate.executed
    assert parse_policy(str(path)) == tuned.policy


def sealed(value: dict[str, Any]) -> str:
    return json.dumps({**value, "sha256": seal_of(value)})


def resealed(entry: str, **changed: Any) -> Callable[[dict[str, Any]], str]:
    """A tuned policy of which parts of an entry were changed by who knows how to seal it."""

    def of(whole: dict[str, Any]) -> str:
        del whole["sha256"]
        return sealed({**whole, entry: {**whole[entry], **changed}})

    return of


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (lambda whole: json.dumps({**whole, "policy": "static:exit=1"}), "was edited since it was written"),
        (
            lambda whole: json.dumps({**whole, "certificate": {**whole["certificate"], "risk_bound": 0.0}}),
            "was edited since it was written",
        ),
        (lambda whole: sealed({**whole, "schema_version": 4}), "schema version 4, newer than 3"),
        (resealed("certificate", delta=5.0), r"certificate.delta: .*less than 1"),
        (resealed("certificate", documents=-5), "certificate.documents"),
        (resealed("agreement", value=17.0), "agreement: it must be a share from 0 to 1"),
        (resealed("seconds_per_token", value=-1.0), "seconds_per_token: it must be above 0"),
        (lambda whole: sealed(whole | {"kv": "warp"}), r"kv: 'warp'"),
        (resealed("documents", certify=-5), "documents.certify"),
        (resealed("document_texts", search=["zz"]), "must be the sketch of a text, not 'zz'"),
        (lambda whole: json.dumps({"schema_version": 1, "kind": "static"}), "holds no tuned policy"),
        (lambda whole: "{", "is not JSON"),
        (lambda whole: "[]", "it holds a list, not an object"),
        (None, "the policy file cannot be read: No such file"),
    ],
)
def test_tuned_files_that_cannot_be_trusted_are_refused(
    tuned: Tuned, tmp_path: Path, content: Callable[[dict[str, Any]], str] | None, what: str
) -> None:
    path = tmp_path / "policy.json"
    if content is not None:
        write_tuned(path, tuned)
        path.write_text(content(json.loads(path.read_text())))
    with pytest.raises(InputError, match=what) as error:
        read_tuned(path)
    assert error.value.exit_code == 2


def test_what_a_floor_means_for_an_answer() -> None:
    assert "0.99^64 = 53 % of 64-token answers" in meaning_of(make_floor({"agreement": 0.99}))
    said = meaning_of(make_floor({"nll": 0.02}))
    assert "1.28 nats of clipped loss on average; what a token loses beyond 1 nats is not bounded" in said


POLICY = "threshold:signal=max_prob,value=0.9,exits=3"
BENCH = timed(seconds=(1.0, 3.0), **UNTIMED)


def test_machines_side_by_side_name_what_was_not_timed() -> None:
    trace = make_trace(tokens=200, documents=40)
    machines: list[Machine] = [BENCH]
    first, second = machine_answers(trace, machines, (4, 8), 0.9)
    assert first.source == second.source
    assert first.source.startswith("made up; bench was timed at batch 1, 4, not at 8: ")
    [only] = machine_answers(trace, machines, (1,), 0.9)
    assert only.source == "made up"


@pytest.mark.parametrize(
    ("batch", "kv", "untimed"), [(1, "propagate", ""), (1, "recompute", "2"), (3, "propagate", "3")]
)
def test_predictions_name_what_was_not_timed(batch: int, kv: str, untimed: str) -> None:
    trace = make_trace(tokens=200, documents=40)
    notes = predict(POLICY, trace, hardware=BENCH, batch=batch, kv=kv).notes
    said = [note for note in notes if "was timed at batch" in note]
    assert [note.partition("not at ")[2].partition(":")[0] for note in said] == ([untimed] if untimed else [])


def test_recomputing_a_recurrent_layer_costs_the_whole_layer() -> None:
    trace = make_trace(shape=with_states(make_shape(), 5))
    costs = pricing_of(trace, BENCH, 1, "recompute").costs
    # A row more takes two thirds of a second by the timings, a step of its own takes one.
    assert costs.key_value == pytest.approx([2 / 3] * 5 + [1.0])
