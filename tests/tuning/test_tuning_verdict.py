from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuning_traces import easy_and_hard

import offramp
from offramp.costs.machine_registry import find_machine
from offramp.errors import InputError
from offramp.kit.typed import InvalidRecordError, from_json, to_json
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.frontier import frontier
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.policies.replay import ReplayResult, replay
from offramp.policies.rules.fixed import Never, StaticExit
from offramp.policies.rules.threshold import Threshold
from offramp.scoring.estimate import Estimate
from offramp.timing.results import Credit, Timing
from offramp.tracing.trace import Trace
from offramp.tuning.certificate import Candidate, Certificate
from offramp.tuning.curves import shortest_threshold
from offramp.tuning.floor import Floor, make_floor
from offramp.tuning.pool import Pool, SearchEvidence
from offramp.tuning.pricing import pricing_of
from offramp.tuning.ranking import machine_answers
from offramp.tuning.replayed_verdicts import judge
from offramp.tuning.search import add_exact, targets_around
from offramp.tuning.splits import split_documents
from offramp.tuning.threshold_family import exit_sets, recorded_signals
from offramp.tuning.tuned import FloorStanding, Grounds, Tuned
from offramp.tuning.verdict import INCONCLUSIVE, Speed, TimedPolicy, Verdict, decide, settle
from offramp.tuning.verdict_words import CONTRADICTED, kept_words, percent_down
from policy_traces import make_shape, make_trace

FLOORS = (0.99, 0.95, 0.9)
# Heads against layers of 2,000 bytes: free, moderate, dear.
HEADS = (10, 300, 4000)


CONTRADICTED_RECORDS: list[tuple[Any, dict[str, Any], str]] = [
    (Estimate(0.5, 0.4, 0.6), {"low": 0.9, "high": 0.1}, "begins at 0.9, above its end 0.1"),
    (Speed(1.1, 1.0, 1.2, "measured", "local", True), {"low": 1.3}, "begins at 1.3"),
    (Timing(1.0, 0.9, 1.1, 1, 0.0), {"high": 0.5}, "above its end 0.5"),
    (Credit(1.1, 1.0, 1.2, "plain"), {"low": 1.3}, "begins at 1.3"),
]


@pytest.mark.parametrize(("record", "changed", "words"), CONTRADICTED_RECORDS)
def test_a_record_whose_interval_has_its_ends_the_wrong_way_round_is_not_read(
    record: Any, changed: dict[str, Any], words: str
) -> None:
    assert from_json(type(record), to_json(record)) == record
    with pytest.raises(InvalidRecordError, match=words):
        from_json(type(record), to_json(record) | changed)


def test_no_certificate_is_read_by_which_more_passed_than_were_tested() -> None:
    value = to_json(tuned("static:exit=4", "certified").certificate)
    with pytest.raises(InvalidRecordError, match="of 1 candidates that were tested 2 passed"):
        from_json(Certificate, value | {"passed": 2})


@pytest.mark.parametrize("listed", [1.0, 0.9])
def test_early_exit_is_credited_with_what_it_adds_to_a_cut_head(listed: float) -> None:
    """A dear head, and a list that costs no agreement, or too much of it."""
    plain = easy_and_hard(80, head=100_000)
    on_list = np.random.default_rng(0).random(plain.token_count) < listed
    trace = with_facts(
        plain,
        restricted_top1=np.where(on_list[:, None], plain.fact("top1"), 5).astype(np.int32),
        hidden_cosine_to_previous=plain.fact("max_prob"),
    )
    verdict = judge(trace, (0.95,))[0]
    assert verdict.credit is not None
    assert verdict.net_speedup.value is not None
    policy = verdict.policy
    assert not policy.full_depth
    # Prices of the half are at its own mean position.
    replayed = replay_on_judging(trace, policy)
    assert verdict.net_speedup.value == pytest.approx(replayed.predicted_speedup, rel=1e-4)
    assert verdict.skip_ratio.value == pytest.approx(replayed.skip_ratio)
    assert verdict.agreement.value == pytest.approx(replayed.agreement)
    without = replay_on_judging(trace, parse_policy(verdict.without)).predicted_speedup
    assert verdict.credit.value == pytest.approx(verdict.net_speedup.value / without, rel=1e-4)
    if listed == 1.0:
        assert verdict.without == "shortlist:policy=[never],at=all"
        assert policy.short_head
        assert without > 1.2
        assert "with its output head cut to the short list 1." in verdict.reason
    else:
        assert verdict.without == "never"
        assert verdict.credit == verdict.net_speedup
    assert verdict.gain is not None
    assert verdict.gain.total == pytest.approx(1.0 - 1.0 / verdict.net_speedup.value)


