from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from offramp.errors import InputError
from offramp.tuning.bounds import (
    BESIDE_CERTIFYING,
    BET_LIMIT,
    METHODS,
    Losses,
    best_certifiable,
    crc_p_values,
    documents_for,
    documents_needed,
    fewest_documents,
    hb_p_values,
    naive_p_values,
    refuted,
    refuting_capital,
    sequential_capital,
    settle,
    two_sided_limits,
    upper_limit,
    wsr_p_values,
)
from offramp.tuning.verdict_words import certifiable_words

CONFIDENT = sorted(name for name, method in METHODS.items() if method.confident)
LOSSES = arrays(np.float64, st.integers(2, 40), elements=st.floats(0, 1, width=16))


@settings(max_examples=40, deadline=None)
@given(losses=LOSSES, risk=st.floats(0.01, 0.9))
def test_hoeffding_bentkus_is_what_its_definition_says(losses: Losses, risk: float) -> None:
    count, mean = len(losses), float(losses.mean())
    low = min(mean, risk)
    entropy = (low * math.log(low / risk) if low else 0.0) + (1 - low) * math.log((1 - low) / (1 - risk))
    lost = math.ceil(count * mean - 1e-9)
    tail = sum(math.comb(count, k) * risk**k * (1 - risk) ** (count - k) for k in range(lost + 1))
    expected = min(math.exp(-count * entropy), math.e * tail, 1.0)
    assert hb_p_values(losses[:, None], risk, 0.1)[0] == pytest.approx(expected, rel=1e-6)


def test_candidates_side_by_side_are_tested_as_alone() -> None:
    losses = np.random.default_rng(0).random((50, 7)) ** 3
    for name in CONFIDENT:
        rule = METHODS[name].p_values
        alone = [rule(losses[:, place : place + 1], 0.3, 0.1)[0] for place in range(7)]
        np.testing.assert_allclose(rule(losses, 0.3, 0.1), alone)


def test_the_documents_that_a_floor_needs() -> None:
    assert [documents_needed(risk, 0.1) for risk in (0.01, 0.05, 0.1)] == [230, 45, 22]
    assert documents_needed(0.01, 0.05) == 299
    # What is said of documents without a loss is what the tests do with them.
    for name, most in (("hb", 230), ("wsr", 232)):
        passes = [
            float(METHODS[name].p_values(np.zeros((count, 1)), 0.01, 0.1)[0]) <= 0.1
            for count in (229, 230, 231, 232)
        ]
        assert passes == [count >= most for count in (229, 230, 231, 232)]
    assert METHODS["crc"].needed(0.01, 0.1) == 99
    assert crc_p_values(np.zeros((99, 1)), 0.01, 0.1)[0] == 0.0
    assert crc_p_values(np.zeros((98, 1)), 0.01, 0.1)[0] == 1.0


@pytest.mark.parametrize("name", CONFIDENT)
@pytest.mark.parametrize("documents", [5, 60, 400])
def test_the_best_floor_is_the_limit_without_a_loss(name: str, documents: int) -> None:
    limit = upper_limit(np.zeros(documents), 0.1, name)
    assert best_certifiable(documents, 0.1, name) == pytest.approx(limit, rel=1e-6)
    assert best_certifiable(0, 0.1, name) == 1.0


def test_conformal_risk_control_on_a_loss_that_is_not_monotone() -> None:
    # The second candidate loses less on average, but the first one's loss counts for it too.
    losses = np.zeros((99, 2))
    losses[:5, 0] = 1.0
    losses[5:7, 1] = 1.0
    assert crc_p_values(losses, 0.06, 0.1).tolist() == [0.0, 1.0]
    assert naive_p_values(losses, 0.06, 0.1).tolist() == [0.0, 0.0]
    # (5 + 1) / 100 and (7 + 1) / 100
    assert crc_p_values(losses, 0.0799, 0.1).tolist() == [0.0, 1.0]
    assert crc_p_values(losses, 0.08, 0.1).tolist() == [0.0, 0.0]


@settings(max_examples=30, deadline=None)
@given(losses=LOSSES, name=st.sampled_from(CONFIDENT), delta=st.sampled_from([0.2, 0.05]))
def test_a_limit_is_where_the_test_begins_to_reject(losses: Losses, name: str, delta: float) -> None:
    limit = upper_limit(losses, delta, name)
    assert losses.mean() <= limit <= 1.0
    rule = METHODS[name].p_values
    if limit < 1.0:
        assert rule(losses[:, None], min(limit + 1e-6, 1.0), delta)[0] <= delta
    assert rule(losses[:, None], limit - 1e-6, delta)[0] > delta * (1 - 1e-3)
    low, high = two_sided_limits(losses, delta, name)
    assert low <= losses.mean() <= high
    if name != "wsr":  # what it bets depends on delta, so that with few losses less of it may give more
        assert high >= limit


