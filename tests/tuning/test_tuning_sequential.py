from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from offramp.tuning.bounds import (
    BET_LIMIT,
    METHODS,
    Losses,
    Settled,
    documents_needed,
    fewest_documents,
    sequential_capital,
    settle,
)

LOSSES = arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1, width=16))


def bet_one_by_one(losses: list[float], risk: float, delta: float, planned: int) -> list[float]:
    """ln K_t as the definition reads, one document after the other."""
    capital, squares, total, found = 1.0, 0.0, 0.0, []
    for seen, loss in enumerate(losses):
        limit = BET_LIMIT / (1.0 - risk)
        variance = squares / seen if seen else 0.0
        wanted = math.inf if variance == 0.0 else math.sqrt(2 * math.log(1 / delta) / (planned * variance))
        capital *= 1.0 + min(wanted, limit) * (risk - loss)
        found.append(math.log(capital))
        total += loss
        squares += (loss - total / (seen + 1)) ** 2
    return found


@settings(max_examples=60, deadline=None)
@given(losses=LOSSES, risk=st.floats(0.01, 0.9), delta=st.sampled_from([0.1, 0.05]), more=st.integers(0, 200))
def test_the_capital_is_what_its_definition_says(
    losses: Losses, risk: float, delta: float, more: int
) -> None:
    planned = len(losses) + more
    found = sequential_capital(losses, risk, delta, planned)
    assert found == pytest.approx(bet_one_by_one(losses.tolist(), risk, delta, planned), rel=1e-6, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(losses=LOSSES, more=st.integers(0, 50), later=st.integers(0, 2**32 - 1))
def test_what_was_bet_does_not_depend_on_what_comes(losses: Losses, more: int, later: int) -> None:
    planned = len(losses) + more
    longer = np.concatenate([losses, np.random.default_rng(later).random(more)])
    known = sequential_capital(longer, 0.1, 0.1, planned)[: len(losses)]
    assert np.array_equal(known, sequential_capital(losses, 0.1, 0.1, planned))


@settings(max_examples=80, deadline=None)
@given(losses=LOSSES, risk=st.floats(0.02, 0.9), delta=st.sampled_from([0.1, 0.05]))
def test_with_all_documents_at_hand_it_is_the_bound_of_all_at_once(
    losses: Losses, risk: float, delta: float
) -> None:
    planned = len(losses)
    capital = sequential_capital(losses, risk, delta, planned)
    at_once = METHODS["wsr"].p_values(losses[:, None], risk, delta)[0]
    if losses.mean() <= risk:
        assert at_once == pytest.approx(min(1.0, math.exp(-capital.max())))
        # What all at once certifies is certified document by document, at the first t that suffices.
        if at_once <= delta * (1 - 1e-9):
            ended = settle(losses, risk, delta, planned)
            assert ended is not None
            crossed = int(np.flatnonzero(capital >= math.log(1 / delta))[0]) + 1
            if losses[:crossed].mean() <= risk:
                assert ended == Settled("certified", crossed)


def test_documents_without_a_loss_certify_after_as_many_as_are_needed() -> None:
    assert [fewest_documents(risk, 0.1) for risk in (0.01, 0.05, 0.1)] == [232, 46, 23]
    for risk in (0.01, 0.05, 0.1):
        needed = fewest_documents(risk, 0.1)
        assert documents_needed(risk, 0.1) <= needed <= documents_needed(risk, 0.1) + 2
        assert settle(np.zeros(needed - 1), risk, 0.1, 1000) is None
        assert settle(np.zeros(needed), risk, 0.1, 1000) == Settled("certified", needed)
        # It stays settled where it was, however many are looked at together.
        assert settle(np.zeros(needed + 50), risk, 0.1, 1000) == Settled("certified", needed)


def test_what_cannot_be_reached_any_more_is_given_up() -> None:
    # By hand: 46 documents are needed; of 50 planned ones 5 may lose a little at most.
    lossless = np.zeros(50)
    lossless[0] = 1.0  # leaves a hundredth of the capital
    assert settle(lossless, 0.05, 0.1, 50) == Settled("out of reach", 1)
    assert settle(np.zeros(1), 0.05, 0.1, 45) == Settled("out of reach", 1)
    assert settle(np.full(10, 0.3), 0.05, 0.1, 400) == Settled("too much lost", 3)
    assert settle(np.full(30, 0.04), 0.05, 0.1, 30) == Settled("out of reach", 1)
    assert settle(np.full(399, 0.049), 0.05, 0.1, 400) is not None
    assert settle(np.zeros(0), 0.05, 0.1, 50) is None


def clustered(rng: np.random.Generator, documents: int, tokens: int, risk: float, hard: float) -> Losses:
    """A share `hard` of the documents bears all of the loss."""
    rates = np.where(rng.random(documents) < hard, risk / hard, 0.0)
    return rng.binomial(tokens, rates) / tokens


WORLDS = {
    "all or nothing": lambda rng, risk: (rng.random(200) < risk).astype(np.float64),
    "32 independent tokens": lambda rng, risk: rng.binomial(32, risk, 200) / 32,
    "a tenth of the documents": lambda rng, risk: clustered(rng, 200, 32, risk, 0.1),
    "half of the documents": lambda rng, risk: clustered(rng, 200, 32, risk, 0.5),
    "a fifth, wholly": lambda rng, risk: np.where(rng.random(200) < risk / 0.5, 0.5, 0.0),
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("delta", [0.1, 0.05])
def test_a_floor_that_is_just_missed_is_certified_as_rarely_as_promised(world: str, delta: float) -> None:
    rng = np.random.default_rng(len(world))
    draws, risk = 1500, 0.1
    certified = sum(
        ended is not None and ended.outcome == "certified"
        for ended in (settle(WORLDS[world](rng, risk), risk, delta, 200) for _ in range(draws))
    )
    # Three standard errors above delta would be no accident.
    assert certified / draws <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)


def test_looking_after_every_document_and_trusting_the_mean_breaks_the_promise() -> None:
    # The same stopping with a bound for a fixed number of documents is wrong: the test above can fail.
    rng = np.random.default_rng(0)
    broken = 0
    for _ in range(100):
        losses = rng.binomial(1, 0.1, 200).astype(np.float64)
        stops = range(22, 200, 2)
        broken += any(METHODS["hb"].p_values(losses[:stop, None], 0.1, 0.1)[0] <= 0.1 for stop in stops)
    assert broken > 15


def test_most_losses_below_the_floor_are_certified_before_all_documents_were_looked_at() -> None:
    rng = np.random.default_rng(3)
    ends = [settle(rng.binomial(32, 0.02, 180) / 32, 0.05, 0.1, 180) for _ in range(100)]
    certified = [end.documents for end in ends if end is not None and end.outcome == "certified"]
    assert len(certified) > 90
    assert np.median(certified) < 110
