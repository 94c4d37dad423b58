"""Answers and their error rates: rules on constructed intervals, the schedule of looks, and simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from benchmark_modules import benchmark
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import t as student

from offramp.defaults import FEWEST_PROMPTS
from offramp.report.timing import contender_answer
from offramp.scoring.estimate import LEVEL, Estimate
from offramp.studies.comparison.study_reading import answer_text
from offramp.timing.decoder import DecodedBatch
from offramp.timing.ratios import (
    SAMPLES_NEEDED,
    cluster_of,
    freedom_of,
    median,
    over_fastest,
    product_of,
    ratio_of,
    ratio_over,
    student_reach,
)
from offramp.timing.results import Cluster, Contender
from offramp.timing.stopping import (
    ALPHA,
    PRECISE,
    Looks,
    PairedTimes,
    answer_of,
    is_precise,
    is_settled,
    resolution_of,
)
from offramp.timing.turns import noise_of, pairs_of

WORTH = 0.05


@pytest.mark.parametrize(
    ("low", "high", "answer", "settled"),
    [
        (0.99, 1.01, "equivalent", False),
        (1.01, 1.04, "equivalent", False),  # surely faster, and surely not worth it
        (1 / 1.05, 1.04, "unresolved", False),  # the margin itself is not within it
        (0.94, 1.06, "unresolved", False),
        (1.001, 1.2, "faster", False),
        (1.051, 1.2, "faster", True),
        (0.8, 0.999, "slower", False),
        (0.8, 0.951, "slower", True),
        (None, None, "unresolved", False),
    ],
)
def test_what_an_interval_answers(low: float | None, high: float | None, answer: str, settled: bool) -> None:
    value = 1.0 if low is None or high is None else math.sqrt(low * high)
    ratio = Estimate(value, low, high)
    assert answer_of(ratio, WORTH) == answer
    assert is_settled(ratio, WORTH) is settled


def test_the_resolution_is_the_half_width() -> None:
    assert resolution_of(Estimate(1.1, 1.1 / 1.02, 1.1 * 1.02)) == pytest.approx(0.02)
    assert resolution_of(Estimate(1.1)) is None
    assert is_precise(Estimate(1.0, 1 / (1 + PRECISE), 1 + PRECISE - 1e-9))
    assert not is_precise(Estimate(1.0, 0.98, 1.02))
    assert not is_precise(Estimate(1.0))


def test_looks_spend_all_there_is_and_no_more() -> None:
    looks = Looks()
    assert looks.due(0.2) is None
    assert looks.due(0.36) == pytest.approx(1 - 0.1 * ALPHA)
    assert looks.due(0.5) is None  # once is enough
    assert looks.due(0.7) == pytest.approx(1 - 0.2 * ALPHA)
    assert looks.last() == pytest.approx(1 - 0.7 * ALPHA)


def test_a_look_that_was_passed_over_is_saved_for_the_last() -> None:
    looks = Looks()
    assert looks.due(0.9) == pytest.approx(1 - 0.2 * ALPHA)
    assert looks.last() == pytest.approx(1 - 0.8 * ALPHA)
    assert Looks().last() == pytest.approx(1 - ALPHA)
    over = Looks()
    assert over.due(1.2) is None  # the budget is over: only the last look is left
    assert over.last() == pytest.approx(1 - ALPHA)


def test_a_series_is_the_clusters_of_its_prompts() -> None:
    series = PairedTimes(["plain"])
    assert series.over_plain() is series.ratio("plain") is None
    assert not series.is_over(WORTH)
    for prompt, pairs in ((0, [(2.0, 1.0), (2.0, 3.0)]), (1, [(3.0, 2.0)]), (0, [(2.0, 0.5)])):
        series.add("plain", prompt, pairs)
    expected = [
        Cluster(0, 0, pytest.approx(math.log(6.0 / 4.5)), 3),
        Cluster(0, 1, pytest.approx(math.log(1.5)), 1),
    ]
    assert list(series.clusters("plain")) == expected
    series.look(0.9)
    assert series.over_plain() == series.ratio("plain") == ratio_of(series.clusters("plain"), 0.9)


def test_a_chance_agreement_of_fewer_prompts_than_an_answer_needs_is_none() -> None:
    """Two prompts alike to a thousandth: 4.88 times as fast, by a narrow interval."""
    few = [Cluster(0, prompt, math.log(4.88) + prompt / 1000, 8) for prompt in range(2)]
    enough = [Cluster(0, prompt, math.log(4.88) + prompt % 2 / 1000, 8) for prompt in range(FEWEST_PROMPTS)]
    assert is_settled(ratio_of(few), WORTH)
    assert answer_of(ratio_of(few), WORTH, few) == "unresolved"
    assert answer_of(ratio_of(enough), WORTH, enough) == "faster"
    several = [replace(cluster, process=process) for cluster in few for process in range(4)]
    assert answer_of(ratio_of(several), WORTH, several) == "unresolved"  # processes are no further prompts
    series = PairedTimes(["plain"])
    for cluster in few:
        series.add("plain", cluster.prompt, [(math.exp(cluster.log_ratio), 1.0)])
    assert not series.is_over(WORTH)
    timed = Contender("a", "policy", "unresolved", ratio_of(few), 0.01, tuple(few))
    said = "inconclusive: 2 of 6 prompts"
    assert (timed.shortage, contender_answer(timed, WORTH), answer_text(timed, ())) == (said, said, said)


def test_nothing_is_over_before_it_is_over_whatever_needs_no_exits() -> None:
    """Twice as fast as plain decoding, and nobody knows whether it is faster than the cut head."""
    series = PairedTimes(["plain"])
    for prompt, gain in enumerate([0.70, 0.69, 0.71, 0.70, 0.69, 0.71]):
        series.add("plain", prompt, [(math.exp(gain), 1.0)])
    assert series.is_over(WORTH)
    for prompt, gain in enumerate([0.5, -0.4, 0.1, 0.5, -0.4, 0.1]):
        series.add("cut head", prompt, [(math.exp(gain), 1.0)])
    assert not series.is_over(WORTH)
    assert series.over_plain() == series.ratio("plain")


SPEEDS = {"a": [0.10, 0.12, 0.14], "b": [0.11, 0.13, 0.18]}
"""Of a contender over two decoders on three prompts."""


def limits(logs: list[float], level: float) -> tuple[float, float]:
    """Student's interval of a ratio of times, written out."""
    times = np.exp(-np.array(logs))
    half = (
        student.ppf((1 + level) / 2, len(logs) - 1)
        * np.std(times / times.mean(), ddof=1)
        / math.sqrt(len(logs))
    )
    return math.exp(-half) / times.mean(), math.exp(half) / times.mean()


