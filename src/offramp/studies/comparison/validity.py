"""The predictive-validity table: does a score on one workload tell what is saved on another?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from offramp.scoring.estimate import UNDEFINED_DRAWS_ALLOWED, Estimate
from offramp.scoring.rank_correlation import (
    LEVEL,
    holm,
    kendall,
    kendall_permuted,
    left_out_errors,
    permuted_pairs,
    spearman,
)
from offramp.studies.comparison.results import Row, ScoreValidity, floor_and_machine
from offramp.studies.comparison.transfers import TransferTable, transfer_tables
from offramp.tuning.from_scores import BASES_NEEDED, LOWER_IS_BETTER

ORACLE = "saturation_skip"
"""The score to beat: it looks at exactly what early exit could keep."""

POINTS_NEEDED = 3
"""Below that, an order of models means nothing, not even as a description."""

PERMUTATIONS = 4999
"""So many that the smallest p-value, 1 / 5,000, survives Holm over a table of 250 entries."""

PAIRS_AT_ONCE = 4_000_000
"""Pairs of permuted points held in memory at once."""

Values = NDArray[np.float64]
Correlation = Callable[[Values, Values, Values], Values]


def validity_of(
    rows: Sequence[Row], *, draws: int = 1000, permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[ScoreValidity, ...]:
    """Every candidate score at every floor on every machine, by replay and in decoding.

    The score on workload A stands against the saving on workload B of the same cells, cells of one base
    averaged, for every ordered pair A != B; a correlation is the mean over these pairs. draws: of whole bases
    with replacement, for the intervals (percentile bootstrap, Efron 1979). permutations: of the savings of
    the bases against their scores, for the p-values, which are adjusted over the table (Holm). Both from 12
    bases on. seed: of both.

    Empty where no model has a score on one workload and a saving on another.
    """
    candidates = {name for row in rows for name in row.candidates}
    names = sorted(candidates, key=lambda name: (name != ORACLE, name))
    found = [
        entry
        for table in transfer_tables(rows, names)
        for entry in _judged(table, np.random.default_rng(seed), draws, permutations)
    ]
    adjusted = holm([entry.p_value for entry in found])
    return tuple(
        replace(entry, adjusted=value, claim=claim(replace(entry, adjusted=value)))
        for entry, value in zip(found, adjusted, strict=True)
    )


def _judged(
    table: TransferTable, generator: np.random.Generator, draws: int, permutations: int
) -> list[ScoreValidity]:
    """One entry for each score of the table, without claims."""
    signs = np.array([-1.0 if name in LOWER_IS_BETTER else 1.0 for name in table.names])
    count = len(table.bases)
    pairs = [
        (signs[:, None] * scores, savings)
        for scores, savings in (transfer.of_bases(count) for transfer in table.transfers)
    ]
    drawn = generator.multinomial(count, np.full(count, 1.0 / count), size=draws)
    weights = np.concatenate([np.ones((1, count)), drawn])
    taus = _correlations(kendall, pairs, weights)
    rhos = _correlations(spearman, pairs, weights)
    bases = _fewest(pairs)
    p_values = _p_values(pairs, taus[0], bases, generator, permutations)
    oracle = table.names.index(ORACLE) if ORACLE in table.names else None
    floor, machine = floor_and_machine(table.place)
    found = []
    for place, name in enumerate(table.names):
        errors = left_out_errors([(scores[place], savings) for scores, savings in pairs])
        found.append(
            ScoreValidity(
                score=name,
                basis=table.basis,
                floor=floor,
                machine=machine,
                kendall=_estimate(taus[:, place], bases[place]),
                spearman=_estimate(rhos[:, place], bases[place]),
                less_than_oracle=_against_oracle(taus, place, oracle, bases[place]),
                error=errors.error,
                null_error=errors.null_error,
                within_base=_within_base(table, place, signs[place]),
                bases=bases[place],
                cells=min(int(np.isfinite(transfer.scores[place]).sum()) for transfer in table.transfers),
                claim="",
                p_value=p_values[place],
            )
        )
    return found


def _correlations(
    correlation: Correlation, pairs: Sequence[tuple[Values, Values]], weights: Values
) -> Values:
    """Means over pairs of workloads, of the models themselves and of each draw: [1 + draws, scores]."""
    found = []
    for scores, savings in pairs:
        values = correlation(scores, savings, weights)
        values[:, np.isfinite(scores * savings).sum(axis=1) < POINTS_NEEDED] = np.nan
        found.append(values)
    return _mean_of_defined(found)


def _mean_of_defined(values: Sequence[Values]) -> Values:
    """Mean over the pairs where it is defined; NaN where it is in none."""
    stacked = np.stack(values)
    known = np.isfinite(stacked)
    counts = known.sum(axis=0)
    sums = np.where(known, stacked, 0.0).sum(axis=0)
    mean: Values = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return mean


def _fewest(pairs: Sequence[tuple[Values, Values]]) -> list[int]:
    """Bases with score and saving in the pair of workloads with the fewest, of each score."""
    counts = [np.isfinite(scores * savings).sum(axis=1) for scores, savings in pairs]
    return [int(count) for count in np.min(counts, axis=0)]


def _p_values(
    pairs: Sequence[tuple[Values, Values]],
    observed: Values,
    bases: Sequence[int],
    generator: np.random.Generator,
    permutations: int,
) -> list[float | None]:
    """One-sided p-value of each score's mean Kendall: (1 + permutations that reach it) / (1 + permutations).

    A permutation moves the savings of a whole base, on all workloads together, to another base's scores
    (Davison and Hinkley 1997, section 4.3). None below 12 bases and where Kendall is undefined.
    """
    judged = [
        place for place, count in enumerate(bases) if count >= BASES_NEEDED and np.isfinite(observed[place])
    ]
    found: list[float | None] = [None] * len(bases)
    if not judged:
        return found
    count = len(pairs[0][1])
    reached = np.zeros(len(judged))
    for drawn in _in_parts(permutations, count):
        orders = generator.permuted(np.tile(np.arange(count), (drawn, 1)), axis=1)
        moved = permuted_pairs(orders)
        taus = _mean_of_defined(
            [kendall_permuted(scores[judged], savings, moved) for scores, savings in pairs]
        )
        reached += np.count_nonzero(taus >= observed[judged] - 1e-9, axis=0)
    for place, times in zip(judged, reached, strict=True):
        found[place] = float((1 + times) / (1 + permutations))
    return found


def _in_parts(permutations: int, count: int) -> list[int]:
    """So many permutations of `count` points in parts that fit into memory."""
    most = max(1, PAIRS_AT_ONCE // (count * count))
    whole, rest = divmod(permutations, most)
    return [most] * whole + ([rest] if rest else [])


def _estimate(values: Values, bases: int) -> Estimate:
    """The figure in row 0 with the interval of its draws, [1 + draws]; an interval from 12 bases on."""
    if not np.isfinite(values[0]):
        few = f"{independent(bases)}; an order needs {POINTS_NEEDED}"
        return Estimate(
            None, undefined=few if bases < POINTS_NEEDED else "all savings or all scores are equal"
        )
    value = float(values[0])
    if bases < BASES_NEEDED:
        return Estimate(value, no_interval=f"{independent(bases)}; an interval needs {BASES_NEEDED}")
    defined = values[1:][np.isfinite(values[1:])]
    undefined = 1.0 - len(defined) / len(values[1:])
    if undefined > UNDEFINED_DRAWS_ALLOWED:
        return Estimate(value, no_interval=f"undefined in {undefined:.0%} of the resampled sets of models")
    low, high = np.percentile(defined, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _against_oracle(taus: Values, place: int, oracle: int | None, bases: int) -> Estimate:
    if oracle is None:
        return Estimate(None, undefined="the saturation oracle is not among the scores")
    if place == oracle:
        return Estimate(None, undefined="it is the oracle")
    return _estimate(taus[:, place] - taus[:, oracle], bases)


def _within_base(table: TransferTable, place: int, sign: float) -> float | None:
    """Mean of Kendall over the cells of one base, over bases with three cells and pairs of workloads."""
    found = []
    for transfer in table.transfers:
        for base in range(len(table.bases)):
            own = (transfer.bases == base) & np.isfinite(transfer.scores[place] * transfer.savings)
            if own.sum() < POINTS_NEEDED:
                continue
            scores, savings = sign * transfer.scores[place][own], transfer.savings[own]
            found.append(kendall(scores[None], savings, np.ones((1, len(scores))))[0, 0])
    defined = [float(tau) for tau in found if np.isfinite(tau)]
    return float(np.mean(defined)) if defined else None


# --- in words


def claim(entry: ScoreValidity) -> str:
    """The sentence to print: what the table claims of a score, or why it claims nothing."""
    tau = entry.kendall
    if entry.bases < BASES_NEEDED:
        return f"claims nothing: {independent(entry.bases)}, {BASES_NEEDED} needed"
    if tau.value is None or tau.low is None or tau.high is None or entry.adjusted is None:
        return f"claims nothing: {tau.undefined or tau.no_interval}"
    figures = (
        f"Kendall {tau.value:.2f} ({tau.low:.2f} to {tau.high:.2f}), p = {entry.adjusted:.2g} after Holm"
    )
    if tau.low <= 0.0 or entry.adjusted > LEVEL:
        return f"claims nothing: {figures}, {independent(entry.bases)}"
    return (
        f"ranks models by what is saved on another workload: {figures}, {independent(entry.bases)}; "
        f"{_beside_oracle(entry.less_than_oracle)}{_error_words(entry)}"
    )


def independent(bases: int) -> str:
    """So many models, in words."""
    return f"{bases} independently trained {'model' if bases == 1 else 'models'}"


def _beside_oracle(difference: Estimate) -> str:
    if difference.low is None or difference.high is None:
        return "the saturation oracle is the one to beat"
    if difference.low > 0.0:
        return "better than the saturation oracle (not adjusted for the number of scores)"
    return (
        "worse than the saturation oracle"
        if difference.high < 0.0
        else "not surely better than the saturation oracle"
    )


def _error_words(entry: ScoreValidity) -> str:
    if entry.error is None or entry.null_error is None or entry.error < entry.null_error:
        return ""
    return "; how much is saved it tells no better than the median of other models"
