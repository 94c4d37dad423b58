from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_traces import make_trace

from offramp.costs.token import Prices, TokenCosts
from offramp.errors import InputError, PolicyError
from offramp.policies import contract
from offramp.policies.charging import exit_costs, exit_costs_without_probes
from offramp.policies.contract import check_policy, choose_one_by_one
from offramp.policies.grammar import parse_policy
from offramp.policies.kinds import Never, StaticExit, Threshold
from offramp.policies.policy import ExitPolicy
from offramp.policies.replay import replay
from offramp.policies.signals import SIGNALS
from offramp.tracing.trace import Trace

# Four layers of 100, 110, 120, 130; repair 10 each; head 1000; a probe is the head and 7 for the reductions.
COSTS = TokenCosts("bytes", np.array([100.0, 110.0, 120.0, 130.0]), 1000.0, 1007.0, np.full(4, 10.0))
PRICES = Prices(bytes=COSTS, flops=COSTS)
CHECKED = st.sets(st.integers(1, 5)).map(sorted).map(tuple)


def test_a_hand_worked_bill_line_by_line() -> None:
    # Three tokens of a 4-layer model, checked at exits 1 and 3 with max_prob >= 0.5.
    sure = np.array([[0.9, 0.9, 0.9, 0.9], [0.1, 0.9, 0.6, 0.9], [0.1, 0.9, 0.2, 0.9]], dtype=np.float32)
    top1 = np.array([[1, 1, 1, 1], [3, 1, 2, 1], [1, 1, 1, 2]], dtype=np.int32)
    nll = np.array([[3, 2, 1, 1], [3, 2, 2.5, 2], [5, 4, 3, 1]], dtype=np.float32)
    kl = np.array([[0.2, 0.1, 0.1, 0], [2, 1, 0.7, 0], [2, 1, 1, 0]], dtype=np.float32)
    trace = make_trace(tokens=3, layers=4, documents=3, max_prob=sure, top1=top1, nll=nll, kl_to_final=kl)
    result = replay(trace, parse_policy("threshold:signal=max_prob,value=0.5,exits=1+3"), PRICES)
    np.testing.assert_array_equal(result.exits, [1, 3, 4])
    np.testing.assert_array_equal(result.probes, [1, 2, 2])
    # First token: layer 1, repair of 2, 3, 4, and the probe that fired, which is its head product.
    first = 100 + 3 * 10 + 1007
    # Second: layers 1 to 3, repair of 4, a probe that did not fire and the one that did.
    second = 100 + 110 + 120 + 10 + 2 * 1007
    # Third: all layers, two probes in vain, then the final head.
    third = 100 + 110 + 120 + 130 + 2 * 1007 + 1000
    plain = 100 + 110 + 120 + 130 + 1000
    unprobed = (130 + 1000) + (340 + 1000) + plain
    assert result.predicted_speedup == pytest.approx(3 * plain / (first + second + third))
    assert result.predicted_speedup_flops == result.predicted_speedup
    assert result.speedup_without_probes == pytest.approx(3 * plain / unprobed)
    assert result.probe_share == pytest.approx(1 - unprobed / (first + second + third))
    assert result.agreement == pytest.approx(2 / 3)
    assert result.skip_ratio == pytest.approx((3 + 1 + 0) / 12)
    assert result.nll_increase == pytest.approx(((3 - 1) + (2.5 - 2) + 0) / 3)
    assert result.kl == pytest.approx((0.2 + 0.7) / 3)
    assert result.policy == "threshold:signal=max_prob,value=0.5,exits=1+3"


def test_a_static_exit_pays_its_head_and_no_probe() -> None:
    result = replay(make_trace(layers=4), StaticExit(2), PRICES)
    assert result.predicted_speedup == pytest.approx(1460 / (100 + 110 + 2 * 10 + 1000))
    assert result.predicted_speedup == result.speedup_without_probes
    assert result.probe_share == 0.0
    assert not result.probes.any()
    assert result.skip_ratio == 0.5


