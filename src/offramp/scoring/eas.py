"""The study's Early-exit Adaptability Score (EAS), as far as it is publicly described (arXiv 2603.23701)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Gt, Le
from numpy.typing import NDArray

from offramp.kit.arguments import checked
from offramp.kit.rules import OneOf
from offramp.scoring.card import EasVariant
from offramp.scoring.estimate import DocumentBootstrap, Estimate

FLOOR_FACT = "shuffled_logit_cosine"

SIMILARITIES: dict[str, str] = {
    "logit": "logit_cosine",
    "centred_logit": "centred_logit_cosine",
    "hidden": "hidden_cosine_to_final",
}

Values = NDArray[np.float64]


def layer_weights(exits: NDArray[np.int64], layers: int) -> Values:
    """w = (L - l) / L of each exit: int64 [exits] -> float64 [exits]."""
    return np.asarray((layers - exits) / layers)


def adaptability(similarity: Values, weights: Values, alpha: float) -> Values:
    """Mean over exits l < L of S_l^alpha x w_l^(1 - alpha): S [..., exits below L] -> [...] in [0, 1].

    similarity: S before clipping, already averaged over tokens; it is clipped to [0, 1] here.
    weights: float64 [exits below L].
    """
    clipped = np.clip(similarity, 0.0, 1.0)
    return np.asarray(np.mean(clipped**alpha * weights ** (1.0 - alpha), axis=-1))


@dataclass(frozen=True)
class EasInputs:
    """What every variant of EAS is computed from.

    similarity: fact name -> means over tokens, float64 [1 + draws, exits] (the trace, then the draws).
    weights: float64 [exits], w of each exit.
    """

    similarity: Mapping[str, Values]
    weights: Values
    bootstrap: DocumentBootstrap

    @checked
    def variant(
        self,
        similarity: Annotated[str, OneOf("similarity", lambda: SIMILARITIES)],
        alpha: Annotated[float, Gt(0), Le(1)],
    ) -> EasVariant:
        """EAS with one similarity and alpha, its ceiling (S = 1) and its floor (another token's logits).

        The floor is that of the raw logit cosine whatever the similarity: chance levels of the other two are
        not traced. Raises InputError for an unknown similarity or an alpha outside (0, 1].
        """
        weights = self.weights[:-1]
        if len(weights) == 0:
            score = Estimate(None, undefined="the trace holds no exit before the last")
            return EasVariant(similarity, alpha, score, ceiling=None, floor=None)
        values = adaptability(self.similarity[SIMILARITIES[similarity]][:, :-1], weights, alpha)
        floor = adaptability(self.similarity[FLOOR_FACT][0, :-1], weights, alpha)
        return EasVariant(
            similarity=similarity,
            alpha=alpha,
            score=self.bootstrap.estimate(values),
            ceiling=float(adaptability(np.ones(len(weights)), weights, alpha)),
            floor=float(floor),
        )
