import numpy as np
import pytest
from scipy.stats import entropy
from scoring_traces import facts_trace, logits_trace, marginal_of

from offramp.errors import InputError
from offramp.scoring.components import VOCABULARY_COLUMNS, initial_information, mixture_entropy
from offramp.scoring.documents import document_rows
from offramp.scoring.estimate import document_bootstrap
from offramp.scoring.scoring import score


def random_trace(documents=24, length=6, vocabulary=30, exits=3):
    generator = np.random.default_rng(1)
    document = np.repeat(np.arange(documents), length)
    return logits_trace(3 * generator.normal(size=(len(document), exits, vocabulary)), document=document)


def test_initial_information_is_the_mean_divergence_from_the_mean_distribution():
    generator = np.random.default_rng(1)
    document = np.repeat(np.arange(24), 6)
    logits = 3 * generator.normal(size=(144, 3, 30))
    p = np.exp(logits[:, -1]) / np.exp(logits[:, -1]).sum(-1, keepdims=True)
    expected = np.mean([entropy(row, p.mean(0)) for row in p])
    assert score(logits_trace(logits, document=document)).initial_information.value == pytest.approx(
        expected, abs=1e-6
    )


def test_draws_equal_a_plain_loop_up_to_their_shift():
    trace = random_trace()
    rows = document_rows(trace)
    bootstrap = document_bootstrap(24, draws=50, seed=3)
    entropy_sums = rows.sums(trace.entropy)[:, -1]
    values = initial_information(trace.marginal, entropy_sums, rows, bootstrap)
    marginal = trace.marginal
    expected = []
    for weights in bootstrap.weights[1:]:
        mixture, total, entropies = np.zeros(30), 0.0, 0.0
        for place, weight in enumerate(weights):
            block = marginal.block_of_document[rows.index[place]]
            mixture += weight * rows.tokens[place] * marginal.sums[block] / marginal.tokens[block]
            total += weight * rows.tokens[place]
            entropies += weight * entropy_sums[place]
        expected.append(entropy(mixture) - entropies / total)
    shift = values[0] - np.mean(expected)
    np.testing.assert_allclose(values[1:], np.array(expected) + shift, atol=1e-4)
    assert shift > 0.0


def test_mixture_entropy_over_a_vocabulary_of_several_chunks():
    sums = np.random.default_rng(0).random((3, 2 * VOCABULARY_COLUMNS + 5)) ** 6
    sums[:, :9] = 0.0
    weights = np.array([[1.0, 1, 1], [0, 2, 1]])
    np.testing.assert_allclose(
        mixture_entropy(sums, weights), [entropy(row @ sums) for row in weights], rtol=1e-5
    )


def test_too_little_information_is_undefined_with_the_reason():
    document = np.repeat([0, 1], 10)
    marginal = marginal_of(np.full((20, 4), 0.25), document)
    trace = facts_trace(
        {"entropy": np.full((20, 3), np.log(4)), "max_prob": np.full((20, 3), 0.25)},
        document=document,
        marginal=marginal,
    )
    card = score(trace)
    assert card.initial_information.value == pytest.approx(0.0, abs=1e-6)
    assert card.increment.value is None
    assert "R_0" in card.increment.undefined
    assert card.composite.value is None
    assert "increment" in card.composite.undefined
    assert card.candidates["increment"] is None


def test_a_subset_weighs_the_blocks_by_its_own_tokens():
    trace = random_trace()
    half = trace.subset(np.arange(0, 24, 2))
    card = score(half)
    rows = document_rows(half)
    weights = np.bincount(trace.marginal.block_of_document[rows.index], weights=rows.tokens, minlength=16)
    mixture = weights / trace.marginal.tokens @ trace.marginal.sums
    expected = entropy(mixture) - half.entropy[:, -1].mean()
    assert card.initial_information.value == pytest.approx(expected, abs=1e-6)
    assert card.documents == 12


def test_a_marginal_that_does_not_fit_is_refused():
    trace = random_trace()
    trace.marginal.tokens[3] = 0
    with pytest.raises(InputError, match="marginal lacks documents"):
        score(trace)
    trace = random_trace()
    trace.marginal.sums[0, 0] = np.nan
    with pytest.raises(InputError, match="marginal distribution is not finite"):
        score(trace)
