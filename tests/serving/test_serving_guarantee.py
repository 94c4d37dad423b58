"""A rung that is fixed at admission keeps what was promised of it; not where bursts bring harder texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from slow_server import contender, documents, prices

from offramp.scoring.documents import DocumentRows
from offramp.serving.contenders import LADDER, LoadContender
from offramp.serving.predict import rung_shares
from offramp.serving.request import RequestLengths, ServerLimits, read_arrivals
from offramp.serving.results import RungShare
from offramp.serving.simulator import Demand, ServedDemand, answers_of, demand_of, simulate

EASY, HARD, LENGTH = 300, 100, 40


def ladder(seed: int) -> tuple[LoadContender, DocumentRows]:
    """Of three documents of four a token in fifty is lost by the bold rung, of the others one in five."""
    count = EASY + HARD
    bold, cautious = contender((2,), tokens=count * LENGTH), contender(tokens=count * LENGTH)
    draw = np.random.default_rng(seed)
    chance = np.repeat(np.where(np.arange(count) < EASY, 0.02, 0.2), LENGTH)
    kept = np.ones((2, count * LENGTH), dtype=np.bool_)
    kept[0] = draw.random(count * LENGTH) >= chance
    rung = replace(bold.rungs[0], exits=np.full(count * LENGTH, 2), kept=kept, queue=6)
    own = LoadContender("ladder", LADDER, (cautious.rungs[0], rung))
    return own, documents([LENGTH] * count)


def served(demand: Demand, seed: int) -> tuple[LoadContender, ServedDemand]:
    own, rows = ladder(seed)
    by = prices((2,), rows=8)
    return own, simulate(demand, answers_of(rows, demand), own, by, ServerLimits(rows=8, budget=64))


def bold_share(found: list[tuple[LoadContender, ServedDemand]]) -> RungShare:
    return rung_shares(found[0][0], [one for _, one in found])[1]


def demand(seed: int) -> Demand:
    arrivals = read_arrivals("gamma:cv=3")
    return demand_of(arrivals, RequestLengths(8, 16, 0.3), 0.012, 400, seed)


def test_fixed_at_admission_it_holds_rung_by_rung() -> None:
    share = bold_share([served(demand(seed), 0) for seed in range(12)])
    assert 300 < share.requests < 12 * 400 - 300
    ratio = share.loss_over_promise
    assert ratio is not None
    assert 0.9 <= ratio <= 1.03


def test_where_bursts_bring_harder_texts_it_breaks() -> None:
    """The check can fail: texts that come while others wait are the hard ones."""

    def hard_when_busy(asked: Demand) -> Demand:
        arrival = asked.arrival
        recent = np.arange(len(asked)) - np.searchsorted(arrival, arrival - 300.0)
        hard = recent >= np.quantile(recent, EASY / (EASY + HARD))
        draw = np.random.default_rng(1).random(len(asked))
        share = EASY / (EASY + HARD)
        text = np.where(hard, share + (1 - share) * draw, share * draw)
        return replace(asked, text=np.stack([text, asked.text[:, 1]], axis=1))

    share = bold_share([served(hard_when_busy(demand(seed)), 0) for seed in range(12)])
    assert share.loss_over_promise is not None
    assert share.loss_over_promise >= 1.15


def test_a_request_keeps_the_rung_that_it_was_admitted_with() -> None:
    own, found = served(demand(0), 0)
    deep = found.layers == 6 * (found.demand.output - 1)
    assert deep[found.rung == 0].all()
    assert {0, 1} == set(found.rung.tolist())
    assert own.rung_at(0) == own.rung_at(5) == 0
    assert own.rung_at(6) == 1
    assert "as long as which texts come does not depend on the queue" in own.certificate


@pytest.mark.parametrize("promise", [0.0, 0.1])
def test_loss_over_promise(promise: float) -> None:
    share = RungShare(0, "never", 3, 0.2, promise)
    assert share.loss_over_promise == (pytest.approx(2.0) if promise else None)
