from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from offramp.errors import InputError, PolicyError
from offramp.policies import decisions as replayed
from offramp.policies.decisions import replay_decisions
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import Never, StaticExit
from offramp.policies.rules.threshold import Threshold
from offramp.testing.policies import choose_one_by_one
from offramp.tracing.facts import FACT_BY_NAME
from offramp.tracing.trace import Trace
from policy_traces import make_shape, make_trace

LEVELS = st.integers(0, 10).map(lambda level: level / 10)
TARGETS = st.sampled_from((0.3, 0.6, 0.9))
COUNTS = st.integers(1, 3)
SIGNALS_AT_HAND = st.sampled_from(("margin", "max_prob", "entropy", "hidden_cosine"))


def full_trace(exits: list[int], candidate_exit: int | None = None, **given: Any) -> Trace:
    """A trace of 6 layers with every fact, at some exits and L."""
    generator = np.random.default_rng(0)
    size = (20, len(exits) + 1)
    facts: dict[str, Any] = {
        name: generator.random(size).astype(fact.dtype) for name, fact in FACT_BY_NAME.items()
    }
    return Trace.from_facts(
        {**facts, **given},
        document=np.repeat(np.arange(2, dtype=np.int32), 10),
        exits=np.array([*exits, 6]),
        shape=make_shape(6),
        provenance={"request": {"heads": {"candidate_exit": candidate_exit}}},
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), token=st.integers(0, 59), column=st.integers(0, 4), rows=st.integers(1, 70))
def test_blocks_of_any_size_give_the_same(seed: int, token: int, column: int, rows: int) -> None:
    trace = make_trace(seed=seed, levels=10)
    # A threshold that is exactly one of the values: all ways must agree on equality.
    policy = Threshold("margin", float(trace.fact("margin")[token, column]), (1, 2, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replayed, "ROWS", rows)
        decisions = replay_decisions(policy, trace)
    np.testing.assert_array_equal(decisions.exits, choose_one_by_one(policy, trace).exits)


SETS = st.sets(st.integers(1, 5), min_size=1).map(sorted).map(lambda exits: "+".join(map(str, exits)))
SIMPLE = st.one_of(
    st.builds("threshold:signal={},value={},exits={}".format, SIGNALS_AT_HAND, LEVELS, SETS),
    st.builds("bandit:signal=margin,value={},exits={}".format, LEVELS, SETS),
    st.builds("adaptive:signal=margin,target={},warmup={},exits={}".format, TARGETS, COUNTS, SETS),
    st.builds(
        "dynamic:signal=margin,value={},exits={},complexity=running_entropy,slope=0.2".format, LEVELS, SETS
    ),
    st.builds("patience:times={},exits=all".format, COUNTS),
    st.builds("sustained:signal=entropy,value={},times={},exits=all".format, LEVELS, COUNTS),
    st.builds("static:exit={}".format, COUNTS),
    st.just("schedule:first=6,last=2,length=8"),
)
NESTED = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.builds("monotone:policy=[{}]".format, inner),
        st.builds("minimum:exit={},policy=[{}]".format, COUNTS, inner),
        st.builds("votes:need={},of=[{}]+[{}]".format, st.sampled_from(("any", "all")), inner, inner),
    ),
    max_leaves=4,
)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 999), text=NESTED)
def test_policies_within_policies_decide_alike_side_by_side_and_alone(seed: int, text: str) -> None:
    policy = parse_policy(text)
    try:
        policy.needs(6)
    except PolicyError:
        assume(False)
    trace = make_trace(seed=seed, levels=10, tokens=40, documents=3)
    decisions, alone = replay_decisions(policy, trace), choose_one_by_one(policy, trace)
    np.testing.assert_array_equal(decisions.exits, alone.exits)
    for place in range(len(decisions.needs)):
        np.testing.assert_array_equal(decisions.probed_at(place), alone.probed[:, place])


def test_where_tokens_are_probed() -> None:
    sure = np.array([[0.9, 0.9, 0.9], [0.1, 0.9, 0.9], [0.1, 0.2, 0.9]], dtype=np.float32)
    trace = make_trace(tokens=3, layers=3, documents=3, max_prob=sure)
    decisions = replay_decisions(parse_policy("threshold:signal=max_prob,value=0.5,exits=1+2"), trace)
    assert decisions.exits.tolist() == [1, 2, 3]
    assert decisions.needs == {1: ("max_prob",), 2: ("max_prob",)}
    assert decisions.probed is None
    assert decisions.probed_at(0).tolist() == [True, True, True]
    assert decisions.probed_at(1).tolist() == [False, True, True]
    assert not replay_decisions(StaticExit(2), trace).needs


def test_a_threshold_is_not_rounded_to_the_precision_of_the_fact() -> None:
    # float32(0.9) is below 0.9, so a fact of float32(0.9) does not reach the threshold 0.9.
    trace = make_trace(max_prob=np.full((60, 6), np.float32(0.9)))
    policy = Threshold("max_prob", 0.9, (2,))
    assert (replay_decisions(policy, trace).exits == 6).all()
    assert (choose_one_by_one(policy, trace).exits == 6).all()