def test_the_ratio_over_the_fastest_of_two_by_hand() -> None:
    def ratio(name: str, level: float) -> Estimate[float] | None:
        return ratio_of(clusters(SPEEDS[name]), level)

    # "b" has the wider interval, and so the lower limit, "a" the least speed and upper limit.
    value, low, high = speed(SPEEDS["a"]), limits(SPEEDS["b"], 0.95)[0], limits(SPEEDS["a"], 0.975)[1]
    assert low < limits(SPEEDS["a"], 0.95)[0]
    fastest, over = over_fastest(["a", "b"], ratio)
    assert fastest == "a"
    assert (over.value, over.low, over.high) == pytest.approx((value, low, high))
    # Over one alone it is that pair's; of a third that was never timed beside it, nothing is known.
    assert over_fastest(["a"], ratio) == ("a", ratio_of(clusters(SPEEDS["a"])))
    assert over_fastest([], ratio) is None
    assert over_fastest(["a", "c"], lambda name, level: ratio(name, level) if name == "a" else None) is None
    named = over_fastest(["a", "b"], ratio, fastest="b")
    assert named is not None
    assert (named[0], named[1].value) == ("b", pytest.approx(speed(SPEEDS["b"])))


# --- by simulation: the figures of benchmarks/timing.py with fewer runs

