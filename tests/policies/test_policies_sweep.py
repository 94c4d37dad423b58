"""The moves of a sweep are sorted in buckets and summed in blocks; how many there are changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from offramp.policies import frontier as sweep_module
from offramp.policies.frontier import frontier
from offramp.policies.replay import Frontier, replay
from offramp.policies.rules.threshold import Threshold
from offramp.tracing.trace import Trace
from policy_traces import make_trace

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


def test_values_far_apart_are_sorted_by_both_halves_of_their_keys() -> None:
    trace = make_trace(tokens=500)
    values = np.exp(np.random.default_rng(0).normal(0.0, 20.0, trace.fact("entropy").shape)).astype(
        np.float32
    )
    points = frontier(make_trace(tokens=500, entropy=values), "entropy")
    records = np.minimum.accumulate(values[:, :-1], axis=1)
    np.testing.assert_array_equal(points.threshold[1:], np.unique(records))