@pytest.mark.parametrize("policy", [Never(), StaticExit(6)])
def test_never_leaving_early_is_exactly_the_full_model(policy: ExitPolicy) -> None:
    result = replay(make_trace(tokens=57), policy)
    assert result.predicted_speedup == 1.0
    assert result.predicted_speedup_flops == 1.0
    assert result.speedup_without_probes == 1.0
    assert result.agreement == 1.0
    assert result.skip_ratio == 0.0
    assert result.nll_increase == 0.0


def test_the_default_prices_are_those_at_the_mean_position() -> None:
    trace = make_trace()
    result = replay(trace, StaticExit(3))
    attended = float(trace.position.mean()) + 1
    layer, head, repair = 2 * (1000 + 10 * (attended + 1)), 2 * 310, 2 * (100 + 10)
    assert result.predicted_speedup == pytest.approx((6 * layer + head) / (3 * layer + 3 * repair + head))
    layer, head, repair = 2 * 1000 + 4 * 20 * attended, 2 * 310, 2 * 100
    expected = (6 * layer + head) / (3 * layer + 3 * repair + head)
    assert result.predicted_speedup_flops == pytest.approx(expected)


@settings(deadline=None)
@given(checked=CHECKED, extra=st.integers(1, 5))
def test_more_probes_never_cost_less(checked: tuple[int, ...], extra: int) -> None:
    costs = TokenCosts("bytes", np.arange(100.0, 106.0), 1000.0, 1007.0, np.full(6, 10.0))
    more = tuple(sorted({*checked, extra}))
    assert (exit_costs(costs, more) >= exit_costs(costs, checked)).all()
    assert (exit_costs(costs, checked) >= exit_costs_without_probes(costs)).all()


@settings(deadline=None)
@given(seed=st.integers(0, 999), exits=CHECKED.filter(bool), low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_stricter_threshold_never_leaves_earlier(
    seed: int, exits: tuple[int, ...], low: float, high: float
) -> None:
    trace = make_trace(seed=seed)
    low, high = sorted((low, high))
    bold, cautious = (
        replay(trace, Threshold("margin", low, exits)),
        replay(trace, Threshold("margin", high, exits)),
    )
    assert (cautious.exits >= bold.exits).all()
    assert cautious.predicted_speedup <= bold.predicted_speedup
    assert cautious.skip_ratio <= bold.skip_ratio


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999),
    signal=st.sampled_from(sorted(SIGNALS)),
    exits=st.one_of(st.just("all"), CHECKED.filter(bool)),
    token=st.integers(0, 59),
    column=st.integers(0, 4),
)
def test_choose_equals_deciding_exit_by_exit(
    seed: int, signal: str, exits: Any, token: int, column: int
) -> None:
    trace = make_trace(seed=seed, levels=10)
    # A threshold that is exactly one of the values: both ways must agree on equality.
    policy = Threshold(signal, float(trace.fact(signal)[token, column]), exits)
    np.testing.assert_array_equal(policy.choose(trace), choose_one_by_one(policy, trace))


def test_a_threshold_is_not_rounded_to_the_precision_of_the_fact() -> None:
    # float32(0.9) is below 0.9, so a fact of float32(0.9) does not reach the threshold 0.9.
    trace = make_trace(max_prob=np.full((60, 6), np.float32(0.9)))
    policy = Threshold("max_prob", 0.9, (2,))
    assert (policy.choose(trace) == 6).all()
    assert not policy.decide(2, {"max_prob": float(np.float32(0.9))})


@pytest.mark.parametrize(
    "text",
    [
        "never",
        "static:exit=1",
        "static:exit=20",
        "threshold:signal=max_prob,value=0.7,exits=all",
        "threshold:signal=margin,value=0.5,exits=2+4+5",
        "threshold:signal=entropy,value=3,exits=1+3",
    ],
)
def test_the_built_in_policies_meet_the_contract(text: str) -> None:
    assert check_policy(parse_policy(text)) == parse_policy(text)


@dataclass(frozen=True)
class Peeks(Threshold):
    """Looks at the last exit."""

    def choose(self, trace: Any) -> Any:
        return np.where(trace.max_prob[:, -1] > 0.5, 1, trace.layers).astype(np.int64)


