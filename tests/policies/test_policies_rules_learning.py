from __future__ import annotations

import numpy as np
import pytest
import scalar_policies as scalar
from hypothesis import given
from hypothesis import strategies as st
from rule_examples import (
    CONFIDENCES,
    DOCUMENT,
    EXITS,
    LAYERS,
    LENGTHS,
    SEEDS,
    VALUES,
    by_document,
    few,
    must_equal,
    random_trace,
    text,
)

from offramp.policies.decisions import replay_decisions
from offramp.policies.grammar import parse_policy
from offramp.policies.rules.learning import agreement_thresholds, betas
from offramp.policies.signals import SIGNALS
from offramp.tracing.trace import Trace
from policy_traces import make_shape


@few
@given(
    seed=SEEDS,
    signal=st.sampled_from(("margin", "entropy", "restricted_margin", "logit_gap")),
    value=VALUES,
    exits=EXITS,
    complexity=st.sampled_from(("position", "running_entropy", "prompt_entropy")),
    slope=st.sampled_from((-0.7, -0.1, 0.0, 0.05, 0.3)),
    centre=st.sampled_from((0.0, 0.6, 3.0)),
)
def test_dynamic(
    seed: int, signal: str, value: float, exits: list[int], complexity: str, slope: float, centre: float
) -> None:
    trace = random_trace(seed)
    chosen: list[int] = []
    for number in range(len(LENGTHS)):
        expected = by_document(
            trace,
            scalar.dynamic,
            signal=signal,
            value=value,
            exits=exits,
            complexity=complexity,
            slope=slope,
            centre=centre,
            high=SIGNALS[signal].high,
            prompt_entropy=(0.5, 1.0, 2.0, 0.0)[number],
        )
        chosen += expected[number == DOCUMENT].tolist()
    given = f"signal={signal},value={value},exits={text(exits)},complexity={complexity}"
    must_equal(f"dynamic:{given},slope={slope},centre={centre}", trace, np.array(chosen))


def test_following_the_entropy_of_earlier_tokens_is_charged_for_a_full_head() -> None:
    following = "dynamic:signal=restricted_margin,value=0.5,exits=2+4,complexity={},slope=0.1"
    running = parse_policy(following.format("running_entropy"))
    assert running.needs(6) == {2: ("restricted_margin", "entropy"), 4: ("restricted_margin", "entropy")}
    assert running.remembers
    assert running.final_facts == ("entropy",)
    by_position = parse_policy(following.format("position"))
    assert by_position.needs(6) == {2: ("restricted_margin",), 4: ("restricted_margin",)}
    assert not by_position.remembers
    assert parse_policy(following.format("prompt_entropy")).document_facts == ("prompt_entropy",)


@few
@given(
    seed=SEEDS,
    signal=CONFIDENCES,
    target=st.sampled_from((0.3, 0.5, 0.6, 0.8, 0.95)),
    warmup=st.integers(1, 4),
    exits=EXITS,
)
def test_adaptive(seed: int, signal: str, target: float, warmup: int, exits: list[int]) -> None:
    trace = random_trace(seed)
    expected = by_document(trace, scalar.adaptive, signal=signal, target=target, warmup=warmup, exits=exits)
    given = f"signal={signal},target={target},warmup={warmup},exits={text(exits)}"
    must_equal(f"adaptive:{given}", trace, expected)


def test_the_adaptive_threshold_finds_the_posterior_of_known_distributions() -> None:
    from scipy.stats import beta

    generator = np.random.default_rng(5)
    right, wrong = generator.beta(8, 2, 30_000), generator.beta(2, 5, 10_000)
    sums = np.array([[[len(seen), seen.sum(), (seen**2).sum()] for seen in (wrong, right)]])
    np.testing.assert_allclose(np.stack(betas(sums))[:, 0], [[2, 8], [5, 2]], rtol=0.05)
    for target in (0.5, 0.9, 0.99):
        (threshold,) = agreement_thresholds(sums, target)
        chance = 3 * beta.pdf(threshold, 8, 2)
        assert chance / (chance + beta.pdf(threshold, 2, 5)) == pytest.approx(target, abs=0.03)
    # Where wrong checks are as sure as right ones, nothing but their share counts.
    same = np.array([[sums[0, 1] / 9, sums[0, 1]]])
    assert agreement_thresholds(same, 0.89)[0] == 1 / 200
    assert agreement_thresholds(same, 0.91)[0] == np.inf


@few
@given(
    seed=SEEDS,
    signal=CONFIDENCES,
    value=VALUES,
    exits=EXITS,
    cost=st.sampled_from((0.0, 0.5, 1.3)),
    exploration=st.sampled_from((0.0, 0.1, 1.0)),
)
def test_bandit(
    seed: int, signal: str, value: float, exits: list[int], cost: float, exploration: float
) -> None:
    trace = random_trace(seed)
    expected = by_document(
        trace,
        scalar.bandit,
        signal=signal,
        value=value,
        exits=exits,
        cost=cost,
        exploration=exploration,
    )
    given = f"signal={signal},value={value},exits={text(exits)},cost={cost},exploration={exploration}"
    must_equal(f"bandit:{given}", trace, expected)


def test_a_bandit_settles_on_the_exit_that_rewards_most() -> None:
    sure = np.full((400, LAYERS), 0.2, dtype=np.float32)
    sure[:, 2:] = 0.95
    trace = Trace.from_facts(
        {"max_prob": sure}, document=np.zeros(400, dtype=np.int32), shape=make_shape(LAYERS)
    )
    policy = parse_policy("bandit:signal=max_prob,value=0.9,exits=1+3+5,cost=0.5,exploration=0.1")
    decisions = replay_decisions(policy, trace)
    assert decisions.exits[:4].tolist() == [6, 5, 3, 6]
    assert np.mean(decisions.exits[200:] == 3) > 0.9
    # One check a token at most, and none for the full model's arm.
    assert decisions.probed is not None
    assert decisions.probed.sum(axis=1).max() == 1
    assert not decisions.probed[0].any()
