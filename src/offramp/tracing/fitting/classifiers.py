"""The classifiers of exits: what each looks at and predicts; fitted on some documents, judged on others."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from offramp.defaults import NETWORK_UNITS
from offramp.heads.at_work import candidate_features, confidence_features
from offramp.heads.parts import Classifier, Weights
from offramp.kit.rules import OneOf
from offramp.tracing.fitting.fitting_inputs import Readings

RAREST_CLASS = 20
"""Rows that each class needs, on both sides: with fewer there is nothing to learn or to judge."""

PRIOR_VARIANCE = 1.0
"""Of the logit under the logistic classifier's prior, however many features there are."""

NETWORK_PENALTY = 3.0
NETWORK_STEPS = 500
NETWORK_BATCH = 64

SIGNIFICANCE = 0.05

Features = NDArray[np.float32]
Labels = NDArray[np.bool_]


@dataclass(frozen=True)
class Samples:
    """Rows of one exit."""

    x: Features
    """[rows, features]"""
    y: Labels
    """[rows]"""
    document: NDArray[np.int64]
    """[rows]"""

    def __getitem__(self, rows: NDArray[np.bool_]) -> Samples:
        """Some of the rows."""
        return Samples(self.x[rows], self.y[rows], self.document[rows])

    @property
    def rarest(self) -> int:
        """Rows of the rarer class."""
        positive = int(self.y.sum())
        return min(positive, len(self.y) - positive)


def fit_classifier(fit: Samples, held_out: Samples, *, network: bool, seed: int) -> Classifier[Weights]:
    """Fit one classifier and judge it on other documents.

    network: one hidden layer of NETWORK_UNITS (ReLU), else logistic regression. Where a class has fewer than
    RAREST_CLASS rows in either set, the base rate is all it says.
    """
    mean = fit.x.mean(0, dtype=np.float64).astype(np.float32)
    scale = fit.x.std(0, dtype=np.float64).astype(np.float32)
    scale[~(scale > 0)] = 1.0
    base_rate = float(fit.y.mean())
    if fit.rarest < RAREST_CLASS or held_out.rarest < RAREST_CLASS:
        return constant_classifier(fit.x.shape[1], fit.y, network=network, mean=mean, scale=scale)
    fitted = (_network if network else _logistic)((fit.x - mean) / scale, fit.y, seed)
    probability = fitted.predict_proba((held_out.x - mean) / scale)[:, 1]
    weights, biases = _parts(fitted)
    from sklearn.metrics import roc_auc_score

    return Classifier(
        mean=mean,
        scale=scale,
        weights=weights,
        biases=biases,
        auroc=np.array(roc_auc_score(held_out.y, probability)),
        base_rate=np.array(base_rate),
        better_than_chance=np.array(beats_base_rate(probability, held_out, base_rate)),
    )


def constant_classifier(
    features: int,
    labels: Labels,
    *,
    network: bool,
    mean: Features | None = None,
    scale: Features | None = None,
) -> Classifier[Weights]:
    """The classifier that always says the base rate (with half a row of each class added: a finite logit)."""
    widths = (features, NETWORK_UNITS, 1) if network else (features, 1)
    biases = [np.zeros(width, np.float32) for width in widths[1:]]
    rate = (labels.sum() + 0.5) / (len(labels) + 1.0)
    biases[-1][:] = math.log(rate / (1.0 - rate))
    return Classifier(
        mean=np.zeros(features, np.float32) if mean is None else mean,
        scale=np.ones(features, np.float32) if scale is None else scale,
        weights=tuple(np.zeros((before, after), np.float32) for before, after in itertools.pairwise(widths)),
        biases=tuple(biases),
        auroc=np.array(math.nan),
        base_rate=np.array(float(labels.mean()) if len(labels) else 0.0),
        better_than_chance=np.array(False),
    )


def beats_base_rate(probability: NDArray[Any], held_out: Samples, base_rate: float) -> bool:
    """Whether the log loss is surely below the base rate's. probability: float [rows], of held-out rows."""
    gain = _log_loss(np.full(len(held_out.y), base_rate), held_out.y) - _log_loss(probability, held_out.y)
    return gains_surely(gain, held_out.document)


def gains_surely(gain: NDArray[np.float64], document: NDArray[np.int64]) -> bool:
    """Whether the gain [rows] is above 0, by a one-sided t test over documents [rows] at SIGNIFICANCE.

    Rows of one document depend on each other, so that the documents' sums are the sample.
    """
    from scipy.stats import t

    _, place = np.unique(document, return_inverse=True)
    per_document = np.bincount(place, weights=gain)
    count = len(per_document)
    if count < 2:
        return False
    error = per_document.std(ddof=1) / math.sqrt(count)
    return bool(per_document.mean() > t.ppf(1.0 - SIGNIFICANCE, count - 1) * error)


