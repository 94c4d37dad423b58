"""Scores on one workload beside savings on another, of the same cells."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.studies.comparison.results import Basis, Row, share_saved

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Transfer:
    """Scores on one workload and savings on another.

    bases: int64 [cells], which base each cell is of. scores: float64 [scores, cells]; savings: float64
    [cells], shares of time; NaN where undefined.
    """

    bases: NDArray[np.int64]
    scores: Values
    savings: Values

    def of_bases(self, count: int) -> tuple[Values, Values]:
        """Means over the cells of each base: scores [scores, bases] and savings [bases]; NaN for none.

        count: of bases.
        """
        member = self.bases[:, None] == np.arange(count)
        return _means(self.scores, member), _means(self.savings, member)


@dataclass(frozen=True)
class TransferTable:
    """All transfers of one basis at one floor on one machine, one for each ordered pair of workloads.

    place: floor and machine. names: of the scores. bases: names of the independent trainings.
    """

    basis: Basis
    place: str
    names: tuple[str, ...]
    bases: tuple[str, ...]
    transfers: tuple[Transfer, ...]


def transfer_tables(rows: Sequence[Row], names: Sequence[str]) -> Iterator[TransferTable]:
    """A table for each basis, floor and machine that any row has a saving at. names: of the scores."""
    for basis in ("predicted", "measured"):
        for place in sorted({place for row in rows for place in speedups(row, basis)}):
            bases = tuple(sorted({row.model.base for row in rows if place in speedups(row, basis)}))
            transfers = tuple(_transfers(rows, basis, place, names, bases))
            if transfers:
                yield TransferTable(basis, place, tuple(names), bases, transfers)


def speedups(row: Row, basis: Basis) -> Mapping[str, float]:
    """Net speedup of what the league chose, by floor and machine."""
    return row.exit_speedup if basis == "predicted" else row.measured_speedup


def _transfers(
    rows: Sequence[Row], basis: Basis, place: str, names: Sequence[str], bases: Sequence[str]
) -> Iterator[Transfer]:
    by_workload: dict[str, dict[tuple[str, str], Row]] = {}
    for row in rows:
        by_workload.setdefault(row.workload, {})[(row.model.shown, row.heads)] = row
    for scored, saved in itertools.permutations(sorted(by_workload), 2):
        cells = [
            (row, by_workload[saved][cell])
            for cell, row in by_workload[scored].items()
            if cell in by_workload[saved] and place in speedups(by_workload[saved][cell], basis)
        ]
        if cells:
            yield Transfer(
                bases=np.array([bases.index(row.model.base) for row, _ in cells], dtype=np.int64),
                scores=np.array([[_number(row.candidates.get(name)) for row, _ in cells] for name in names]),
                savings=np.array([share_saved(speedups(other, basis)[place]) for _, other in cells]),
            )


def _means(values: Values, member: NDArray[np.bool_]) -> Values:
    """Means of what is defined in each group: [..., cells], member [cells, groups] -> [..., groups]."""
    known = np.isfinite(values)
    counts = known.astype(np.float64) @ member
    sums = np.where(known, values, 0.0) @ member
    means: Values = np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)
    return means


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