def with_facts(trace: Trace, **further: Any) -> Trace:
    facts = {name: trace.fact(name) for name in trace.fact_names} | further
    return Trace.from_facts(facts, document=trace.document, shape=trace.shape, position=trace.position)


def replay_on_judging(trace: Trace, policy: ExitPolicy) -> ReplayResult:
    return replay(trace.subset(split_documents(trace, 0)[1]), policy)


def test_nothing_pays_that_a_cut_head_gives_alone() -> None:
    """No token may leave early, and the list is as good as the whole vocabulary."""
    never_right = np.tile(np.arange(6), (800, 1)).astype(np.int32)
    plain = make_trace(tokens=800, documents=40, shape=make_shape(head=100_000), top1=never_right)
    trace = with_facts(plain, restricted_top1=never_right)
    verdict = judge(trace, (0.9999,))[0]
    assert (verdict.policy, verdict.decision) == (PLAIN_DECODING, "does not pay")
    assert verdict.without == "shortlist:policy=[never],at=all"
    assert verdict.net_speedup.value == 1.0
    assert "than the full model with its output head cut to the short list" in verdict.reason
    answer = machine_answers(trace, [find_machine("h100")], (1,), 0.9999)[0]
    assert (answer.policy, answer.decision) == (PLAIN_DECODING, "does not pay")


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), head=st.sampled_from(HEADS), levels=st.sampled_from([4, None]))
def test_the_search_finds_the_fastest_of_all_it_covers(seed: int, head: int, levels: int | None) -> None:
    # Documents of equal lengths, so that their mean agreement is that of the tokens.
    trace = make_trace(seed=seed, tokens=78, levels=levels, shape=make_shape(head=head))
    covered = {*exit_sets((1, 2, 3, 4, 5)), *((exit,) for exit in range(1, 6))}
    recorded = [signal.name for signal in recorded_signals(trace)]
    frontiers = [frontier(trace, signal, exits) for signal, exits in itertools.product(recorded, covered)]
    static = [replay(trace, StaticExit(exit)) for exit in range(1, 6)]
    evidence = SearchEvidence(trace, make_floor({"agreement": 0.9}))
    for floor in FLOORS:
        checked = make_floor({"agreement": floor})
        pool = Pool(trace, checked, pricing_of(trace, None), evidence)
        add_exact(pool, targets_around(checked.risk))
        allowed = [result.predicted_speedup for result in static if result.agreement >= floor]
        best = max(1.0, *allowed, *(one.speedup[one.agreement >= floor].max() for one in frontiers))
        # Grown sets may only add to what is covered.
        found = pool.fastest(checked.risk)
        speedup = 1.0 if found is None else pool.pricing.plain / found.cost
        assert max(speedup, 1.0) >= best * (1 - 1e-9)
        if found is not None:
            replayed = replay(trace, found.policy)
            assert replayed.predicted_speedup == pytest.approx(speedup, rel=1e-9)
            assert replayed.agreement == pytest.approx(1.0 - found.risk)
            assert replayed.agreement >= floor - 1e-9