@pytest.mark.parametrize("name", CONFIDENT)
@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_limits_cover_the_mean_as_often_as_they_say(name: str, rate: float) -> None:
    rng = np.random.default_rng(1)
    draws, missed = 400, 0
    for _ in range(draws):
        # Overdispersed shares of 16 tokens, with the given mean.
        losses = rng.binomial(16, rng.beta(0.5 * rate, 0.5 * (1 - rate), 80)) / 16
        missed += int(METHODS[name].p_values(losses[:, None], rate, 0.1)[0] <= 0.1)
    # The chance of a false rejection is at most 0.1: 40 of 400, and 58 is three deviations more.
    assert missed <= 58


def test_a_loss_of_one_everywhere_is_no_evidence_and_a_risk_of_one_gives_numbers() -> None:
    assert wsr_p_values(np.ones((50, 1)), 1.0, 0.1)[0] == 1.0
    assert wsr_p_values(np.zeros((50, 1)), 1.0, 0.1)[0] < 1e-6
    assert upper_limit(np.ones(50), 0.1) == pytest.approx(1.0)


def test_a_method_without_a_limit_is_refused() -> None:
    with pytest.raises(InputError, match="gives no confidence limit"):
        upper_limit(np.zeros(5), 0.1, "naive")


DOCUMENTS = arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1, width=16))


def capital_one_by_one(losses: list[float], risk: float, delta: float, planned: int) -> list[float]:
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
@given(
    losses=DOCUMENTS, risk=st.floats(0.01, 0.9), delta=st.sampled_from([0.1, 0.05]), more=st.integers(0, 200)
)
def test_the_capital_is_what_its_definition_says(
    losses: Losses, risk: float, delta: float, more: int
) -> None:
    planned = len(losses) + more
    found = sequential_capital(losses, risk, delta, planned)
    assert found == pytest.approx(
        capital_one_by_one(losses.tolist(), risk, delta, planned), rel=1e-6, abs=1e-9
    )


@settings(max_examples=80, deadline=None)
@given(losses=DOCUMENTS, risk=st.floats(0.02, 0.9), delta=st.sampled_from([0.1, 0.05]))
def test_with_all_documents_at_hand_it_is_the_bound_of_all_at_once(
    losses: Losses, risk: float, delta: float
) -> None:
    planned = len(losses)
    capital = sequential_capital(losses, risk, delta, planned)
    at_once = METHODS["wsr"].p_values(losses[:, None], risk, delta)[0]
    if losses.mean() > risk:
        assert at_once == 1.0
        return
    assert at_once == pytest.approx(min(1.0, math.exp(-capital.max())))
    # What all at once certifies is certified document by document, at the first t that suffices.
    if at_once <= delta * (1 - 1e-9):
        ended = settle(losses, risk, delta, planned)
        assert ended is not None
        crossed = int(np.flatnonzero(capital >= math.log(1 / delta))[0]) + 1
        if losses[:crossed].mean() <= risk:
            assert ended == ("certified", crossed)


def test_documents_without_a_loss_certify_after_as_many_as_are_needed() -> None:
    assert [fewest_documents(risk, 0.1) for risk in (0.01, 0.05, 0.1)] == [232, 46, 23]
    for risk in (0.01, 0.05, 0.1):
        needed = fewest_documents(risk, 0.1)
        assert documents_needed(risk, 0.1) <= needed <= documents_needed(risk, 0.1) + 2
        assert settle(np.zeros(needed - 1), risk, 0.1, 1000) is None
        assert settle(np.zeros(needed), risk, 0.1, 1000) == ("certified", needed)
        # It stays settled where it was, however many are looked at together.
        assert settle(np.zeros(needed + 50), risk, 0.1, 1000) == ("certified", needed)


def test_what_cannot_be_reached_any_more_is_given_up() -> None:
    # By hand: 46 documents are needed; of 50 planned ones 5 may lose a little at most.
    lossless = np.zeros(50)
    lossless[0] = 1.0  # leaves a hundredth of the capital
    assert settle(lossless, 0.05, 0.1, 50) == ("out of reach", 1)
    assert settle(np.zeros(1), 0.05, 0.1, 45) == ("out of reach", 1)
    assert settle(np.full(10, 0.3), 0.05, 0.1, 400) == ("too much lost", 4)
    assert settle(np.full(30, 0.04), 0.05, 0.1, 30) == ("out of reach", 1)
    assert settle(np.full(399, 0.049), 0.05, 0.1, 400) is not None
    assert settle(np.zeros(0), 0.05, 0.1, 50) is None