RUNS = 160


def tolerated_of(runs: int) -> float:
    """Shares of errors that chance allows at ALPHA."""
    return ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / runs)


TOLERATED = tolerated_of(RUNS)


@pytest.mark.parametrize("spread", [0.02, 0.10])
def test_answers_err_no_more_often_than_stated(spread: float) -> None:
    timing = benchmark("timing")
    world = timing.World(pair_spread=spread)
    equal = timing.rates(world, RUNS, 1)
    assert equal["faster"] + equal["slower"] <= TOLERATED
    assert equal["interval_misses"] <= TOLERATED
    assert equal["equivalent"] >= 0.9
    for way in (1, -1):
        margin = replace(world, ratio=1.05**way, prompt_spread=0.02)
        found = timing.rates(margin, RUNS, 2)
        assert found["equivalent"] <= TOLERATED
        assert found["interval_misses"] <= TOLERATED
    found = timing.rates(replace(world, ratio=1.1025, prompt_spread=0.02), RUNS, 3)
    assert found["faster"] >= 0.95
    assert found["interval_misses"] <= TOLERATED


def test_the_interval_covers_that_the_baseline_was_chosen_by_the_same_times() -> None:
    """Of six plain decoders that are equally fast, over the luckiest one."""
    timing, runs = benchmark("timing"), 400
    found = timing.rates(timing.World(plain=6), runs, 4)
    tolerated = tolerated_of(runs)
    assert max(found["interval_misses"], found["faster"]) <= tolerated
    assert found["alone_misses"] > tolerated  # the pair's own interval does not


def clusters(values: list[float], process: int = 0) -> list[Cluster]:
    return [Cluster(process, prompt, value, 8) for prompt, value in enumerate(values)]


def speed(logs: list[float]) -> float:
    """All prompts' plain seconds over all of its own, where plain decoding takes as long on each."""
    return len(logs) / sum(math.exp(-log) for log in logs)


@given(st.lists(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3), min_size=2, max_size=9))
def test_a_speed_is_all_seconds_over_all_seconds(blocks: list[list[float]]) -> None:
    """Of a policy that leaves early for some blocks of some prompts, beside a second every plain token."""
    found = [cluster_of(0, prompt, [(1.0, own) for own in seconds]) for prompt, seconds in enumerate(blocks)]
    total = sum(map(sum, blocks))
    ratio = ratio_of(found)
    assert ratio.value == pytest.approx(3 * len(blocks) / total)
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low <= ratio.value <= ratio.high


def test_half_of_the_tokens_at_a_third_of_the_time_are_no_geometric_mean() -> None:
    """By hand: six seconds in the place of nine are 1.5 x, and not the root of 3."""
    halves = [cluster_of(0, prompt, [(1.0, 1.0 if prompt % 2 else 1 / 3)]) for prompt in range(8)]
    assert ratio_of(halves).value == pytest.approx(1.5)
    assert product_of((1.0, halves)).value == pytest.approx(math.sqrt(3.0))  # type: ignore[union-attr]


def test_the_interval_of_a_ratio_of_times_holds_the_truth_as_often_as_it_says() -> None:
    """Prompts on which a policy leaves early for a share of tokens, beside a rival that varies with them."""
    random, runs, held = np.random.default_rng(3), 600, 0
    mean = 1.0 - 0.6 * 2 / 7  # of a beta(2, 5) share of tokens at 0.4 of the time
    for _ in range(runs):
        own = 1.0 - 0.6 * random.beta(2, 5, 12)
        rival = own * random.normal(1.0, 0.02, 12)
        logs = [clusters((-np.log(times)).tolist()) for times in (own, rival)]
        alone, over = ratio_of(logs[0]), ratio_over(*logs)
        assert over is not None
        held += _within(alone, 1.0 / mean) + _within(over, 1.0)
        assert over.high - over.low < 0.5 * (alone.high - alone.low)  # what prompts share cancels
    assert held / (2 * runs) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)