def test_the_exit_sets_hold_the_deepest_exits() -> None:
    below = tuple(range(1, 30))
    assert exit_sets(below) == (
        tuple(range(22, 30)),
        tuple(range(15, 30)),
        (1, 5, 9, 13, 17, 21, 25, 29),
        tuple(range(1, 30, 2)),
        below,
    )
    assert exit_sets((4,)) == ((4,),)
    assert exit_sets(()) == ()


@given(
    values=st.tuples(st.floats(0, 20, width=32), st.floats(0, 20, width=32)).filter(
        lambda pair: pair[0] != pair[1]
    )
)
def test_the_shortest_threshold_lies_between_two_neighbours(values: tuple[float, float]) -> None:
    low, high = sorted(values)
    assert low < shortest_threshold(high, low, upwards=False) <= high
    assert low <= shortest_threshold(low, high, upwards=True) < high


def test_the_shortest_threshold_is_short() -> None:
    assert shortest_threshold(0.8731, 0.8642, upwards=False) == 0.87
    assert shortest_threshold(0.8642, 0.8731, upwards=True) == 0.87
    assert shortest_threshold(0.8731, None, upwards=False) == 0.8


def test_a_replay_proposes_and_never_promises() -> None:
    # So high a floor that no token may differ; lower ones are spent to the last allowed token.
    for verdict in judge(easy_and_hard(80), floors=(0.9999,)):
        assert verdict.outcome == "time"
        assert verdict.missing == ("decoding documents: nothing was executed",)
        assert verdict.agreement.value == 1.0
        assert verdict.net_speedup.low is not None
        assert verdict.net_speedup.low > 1.05
        assert verdict.net_speedup.low <= (verdict.net_speedup.value or 0) <= (verdict.net_speedup.high or 0)
        assert isinstance(verdict.policy, Threshold)
        assert (verdict.fit_documents, verdict.report_documents) == (40, 40)
        assert "Nothing was executed" in verdict.reason
        assert not verdict.certified


def test_it_does_not_pay_where_the_head_costs_more_than_the_layers() -> None:
    for verdict in judge(easy_and_hard(80, head=100_000)):
        assert verdict.policy == PLAIN_DECODING
        assert verdict.decision == "does not pay"
        assert verdict.net_speedup.value == 1.0
        assert verdict.net_speedup_flops.value == 1.0
        assert verdict.agreement.value == 1.0
        assert "no policy of any family" in verdict.reason
        assert verdict.missing == ()


def test_a_gain_below_its_worth_does_not_pay() -> None:
    """Below half of it: decoded, a policy may gain more than a replay foretells."""
    trace = easy_and_hard(80, head=3000)
    high = judge(trace, (0.95,))[0].net_speedup.high
    assert high is not None
    for share, decision in ((0.4, "does not pay"), (0.6, "inconclusive"), (0.9, "inconclusive")):
        verdict = judge(trace, (0.95,), worth=(high - 1.0) / share)[0]
        assert verdict.policy != PLAIN_DECODING
        assert verdict.decision == decision


def test_a_replayed_interval_around_the_worth_settles_nothing() -> None:
    trace = easy_and_hard(80)
    value = judge(trace, (0.95,))[0].net_speedup.value
    assert value is not None
    verdict = judge(trace, (0.95,), worth=value - 1)[0]
    assert verdict.outcome == "time"


def test_under_twenty_documents_no_interval_and_no_claim() -> None:
    verdict = judge(easy_and_hard(38), (0.95,))[0]
    assert verdict.report_documents == 19
    assert verdict.outcome == "time"
    assert verdict.net_speedup.low is None
    assert verdict.net_speedup.value is not None
    assert verdict.net_speedup.value > 1.05
    assert "without an interval" in verdict.reason
    never = judge(easy_and_hard(10, head=100_000), (0.95,))[0]
    assert never.decision == "does not pay"
    assert "So few documents say little" in never.reason
    assert "few documents" not in judge(easy_and_hard(40, head=100_000), (0.95,))[0].reason


