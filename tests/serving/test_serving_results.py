"""From where to where exits pay, in words; figures by vLLM's names; the file and the page."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from slow_server import prices

import offramp
from offramp.policies.short_names import short_name
from offramp.report.sections.load import headline, load_page, rows_text, write_load_page
from offramp.scoring.estimate import Estimate
from offramp.serving.predict import (
    ASKED,
    asks_at,
    over_seeds,
    p95,
    ratio_over_requests,
    ratio_over_seeds,
    sample_of,
)
from offramp.serving.request import Load
from offramp.serving.results import (
    LOADS,
    NOT_CERTIFIED,
    LoadExecution,
    LoadPoint,
    LoadResult,
    LoadServer,
    paying_intervals,
)
from offramp.serving.simulator import Demand, ServedDemand
from policy_traces import make_shape, make_trace

WORTH = 0.05
POLICY = "threshold:signal=max_prob,value=0.6,exits=2+4"


def point(rate: float, ratio: float | None, benefit: str | None = "latency", **given: object) -> LoadPoint:
    found = None if ratio is None else Estimate(ratio, ratio - 0.01, ratio + 0.01)
    values = {"saturated": False, "figures": None, "ratio": found, "over": "plain", "benefit": benefit}
    return LoadPoint("policy", rate, **(values | given))  # type: ignore[arg-type]


def test_a_valley() -> None:
    ratios = {1.0: 1.4, 2.0: 1.0, 4.0: 0.95, 8.0: 1.0, 16.0: 1.3}
    points = [point(rate, ratio, "capacity" if rate > 4 else "latency") for rate, ratio in ratios.items()]
    low, high = paying_intervals(points, WORTH)
    # On a straight line over the logarithm of the rate: from log 1.4 to 0, past log 1.05.
    share = math.log(1.4 / 1.05) / math.log(1.4)
    assert (low.low, low.benefit) == (None, "latency")
    assert low.high == pytest.approx(2.0**share)
    assert (high.high, high.benefit) == (None, "capacity")
    assert 8 < (high.low or 0) < 16


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ((1.4, 1.0, 1.0, 1.3), "pays below 1.8 and above 4.6 requests/s: the gain is latency, then capacity"),
        ((1.0, 1.0, 1.0, 1.0), "does not pay at any load"),
        ((1.0, 1.3, 1.3, 1.0), "pays from 1.1 to 7 requests/s: the gain is latency"),
        ((1.4, 1.4, 1.4, 1.4), "pays at every load that was tried, 1 to 8 requests/s"),
        ((1.0, 1.0, 1.0, None), "pays above 5.7 requests/s: the gain is capacity"),
        ((1.06, 1.0, 1.0, 1.0), "does not pay at any load"),
    ],
)
def test_in_one_sentence(ratios: tuple[float | None, ...], said: str) -> None:
    """Its interval has to lie above 1.05; a load that nothing without exits serves pays as capacity."""
    rates = (1.0, 2.0, 4.0, 8.0)
    points = tuple(
        point(rate, ratio, "capacity" if rate > 4 else "latency", over=None if ratio is None else "plain")
        for rate, ratio in zip(rates, ratios, strict=True)
    )
    assert said in result(points, rates).answer_of("policy")


def test_saturated_rates_are_labelled_and_never_pay() -> None:
    lost = point(1.0, None, None, saturated=True, over=None)
    found = result((lost,), (1.0,))
    assert found.paying("policy") == ()
    assert "beyond what it serves" in found.answer_of("policy")
    assert "saturated" in load_page(found)


def test_what_is_not_certified_pays_at_no_load() -> None:
    """However fast it is; nor is it preferred to one that is."""
    fast = tuple(point(rate, 2.0) for rate in (1.0, 2.0))
    found = result(fast, (1.0, 2.0))
    assert found.answer_of("policy").startswith("pays at every load")
    plain, policy = found.servers
    bare = replace(policy, name="bare", certificate=NOT_CERTIFIED, agreement=0.226)
    bolder = tuple(replace(one, contender="bare", ratio=Estimate(3.0, 2.9, 3.1)) for one in fast)
    both = replace(found, servers=(plain, policy, bare), points=(*found.points, *bolder))
    assert both.paying("bare") == ()
    assert both.answer_of("bare") == (
        "is inconclusive: it is faster at every load that was tried, 1 to 2 requests/s, but no certificate "
        "says what it keeps (22.6 % of the tokens, as replayed)"
    )
    assert both.best == policy
    assert headline(replace(both, servers=(plain, bare))).startswith("bare is inconclusive")


def test_the_served_points_decide_where_a_load_was_served() -> None:
    rates = (1.0, 2.0)
    found = result(tuple(point(rate, 1.4) for rate in rates), rates)
    slower = tuple(point(rate, 0.9) for rate in rates)
    execution = LoadExecution(slower, (), Estimate(1.0), {}, "the wall", 1.0, {})
    assert found.answer_of("policy").startswith("pays")
    assert replace(found, execution=execution).answer_of("policy") == "does not pay at any load"


def test_nobody_is_asked_where_a_check_never_pays() -> None:
    rates = (1.0, 2.0)
    found = result(tuple(point(rate, 1.0) for rate in rates), rates)
    plain, policy = found.servers
    unasked = replace(found, servers=(plain, replace(policy, asks_at=())))
    why = "does not pay at any load, since a check costs more than leaving saves, and nobody is asked"
    assert unasked.answer_of("policy") == why
    assert rows_text(unasked.servers[1].asks_at) == "no rows"
    assert rows_text((1, 2, 3, 5, 9, 10)) == "1 to 3, 5, 9 to 10 rows"
    assert rows_text(None) is None


def test_who_is_asked_is_read_off_the_prices() -> None:
    dear = np.where(np.arange(9) > 4, 50.0, 0.1)[None]
    assert asks_at(prices((2,), probe=dear), "gain") == (1, 2, 3, 4)
    assert asks_at(prices((2,), probe=dear), "lockstep") == tuple(range(1, 9))


def result(points: tuple[LoadPoint, ...], rates: tuple[float, ...]) -> LoadResult:
    capacity = Estimate(3.0, 2.9, 3.1)
    servers = (
        LoadServer("plain", "plain", "never", "full depth", capacity, 1.0),
        LoadServer("policy", "policy", "static:exit=2", "certified for 90 %", capacity, 0.97),
    )
    plain = tuple(LoadPoint("plain", rate, True, None) for rate in rates)
    return LoadResult(
        model="tiny",
        workload="prose",
        machine="h100",
        padded=False,
        asked={name: getattr(Load, name) for name in ASKED},
        floor=None,
        servers=servers,
        rates=rates,
        points=(*plain, *points),
        notes=(),
        provenance={},
    )


def test_figures_by_hand() -> None:
    demand = Demand(np.array([0.0, 1.0]), np.array([3, 3]), np.array([3, 1]), np.zeros((2, 2)))
    nothing = np.zeros(2, dtype=np.int64)
    times = (np.array([2.0, 3.0, 5.0]), np.array([4.0]))
    served = ServedDemand(demand, times, nothing, np.array([8, 0]), np.array([1, 0]), 5.0, 4, 2)
    found = sample_of(served, {"ttft": 2.5, "tpot": 1.5}, warm=0.0)
    assert found["request_throughput"] == pytest.approx(2 / 5)
    assert found["output_throughput"] == pytest.approx(4 / 5)
    assert found["request_goodput"] == pytest.approx(1 / 5)  # the second waited 3 s
    assert found["mean_ttft"] == pytest.approx(2.5)
    assert found["mean_tpot"] == pytest.approx(1.5)
    assert found["mean_itl"] == pytest.approx(1.5)
    assert found["p50_e2el"] == pytest.approx(4.0)
    assert (found["rows"], found["layers"]) == (0.5, 4.0)
    assert found["agreement"] == pytest.approx(0.75)


def test_intervals_over_seeds() -> None:
    found = over_seeds([11.0, 12.0, 13.0])
    assert found.value == 12.0
    assert (found.low, found.high) == (
        pytest.approx(12 - 2.4841, abs=1e-3),
        pytest.approx(12 + 2.4841, abs=1e-3),
    )
    ratio = ratio_over_seeds([2.0, 4.0], [1.0, 2.0])
    assert (ratio.value, ratio.low, ratio.high) == (pytest.approx(2), pytest.approx(2), pytest.approx(2))
    assert over_seeds([0.1, 2.0]).low == 0.0
    assert over_seeds([1.0]).no_interval == "one seed"


def test_intervals_over_requests() -> None:
    """Requests are paired, seeds are averaged, and a naive loop over the same draws says the same."""
    random, rounds = np.random.default_rng(0), []
    for factor in (0.5, 0.5, 0.5):
        seconds = random.gamma(2.0, 1.0, 200) + 0.1
        rounds.append((_served(seconds), _served(factor * seconds)))
    over, under = zip(*rounds, strict=True)
    same = ratio_over_requests(over, under, p95, warm=0.0)
    assert (same.value, same.low, same.high) == (pytest.approx(2), pytest.approx(2), pytest.approx(2))
    own = [_served(random.gamma(2.0, 1.0, 200) + 0.1) for _ in range(3)]
    found = ratio_over_requests(over, own, np.mean, warm=0.0)
    means = [_mean(one) / _mean(other) for one, other in zip(over, own, strict=True)]
    assert found.value == pytest.approx(np.exp(np.mean(np.log(means))))
    # Independent requests: the spread of a mean, three seeds of 200 on each side, is known.
    spread = sum(np.var(_seconds(one)) / 200 / _mean(one) ** 2 for one in (*over, *own)) ** 0.5 / 3
    assert found.low is not None
    assert np.log(found.value / found.low) == pytest.approx(1.96 * spread, rel=0.3)
    assert found == ratio_over_requests(over, own, np.mean, warm=0.0)


def _served(seconds: NDArray[np.float64]) -> ServedDemand:
    """Requests that come one a second and end after so many."""
    count = len(seconds)
    few, arrival = np.ones(count, dtype=np.int64), np.arange(count, dtype=np.float64)
    demand = Demand(arrival, few, few, np.zeros((count, 2)))
    times = tuple(np.array([end]) for end in arrival + seconds)
    return ServedDemand(demand, times, few, few, few, 1.0, 1, 1)


def _seconds(served: ServedDemand) -> NDArray[np.float64]:
    return np.array([own[-1] for own in served.times]) - served.demand.arrival


def _mean(served: ServedDemand) -> float:
    return float(_seconds(served).mean())


@pytest.fixture(scope="module")
def answered() -> LoadResult:
    trace = make_trace(tokens=3000, documents=40, exits=[2, 4, 6], shape=make_shape(6, head=60_000))
    return offramp.load(
        trace,
        policy=[POLICY, "static:exit=4"],
        ladder="0:never,4:static:exit=4",
        hardware="h100",
        slo="ttft=1,tpot=0.1",
        requests=60,
        lengths="prompt=20,output=12",
        rows=8,
    )


def test_prediction_of_a_trace(answered: LoadResult) -> None:
    names = [server.name for server in answered.servers]
    assert names == ["plain", short_name(POLICY), short_name("static:exit=4"), "ladder"]
    assert [server.policy for server in answered.servers][1:3] == [POLICY, "static:exit=4"]
    assert answered.servers[0].asks_at is None
    assert answered.servers[2].asks_at == tuple(range(1, 9))  # asking costs a static exit nothing
    assert len(answered.points) == len(names) * len(answered.rates)
    for found in answered.points:
        limit = next(one.capacity.value for one in answered.servers if one.name == found.contender)
        assert found.saturated == (found.rate >= limit)
        assert (found.figures is None) == found.saturated
        if found.figures is not None:
            assert found.figures["request_goodput"].value <= found.figures["request_throughput"].value + 1e-9
    assert [share.queue for share in answered.of("ladder")[0].rungs] == [0, 4]


def test_the_same_question_has_the_same_answer(answered: LoadResult, tmp_path: Path) -> None:
    LOADS.write(tmp_path / "a.json", answered)
    assert LOADS.read(tmp_path / "a.json") == answered
    page = write_load_page(answered, tmp_path / "a.html").read_text(encoding="utf-8")
    assert page == load_page(answered)
    assert page.count('<svg class="chart') == 2
    assert headline(answered).partition(" (")[0].replace("<", "&lt;") in page
    assert "Lost over promised" in page


def test_damage_is_found(answered: LoadResult, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    LOADS.write(path, answered)
    path.write_text(path.read_text(encoding="utf-8").replace('"rows": 8', '"rows": 9', 1), encoding="utf-8")
    with pytest.raises(offramp.OfframpError, match="no file of offramp load"):
        LOADS.read(path)


def test_no_torch_for_a_prediction() -> None:
    import subprocess
    import sys

    program = (
        "import sys, offramp.serving.predict, offramp.serving.request, offramp.report.sections.load\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