def busy_machine(random: np.random.Generator, prompts: int) -> tuple[Cluster, ...]:
    """A policy at 0.927 of the plain seconds, its price at 0.9: three blocks of each prompt, some of them
    beside other work that slows down blocks by halves."""
    series = PairedTimes(["plain"])
    for prompt in range(prompts):
        noise = 0.3 if random.random() < 0.5 else 0.04
        share = random.normal(0.9, 0.03)
        seconds = {"plain": 1.0, "own": 1.03 * share, "other": 1.1}
        found = {
            name: DecodedBatch(((1,),), 0, 0, blocks=tuple(base * np.exp(noise * random.normal(size=3))))
            for name, base in seconds.items()
        }
        pairs = pairs_of(found["plain"], found["own"])
        series.add("plain", prompt, pairs, (1.0, share), noise_of(found))
    return series.clusters("plain")


def test_on_a_busy_machine_the_interval_holds_the_truth_and_is_far_narrower_than_of_seconds_alone() -> None:
    random, runs = np.random.default_rng(5), 300
    held, widths = 0, []
    for _ in range(runs):
        found = busy_machine(random, 10)
        ratio, seconds = ratio_of(found), ratio_of([replace(one, priced=None) for one in found])
        held += _within(ratio, 1.0 / (0.9 * 1.03))
        widths.append([resolution_of(ratio), resolution_of(seconds)])
    assert held / runs >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)
    priced, alone = np.median(widths, axis=0)
    assert priced < 0.7 * alone


def test_prices_of_documents_that_were_not_timed_by_hand() -> None:
    """The mean price is theirs, the timed prompts correct it, and the interval has both parts."""
    prices = [0.5, 1.0, 1.0, 1.0]
    timed = [
        Cluster(0, place, math.log(1.0 / (x * late)), 8, math.log(1.0 / x))
        for place, (x, late) in enumerate([(1.0, 1.1), (1.0, 1.3), (0.5, 1.2)])
    ]
    logs = np.log([1.1, 1.3, 1.2])
    expected = -math.log(np.mean(prices)) - logs.mean()
    parts = [(logs.std(ddof=1), 3), (np.std(prices, ddof=1) / np.mean(prices), 4)]
    half = math.sqrt(sum((student_reach(0.9, count - 1) * error) ** 2 / count for error, count in parts))
    found = ratio_of(timed, 0.9, prices)
    assert np.log([found.value, found.low, found.high]) == pytest.approx(
        [expected, expected - half, expected + half]
    )
    unpriced = [replace(one, priced=None) for one in timed]
    assert ratio_of(unpriced, 0.9, prices) == ratio_of(unpriced, 0.9)


def test_prices_of_many_documents_hold_the_truth_where_few_prompts_meet_no_exit() -> None:
    """One answer in five leaves early, for half of the price: most series of seven prompts miss how many."""
    random, runs, held, widths = np.random.default_rng(9), 400, 0, []
    for _ in range(runs):

        def drawn(count: int) -> NDArray[np.float64]:
            return np.where(random.random(count) < 0.2, 0.5, 1.02)

        timed = [
            Cluster(0, place, -math.log(x) - 0.04 * random.normal() + 0.01, 3, -math.log(x))
            for place, x in enumerate(drawn(7))
        ]
        known, alone = ratio_of(timed, LEVEL, drawn(80)), ratio_of(timed)
        held += _within(known, math.exp(0.01) / (0.2 * 0.5 + 0.8 * 1.02))
        widths.append([resolution_of(known), resolution_of(alone)])
    assert held / runs >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)
    known, alone = np.median(widths, axis=0)
    assert known < 0.6 * alone


def test_a_visit_that_says_nothing_of_its_noise_counts_as_a_usual_one() -> None:
    series = PairedTimes(["plain"])
    for prompt, noise in enumerate((0.04, None, 0.04, 0.16, 0.01)):
        series.add("plain", prompt, [(1.0, 0.9)], (1.0, 0.9), noise)
    quiet, unknown, *_, loud, quietest = (one.weight for one in series.clusters("plain"))
    assert unknown == quiet
    assert loud < quiet < quietest
    assert quiet == pytest.approx(1.0 / (0.01**2 + 0.04 / 2 + 0.04))