def test_one_document_cannot_be_judged() -> None:
    verdict = judge(easy_and_hard(1))[0]
    assert verdict.outcome == "data"
    assert verdict.net_speedup.value is None
    assert "1 document cannot both choose" in verdict.reason
    assert math.isnan(verdict.fit_agreement)


def test_a_trace_of_the_last_exit_alone_is_no_evidence_against_early_exit() -> None:
    for verdict in judge(make_trace(tokens=2000, documents=80, exits=[6])):
        assert verdict.outcome == "time"
        assert verdict.net_speedup.value is None
        assert "no exit before the last was traced" in verdict.reason


def test_a_value_just_below_the_floor_never_reads_as_the_floor() -> None:
    assert [percent_down(share) for share in (0.98999, 0.995, 0.99)] == ["98.99 %", "99.5 %", "99 %"]


def test_other_settings_out_of_range_are_refused() -> None:
    for setting, value in (
        ("delta", 0.0),
        ("floors", (0.9, 1.0)),
        *(("worth", worth) for worth in (-0.1, math.nan, math.inf, 1.0, 5.0)),
    ):
        with pytest.raises(InputError, match=f"{setting} must be"):
            offramp.judge(easy_and_hard(80), **{setting: value})


def test_a_model_of_one_layer_never_leaves_early() -> None:
    trace = make_trace(layers=1, tokens=400, documents=40, shape=make_shape(1))
    assert all(verdict.policy == Never() for verdict in judge(trace))


def speed(low: float | None, high: float | None, how: Any = "measured", at_hand: bool = True) -> Speed:
    value = 1.1 if low is None or high is None else (low + high) / 2
    return Speed(value, low, high, how, "local" if at_hand else "h100", at_hand)


@pytest.mark.parametrize(
    ("credit", "certified", "refuted", "fastest", "decision"),
    [
        (speed(1.06, 1.1), True, False, True, "pays"),
        (speed(1.06, 1.1), False, False, True, "time"),
        (speed(1.06, 1.1), True, False, False, "pays"),
        (speed(1.04, 1.1), True, False, True, "interval"),
        (speed(1.04, 1.1), True, False, False, "time"),
        (speed(1.05, 1.1), True, False, True, "interval"),
        (speed(1.01, 1.049), True, False, True, "does not pay"),
        (speed(1.01, 1.049), False, False, True, "does not pay"),
        (speed(1.01, 1.049), False, False, False, "time"),
        (speed(1.01, 1.05), True, False, True, "interval"),
        (speed(None, 1.2), True, False, True, "interval"),
        (speed(1.06, 1.1, "predicted"), True, False, True, "time"),
        (speed(1.01, 1.049, "predicted"), True, False, True, "time"),  # measured it may be twice that
        (speed(1.01, 1.024, "predicted"), True, False, True, "does not pay"),
        (speed(1.01, 1.049, "predicted", at_hand=False), True, False, True, "does not pay"),
        (speed(1.06, 1.1, "predicted", at_hand=False), True, False, True, "pays"),
        (None, False, True, True, "does not pay"),
        (None, True, False, True, "time"),
        (None, False, False, True, "time"),
    ],
)
def test_the_rule(credit: Speed | None, certified: bool, refuted: bool, fastest: bool, decision: str) -> None:
    found = decide(worth=0.05, credit=credit, certified=certified, refuted=refuted, fastest=fastest)
    assert found == decision


