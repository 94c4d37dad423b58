"""The components of the suitability score, as formulas on per-exit means; calibration; the study's EAS.

Formulas on means take arrays [..., exits]: a trace and all its bootstrap draws go through one formula.
x are depth fractions, float64 [exits]: the share of the layers' FLOPs spent up to each exit, x_L = 1. R_0
and the exits of the oracles come from the trace itself. EAS, the Early-exit Adaptability Score, is computed
as far as it is publicly described (arXiv 2603.23701). What each exit's confidence is worth is said by
recalibration, Brier scores, ECE, AUROC, AURC and reliability diagrams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Gt, Le
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.kit.arguments import checked
from offramp.kit.rules import OneOf
from offramp.scoring.card import EasVariant, ReliabilityDiagram
from offramp.scoring.documents import DocumentRows, fact_of
from offramp.scoring.estimate import DocumentBootstrap, Estimate
from offramp.tracing.trace import Marginal, Trace

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


TOKENS_PER_CLASS = 20


@dataclass(frozen=True)
class ConfidenceRanking:
    """The tokens of one exit by rising confidence.

    rows: int64 [tokens], rows of the trace in that order. confidence, agrees: float64 [tokens], likewise.
    ties: int64 [groups], the first place of each group of equal confidence.
    """

    rows: NDArray[np.int64]
    confidence: NDArray[np.float64]
    agrees: NDArray[np.float64]
    ties: NDArray[np.int64]

    @property
    def constant(self) -> bool:
        """Whether all tokens have the same confidence, so that it ranks nothing."""
        return len(self.ties) == 1


def rank_by_confidence(confidence: NDArray[np.float32], agrees: NDArray[np.bool_]) -> ConfidenceRanking:
    """Rank the tokens of one exit: confidence float32 [tokens], agrees bool [tokens]. Exact, one sort."""
    rows = np.argsort(confidence)
    ranked = confidence[rows].astype(np.float64)
    return ConfidenceRanking(rows, ranked, agrees[rows].astype(np.float64), tie_starts(ranked))


def tie_starts(ranked: NDArray[np.float64]) -> NDArray[np.int64]:
    """The first place of each group of equal values in a sorted array: int64 [groups]."""
    new_group = np.concatenate([[True], ranked[1:] != ranked[:-1]])
    return np.flatnonzero(new_group)


def auroc(ranking: ConfidenceRanking) -> float:
    """Probability that a token that agrees has a higher confidence than one that does not, ties counted half.

    NaN (undefined) when fewer than 20 tokens agree, fewer than 20 do not, or the confidence is constant.
    """
    agreeing = float(ranking.agrees.sum())
    other = len(ranking.agrees) - agreeing
    if min(agreeing, other) < TOKENS_PER_CLASS or ranking.constant:
        return float("nan")
    in_group = np.add.reduceat(ranking.agrees, ranking.ties)
    size = np.diff(ranking.ties, append=len(ranking.agrees))
    other_in_group = size - in_group
    other_below = np.cumsum(other_in_group) - other_in_group
    return float(in_group @ (other_below + 0.5 * other_in_group) / (agreeing * other))


def aurc(ranking: ConfidenceRanking) -> float:
    """Area under the risk-coverage curve: mean over k of the disagreement among the k most confident tokens.

    In [0, 1], lower = better. Among ties the order is random, so the expected value is taken (each tied token
    counts as the mean of its group). NaN if the confidence is constant.
    Geifman and El-Yaniv, arXiv 1705.08500; the area: Geifman et al., arXiv 1805.08206.
    """
    if ranking.constant:
        return float("nan")
    size = np.diff(ranking.ties, append=len(ranking.agrees))
    risk_of_group = 1.0 - np.add.reduceat(ranking.agrees, ranking.ties) / size
    risk = np.repeat(risk_of_group, size)[::-1]
    return float(np.mean(np.cumsum(risk) / np.arange(1, len(risk) + 1)))


FOLDS_NEED_DOCUMENTS = 2


def isotonic_map(ranked: Values, agrees: Values) -> tuple[Values, Values]:
    """The isotonic (rising) map of confidence to agreement rate, fitted by least squares.

    ranked: float64 [tokens], rising confidence; agrees: float64 [tokens], 0 or 1.
    Returns the distinct confidences and the fitted rates, each float64 [groups]; tied tokens count as their
    mean, with their number as weight, so that the order among ties is of no effect.
    """
    from scipy.optimize import isotonic_regression  # here, since planning a study imports this file

    ties = tie_starts(ranked)
    size = np.diff(ties, append=len(ranked)).astype(np.float64)
    rate = np.add.reduceat(agrees, ties) / size
    return ranked[ties], np.asarray(isotonic_regression(rate, weights=size).x)


def cross_fitted_rates(ranking: ConfidenceRanking, fold_of_row: NDArray[np.bool_]) -> Values:
    """Recalibrated confidence of each token, from the map fitted on the other fold: float64 [tokens].

    fold_of_row: bool [tokens], in row order; both folds must hold tokens. The result is in the ranking's
    order. Between fitted confidences the map is linear, outside them it is held. Isotonic recalibration:
    Zadrozny and Elkan 2002.
    """
    fold = fold_of_row[ranking.rows]
    # Places instead of masks: taking by place is several times faster.
    halves = np.flatnonzero(fold), np.flatnonzero(~fold)
    rates = np.empty(len(fold))
    for fitted, held_out in (halves, halves[::-1]):
        confidence, rate = isotonic_map(ranking.confidence[fitted], ranking.agrees[fitted])
        rates[held_out] = np.interp(ranking.confidence[held_out], confidence, rate)
    return rates


def squared_errors(rates: Values, ranking: ConfidenceRanking) -> Values:
    """(rate - agreement)^2 of each token, in row order: float64 [tokens]. Their mean is the Brier score."""
    errors = np.empty(len(rates))
    errors[ranking.rows] = (rates - ranking.agrees) ** 2
    return errors


BINS = 15


def reliability_diagram(
    exit: int, confidence: NDArray[np.float32], correct: NDArray[np.bool_]
) -> ReliabilityDiagram:
    """Mean confidence and share of correct tokens in 15 bins of equal width over [0, 1], for one exit.

    confidence: float32 [tokens]; correct: bool [tokens] (as the full model, or as the observed text).
    A bin holds its lower edge, the last one also 1. Guo et al., arXiv 1706.04599, section 2.
    """
    place = np.minimum((confidence * np.float32(BINS)).astype(np.int64), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    occupied = np.where(count > 0, count, np.nan)
    return ReliabilityDiagram(
        exit=exit,
        edges=np.linspace(0.0, 1.0, BINS + 1),
        count=count.astype(np.int64),
        confidence=np.bincount(place, weights=confidence, minlength=BINS) / occupied,
        agreement=np.bincount(place, weights=correct, minlength=BINS) / occupied,
    )


def expected_calibration_error(diagram: ReliabilityDiagram) -> float:
    """ECE in [0, 1]: the mean gap between confidence and correctness over the bins, weighted by their tokens.

    Guo et al., arXiv 1706.04599, equation 3. It is biased upwards with few tokens, so it gets no interval.
    """
    occupied = diagram.count > 0
    gap = np.abs(diagram.confidence[occupied] - diagram.agreement[occupied])
    return float(gap @ diagram.count[occupied] / diagram.count.sum())


# Rounding of a float32 softmax may leave a probability slightly above 1.
PROBABILITY_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ConfidenceDiagnostics:
    """Diagnostics of `max_prob`, for every exit.

    brier_sums: float64 [documents, exits], per-document sums of (max_prob - agreement)^2.
    recalibrated_sums: the same after the cross-fitted isotonic map; None with a single document.
    ece_agreement, ece_token: ECE against agreement and against the observed token, float64 [exits].
    auroc, aurc: float64 [exits], NaN where undefined. reliability: one diagram per exit, against agreement.
    constant: bool [exits], whether all tokens have the same confidence.
    few: bool [exits], whether fewer than 20 tokens agree or fewer than 20 do not.
    """

    brier_sums: Values
    recalibrated_sums: Values | None
    ece_agreement: Values
    ece_token: Values
    auroc: Values
    aurc: Values
    reliability: tuple[ReliabilityDiagram, ...]
    constant: NDArray[np.bool_]
    few: NDArray[np.bool_]

    @classmethod
    def beside(cls, exits: Sequence[ConfidenceDiagnostics]) -> ConfidenceDiagnostics:
        """Those of several exits as one, in their order."""
        columns: dict[str, Any] = {
            name: None if value is None else np.concatenate([getattr(exit, name) for exit in exits], axis=-1)
            for name, value in vars(exits[0]).items()
            if name != "reliability"
        }
        return cls(reliability=tuple(diagram for exit in exits for diagram in exit.reliability), **columns)


def confidence_diagnostics(
    trace: Trace, rows: DocumentRows, agreement: NDArray[np.bool_]
) -> ConfidenceDiagnostics:
    """Every diagnostic of `max_prob` against agreement (bool [tokens, exits]) and the observed next token.

    Raises InputError if `max_prob` lies outside [0, 1].
    """
    # One exit's column must be contiguous: it is sorted, binned and summed as a whole.
    confidence = np.ascontiguousarray(fact_of(trace, "max_prob").T, dtype=np.float32)
    if confidence.min() < 0.0 or confidence.max() > 1.0 + PROBABILITY_TOLERANCE:
        raise InputError("fact 'max_prob' lies outside [0, 1]", fix="trace the model again")
    agrees = np.ascontiguousarray(agreement.T)
    correct = np.ascontiguousarray((fact_of(trace, "top1") == trace.next_token[:, np.newaxis]).T)
    fold = rows.fold_of_row() if rows.count >= FOLDS_NEED_DOCUMENTS else None
    return ConfidenceDiagnostics.beside(
        [
            _of_one_exit(
                int(trace.exits[column]), confidence[column], agrees[column], correct[column], rows, fold
            )
            for column in range(len(trace.exits))
        ]
    )


def _of_one_exit(
    exit: int,
    confidence: NDArray[np.float32],
    agrees: NDArray[np.bool_],
    correct: NDArray[np.bool_],
    rows: DocumentRows,
    fold: NDArray[np.bool_] | None,
) -> ConfidenceDiagnostics:
    ranking, diagram = rank_by_confidence(confidence, agrees), reliability_diagram(exit, confidence, agrees)
    agreeing = int(np.count_nonzero(agrees))
    recalibrated = None if fold is None else _recalibrated_sums(ranking, rows, fold)
    return ConfidenceDiagnostics(
        brier_sums=rows.sums((confidence.astype(np.float64) - agrees) ** 2)[:, None],
        recalibrated_sums=None if recalibrated is None else recalibrated[:, None],
        ece_agreement=np.array([expected_calibration_error(diagram)]),
        ece_token=np.array([expected_calibration_error(reliability_diagram(exit, confidence, correct))]),
        auroc=np.array([auroc(ranking)]),
        aurc=np.array([aurc(ranking)]),
        reliability=(diagram,),
        constant=np.array([ranking.constant]),
        few=np.array([min(agreeing, len(agrees) - agreeing) < TOKENS_PER_CLASS]),
    )


def _recalibrated_sums(ranking: ConfidenceRanking, rows: DocumentRows, fold: NDArray[np.bool_]) -> Values:
    errors = squared_errors(cross_fitted_rates(ranking, fold), ranking)
    return rows.sums(errors)
