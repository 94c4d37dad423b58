"""Exit classifiers of one exit: against plain references, on labels to be learned and on noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit

from offramp.defaults import NETWORK_UNITS
from offramp.heads.parts import Classifier, stacked
from offramp.tracing.fitting.classifiers import (
    PRIOR_VARIANCE,
    RAREST_CLASS,
    Samples,
    beats_base_rate,
    fit_classifier,
)

FEATURES = 6


def samples(
    seed: int, *, documents: int = 12, tokens: int = 25, signal: float = 2.0, rate: float = 0.5
) -> Samples:
    """Labels that depend on the first feature as strongly as `signal` says; 0 is noise."""
    generator = np.random.default_rng(seed)
    count = documents * tokens
    x = generator.normal(size=(count, FEATURES)) * 3.0 + 10.0
    logit = signal * (x[:, 0] - 10.0) / 3.0 + math.log(rate / (1.0 - rate))
    return Samples(
        x.astype(np.float32), generator.random(count) < expit(logit), np.repeat(np.arange(documents), tokens)
    )


def probability(fitted: Classifier, x: np.ndarray) -> np.ndarray:
    """As tracing computes it."""
    prepared = stacked([fitted, fitted]).at(1, torch.device("cpu"))
    values = prepared(torch.from_numpy(x))
    return np.asarray(values.numpy())


def auroc_by_pairs(score: np.ndarray, y: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order; a tie counts half."""
    above = score[y][:, None] - score[~y][None, :]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


def test_the_logistic_classifier_minimises_its_objective() -> None:
    fit = samples(0)
    fitted = fit_classifier(fit, samples(1), network=False, seed=0)
    x = (fit.x - fit.x.mean(0)) / fit.x.std(0)
    sign = np.where(fit.y, 1.0, -1.0)

    def objective(parameters: np.ndarray) -> float:
        loss = np.logaddexp(0.0, -sign * (x @ parameters[:-1] + parameters[-1])).sum()
        return float(loss + (parameters[:-1] ** 2).sum() * FEATURES / (2.0 * PRIOR_VARIANCE))

    best = minimize(objective, np.zeros(FEATURES + 1), tol=1e-10).x
    np.testing.assert_allclose(fitted.weights[0][:, 0], best[:-1], atol=2e-3)
    np.testing.assert_allclose(fitted.biases[0], best[-1:], atol=2e-3)


@pytest.mark.parametrize("network", [False, True])
def test_labels_that_can_be_learned_are_learned(network: bool) -> None:
    held_out = samples(3)
    fitted = fit_classifier(samples(2), held_out, network=network, seed=0)
    assert fitted.better_than_chance
    assert fitted.auroc > 0.75
    score = probability(fitted, held_out.x)
    assert fitted.auroc == pytest.approx(auroc_by_pairs(score, held_out.y), abs=2e-3)
    assert fitted.base_rate == samples(2).y.mean()
    # What it says is a probability: its mean is near the share of positive labels.
    assert score.mean() == pytest.approx(held_out.y.mean(), abs=0.1)


def test_a_network_learns_what_no_linear_classifier_can() -> None:
    def ring(seed: int) -> Samples:
        one = samples(seed, documents=20, tokens=50)
        distance = np.abs(one.x[:, 0] - 10.0) / 3.0
        return Samples(one.x, distance > 0.7, one.document)

    linear, network = (fit_classifier(ring(4), ring(5), network=kind, seed=0) for kind in (False, True))
    assert not linear.better_than_chance
    assert network.better_than_chance
    assert network.auroc > 0.9


def test_a_network_is_what_scikit_learn_fitted() -> None:
    from sklearn.neural_network import MLPClassifier

    fit = samples(6)
    fitted = fit_classifier(fit, samples(7), network=True, seed=3)
    epochs = math.ceil(500 * 64 / len(fit.y))
    reference = MLPClassifier(
        (NETWORK_UNITS,), alpha=3.0, batch_size=64, max_iter=epochs, n_iter_no_change=epochs, random_state=3
    )
    x = (fit.x - fitted.mean) / fitted.scale
    with pytest.warns(match="Maximum iterations"):
        expected = reference.fit(x, fit.y).predict_proba(x)[:, 1]
    np.testing.assert_allclose(probability(fitted, fit.x), expected, atol=1e-5)


@pytest.mark.parametrize("network", [False, True])
def test_noise_is_admitted_to_be_noise(network: bool) -> None:
    repeats = 4 if network else 40
    found = [
        fit_classifier(
            samples(100 + seed, signal=0.0), samples(900 + seed, signal=0.0), network=network, seed=seed
        )
        for seed in range(repeats)
    ]
    assert sum(one.better_than_chance for one in found) <= 0.1 * repeats
    assert abs(np.mean([one.auroc for one in found]) - 0.5) < 0.05


def test_beating_the_base_rate_takes_several_documents() -> None:
    held_out = samples(8, documents=10, tokens=20)
    perfect = np.where(held_out.y, 0.95, 0.05)
    assert beats_base_rate(perfect, held_out, 0.5)
    assert not beats_base_rate(1.0 - perfect, held_out, 0.5)
    one_document = Samples(held_out.x, held_out.y, np.zeros_like(held_out.document))
    assert not beats_base_rate(perfect, one_document, 0.5)
    # All the gain in one document: ten documents cannot tell that from luck.
    lucky = np.where(held_out.document == 0, perfect, 0.5)
    assert not beats_base_rate(lucky, held_out, 0.5)


@pytest.mark.parametrize(
    ("network", "side", "label"),
    [(False, "fit", True), (False, "held out", False), (True, "fit", False), (True, "held out", True)],
)
def test_a_rare_class_gives_the_base_rate(network: bool, side: str, label: bool) -> None:
    def rare(one: Samples) -> Samples:
        y = np.full(len(one.y), not label)
        y[: RAREST_CLASS - 1] = label
        return Samples(one.x, y, one.document)

    fit, held_out = samples(9), samples(10)
    fit, held_out = (rare(fit), held_out) if side == "fit" else (fit, rare(held_out))
    fitted = fit_classifier(fit, held_out, network=network, seed=0)
    assert math.isnan(fitted.auroc)
    assert not fitted.better_than_chance
    assert fitted.base_rate == fit.y.mean()
    expected = (fit.y.sum() + 0.5) / (len(fit.y) + 1)
    np.testing.assert_allclose(probability(fitted, held_out.x), expected, rtol=1e-5)


def test_twenty_of_each_class_are_enough() -> None:
    one = samples(11)
    y = np.zeros(len(one.y), dtype=bool)
    y[:RAREST_CLASS] = True
    enough = Samples(one.x, y, one.document)
    assert not math.isnan(fit_classifier(enough, enough, network=False, seed=0).auroc)


def test_a_feature_that_never_changes_does_no_harm() -> None:
    fit, held_out = samples(12), samples(13)
    for one in (fit, held_out):
        one.x[:, 2] = 7.0
    fitted = fit_classifier(fit, held_out, network=False, seed=0)
    assert fitted.scale[2] == 1.0
    assert fitted.better_than_chance