def tuned(
    policy: str,
    standing: FloorStanding | None,
    *,
    documents: int = 60,
    at_hand: int | None = None,
    without: float = 1.0,
    **changes: Any,
) -> Tuned:
    """An answer of the tuner; standing: None for a replay bound."""
    holds = standing in ("certified", None)
    certificate = Certificate(
        method="wsr", guarantee="", holds=holds, delta=0.1, documents=documents,
        empirical_risk=0.02 if holds else None,
        risk_bound=0.05, best_floor=0.95, documents_needed=46, tested=1, passed=int(holds), assumption="",
        executed=standing is not None, kv="propagate", prompt_tokens=32, new_tokens=16, stopped_after=48,
    )  # fmt: skip
    grounds = None
    if standing is not None:
        grounds = Grounds(standing, True, 1.08, without, 0.05, documents if at_hand is None else at_hand)
    fields: dict[str, Any] = {
        "floor": Floor("agreement", 0.95), "policy": parse_policy(policy), "answer": "the tuner's answer.",
        "certificate": certificate, "quality": Estimate(0.97), "agreement": Estimate(0.97),
        "skip_ratio": Estimate(0.2),
        "net_speedup": Estimate(1.08, 1.07, 1.09), "seconds_per_token": Estimate(0.05),
        "plain_seconds_per_token": 0.054, "probe_share": 0.0, "machine": "local", "batch": 1,
        "kv": "propagate", "front": (), "shift": (),
        "documents": {"heads": 0, "search": 12, "certify": documents},
        "document_digests": {}, "executed_agreement": Estimate(0.973) if holds else None, "grounds": grounds,
    }  # fmt: skip
    return Tuned(**{**fields, **changes})


def candidate(
    policy: str = "static:exit=3", *, passed: bool | None, outcome: str = "too much lost", documents: int = 20
) -> Candidate:
    executed = 0.88 if documents else None
    return Candidate(parse_policy(policy), "propagate", 0.96, 0.9, executed, documents, 1.2, passed, outcome)


def timed(
    low: float, high: float, credit: tuple[float, float] | None = None, seconds: float = 60.0
) -> TimedPolicy:
    """A stopwatch's answer; credit: over prompt lookup, by default over plain decoding alone."""
    low_credit, high_credit = (low, high) if credit is None else credit
    added = Estimate((low_credit + high_credit) / 2, low_credit, high_credit)
    over = "never" if credit is None else "prompt lookup"
    return TimedPolicy(replace(speed(low, high), seconds=seconds), added, over)


LATE = candidate(passed=False, outcome="time used up")
CERTIFIED = candidate("static:exit=4", passed=True, outcome="certified")


@pytest.fixture(scope="module")
def proposed() -> Verdict:
    """What replay says at one floor."""
    return judge(easy_and_hard(80), floors=(0.95,))[0]


def test_what_was_executed_and_timed_settles_a_verdict(proposed: Verdict) -> None:
    settled = settle(proposed, tuned("static:exit=4", "certified"), timed(1.06, 1.1))
    assert (settled.decision, settled.policy, settled.kv) == ("pays", StaticExit(4), "propagate")
    assert settled.certified
    assert settled.missing == ()
    assert settled.replayed_policy == proposed.policy
    assert settled.reason.startswith("keeps 97.3 % as executed (certified ≥ 95 %, 48 documents)")
    assert "measured 1.080 × the speed of plain decoding (1.060 to 1.100)" in settled.reason


def test_the_measured_credit_decides_and_no_measured_interval_is_multiplied(proposed: Verdict) -> None:
    """A policy that is faster than plain decoding and slower than prompt lookup does not pay."""
    answer = tuned("static:exit=4", "certified", without=0.5)
    slower = settle(proposed, answer, timed(1.2, 1.3, credit=(0.9, 0.98)))
    assert (slower.decision, slower.without) == ("does not pay", "prompt lookup")
    assert slower.speed is not None
    assert slower.speed.value == 1.25
    assert slower.credit == Estimate(0.94, 0.9, 0.98)
    assert "0.940 × (0.900 to 0.980) the speed of prompt lookup, which needs no exits" in slower.reason
    # Where the best decoder without exits was not timed, the speed over plain decoding is only a limit.
    bare = settle(proposed, answer, TimedPolicy(speed(1.2, 1.3)))
    assert bare.outcome == "interval"
    assert "the best decoder without exits, timed in the same turns" in bare.missing
    assert settle(proposed, answer, TimedPolicy(speed(1.0, 1.04))).decision == "does not pay"
    # A prediction is of both.
    untimed = settle(proposed, answer)
    assert untimed.credit is not None
    assert untimed.credit.value == pytest.approx(0.54)
    assert untimed.decision == "does not pay"


