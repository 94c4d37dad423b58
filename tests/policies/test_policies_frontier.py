"""The moves of a sweep are sorted in buckets and summed in blocks; how many there are changes nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rule_examples import random_trace

from offramp.costs.token import token_costs
from offramp.errors import InputError, PolicyError
from offramp.policies import frontier as sweep_module
from offramp.policies.frontier import Frontier, frontier
from offramp.policies.replay import replay
from offramp.policies.rules.threshold import Threshold
from offramp.policies.signals import SIGNALS
from offramp.tracing.trace import Trace
from policy_traces import make_shape, make_trace

RECORDED = ["entropy", "hidden_cosine", "margin", "max_prob"]
EXIT_SETS = st.sets(st.integers(1, 5), min_size=1).map(sorted).map(tuple)


def brute_force(trace: Trace, signal: str, exits: tuple[int, ...]) -> Frontier:
    """Replay the rule at every value that the signal takes, from the most cautious to the boldest."""
    columns = np.searchsorted(trace.exits, exits)
    values = np.unique(trace.fact(SIGNALS[signal].fact)[:, columns].astype(np.float64))
    at_least = SIGNALS[signal].exit_when == "at least"
    results, thresholds, before = [], [], None
    for value in values[::-1] if at_least else values:
        result = replay(trace, Threshold(signal, float(value), exits))
        if before is None or not np.array_equal(result.exits, before):
            results.append(result)
            thresholds.append(value)
        before = result.exits
    return Frontier(
        signal=signal,
        exits=exits,
        threshold=np.array(thresholds),
        agreement=np.array([result.agreement for result in results]),
        skip_ratio=np.array([result.skip_ratio for result in results]),
        speedup=np.array([result.predicted_speedup for result in results]),
        speedup_without_probes=np.array([result.speedup_without_probes for result in results]),
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.integers(6, 40),
    levels=st.sampled_from([1, 2, 5, 20, None]),
    exits=EXIT_SETS,
    signal=st.sampled_from(RECORDED),
)
def test_the_frontier_equals_brute_force_at_every_threshold(
    seed: int, tokens: int, levels: int | None, exits: tuple[int, ...], signal: str
) -> None:
    trace = make_trace(seed=seed, tokens=tokens, levels=levels)
    expected, points = brute_force(trace, signal, exits), frontier(trace, signal, exits)
    np.testing.assert_array_equal(points.threshold[1:], expected.threshold)
    for name in ("agreement", "skip_ratio", "speedup", "speedup_without_probes"):
        np.testing.assert_allclose(getattr(points, name)[1:], getattr(expected, name), rtol=1e-12, atol=1e-12)


def test_the_first_point_never_exits_and_still_pays_every_probe() -> None:
    trace = make_trace()
    costs = token_costs(trace.shape, float(trace.position.mean()), "bytes")
    for signal, never in (("max_prob", math.inf), ("entropy", -math.inf)):
        points = frontier(trace, signal, (2, 4))
        assert points.threshold[0] == never
        assert points.agreement[0] == 1.0
        assert points.skip_ratio[0] == 0.0
        assert points.speedup_without_probes[0] == 1.0
        assert points.speedup[0] == pytest.approx(costs.plain / (costs.plain + 2 * costs.probes["full head"]))


def test_by_default_all_traced_exits_below_the_last_are_checked() -> None:
    assert frontier(make_trace(exits=[2, 5, 6]), "max_prob").exits == (2, 5)


def test_a_nan_is_refused_with_its_document_and_exit() -> None:
    trace = make_trace()
    broken = trace.fact("margin").copy()
    broken[25, 3] = np.nan
    trace = make_trace(margin=broken)
    with pytest.raises(InputError) as error:
        frontier(trace, "margin")
    assert "margin is not a number for 1 tokens at exit 4" in error.value.what
    assert f"document {trace.document[25]}" in error.value.where
    assert frontier(trace, "margin", (1, 5)).exits == (1, 5)


def test_what_does_not_fit_is_refused() -> None:
    trace = make_trace(exits=[2, 5, 6])
    with pytest.raises(PolicyError, match="did you mean 'margin'"):
        frontier(trace, "margn")
    with pytest.raises(PolicyError, match="no exits to check"):
        frontier(trace, "margin", ())
    with pytest.raises(PolicyError, match=r"exit 3 was not traced(.|\n)*--exits 2,3,5,6"):
        frontier(trace, "margin", (2, 3))
    with pytest.raises(PolicyError, match="no exits to check"):
        frontier(make_trace(layers=1, shape=make_shape(1)), "margin")


COLUMNS = ("threshold", "agreement", "skip_ratio", "speedup", "speedup_without_probes")


def in_small_pieces(trace: Trace, signal: str, monkeypatch: pytest.MonkeyPatch, bucket: int) -> Frontier:
    with monkeypatch.context() as patched:
        patched.setattr(sweep_module, "ROWS", 64)
        patched.setattr(sweep_module, "BUCKET", bucket)
        patched.setattr(sweep_module, "MOVES", 100)
        return frontier(trace, signal)


@pytest.mark.parametrize("bucket", [4, 300, 3000])
@pytest.mark.parametrize("levels", [1, 50, None])
@pytest.mark.parametrize("signal", ["max_prob", "entropy"])
def test_small_pieces_make_the_same_frontier(
    signal: str, levels: int | None, bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = make_trace(tokens=2_000, levels=levels)
    whole, pieces = frontier(trace, signal), in_small_pieces(trace, signal, monkeypatch, bucket)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name))
    for place in np.linspace(1, len(pieces.threshold) - 1, 20).astype(int):
        result = replay(trace, Threshold(signal, float(pieces.threshold[place]), pieces.exits))
        assert result.agreement == pieces.agreement[place]
        assert result.predicted_speedup == pytest.approx(pieces.speedup[place], rel=1e-12)


def test_values_far_apart_and_of_both_signs_are_sorted_by_both_halves_of_their_keys() -> None:
    generator = np.random.default_rng(0)
    values = generator.choice([-1.0, 1.0], (500, 6)) * np.exp(generator.normal(0.0, 20.0, (500, 6)))
    trace = make_trace(tokens=500, hidden_cosine_to_previous=values.astype(np.float32))
    points = frontier(trace, "hidden_cosine")
    records = np.maximum.accumulate(trace.fact("hidden_cosine_to_previous")[:, :-1], axis=1)
    np.testing.assert_array_equal(points.threshold[1:], np.unique(records)[::-1])


def test_a_frontier_of_comparisons_takes_those_that_were_recorded() -> None:
    trace = random_trace(5, [1, 3, 5])
    assert frontier(trace, "kl_to_previous", (1, 3, 5)).exits == (1, 3, 5)
    with pytest.raises(PolicyError, match=r"at exit 5 was recorded against exit 3, but .* is at exit 1"):
        frontier(trace, "kl_to_previous", (1, 5))
    with pytest.raises(PolicyError, match="kl_to_previous compares two checks, and there is one exit"):
        frontier(trace, "kl_to_previous", (3,))
