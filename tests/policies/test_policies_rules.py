from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scalar_policies as scalar
from hypothesis import assume, given
from hypothesis import strategies as st
from rule_examples import (
    DOCUMENT,
    EXITS,
    LAYERS,
    MANY_EXITS,
    PLAIN,
    SEEDS,
    VALUES,
    by_document,
    few,
    must_equal,
    random_trace,
    text,
)

from offramp.errors import PolicyError
from offramp.policies.decisions import replay_decisions
from offramp.policies.grammar import parse_policy
from offramp.policies.rules.threshold import Threshold, Thresholds
from offramp.policies.signals import SIGNALS
from offramp.tracing.trace import Trace
from policy_traces import make_shape


@few
@given(seed=SEEDS, signal=st.sampled_from(sorted(SIGNALS)), value=VALUES, exits=EXITS)
def test_threshold(seed: int, signal: str, value: float, exits: list[int]) -> None:
    assume(len(exits) > SIGNALS[signal].opens)
    value = min(value, SIGNALS[signal].high)
    trace = random_trace(seed, exits=exits, candidate_exit=exits[0])
    values = [value] * len(exits)
    expected = by_document(trace, scalar.thresholds, signal=signal, values=values, exits=exits)
    must_equal(Threshold(signal, value, tuple(exits)), trace, expected)


@few
@given(
    seed=SEEDS, signal=st.sampled_from(("margin", "entropy", "top_k_overlap")), exits=EXITS, data=st.data()
)
def test_thresholds_per_exit(seed: int, signal: str, exits: list[int], data: Any) -> None:
    assume(len(exits) > SIGNALS[signal].opens)
    values = data.draw(st.lists(VALUES, min_size=len(exits), max_size=len(exits)))
    trace = random_trace(seed, exits=exits)
    expected = by_document(trace, scalar.thresholds, signal=signal, values=values, exits=exits)
    must_equal(Thresholds(signal, tuple(values), tuple(exits)), trace, expected)


@few
@given(
    seed=SEEDS, signal=PLAIN, value=VALUES, exits=EXITS, decay=st.floats(0.1, 9), length=st.integers(1, 20)
)
def test_decaying(seed: int, signal: str, value: float, exits: list[int], decay: float, length: int) -> None:
    trace = random_trace(seed)
    expected = by_document(
        trace, scalar.decaying, signal=signal, value=value, exits=exits, decay=decay, length=length
    )
    given = f"signal={signal},value={value},exits={text(exits)},decay={decay!r},length={length}"
    must_equal(f"decaying:{given}", trace, expected)


def test_a_decaying_threshold_loosens_from_its_value_by_a_tenth() -> None:
    levels = np.array([0.91, 0.89, 0.85, 0.82, 0.815, 0.80])
    trace = random_trace(0)
    sure = np.tile(np.resize(levels, len(DOCUMENT))[:, None], (1, LAYERS)).astype(np.float32)
    trace = Trace.from_facts({"margin": sure}, document=DOCUMENT, shape=make_shape(LAYERS))
    # From 0.9 down to 0.81 at once: only the first token of each document meets 0.9.
    chosen = replay_decisions(
        parse_policy("decaying:signal=margin,value=0.9,exits=2,decay=99,length=1"), trace
    ).exits
    first = np.concatenate([[0], np.flatnonzero(np.diff(DOCUMENT)) + 1])
    later = np.setdiff1d(np.arange(len(DOCUMENT)), first)
    np.testing.assert_array_equal(chosen[first] == 2, sure[first, 1] >= 0.9)
    np.testing.assert_array_equal(chosen[later] == 2, sure[later, 1] >= 0.81)


@few
@given(
    seed=SEEDS, times=st.integers(1, 3), exits=MANY_EXITS, fact=st.sampled_from(("top1", "restricted_top1"))
)
def test_patience(seed: int, times: int, exits: list[int], fact: str) -> None:
    trace = random_trace(seed)
    expected = by_document(trace, scalar.patience, times=times, exits=exits, fact=fact)
    must_equal(f"patience:times={times},exits={text(exits)},fact={fact}", trace, expected)


@few
@given(
    seed=SEEDS,
    signal=st.sampled_from(("margin", "entropy", "kl_to_previous")),
    value=VALUES,
    times=st.integers(1, 3),
    exits=MANY_EXITS,
)
def test_sustained(seed: int, signal: str, value: float, times: int, exits: list[int]) -> None:
    trace = random_trace(seed, exits=exits)
    expected = by_document(trace, scalar.sustained, signal=signal, value=value, times=times, exits=exits)
    must_equal(f"sustained:signal={signal},value={value},times={times},exits={text(exits)}", trace, expected)


@few
@given(seed=SEEDS, which=st.sampled_from(("first_match", "saturation")))
def test_oracle(seed: int, which: str) -> None:
    trace = random_trace(seed)
    expected = by_document(trace, scalar.oracle, which=which)
    np.testing.assert_array_equal(
        replay_decisions(parse_policy(f"oracle:which={which}"), trace).exits, expected
    )


def test_no_decoder_follows_an_oracle() -> None:
    oracle = parse_policy("oracle:which=saturation")
    assert not oracle.reachable
    with pytest.raises(PolicyError, match="nothing can decode with it"):
        oracle.decider(6, 1)
    with pytest.raises(PolicyError, match="looks nothing up"):
        parse_policy("never").exits_of(random_trace(0))


@pytest.mark.parametrize("name", sorted(name for name, signal in SIGNALS.items() if signal.opens))
@pytest.mark.parametrize(
    "kind", ["threshold:signal={}", "decaying:signal={}", "dynamic:complexity=position,slope=0,signal={}"]
)
def test_a_comparison_with_nothing_to_compare_is_refused(kind: str, name: str) -> None:
    policy = parse_policy(kind.format(name) + ",value=0.5,exits=3")
    with pytest.raises(PolicyError, match=f"{name} compares two checks, and there is one exit"):
        policy.needs(LAYERS)
    assert parse_policy(kind.format(name) + ",value=0.5,exits=3+4").checked_exits(LAYERS) == (3, 4)
