"""The components of the suitability score, as formulas on per-exit means, and the study's EAS.

Every function takes arrays [..., exits], so that a trace and all its bootstrap draws go through one formula.
x are depth fractions, float64 [exits]: the share of the layers' FLOPs spent up to each exit, x_L = 1. R_0
and the exits of the oracles come from the trace itself. EAS, the Early-exit Adaptability Score, is computed
as far as it is publicly described (arXiv 2603.23701).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Gt, Le
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.kit.arguments import checked
from offramp.kit.rules import OneOf
from offramp.scoring.card import EasVariant
from offramp.scoring.documents import DocumentRows
from offramp.scoring.estimate import DocumentBootstrap, Estimate
from offramp.tracing.trace import Marginal

INITIAL_INFORMATION_NEEDED = 0.1

Values = NDArray[np.float64]


def step_area(values: Values, depth_fraction: Values, before: Values | float) -> Values:
    """Area under a step curve over x in [0, 1]: values [..., exits], before [...] -> [...].

    A value holds from its exit to the next one; `before` holds from 0 to the first exit. The last exit
    contributes nothing, as x_L = 1.
    """
    widths = np.diff(depth_fraction)
    return np.asarray(values[..., :-1] @ widths + before * depth_fraction[0])


def representation_quality(agreement: Values, depth_fraction: Values) -> Values:
    """Area under A(x): agreement [..., exits] in [0, 1] -> [...] in [0, 1 - x_1].

    A is 0 before the first exit, so that the ceiling 1 - x_1 is reached by a model whose every exit agrees.
    """
    return step_area(agreement, depth_fraction, 0.0)


def remaining_share(remaining: Values, initial: Values) -> Values:
    """min(R, R_0) / R_0: R [..., exits] and R_0 [...] in nats -> share [..., exits] in [0, 1].

    NaN where R_0 is not positive.
    """
    whole = np.where(initial > 0.0, initial, np.nan)[..., np.newaxis]
    return np.asarray(np.clip(remaining / whole, 0.0, 1.0))


def information_increment(remaining: Values, initial: Values, depth_fraction: Values) -> Values:
    """1 - area of min(R, R_0)/R_0: R [..., exits], R_0 [...] in nats -> [...] in [0, 1 - x_1].

    R = R_0 before the first exit. Near 1: all information arrives at once; 0: it arrives at the end.
    """
    return np.asarray(1.0 - step_area(remaining_share(remaining, initial), depth_fraction, 1.0))


def increments(remaining: Values, initial: Values) -> Values:
    """R_{l-1} - R_l in nats, raw (it may be negative): R [..., exits], R_0 [...] -> [..., exits]."""
    return np.asarray(-np.diff(remaining, axis=-1, prepend=initial[..., np.newaxis]))


def calibration_skill(recalibrated_brier: Values, agreement: Values) -> Values:
    """max(0, 1 - sum of Brier / sum of A (1 - A)) over exits below L: both [..., exits below L] -> [...].

    The denominator is the Brier score of predicting each exit's agreement rate A for every token, so this is
    a Brier skill score: 1 = the confidence tells exactly where the exit agrees, 0 = it tells nothing.
    NaN where every exit always agrees or never does.
    """
    uncertainty = np.sum(agreement * (1.0 - agreement), axis=-1)
    uncertainty = np.where(uncertainty > 0.0, uncertainty, np.nan)
    return np.asarray(np.maximum(0.0, 1.0 - np.sum(recalibrated_brier, axis=-1) / uncertainty))


def geometric_mean(first: Values, second: Values, third: Values) -> Values:
    """The composite: geometric mean of the three components, each [...]."""
    return np.asarray(np.cbrt(first * second * third))


# Columns of the vocabulary at a time: [draws, columns] stays in the processor's cache.
VOCABULARY_COLUMNS = 2048


def initial_information(
    marginal: Marginal, entropy_sums: Values, rows: DocumentRows, bootstrap: DocumentBootstrap
) -> Values:
    """R_0 = E[KL(p_L || mean p_L)] = H(mean p_L) - E[H(p_L)], nats, for the trace and its draws: [1 + draws].

    entropy_sums: float64 [documents], sums of the entropy of p_L.
    The mean distribution of a draw is the mean over the drawn tokens, with the distribution of a drawn
    document replaced by the mean of its block of documents: block b has the weight (drawn tokens of its
    documents) / (its tokens). R_0 grows with the number of tokens: compare models at equal token counts only.
    For the same reason a draw, which repeats documents, has a lower R_0 than the trace: the draws are shifted
    so that their mean is the trace's R_0, and the interval is about R_0 at this number of tokens.

    Raises InputError if the marginal does not cover the trace's documents or is not finite.
    """
    sums = marginal.sums
    if not np.isfinite(sums).all():
        raise InputError("the marginal distribution is not finite", fix="trace the model again")
    block = marginal.block_of_document[rows.index]
    tokens_by_block = np.zeros((rows.count, len(sums)))
    tokens_by_block[np.arange(rows.count), block] = rows.tokens
    used = tokens_by_block.any(axis=0)
    if np.any(marginal.tokens[used] <= 0):
        raise InputError("the marginal lacks documents of the trace", fix="trace the model again")
    drawn = bootstrap.totals(tokens_by_block[:, used])
    entropy_of_mean = mixture_entropy(sums[used], drawn / marginal.tokens[used])
    values = entropy_of_mean - bootstrap.means(entropy_sums, rows.tokens)
    if len(values) > 1:
        values[1:] += values[0] - values[1:].mean()
    return np.asarray(values)


def mixture_entropy(sums: Values, weights: Values) -> Values:
    """Entropy in nats of the normalised mixtures weights @ sums: [blocks, V] and [draws, blocks] -> [draws].

    H = log N - (sum of s log s) / N with s = weights @ sums and N its total. The first row, the trace itself,
    is computed in float64; the draws in float32 (within 1e-4 nat), which halves the time.
    """
    exact = _mixture_entropy(sums, weights[:1])
    if len(weights) == 1:
        return exact
    return np.concatenate([exact, _mixture_entropy(sums.astype(np.float32), weights[1:].astype(np.float32))])


def _mixture_entropy(sums: NDArray[np.floating], weights: NDArray[np.floating]) -> Values:
    total = np.zeros(len(weights))
    total_log = np.zeros(len(weights))
    smallest = np.finfo(sums.dtype).tiny
    for start in range(0, sums.shape[1], VOCABULARY_COLUMNS):
        mixture = weights @ sums[:, start : start + VOCABULARY_COLUMNS]
        total += mixture.sum(axis=1)
        # s log s is 0 at s = 0; the floor keeps the logarithm finite there.
        total_log += np.einsum("ij,ij->i", mixture, np.log(np.maximum(mixture, smallest)))
    return np.asarray(np.log(total) - total_log / total)


Skips = NDArray[np.float64]


def first_match(agreement: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Column of the first exit that agrees with the full model: bool [tokens, exits] -> int64 [tokens].

    It overstates savings: a later exit may disagree again. The last exit always agrees.
    """
    return np.asarray(np.argmax(agreement, axis=1), dtype=np.int64)


