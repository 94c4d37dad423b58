from __future__ import annotations

import numpy as np
import pytest
from scoring_traces import facts_trace, marginal_of

from offramp.errors import InputError
from offramp.kit.arguments import settled
from offramp.scoring.estimate import Draws, document_bootstrap
from offramp.scoring.scoring import score

DOCUMENTS, LENGTH, SIMULATIONS = 40, 24, 200
REACH = np.array([0.4, 0.7, 0.9, 1.0])


def correlated_trace(generator):
    """Tokens of a document share how easy it is and what it is about. Four exits of four layers."""
    document = np.repeat(np.arange(DOCUMENTS), LENGTH)
    ease = generator.beta(1.5, 1.0, DOCUMENTS)[document] * generator.beta(0.5, 0.5, len(document))
    ease = ease[:, np.newaxis]
    agreement = generator.random((len(document), 4)) < ease * REACH
    agreement[:, -1] = True
    confidence = np.clip(ease * REACH + 0.1 * generator.normal(size=agreement.shape), 0.0, 1.0)
    topic = np.clip(generator.normal(0.0, 1.0, (DOCUMENTS, 8))[document], -3, 3)
    p = np.exp(topic + generator.normal(0.0, 1.0, topic.shape))
    p /= p.sum(1, keepdims=True)
    entropy = np.repeat(-(p * np.log(p)).sum(1, keepdims=True), 4, axis=1)
    kl = 0.8 * (1 - ease) * np.array([1.0, 0.6, 0.2, 0.0]) * generator.gamma(2.0, 0.5, (len(document), 1))
    return facts_trace(
        {
            "agreement": agreement,
            "max_prob": confidence,
            "kl_to_final": kl,
            "entropy": entropy,
            "logit_cosine": 0.2 + 0.6 * ease * REACH,
        },
        document=document,
        marginal=marginal_of(p, document),
    )


def token_level_interval(trace, generator):
    """What a bootstrap over single tokens would give for the representation quality."""
    area = trace.agreement[:, :-1].mean(axis=1) * 0.75
    drawn = generator.integers(0, len(area), (200, len(area)))
    return np.percentile(area[drawn].mean(axis=1), [2.5, 97.5])


@pytest.fixture(scope="module")
def simulated():
    generator = np.random.default_rng(11)
    cards, token_level = [], []
    for simulation in range(SIMULATIONS):
        trace = correlated_trace(generator)
        cards.append(score(trace, draws=250, seed=simulation))
        token_level.append(token_level_interval(trace, generator))
    return cards, np.array(token_level)


FIGURES = {
    "representation": lambda card: card.representation,
    "increment": lambda card: card.increment,
    "calibration": lambda card: card.calibration,
    "composite": lambda card: card.composite,
    "initial_information": lambda card: card.initial_information,
    "first_match_skip": lambda card: card.first_match_skip,
    "saturation_skip": lambda card: card.saturation_skip,
    "eas": lambda card: card.eas("logit", 0.5).score,
}


@pytest.mark.parametrize("figure", FIGURES)
def test_intervals_cover_at_the_stated_rate(simulated, figure):
    """Nominal 95 %, 200 simulations; the truth is the mean of the figure over simulations of this size."""
    estimates = [FIGURES[figure](card) for card in simulated[0]]
    truth = np.mean([estimate.value for estimate in estimates])
    covered = np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])
    assert 0.88 <= covered <= 0.99, covered


def test_the_exact_truth_is_covered_by_documents_and_missed_by_tokens(simulated):
    # E[ease] = 0.6 x 0.5; the area is 0.25 x (0.4 + 0.7 + 0.9) x 0.3.
    truth = 0.25 * REACH[:3].sum() * 0.3
    cards, token_level = simulated
    by_documents = np.mean([c.representation.low <= truth <= c.representation.high for c in cards])
    by_tokens = np.mean((token_level[:, 0] <= truth) & (truth <= token_level[:, 1]))
    assert 0.88 <= by_documents <= 0.99, by_documents
    assert by_tokens < 0.75, by_tokens


def test_draws_are_document_counts_and_row_zero_is_the_trace():
    bootstrap = document_bootstrap(25, draws=60, seed=0)
    assert bootstrap.weights.shape == (61, 25)
    assert (bootstrap.weights[0] == 1).all()
    assert (bootstrap.weights.sum(1) == 25).all()
    sums, counts = np.random.default_rng(0).random((25, 3)), np.arange(1.0, 26.0)
    means = bootstrap.means(sums, counts)
    plain = [sum(w * s for w, s in zip(row, sums, strict=True)) / (row @ counts) for row in bootstrap.weights]
    np.testing.assert_allclose(means, plain)


def test_the_interval_is_the_percentiles_of_the_draws():
    bootstrap = document_bootstrap(20, draws=1000, seed=0)
    values = np.concatenate([[500.0], np.random.default_rng(0).permutation(1000)])
    estimate = bootstrap.estimate(values)
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((24.975, 500.0, 974.025))


def test_same_seed_same_interval_other_seed_another():
    trace = correlated_trace(np.random.default_rng(0))
    assert score(trace, seed=5).representation == score(trace, seed=5).representation
    assert score(trace, seed=5).representation != score(trace, seed=6).representation


@pytest.mark.parametrize(
    ("documents", "reason"), [(1, "1 document;"), (12, "12 documents;"), (19, "19 documents;")]
)
def test_few_documents_get_no_interval_and_are_told_why(documents, reason):
    bootstrap = document_bootstrap(documents, draws=1000, seed=0)
    estimate = bootstrap.estimate(np.array([0.5]))
    assert (estimate.value, estimate.low, estimate.high) == (0.5, None, None)
    assert estimate.no_interval == f"{reason} an interval needs 20"
    assert bootstrap.interval(np.zeros((1, 3))) is None


def test_a_figure_undefined_in_many_draws_gets_no_interval():
    bootstrap = document_bootstrap(20, draws=100, seed=0)
    values = np.full(101, 0.5)
    values[1:5] = np.nan
    assert bootstrap.estimate(values).low == 0.5
    values[1:11] = np.nan
    assert bootstrap.estimate(values).low is None
    assert bootstrap.estimate(values).no_interval == "undefined in 10% of the resampled traces"


@pytest.mark.parametrize("draws", [39, 10**12])
def test_too_few_draws_and_too_many_are_refused(draws: int) -> None:
    assert settled("draws", 40, Draws, "Draws") == 40
    with pytest.raises(InputError, match="draws must be"):
        settled("draws", draws, Draws, "Draws")
