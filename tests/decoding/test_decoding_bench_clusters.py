"""Clusters of log-ratios against plain references, and intervals that hold the truth as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student
from scipy.stats import trim_mean

from offramp.decoding.measurement.intervals import (
    TRIMMED,
    cluster_of,
    combined_clusters,
    freedom_of,
    ratio_of,
    trimmed_mean,
)
from offramp.decoding.measurement.results import Cluster, Interval


def clusters(values: list[float], process: int = 0) -> list[Cluster]:
    return [Cluster(process, prompt, value, 8) for prompt, value in enumerate(values)]


@given(st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=40))
def test_the_trimmed_mean_is_scipys(values: list[float]) -> None:
    assert trimmed_mean(values) == pytest.approx(trim_mean(values, TRIMMED), abs=1e-12)


def test_a_burst_in_one_block_of_eight_changes_nothing() -> None:
    calm = [0.01, -0.01, 0.0, 0.02, -0.02, 0.01, -0.01, 0.0]
    assert abs(trimmed_mean([*calm[:-1], 3.0]) - trimmed_mean(calm)) < 0.005


def test_in_one_process_the_interval_is_students_over_prompts() -> None:
    values = [0.02, 0.05, -0.01, 0.04, 0.03]
    found = ratio_of(clusters(values), 0.99)
    half = student.ppf(0.995, 4) * np.std(values, ddof=1) / math.sqrt(5)
    mean = np.mean(values)
    assert found == Interval(*(pytest.approx(math.exp(limit)) for limit in (mean, mean - half, mean + half)))


def test_one_prompt_has_no_interval_however_often_it_is_decoded() -> None:
    assert ratio_of([cluster_of(0, 0, [0.1] * 1000)]) == Interval(pytest.approx(math.exp(0.1)))
    with pytest.raises(ValueError, match="needs a cluster"):
        ratio_of([])


def test_the_degrees_of_freedom_are_those_of_the_fewer() -> None:
    assert freedom_of([]) == freedom_of(clusters([0.1])) == 0
    assert freedom_of(clusters([0.1, 0.2, 0.3])) == 2
    assert freedom_of([*clusters([0.1, 0.2, 0.3]), *clusters([0.1, 0.2, 0.3], 1)]) == 1
    assert freedom_of([Cluster(process, 0, 0.1, 8) for process in range(5)]) == 4


def test_processes_count_as_their_own_unit() -> None:
    # All prompts of a process share what the process does: three processes, not thirty prompts.
    shifts = [0.05, 0.0, -0.04]
    found = ratio_of([one for place, shift in enumerate(shifts) for one in clusters([shift] * 10, place)])
    alone = ratio_of([Cluster(place, 0, shift, 8) for place, shift in enumerate(shifts)])
    assert found.low == pytest.approx(alone.low)
    assert found.high == pytest.approx(alone.high)


def by_sums(values: np.ndarray, level: float) -> tuple[float, float]:
    """The two-way interval written out for a full table of processes and prompts, [processes, prompts]."""
    processes, prompts = values.shape
    residuals = values - values.mean()

    def part(sums: np.ndarray) -> float:
        return float((sums**2).sum() * len(sums) / (len(sums) - 1) / values.size**2)

    by_process, by_prompt = part(residuals.sum(1)), part(residuals.sum(0))
    variance = max(by_process + by_prompt - part(residuals.ravel()), by_process, by_prompt)
    half = student.ppf((1 + level) / 2, min(processes, prompts) - 1) * math.sqrt(variance)
    return math.exp(values.mean() - half), math.exp(values.mean() + half)


def test_the_two_way_variance_against_sums_written_out() -> None:
    values = np.random.default_rng(4).normal(size=(4, 6)) + np.arange(6) * 0.3
    found = ratio_of([one for place, row in enumerate(values) for one in clusters(row.tolist(), place)])
    assert (found.low, found.high) == pytest.approx(by_sums(values, 0.95))


@pytest.mark.parametrize(("between_prompts", "between_processes"), [(0.03, 0.0), (0.0, 0.02), (0.03, 0.02)])
def test_the_interval_holds_the_truth_as_often_as_it_says(
    between_prompts: float, between_processes: float
) -> None:
    random, runs, held = np.random.default_rng(7), 600, 0
    for _ in range(runs):
        shape = (6, 8) if between_processes else (1, 8)
        table = random.normal(0.0, 0.01, shape) + random.normal(0.0, between_prompts, (1, 8))
        table = table + random.normal(0.0, between_processes, (shape[0], 1))
        found = ratio_of([one for place, row in enumerate(table) for one in clusters(row.tolist(), place)])
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1.0 <= found.high
    assert held / runs >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)


def test_pairs_of_one_prompt_are_not_taken_for_prompts() -> None:
    """What the old rule did wrong: four prompts of four rounds each are four, whatever the rounds say."""
    random, runs = np.random.default_rng(3), 400
    missed_by_pairs = missed = 0
    for _ in range(runs):
        prompts = random.normal(0.0, 0.05, 4)
        rounds = prompts[:, None] + random.normal(0.0, 0.005, (4, 4))
        found = ratio_of([cluster_of(0, place, row.tolist()) for place, row in enumerate(rounds)])
        pooled = ratio_of(clusters(rounds.ravel().tolist()))
        missed += not found.low <= 1.0 <= found.high  # type: ignore[operator]
        missed_by_pairs += not pooled.low <= 1.0 <= pooled.high  # type: ignore[operator]
    assert missed / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert missed_by_pairs / runs > 0.2


def test_contenders_are_held_against_each_other_prompt_by_prompt() -> None:
    # log(plain / one) - log(plain / other) is log(other / one), where both were timed.
    one, other = clusters([0.3, 0.5, 0.4]), clusters([0.1, 0.2])
    found = combined_clusters((1.0, one), (-1.0, other))
    assert [(cluster.prompt, cluster.log_ratio) for cluster in found] == [
        (0, pytest.approx(0.2)),
        (1, pytest.approx(0.3)),
    ]
    assert combined_clusters((1.0, one), (1.0, [])) == []