def saturation(agreement: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Column of the first exit from which on all exits agree: bool [tokens, exits] -> int64 [tokens]."""
    disagrees_from_the_end = ~agreement[:, ::-1]
    last_disagreement = np.argmax(disagrees_from_the_end, axis=1)
    always = ~disagrees_from_the_end.any(axis=1)
    return np.where(always, 0, agreement.shape[1] - last_disagreement).astype(np.int64)


def skip_ratio(columns: NDArray[np.int64], exits: NDArray[np.int64], layers: int) -> Skips:
    """Share of decoder layers that a token skips, (L - l) / L: columns int64 [tokens] -> float64 [tokens]."""
    return np.asarray((1.0 - exits / layers)[columns])


FLOOR_FACT = "shuffled_logit_cosine"

SIMILARITIES: dict[str, str] = {
    "logit": "logit_cosine",
    "centred_logit": "centred_logit_cosine",
    "hidden": "hidden_cosine_to_final",
}


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


NO_EARLY_EXIT = "the trace holds no exit before the last"


@dataclass(frozen=True)
class EasInputs:
    """What every variant of EAS is computed from."""

    similarity: Mapping[str, Values]
    """Means over tokens by fact, of the trace and then its draws: float64 [1 + draws, exits]."""
    weights: Values
    """w of each exit below L: float64 [exits below L]."""
    bootstrap: DocumentBootstrap

    def values(self, similarity: str, alpha: float) -> Values:
        """EAS of the trace, and of its draws: float64 [1 + draws]."""
        means = self.similarity[SIMILARITIES[similarity]][:, :-1]
        return adaptability(means, self.weights, alpha)

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
        weights = self.weights
        if len(weights) == 0:
            score = Estimate(None, undefined=NO_EARLY_EXIT)
            return EasVariant(similarity, alpha, score, ceiling=None, floor=None)
        floor = adaptability(self.similarity[FLOOR_FACT][0, :-1], weights, alpha)
        return EasVariant(
            similarity=similarity,
            alpha=alpha,
            score=self.bootstrap.estimate(self.values(similarity, alpha)),
            ceiling=float(adaptability(np.ones(len(weights)), weights, alpha)),
            floor=float(floor),
        )
