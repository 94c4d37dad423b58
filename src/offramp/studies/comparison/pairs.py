"""Matched pairs of models: differences over the documents of both, adjusted over the whole table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from offramp.errors import InputError
from offramp.scoring.paired import PAIRED_DRAWS, paired_differences
from offramp.scoring.rank_correlation import holm
from offramp.studies.comparison.equality import find_models
from offramp.studies.comparison.results import PairDifference, Row
from offramp.studies.work.text_size import TEXT, read_text_sizes
from offramp.tracing.trace import Trace

ASKED = "as asked"
"""The kind of a pair that was named on the command line."""


def adjusted(pairs: Sequence[PairDifference]) -> tuple[PairDifference, ...]:
    """The differences with their p-values after Holm over all of them."""
    values = holm([pair.p_value for pair in pairs])
    return tuple(replace(pair, adjusted=value) for pair, value in zip(pairs, values, strict=True))


def asked_pairs(
    rows: Sequence[Row], names: Sequence[tuple[str, str]], *, draws: int = PAIRED_DRAWS, seed: int = 0
) -> Iterator[PairDifference]:
    """Pairs by the shown names of their models, from the traces of both on each workload that both have.

    Raises InputError for an unknown name, two models without a workload in common, or traces that may not be
    compared; DamagedFileError for a trace whose bytes changed.
    """
    for first, second in names:
        sides = [
            {(row.workload, row.heads): row for row in find_models(rows, name)} for name in (first, second)
        ]
        common = [where for where in sides[0] if where in sides[1]]
        if not common:
            raise InputError(
                f"{first} and {second} have no workload and heads in common",
                where="--pair",
                fix="trace both models on the same workload",
            )
        for where in common:
            yield from _differences(sides[0][where], sides[1][where], draws=draws, seed=seed)


def _differences(first: Row, second: Row, *, draws: int, seed: int) -> Iterator[PairDifference]:
    sizes = [_text_bytes(row) for row in (first, second)]
    known = None if sizes[0] is None or sizes[1] is None else (sizes[0], sizes[1])
    found = paired_differences(_trace(first), _trace(second), draws=draws, seed=seed, text_bytes=known)
    for figure in found.figures:
        yield PairDifference(
            kind=ASKED,
            first=first.model.shown,
            second=second.model.shown,
            workload=first.workload,
            heads=first.heads,
            figure=figure.figure,
            first_value=figure.first,
            second_value=figure.second,
            difference=figure.difference,
            p_value=figure.p_value,
            adjusted=None,
            documents=found.documents,
        )


def _trace(row: Row) -> Trace:
    if row.trace_folder is None:
        raise InputError(
            f"the trace of {row.model.shown} on {row.workload} is not kept",
            where=row.source,
            fix="compare folders that hold their traces",
        )
    return Trace.load(row.trace_folder)


def _text_bytes(row: Row) -> Mapping[str, int] | None:
    """Bytes of the observed text by document, where a study kept them beside the trace."""
    folder = Path(row.trace_folder or "").parent
    if not (folder / TEXT).is_file():
        return None
    return {name: size.bytes for name, size in read_text_sizes(folder).items()}