def test_what_does_not_fit_the_trace_is_refused() -> None:
    trace = make_trace(exits=[2, 5, 6])
    with pytest.raises(PolicyError, match="exit 20 is beyond the model, which has 6 layers"):
        replay_decisions(StaticExit(20), trace)
    with pytest.raises(PolicyError, match=r"exit 3 was not traced(.|\n)*--exits 2,3,5,6"):
        replay_decisions(StaticExit(3), trace)
    with pytest.raises(PolicyError, match=r"exit 1, 3, 4 was not traced"):
        replay_decisions(Threshold("margin", 0.5, "all"), trace)
    with pytest.raises(PolicyError, match="exit 6 is the full model"):
        replay_decisions(Threshold("margin", 0.5, (2, 6)), trace)


def test_a_fact_that_is_not_a_number_is_refused_where_it_is_read() -> None:
    entropy = make_trace().fact("entropy").copy()
    entropy[7, 2] = np.nan
    trace = make_trace(entropy=entropy)
    with pytest.raises(InputError, match=r"entropy is not a number for 1 tokens at exit 3(.|\n)*row 7"):
        replay_decisions(Threshold("entropy", 0.5, (3, 4)), trace)
    assert (replay_decisions(Threshold("entropy", 0.5, (2, 4)), trace).exits > 1).all()
    monotone = parse_policy("monotone:policy=[threshold:signal=entropy,value=0,exits=3+4]")
    with pytest.raises(InputError, match=r"entropy is not a number for 1 tokens at exit 3(.|\n)*row 7"):
        replay_decisions(monotone, trace)


@pytest.mark.parametrize(
    ("signal", "option"),
    [
        ("restricted_margin", "--signals restricted"),
        ("kl_to_previous", "--signals kl_to_previous"),
        ("logit_gap", "--signals logit_gap"),
        ("correctness", "--heads FILE"),
        ("candidate_score", "--heads FILE"),
    ],
)
def test_a_fact_that_was_not_recorded_names_the_option_that_does(signal: str, option: str) -> None:
    with pytest.raises(InputError) as error:
        replay_decisions(Threshold(signal, 0.5, (1, 2)), make_trace())
    assert signal in error.value.what
    assert option in error.value.fix


def test_a_document_fact_that_is_missing_or_no_number_is_refused() -> None:
    policy = parse_policy("dynamic:signal=margin,value=0.5,exits=2,complexity=prompt_entropy,slope=0.1")
    trace = make_trace()
    with pytest.raises(InputError, match="--signals prompt_entropy"):
        replay_decisions(policy, trace)
    entropy = np.full(60, 2.0)
    entropy[10:20] = np.nan
    broken = Trace.from_facts(
        {"margin": trace.fact("margin")},
        document=trace.document,
        shape=trace.shape,
        document_facts={"prompt_entropy": entropy},
    )
    with pytest.raises(InputError, match=r"prompt_entropy is not a number for 10 tokens\n(.|\n)*document 1"):
        replay_decisions(policy, broken)


def test_exits_are_compared_with_the_check_before() -> None:
    policy = Threshold("kl_to_previous", 0.5, (1, 3, 5))
    decisions = replay_decisions(policy, full_trace([1, 3, 5]))
    assert decisions.needs == {1: ("top1",), 3: ("kl_to_previous",), 5: ("kl_to_previous",)}
    assert (decisions.exits >= 3).all()
    with pytest.raises(PolicyError) as error:
        replay_decisions(policy, full_trace([1, 2, 3, 5]))
    assert "recorded against exit 2" in error.value.what
    assert "before it is at exit 1" in error.value.what
    assert "--exits 1,3,5,6" in error.value.fix


def test_a_cheaper_check_gives_nothing_to_compare_with() -> None:
    cheap = "[threshold:signal=restricted_margin,value=0.5,exits=2]"
    policy = parse_policy(f"votes:need=any,of=[threshold:signal=kl_to_previous,value=0.5,exits=1+3]+{cheap}")
    with pytest.raises(PolicyError, match=r"recorded against exit 2, but.*at exit 1"):
        replay_decisions(policy, full_trace([1, 2, 3]))
    full = parse_policy(str(policy).replace("restricted_margin", "margin"))
    assert replay_decisions(full, full_trace([1, 2, 3])).needs[2] == ("margin",)


def test_candidates_come_from_the_first_check() -> None:
    policy = Threshold("candidate_score", 0.5, (2, 3, 5))
    assert (replay_decisions(policy, full_trace([1, 2, 3, 4, 5], candidate_exit=2)).exits >= 3).all()
    with pytest.raises(PolicyError) as error:
        replay_decisions(policy, full_trace([1, 2, 3, 4, 5], candidate_exit=1))
    assert "the candidates of exit 1" in error.value.what
    assert "is at exit 2" in error.value.what
    assert error.value.fix == "start its exits with 1"
    with pytest.raises(PolicyError, match="the candidates of no exit"):
        replay_decisions(policy, full_trace([1, 2, 3, 4, 5]))


@pytest.mark.parametrize("policy", [Never(), Threshold("margin", 0.5, (2,))])
def test_a_trace_without_tokens_has_no_exits(policy: ExitPolicy) -> None:
    assert len(replay_decisions(policy, make_trace().subset(np.array([99]))).exits) == 0


def test_documents_do_not_share_what_a_policy_remembers() -> None:
    # The first document always leaves at 1; the second never is sure, and must not be drawn down.
    sure = np.repeat([[0.9], [0.1]], 10, axis=0) * np.ones((1, 6))
    trace = make_trace(tokens=20, documents=2, max_prob=sure.astype(np.float32))
    policy = parse_policy("monotone:policy=[threshold:signal=max_prob,value=0.5,exits=all]")
    assert replay_decisions(policy, trace).exits.tolist() == [1] * 10 + [6] * 10
