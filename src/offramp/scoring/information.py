"""R_0: how far the mean final distribution of the workload is from each token's own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.scoring.bootstrap import DocumentBootstrap
from offramp.scoring.documents import DocumentRows
from offramp.tracing.trace import Marginal

# Columns of the vocabulary at a time: [draws, columns] stays in the processor's cache.
VOCABULARY_COLUMNS = 2048

Values = NDArray[np.float64]


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