def test_decoding_may_contradict_a_certificate(proposed: Verdict) -> None:
    answer = tuned("static:exit=4", "certified")
    fast = timed(1.06, 1.1)
    doubtful = settle(proposed, answer, replace(fast, kept=Estimate(0.9, 0.86, 0.94)))
    assert (doubtful.outcome, doubtful.missing) == ("data", (CONTRADICTED,))
    for kept in (Estimate(0.94, 0.9, 0.96), Estimate(None, undefined="not judged"), None):
        assert settle(proposed, answer, replace(fast, kept=kept)).decision == "pays"
    slow = settle(proposed, answer, replace(timed(1.0, 1.04), kept=Estimate(0.9)))
    assert (slow.decision, slow.missing) == ("does not pay", ())


def test_an_open_verdict_says_what_is_missing(proposed: Verdict) -> None:
    untimed = settle(proposed, tuned("static:exit=4", "certified"))
    assert (untimed.outcome, untimed.missing) == ("time", ("a timing of this policy",))
    few = settle(proposed, tuned("never", "too few documents", documents=12))
    assert few.outcome == "data"
    assert few.missing == (
        "documents: 12 at hand to certify on, 46 needed if none loses, trace at least 76 in all",
    )
    used_up = settle(proposed, tuned("never", "too few documents"))
    assert used_up.outcome == "data"
    assert used_up.missing == ("more documents: all 60 at hand were decoded, and leave it open",)
    near = candidate(passed=False, outcome="out of reach", documents=52)
    some = settle(proposed, tuned("never", "too few documents", candidates=(near,)))
    assert some.missing[0] == (
        "more documents: 52 leave it open, and the others of the 60 at hand could not certify it"
    )
    allowed = settle(proposed, tuned("never", "not settled", documents=12, at_hand=60))
    assert allowed.outcome == "time"
    assert "12 were allowed to be decoded, 46 needed" in allowed.missing[0]
    wide = settle(proposed, tuned("static:exit=4", "certified"), timed(0.98, 1.16))
    assert wide.outcome == "interval"
    assert wide.missing == ("a narrower interval of the speed, some 20 min of timing",)
    hopeless = settle(proposed, tuned("static:exit=4", "certified"), timed(0.98, 1.1201))
    assert hopeless.missing == ("a narrower interval of the speed, more than an hour of timing",)


def test_only_what_was_tried_is_refuted(proposed: Verdict) -> None:
    refuted = tuned("never", "refuted", candidates=(candidate(passed=False),))
    assert settle(proposed, refuted).decision == "does not pay"
    # However fast it is: it does not keep the floor.
    assert settle(proposed, refuted, timed(1.2, 1.3)).decision == "does not pay"
    assert settle(proposed, tuned("never", "not settled", candidates=(LATE,))).outcome == "time"
    assert settle(proposed, tuned("never", "not settled")).outcome == "time"
    assert settle(proposed, tuned("never", "nothing could pay")).decision == "does not pay"
    # What replay alone says, before anything was decoded, stands with its own reason.
    no = replace(proposed, outcome="does not pay", reason="as replayed")
    said = settle(no, tuned("never", "not settled"))
    assert (said.decision, said.reason) == ("does not pay", "as replayed")


def test_a_replay_bound_is_no_certificate(proposed: Verdict) -> None:
    bound = settle(proposed, tuned("static:exit=4", None), timed(1.06, 1.1))
    assert bound.outcome == "time"
    assert not bound.certified
    assert "nothing was executed" in bound.missing[0]


