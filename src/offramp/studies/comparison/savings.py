"""What is saved: by trained exits and when they are paid back, and whether scores tell it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from offramp.defaults import DRAWS, SEED
from offramp.policies.figures import NEVER
from offramp.policies.policy import ExitPolicy
from offramp.scoring.estimate import BASES_NEEDED, UNDEFINED_DRAWS_ALLOWED, Estimate, kendall
from offramp.studies.comparison.results import (
    NOT_TIMED,
    Basis,
    FloorOn,
    Passed,
    Place,
    Row,
    ScoreValidity,
    StrategyResult,
    TrainedSaving,
    estimate_saved,
    saved_without,
    share_saved,
)
from offramp.tuning.break_even import tokens_to_pay_back
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import INCONCLUSIVE


def trained_savings(rows: Sequence[Row], strategies: Sequence[StrategyResult]) -> Iterator[TrainedSaving]:
    """Every answer of the tuner on rows whose exits are trained, each beside the same model untrained."""
    clock = _Clock(strategies)
    for row in rows:
        if row.training is None:
            continue
        for answer in row.answers:
            place = row.on(answer.machine)
            saved, basis = clock.saved(place, answer)
            plain, untrained = clock.plain_seconds.get(place), _untrained(rows, clock, row, answer)
            passed: Passed = "executed" if answer.certificate.executed else "replayed"
            credit, paid_back = clock.credit(place, answer), None
            if saved.value is not None and plain is not None and credit.value is not None:
                # What the best decoder without exits saves of plain decoding's time was had without training.
                without = max(saved_without(saved.value, credit.value), untrained or 0.0)
                paid_back = tokens_to_pay_back(row.training.seconds, plain, saved.value, without)
            yield TrainedSaving(
                place=place,
                floor=answer.floor,
                training=row.training,
                policy=NEVER if saved.value is None else str(answer.policy),
                passed="" if saved.value is None else passed,
                open=saved.value is None
                and row.verdicts[answer.floor, answer.machine].decision == INCONCLUSIVE,
                basis=basis,
                saved=saved,
                credit=credit,
                paid_back=paid_back,
                untrained=untrained,
                plain_seconds=plain,
            )


def _untrained(rows: Iterable[Row], clock: _Clock, row: Row, answer: Tuned) -> float | None:
    """The share that the same model saves there at best without training, 0 where nothing faster keeps the
    floor; None where it was not tried.
    """
    shares = [
        clock.saved(other.on(untrained.machine), untrained)[0].value
        for other in rows
        if other.training is None and (other.model.shown, other.workload) == (row.model.shown, row.workload)
        for untrained in other.answers
        if (untrained.floor, untrained.machine) == (answer.floor, answer.machine)
    ]
    return max(0.0, *(share or 0.0 for share in shares)) if shares else None


class _Clock:
    """What strategies say of time: policies by the stopwatch, and the seconds of plain decoding."""

    def __init__(self, strategies: Sequence[StrategyResult]) -> None:
        self._timed: dict[tuple[Place, ExitPolicy, str], StrategyResult] = {}
        self.plain_seconds: dict[Place, float] = {}
        """Of one token of plain decoding, where that is known."""
        # What was timed comes last, and counts where there is both.
        for strategy in sorted(strategies, key=lambda strategy: strategy.basis == "measured"):
            speed, place = strategy.net_speedup, strategy.place
            if speed.value is None or strategy.defect:
                continue
            if strategy.basis == "measured":
                self._timed[place, strategy.policy, strategy.kv] = strategy
            if strategy.seconds_per_token is not None and (strategy.basis == "predicted" or strategy.plain):
                self.plain_seconds[place] = strategy.seconds_per_token * speed.value

    def saved(self, place: Place, answer: Tuned) -> tuple[Estimate, Basis]:
        """The share of plain decoding's time that an answer saves, undefined unless it keeps its floor."""
        if not answer.certificate.holds or answer.plain:
            return Estimate(None, undefined=answer.answer), "predicted"
        timed = self._timed.get((place, answer.policy, answer.kv))
        if timed is None:
            return estimate_saved(answer.net_speedup), "predicted"
        return estimate_saved(timed.net_speedup), "measured"

    def credit(self, place: Place, answer: Tuned) -> Estimate:
        """The measured credit of an answer's policy, undefined unless it keeps its floor."""
        timed = self._timed.get((place, answer.policy, answer.kv))
        return NOT_TIMED if timed is None or not answer.certificate.holds else timed.credit


