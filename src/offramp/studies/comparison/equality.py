"""What may be compared: one text, token count and way of tracing per workload, one model per name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from offramp.errors import InputError
from offramp.studies.comparison.results import Row

Cell = tuple[str, str, str]
"""Model as shown, workload, heads."""

SAME = 1e-3
"""By which scores of one cell may differ: two tokens of 1,920 may tip over with the order of a sum."""


SETTINGS = ("dtype", "context", "document_tokens")
"""Of a trace, besides its exits: scores depend on each. Named as options are, with _ for -."""


@dataclass(frozen=True)
class Mismatch:
    """Rows that are not of equals. where: names of two of them; fix: what to do instead of mixing them."""

    what: str
    where: str
    fix: str


def require_equal(rows: Sequence[Row], *, mixed: bool) -> tuple[str, ...]:
    """Refuse rows that differ in what must be equal, or say so where they were asked for nevertheless.

    Returns the sentences that must stand beside such a comparison; none where everything is equal.

    Raises InputError for a workload name with several texts, token counts or ways of tracing, and a model
    name with several models, unless `mixed`.
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


def other_settings(rows: Sequence[Row]) -> Iterator[Mismatch]:
    """Workloads that were traced in other ways; what is not known of a row is not held against it."""
    for workload, group in _grouped(rows, lambda row: row.workload):
        for name in SETTINGS:
            known = [row for row in group if name in row.settings]
            first, other = _two(known, _setting(name)) if known else (group[0], None)
            if other is not None:
                option = "--" + name.replace("_", "-")
                yield Mismatch(
                    f"{workload} was traced with {option} {_words(first.settings[name])} and "
                    f"{_words(other.settings[name])}: scores depend on it",
                    _places(first, other),
                    f"trace all with the same {option} (in a study file: {name})",
                )


def other_exits(rows: Sequence[Row]) -> Iterator[Mismatch]:
    """Workloads on which models were traced at other exits."""
    for workload, group in _grouped(rows, lambda row: row.workload):
        first = group[0]
        other = next((row for row in group if not _same_exits(first, row)), None)
        if other is not None:
            yield Mismatch(
                f"{workload} was traced at the exits {_exit_words(first)} and {_exit_words(other)}: areas "
                "over depth depend on them",
                _places(first, other),
                "trace all with the same --exits (in a study file: exits)",
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
    other_settings,
    other_exits,
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


def _same_exits(first: Row, other: Row) -> bool:
    """Whether both have every exit, or the same ones but for the last layers, which are always traced.

    So a model and a variant of it with fewer layers, traced alike, have the same.
    """
    if _every_exit(first) or _every_exit(other):
        return _every_exit(first) and _every_exit(other)
    return set(first.exits) ^ set(other.exits) <= {first.exits[-1], other.exits[-1]}


def _every_exit(row: Row) -> bool:
    return row.exits == tuple(range(1, len(row.exits) + 1))


def _exit_words(row: Row) -> str:
    return "all" if _every_exit(row) else ", ".join(map(str, row.exits))


def _setting(name: str) -> Callable[[Row], object]:
    """What reads a setting of a row that knows it."""
    return lambda row: row.settings[name]


def _words(setting: object) -> str:
    """A setting; None is one that was not given."""
    return "by default" if setting is None else str(setting)


def _two(rows: Sequence[Row], key: Callable[[Row], object]) -> tuple[Row, Row | None]:
    """The first row, and the first that differs from it in the key; None if none does."""
    return rows[0], next((row for row in rows if key(row) != key(rows[0])), None)


def _places(first: Row, other: Row) -> str:
    return f"{first.model.shown} of {first.source} and {other.model.shown} of {other.source}"