def test_a_candidate_that_is_not_settled_is_shown_with_its_own_speed(proposed: Verdict) -> None:
    late = tuned("never", "not settled", candidates=(LATE,))
    untimed = settle(proposed, late)
    assert untimed.tried == LATE
    assert (untimed.policy, untimed.kv, untimed.gain) == (PLAIN_DECODING, None, None)
    assert untimed.speed == Speed(1.2, None, None, "predicted", "local", True)
    assert kept_words(untimed) == "kept 88 % as executed on 20 documents, below 95 %"
    assert settle(proposed, late, timed(1.06, 1.1)).outcome == "time"
    slow = settle(proposed, late, timed(0.98, 1.03))
    assert (slow.decision, slow.missing) == ("does not pay", ())
    # A resolved speed needs no narrower interval.
    fast = settle(proposed, late, timed(1.18, 1.22))
    assert fast.missing == ("time to decode the documents that are at hand, 20 documents so far",)
    # Candidates behind it are faster: that this one is slow refuses nothing.
    bolder = candidate("static:exit=2", passed=None, outcome="a candidate before it failed", documents=0)
    bolder = replace(bolder, predicted_speed=1.25 * LATE.predicted_speed)
    behind = tuned("never", "not settled", candidates=(LATE, bolder))
    assert settle(proposed, behind, timed(0.98, 1.03)).outcome == "time"
    # Unless they would be too slow even if they gained what they were predicted to gain beyond it.
    assert settle(proposed, behind, timed(0.49, 0.64)).decision == "does not pay"
    few = tuned("never", "too few documents", candidates=(LATE, bolder), documents=12)
    assert settle(proposed, few, timed(0.49, 0.64)).decision == "does not pay"
    assert settle(proposed, few, timed(0.98, 1.03)).outcome == "data"
    # So where the time was used up: no time brings documents that are not at hand.
    late = tuned("never", "not settled", candidates=(LATE, bolder), documents=12)
    assert settle(proposed, late, timed(0.98, 1.03)).outcome == "data"
    allowed = tuned("never", "not settled", candidates=(LATE, bolder), documents=12, at_hand=60)
    assert settle(proposed, allowed, timed(0.98, 1.03)).outcome == "time"
    certified = tuned("static:exit=4", "certified", candidates=(CERTIFIED, LATE))
    assert settle(proposed, certified, timed(0.98, 1.03)).outcome == "time"
    failed = tuned("static:exit=4", "certified", candidates=(CERTIFIED, candidate(passed=False), bolder))
    assert settle(proposed, failed, timed(0.98, 1.03)).decision == "does not pay"


@pytest.mark.parametrize("reach", [None, 1.2])
@pytest.mark.parametrize("standing", get_args(FloorStanding))
@pytest.mark.parametrize("tested", [(), (LATE,), (candidate(passed=False),), (CERTIFIED,)])
@pytest.mark.parametrize("clock", [None, (1.06, 1.1), (0.98, 1.03), (0.98, 1.16)])
def test_no_verdict_claims_more_than_its_evidence(
    proposed: Verdict,
    reach: float | None,
    standing: FloorStanding,
    tested: tuple[Candidate, ...],
    clock: tuple[float, float] | None,
) -> None:
    """Every combination of what may be missing: the decision, and every word of the reason."""
    certified = standing == "certified"
    answer = tuned("static:exit=4" if certified else "never", standing, candidates=tested)
    settled = settle(proposed, answer, None if clock is None else timed(*clock))
    if settled.decision == "pays":
        assert certified
        assert clock == (1.06, 1.1)
    if settled.decision == "does not pay":
        assert standing in ("refuted", "nothing could pay", "nothing faster") or clock == (0.98, 1.03)
    if settled.decision == INCONCLUSIVE:
        assert settled.missing
    else:
        assert not settled.missing
    said = f"{settled.reason} {kept_words(settled)}"
    if clock is None:
        assert "measured" not in said
    if not certified:
        assert "(certified" not in said
        assert not settled.certified
        if not tested:
            assert "as executed" not in said
