"""The classifiers that can be fitted: what each looks at and what it predicts."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.tracing.features import CANDIDATES, candidate_features, confidence_features
from offramp.tracing.fitting.readings import Readings

CONVERGED = 0.98
"""Cosine to the last layer's output from which a hidden state counts as converged (TIDE)."""


@dataclass(frozen=True)
class ClassifierKind:
    """One kind, named by the fact it gives.

    features: of some readings at one exit (its index), float32 [rows, features]. labels: bool [rows].
    network: a small network, else logistic. after_candidates: exists only at exits after the candidate exit.
    """

    name: str
    features: Callable[[Readings, int], NDArray[np.float32]]
    labels: Callable[[Readings, int], NDArray[np.bool_]]
    width: Callable[[int], int]
    network: bool = False
    after_candidates: bool = False


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


def _short_agrees(readings: Readings, index: int) -> NDArray[np.bool_]:
    return readings.short_agrees[:, index]


def _converged(readings: Readings, index: int) -> NDArray[np.bool_]:
    labels: NDArray[np.bool_] = (readings.cosine[:, index] > CONVERGED).numpy()
    return labels


KINDS: dict[str, ClassifierKind] = {
    kind.name: kind
    for kind in (
        # A learned head that says whether this exit is right: BERxiT's learning to exit (Xin et al., EACL
        # 2021), CALM's early-exit classifier (arXiv 2207.07061).
        ClassifierKind("correctness", _hidden, _agrees, lambda hidden: hidden),
        ClassifierKind("correctness_network", _hidden, _agrees, lambda hidden: hidden, network=True),
        # The same for an exit that is read off the short list of frequent tokens.
        ClassifierKind("short_correctness", _hidden, _short_agrees, lambda hidden: hidden),
        # AdaInfer (arXiv 2403.02181): p1 and p1 - p2.
        ClassifierKind("adainfer", _confidence, _agrees, lambda hidden: 2),
        # SpecEE (arXiv 2504.08850): logits of a few candidate tokens, their shares, the shares' change.
        ClassifierKind(
            "candidate_score",
            _candidates,
            _agrees,
            lambda hidden: 3 * CANDIDATES,
            network=True,
            after_candidates=True,
        ),
        # A router of converged hidden states.
        ClassifierKind("convergence", _hidden, _converged, lambda hidden: hidden),
    )
}
"""By the fact that each gives."""


def choose_kinds(classifiers: bool | Sequence[str]) -> tuple[ClassifierKind, ...]:
    """The kinds asked for: all, none, or by name.

    Raises InputError for an unknown name, with near ones.
    """
    if isinstance(classifiers, bool):
        return tuple(KINDS.values()) if classifiers else ()
    for name in classifiers:
        if name not in KINDS:
            near: list[Any] = difflib.get_close_matches(name, KINDS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(
                f"there is no exit classifier {name!r}",
                where="classifiers",
                fix=f"{hint}choose among: {', '.join(KINDS)}",
            )
    return tuple(KINDS[name] for name in KINDS if name in classifiers)