@dataclass(frozen=True)
class Disagrees(Threshold):
    """Decides otherwise, token by token."""

    def decide(self, exit: int, facts: Mapping[str, float]) -> bool:
        return exit == 3


@dataclass(frozen=True)
class NeedsMore(Threshold):
    """Reads a fact that it does not name."""

    def decide(self, exit: int, facts: Mapping[str, float]) -> bool:
        return facts["entropy"] < 1


@dataclass(frozen=True)
class Forgets(Threshold):
    """Loses a parameter in its text."""

    def values(self) -> dict[str, Any]:
        return {**super().values(), "value": 0.5}


@dataclass(frozen=True)
class ChecksTheLast(Threshold):
    """Checks exit L."""

    def checked_exits(self, layers: int) -> tuple[int, ...]:
        return (1, layers)


@pytest.mark.parametrize(
    ("policy", "what"),
    [
        (Peeks, "decide at exit"),
        (Disagrees, "decide at exit 3"),
        (NeedsMore, "facts_needed does not name"),
        (Forgets, "reads back as another policy"),
        (ChecksTheLast, "not ascending within"),
    ],
)
def test_the_contract_finds_a_broken_policy(
    monkeypatch: pytest.MonkeyPatch, policy: type[Threshold], what: str
) -> None:
    # The text must lead back to the broken class itself, so that the round trip is not what fails.
    def as_broken(read: Any) -> Any:
        return lambda *arguments: policy(**read(*arguments).__dict__)

    monkeypatch.setattr(contract, "parse_policy", as_broken(contract.parse_policy))
    monkeypatch.setattr(contract, "policy_from_json", as_broken(contract.policy_from_json))
    with pytest.raises(PolicyError, match=what):
        check_policy(policy("max_prob", 0.6, (1, 3)))


def test_a_peek_in_both_ways_of_deciding_is_still_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "_check_round_trip", lambda policy: None)
    monkeypatch.setattr(contract, "_check_sequential", lambda policy, trace, chosen: None)
    with pytest.raises(PolicyError, match="deeper than the one it takes"):
        check_policy(Peeks("max_prob", 0.6, (1, 3)))


def test_what_does_not_fit_the_trace_is_refused() -> None:
    trace = make_trace(exits=[2, 5, 6])
    with pytest.raises(PolicyError, match="exit 20 is beyond the model, which has 6 layers"):
        replay(trace, StaticExit(20))
    with pytest.raises(PolicyError, match=r"exit 3 was not traced(.|\n)*--exits 2,3,5,6"):
        replay(trace, StaticExit(3))
    with pytest.raises(PolicyError, match=r"exit 1, 3, 4 was not traced"):
        replay(trace, Threshold("margin", 0.5, "all"))
    with pytest.raises(PolicyError, match="exit 6 is the full model"):
        replay(trace, Threshold("margin", 0.5, (2, 6)))


def test_a_nan_signal_is_refused() -> None:
    entropy = make_trace().fact("entropy").copy()
    entropy[7, 2] = np.nan
    with pytest.raises(PolicyError, match="entropy is not a number for 1 tokens at exit 3"):
        replay(make_trace(entropy=entropy), Threshold("entropy", 0.5, (3, 4)))


def test_a_trace_without_a_needed_fact_or_without_tokens_is_refused() -> None:
    trace = make_trace()
    with pytest.raises(InputError, match="no tokens"):
        replay(trace.subset(np.array([99])), Never())
    bare = Trace.from_facts({"top1": trace.fact("top1")}, document=trace.document, shape=trace.shape)
    with pytest.raises(InputError, match="no fact 'nll'"):
        replay(bare, Never())
    with pytest.raises(InputError, match="no fact 'margin'"):
        replay(bare, Threshold("margin", 0.5, (2,)))


def test_a_policy_may_be_given_as_text() -> None:
    trace = make_trace(seed=3)
    text = "threshold:signal=margin,value=0.5,exits=1+2"
    by_text, by_object = replay(trace, text), replay(trace, parse_policy(text))
    assert np.array_equal(by_text.exits, by_object.exits)
    assert by_text.predicted_speedup == by_object.predicted_speedup