def _logistic(x: Features, y: Labels, seed: int) -> Any:
    """Logistic regression with a normal prior on the weights of the standardised features."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=PRIOR_VARIANCE / x.shape[1], max_iter=300, random_state=seed)
    return model.fit(x.astype(np.float64), y)


def _network(x: Features, y: Labels, seed: int) -> Any:
    """A network of NETWORK_UNITS ReLU units, trained for NETWORK_STEPS steps of Adam."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    batch = min(NETWORK_BATCH, len(x))
    epochs = math.ceil(NETWORK_STEPS * batch / len(x))
    network = MLPClassifier(
        (NETWORK_UNITS,),
        alpha=NETWORK_PENALTY,
        batch_size=batch,
        max_iter=epochs,
        n_iter_no_change=epochs,
        random_state=seed,
    )
    with warnings.catch_warnings():
        # The number of steps is the regularisation; the optimiser is not meant to get to the end.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return network.fit(x, y)


def _parts(fitted: Any) -> tuple[tuple[Features, ...], tuple[Features, ...]]:
    """Weights [features, outputs] and biases [outputs] per layer of what scikit-learn fitted."""
    if hasattr(fitted, "coefs_"):
        weights, biases = fitted.coefs_, fitted.intercepts_
    else:
        weights, biases = [fitted.coef_.T], [fitted.intercept_]
    return tuple(w.astype(np.float32) for w in weights), tuple(b.astype(np.float32) for b in biases)


def _log_loss(probability: NDArray[Any], y: Labels) -> NDArray[np.float64]:
    """Minus the log probability of each label: float64 [rows]."""
    of_label = np.where(y, probability, 1.0 - probability)
    return np.asarray(-np.log(of_label.astype(np.float64).clip(1e-12)))


CONVERGED = 0.98
"""Cosine to the last layer's output from which a hidden state counts as converged (TIDE)."""


@dataclass(frozen=True)
class ClassifierKind:
    """One kind, named by the fact it gives."""

    name: str
    features: Callable[[Readings, int], NDArray[np.float32]]
    """Of some readings at one exit (its index), [rows, features]."""
    labels: Callable[[Readings, int], NDArray[np.bool_]]
    """[rows]"""
    network: bool = False
    """A small network, else logistic."""
    after_candidates: bool = False
    """Whether it exists only at exits after the candidate exit."""


def _hidden(readings: Readings, index: int) -> NDArray[np.float32]:
    return np.asarray(readings.hidden(index).numpy())


def _confidence(readings: Readings, index: int) -> NDArray[np.float32]:
    features: NDArray[np.float32] = confidence_features(
        readings.max_prob[:, index], readings.margin[:, index]
    ).numpy()
    return features


def _candidates(readings: Readings, index: int) -> NDArray[np.float32]:
    assert readings.candidates is not None, "there is no candidate exit"
    then = readings.candidates[:, readings.candidate_index]
    features: NDArray[np.float32] = candidate_features(readings.candidates[:, index], then).numpy()
    return features


def _agrees(readings: Readings, index: int) -> NDArray[np.bool_]:
    return readings.agrees[:, index]


def _converged(readings: Readings, index: int) -> NDArray[np.bool_]:
    labels: NDArray[np.bool_] = (readings.cosine[:, index] > CONVERGED).numpy()
    return labels


KINDS: dict[str, ClassifierKind] = {
    kind.name: kind
    for kind in (
        # A learned head that says whether this exit is right: BERxiT's learning to exit (Xin et al., EACL
        # 2021), CALM's early-exit classifier (arXiv 2207.07061).
        ClassifierKind("correctness", _hidden, _agrees),
        ClassifierKind("correctness_network", _hidden, _agrees, network=True),
        # The same for an exit that is read off the short list of frequent tokens.
        ClassifierKind("short_correctness", _hidden, lambda readings, index: readings.short_agrees[:, index]),
        # AdaInfer (arXiv 2403.02181): p1 and p1 - p2.
        ClassifierKind("adainfer", _confidence, _agrees),
        # SpecEE (arXiv 2504.08850): logits of a few candidate tokens, their shares, the shares' change.
        ClassifierKind("candidate_score", _candidates, _agrees, network=True, after_candidates=True),
        # A router of converged hidden states.
        ClassifierKind("convergence", _hidden, _converged),
    )
}
"""By the fact that each gives."""


ClassifierName = Annotated[str, OneOf("exit classifier", lambda: KINDS)]


def choose_kinds(classifiers: bool | Sequence[str]) -> tuple[ClassifierKind, ...]:
    """The kinds asked for: all, none, or by name."""
    if isinstance(classifiers, bool):
        return tuple(KINDS.values()) if classifiers else ()
    return tuple(KINDS[name] for name in KINDS if name in classifiers)