def test_noise_is_what_neither_contenders_nor_rounds_explain() -> None:
    def batch(*blocks: float) -> DecodedBatch:
        return DecodedBatch(((1,),), 0, 0, blocks=blocks)

    twice = {"a": batch(1.0, 2.0), "b": batch(3.0, 6.0)}  # one is three times as slow, one round twice
    assert noise_of(twice) == pytest.approx(0.0, abs=1e-12)
    # By hand: a and b differ by log 4 in one round only, a quarter of it left in each of four places.
    assert noise_of({"a": batch(1.0, 4.0), "b": batch(1.0, 1.0)}) == pytest.approx(math.log(4) ** 2 / 4)
    assert noise_of({"a": batch(1.0, 4.0)}) is None
    assert noise_of({"a": batch(1.0), "b": batch(2.0)}) is None


def _within(ratio: Estimate[float], true: float) -> bool:
    assert ratio.low is not None
    assert ratio.high is not None
    return ratio.low <= true <= ratio.high


def test_in_one_process_a_product_is_students_over_prompts() -> None:
    values = [0.02, 0.05, -0.01, 0.04, 0.03]
    found = product_of((1.0, clusters(values)), level=0.99)
    half = student.ppf(0.995, 4) * np.std(values, ddof=1) / math.sqrt(5)
    mean = np.mean(values)
    assert (found.value, found.low, found.high) == pytest.approx(np.exp((mean, mean - half, mean + half)))


def test_one_prompt_has_no_interval_however_often_it_is_decoded() -> None:
    assert ratio_of([cluster_of(0, 0, [(1.1, 1.0)] * 1000)]) == Estimate(pytest.approx(1.1))
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
    found = product_of(
        (1.0, [one for place, row in enumerate(values) for one in clusters(row.tolist(), place)])
    )
    assert found is not None
    assert (found.low, found.high) == pytest.approx(by_sums(values, 0.95))


@pytest.mark.parametrize(("between_prompts", "between_processes"), [(0.03, 0.0), (0.03, 0.02)])
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


def test_contenders_are_held_against_each_other_prompt_by_prompt() -> None:
    # log(plain / one) - log(plain / other) is log(other / one), where both were timed.
    one, other = clusters([0.3, 0.5, 0.4]), clusters([0.1, 0.2])
    geometric = product_of((1.0, one), (-1.0, other))
    assert geometric is not None
    assert geometric.value == pytest.approx(math.exp(0.25))
    ratio = ratio_over(one, other)
    assert ratio is not None
    seconds = [math.exp(-log) for log in (0.1, 0.2, 0.3, 0.5)]
    assert ratio.value == pytest.approx(sum(seconds[:2]) / sum(seconds[2:]))
    assert product_of((1.0, one), (1.0, [])) is ratio_over(one, []) is None


def test_the_interval_by_hand() -> None:
    # Of six samples the extremes cover 62/64, the next ones 50/64: a tenth of the way from one to the other,
    # so 5 x 0.1 / (1 + 4 x 0.1) of the distance between samples.
    assert median([3.0] * (SAMPLES_NEEDED - 1)) == Estimate(3.0)
    found = median([13.0, 1.0, 2.0, 3.0, 5.0, 8.0])
    assert (found.value, found.low, found.high) == pytest.approx((4.0, 1 + 5 / 14, 13 - 5 * 5 / 14))


@pytest.mark.parametrize("count", [6, 10, 18])
@pytest.mark.parametrize("skewed", [False, True])
def test_the_interval_holds_the_median_as_often_as_it_says(count: int, skewed: bool) -> None:
    draws = np.random.default_rng(count).normal(size=(4000, count))
    intervals = [median(row.tolist()) for row in (np.exp(draws) if skewed else draws)]
    true = 1.0 if skewed else 0.0
    held = [found.low <= true <= found.high for found in intervals if found.low and found.high]
    assert np.mean(held) == pytest.approx(0.95, abs=0.0125)