def test_what_loses_nothing_at_first_may_still_be_refuted_and_is_as_rarely_wrong_as_promised() -> None:
    late = np.concatenate([np.zeros(10), np.tile([0.3, 0.1], 45)])
    assert refuted(late, 0.05, 0.1, 100)
    assert not refuted(late[:12], 0.05, 0.1, 100)
    assert refuted(np.full(4, 0.6), 0.05, 0.1, 400)
    assert not refuted(np.zeros(0), 0.05, 0.1, 100)
    # A few documents that lose much, at a floor whose certificate would take a thousand documents.
    few = np.tile([0.0] * 6 + [0.45], 12)
    assert refuted(few[:50], 0.01, 0.1 / 6, 1632)
    # Exactly the risk: to refute it is an error.
    rng, draws = np.random.default_rng(3), 400
    for world in WORLDS.values():
        wrong = sum(refuted(world(rng, 0.1), 0.1, 0.1, 200) for _ in range(draws))
        assert wrong / draws <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / draws)


@settings(max_examples=60, deadline=None)
@given(losses=DOCUMENTS, risk=st.floats(0.01, 0.9), sized=st.integers(1, 400))
def test_the_refuting_capital_is_what_its_definition_says(losses: Losses, risk: float, sized: int) -> None:
    def grown(bets: list[float]) -> float:
        limit = 0.99 / risk
        return math.prod(1.0 + min(b, limit) * (loss - risk) for b, loss in zip(bets, losses, strict=True))

    def bet(place: int, prior: float, delta: float) -> float:
        squares = [(x - losses[: i + 1].mean()) ** 2 for i, x in enumerate(losses[:place])]
        variance = (prior + sum(squares)) / (place + (prior > 0 or not place))
        return math.sqrt(2 * math.log(1 / delta) / (sized * variance)) if variance else math.inf

    places = range(len(losses))
    fixed = sum(grown([0.99 / risk / 2**k] * len(losses)) for k in range(8)) / 8
    quick, cautious = ([bet(place, *how) for place in places] for how in ((0.0, 0.01), (0.25, 0.1)))
    mean = (fixed + grown(quick) + grown(cautious)) / 3
    found = refuting_capital(losses, risk, 0.1, sized)[-1]
    assert found == pytest.approx(math.log(mean), rel=1e-6, abs=1e-6)


def test_a_test_that_goes_on_beyond_the_documents_its_bets_were_sized_for_stays_valid() -> None:
    random, runs = np.random.default_rng(11), 300
    certified = {60: 0, None: 0}
    for _ in range(runs):
        losses = (random.random(400) < 0.1).astype(np.float64)  # exactly the risk: a certificate is an error
        for sized in certified:
            ended = settle(losses, 0.1, 0.1, 400, patience=401, sized=sized)
            certified[sized] += ended is not None and ended[0] == "certified"
    assert max(certified.values()) / runs <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / runs)
    # It is settled as one of so many documents as long as it has looked at no more.
    few = np.tile([0.0, 0.0, 0.0, 0.1], 15)
    assert settle(few, 0.1, 0.1, 400, sized=60) == settle(few, 0.1, 0.1, 60, patience=61)


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


@pytest.mark.parametrize(
    ("world", "delta"), [*((world, 0.1) for world in WORLDS), ("a tenth of the documents", 0.05)]
)
def test_a_floor_that_is_just_missed_is_certified_as_rarely_as_promised(world: str, delta: float) -> None:
    rng = np.random.default_rng(len(world))
    draws, risk = 1500, 0.1
    certified = sum(
        ended is not None and ended[0] == "certified"
        for ended in (settle(WORLDS[world](rng, risk), risk, delta, 200) for _ in range(draws))
    )
    # Three standard errors above delta would be no accident.
    assert certified / draws <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)


FLOORS = (0.99, 0.95, 0.9)


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        (10, "can never certify 90 % (25 needed), 95 % (48) or 99 % (234)"),
        (29, "can at best certify 90 % (25 needed), never 95 % (48 needed) or 99 % (234)"),
        (60, "can at best certify 90 % (25 needed) and 95 % (48), never 99 % (234 needed)"),
        (500, "can at best certify 90 % (25 needed), 95 % (48) and 99 % (234)"),
    ],
)
def test_what_a_text_could_certify(documents: int, said: str) -> None:
    assert certifiable_words(documents, FLOORS, 0.1) == said


@pytest.mark.parametrize("floor", FLOORS)
@pytest.mark.parametrize("delta", [0.1, 0.1 / 3])
def test_so_many_certify_and_one_less_does_not(floor: float, delta: float) -> None:
    enough = documents_for(floor, delta) - BESIDE_CERTIFYING
    for count in (enough, enough - 1):
        settled = settle(np.zeros(count), 1.0 - floor, delta, count)
        assert (settled == ("certified", count)) == (count == enough)
