"""What may be compared: one text and one number of tokens per workload, one model per name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from offramp.errors import InputError
from offramp.studies.comparison.results import Row

Cell = tuple[str, str, str]
"""Model as shown, workload, heads."""

SAME = 1e-3
"""By which scores of one cell may differ: two tokens of 1,920 may tip over with the order of a sum."""


@dataclass(frozen=True)
class Mismatch:
    """Rows that are not of equals. where: names of two of them; fix: what to do instead of mixing them."""

    what: str
    where: str
    fix: str


def require_equal(rows: Sequence[Row], *, mixed: bool) -> tuple[str, ...]:
    """Refuse rows that differ in what must be equal, or say so where they were asked for nevertheless.

    Returns the sentences that must stand beside such a comparison; none where everything is equal.

    Raises InputError for a workload name with several texts or token counts, and a model name with several
    models, unless `mixed`.
    """
    found = [mismatch for check in CHECKS for mismatch in check(rows)]
    if found and not mixed:
        first = found[0]
        raise InputError(
            first.what,
            where=first.where,
            fix=f"{first.fix}, or give --mixed to offramp compare or offramp study report",
        )
    return tuple(f"Not of equals: {mismatch.what} ({mismatch.where})." for mismatch in found)


def other_texts(rows: Sequence[Row]) -> Iterator[Mismatch]:
    """Workloads of one name with different texts."""
    for workload, group in _grouped(rows, lambda row: row.workload):
        first, other = _two(group, lambda row: row.workload_fingerprint)
        if other is not None:
            yield Mismatch(
                f"the workload {workload} is not the same text everywhere: fingerprints "
                f"{first.workload_fingerprint[:12]} and {other.workload_fingerprint[:12]}",
                _places(first, other),
                "trace both on the same version of the text",
            )


def other_token_counts(rows: Sequence[Row]) -> Iterator[Mismatch]:
    """Workloads on which models were measured on different numbers of tokens."""
    for workload, group in _grouped(rows, lambda row: row.workload):
        first, other = _two(group, lambda row: row.tokens)
        if other is not None:
            yield Mismatch(
                f"{first.tokens:,} and {other.tokens:,} tokens of {workload} were traced: scores depend on "
                "how many",
                _places(first, other),
                "trace all with the same --tokens, on a workload that has as many for each",
            )


def other_models(rows: Sequence[Row]) -> Iterator[Mismatch]:
    """Different models of one name."""
    for model, group in _grouped(rows, lambda row: row.model.shown):
        known = [row for row in group if row.model_fingerprint]
        first, other = _two(known, lambda row: row.model_fingerprint) if known else (group[0], None)
        if other is not None:
            yield Mismatch(
                f"two models are called {model}: fingerprints {first.model_fingerprint[:12]} and "
                f"{other.model_fingerprint[:12]}",
                _places(first, other),
                "give them different names in their study files",
            )


CHECKS: tuple[Callable[[Sequence[Row]], Iterator[Mismatch]], ...] = (
    other_texts,
    other_token_counts,
    other_models,
)


def without_twins(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Rows of several folders, each model, workload and heads once.

    Equal ones become one, with the scores of the first and the savings of all. Raises InputError for two that
    differ.
    """
    found: dict[Cell, Row] = {}
    for row in rows:
        key = cell_of(row)
        found[key] = _merged(found[key], row) if key in found else row
    return tuple(found.values())


def cell_of(row: Row) -> Cell:
    """What a row is of."""
    return row.model.shown, row.workload, row.heads


def find_models(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows of a model by its shown name. Raises InputError, with near names, if there is none."""
    found = [row for row in rows if row.model.shown == name]
    if not found:
        known = sorted({row.model.shown for row in rows})
        near = difflib.get_close_matches(name, known) or known
        raise InputError(
            f"no model is called {name!r}", where="--pair", fix=f"choose one of: {', '.join(near)}"
        )
    return found


def _merged(first: Row, second: Row) -> Row:
    measured = ("model_fingerprint", "workload_fingerprint", "tokens")
    differ = any(getattr(first, name) != getattr(second, name) for name in measured)
    if differ or not _alike(first.candidates, second.candidates):
        raise InputError(
            f"{' · '.join(part for part in cell_of(first) if part)} is there twice, with different results",
            where=_places(first, second),
            fix="compare only one of the two, or give the model another name in the study file",
        )
    return replace(
        first,
        savings=tuple(dict.fromkeys((*first.savings, *second.savings))),
        exit_speedup={**second.exit_speedup, **first.exit_speedup},
        measured_speedup={**second.measured_speedup, **first.measured_speedup},
    )


def _alike(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> bool:
    """Whether scores differ by no more than the rounding of another number of threads explains."""
    if first.keys() != second.keys():
        return False
    pairs = [(one, second[name]) for name, one in first.items()]
    return all(
        one is other if one is None or other is None else math.isclose(one, other, rel_tol=SAME, abs_tol=SAME)
        for one, other in pairs
    )


def _grouped(rows: Iterable[Row], key: Callable[[Row], str]) -> Iterator[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    yield from groups.items()


def _two(rows: Sequence[Row], key: Callable[[Row], str | int]) -> tuple[Row, Row | None]:
    """The first row, and the first that differs from it in the key; None if none does."""
    return rows[0], next((row for row in rows if key(row) != key(rows[0])), None)


def _places(first: Row, other: Row) -> str:
    return f"{first.model.shown} of {first.source} and {other.model.shown} of {other.source}"