LOWER_IS_BETTER = frozenset({"mean_kl", "block_influence"})

POINTS_NEEDED = 3
"""Below that, an order of models means nothing, not even as a description."""

Values = NDArray[np.float64]


def validity_of(rows: Sequence[Row], *, draws: int = DRAWS, seed: int = SEED) -> tuple[ScoreValidity, ...]:
    """Every candidate score at every floor on every machine where savings were measured.

    The score on workload A stands against the saving on workload B of the same cells, cells of one base
    averaged, for every ordered pair A != B; a correlation is the mean over these pairs. draws: of whole bases
    with replacement, for the intervals (percentile bootstrap, Efron 1979), from 12 bases on. seed: of these.

    Empty where no model has a score on one workload and a measured saving on another.
    """
    names = sorted({name for row in rows for name in row.card.candidates})
    measured = {floor_on for row in rows for floor_on in row.measured_speedup}
    return tuple(
        entry
        for floor_on in sorted(measured, key=lambda floor_on: (str(floor_on[0]), floor_on[1]))
        for entry in _of_floor(rows, floor_on, names, draws, seed)
    )


def _of_floor(
    rows: Sequence[Row], floor_on: FloorOn, names: Sequence[str], draws: int, seed: int
) -> Iterator[ScoreValidity]:
    """One entry for each score at one floor on one machine."""
    bases = sorted({row.model.base for row in rows if floor_on in row.measured_speedup})
    pairs = list(_transfers(rows, floor_on, names, bases))
    if not pairs:
        return
    drawn = np.random.default_rng(seed).multinomial(
        len(bases), np.full(len(bases), 1 / len(bases)), size=draws
    )
    weights = np.concatenate([np.ones((1, len(bases))), drawn])
    known = [np.isfinite(scores * savings).sum(axis=1) for scores, savings in pairs]
    taus = [
        np.where(counts >= POINTS_NEEDED, kendall(scores, savings, weights), np.nan)
        for counts, (scores, savings) in zip(known, pairs, strict=True)
    ]
    means, fewest = _mean_of_defined(np.stack(taus), axis=0), np.min(known, axis=0)
    floor, machine = floor_on
    for column, name in enumerate(names):
        count = int(fewest[column])
        yield ScoreValidity(name, floor, machine, _estimate(means[:, column], count), count)


def _transfers(
    rows: Sequence[Row], floor_on: FloorOn, names: Sequence[str], bases: Sequence[str]
) -> Iterator[tuple[Values, Values]]:
    """Scores on one workload, [scores, bases], more is better; savings on another, [bases]; NaN for none."""
    by_workload: dict[str, dict[tuple[str, str], Row]] = {}
    for row in rows:
        by_workload.setdefault(row.workload, {})[row.model.shown, row.heads] = row
    signs = [-1.0 if name in LOWER_IS_BETTER else 1.0 for name in names]
    for scored, saved in itertools.permutations(sorted(by_workload), 2):
        cells = [
            (row, by_workload[saved][cell].measured_speedup[floor_on])
            for cell, row in by_workload[scored].items()
            if cell in by_workload[saved] and floor_on in by_workload[saved][cell].measured_speedup
        ]
        if cells:
            table = np.array(
                [
                    [*(row.card.candidates.get(name) for name in names), share_saved(speedup)]
                    for row, speedup in cells
                ],
                dtype=np.float64,  # None becomes NaN
            )
            of_base = [[row.model.base == base for row, _ in cells] for base in bases]
            means = np.stack(
                [_mean_of_defined(table[np.array(chosen)], axis=0) for chosen in of_base], axis=1
            )
            yield np.array(signs)[:, None] * means[:-1], means[-1]


def _mean_of_defined(values: Values, axis: int) -> Values:
    """Mean of what is defined; NaN where nothing is."""
    known = np.isfinite(values)
    sums, counts = np.where(known, values, 0.0).sum(axis=axis), known.sum(axis=axis)
    return np.asarray(np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0))


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


def independent(bases: int) -> str:
    """So many models, in words."""
    return f"{bases} independently trained {'model' if bases == 1 else 'models'}"
