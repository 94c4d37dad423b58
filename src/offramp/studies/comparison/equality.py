"""What may be compared: one text, token count and way of tracing per workload, one model per name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from offramp.errors import InputError
from offramp.studies.comparison.results import Row
from offramp.tuning.tuned import Tuned

SAME = 1e-3
"""By which scores of one cell may differ: two tokens of 1,920 may tip over with the order of a sum."""

APART = 0.005
"""Mean token lengths of one text that differ by less than this share are called equal."""

SETTINGS = ("dtype", "context", "document_tokens")
"""Of a trace, besides its exits: scores depend on each. Named as options are, with _ for -."""


@dataclass(frozen=True)
class Equal:
    """Something that rows of one name must have in common.

    what: how two differ, in words. name: in which rows must not differ, by default the workload. known: of
    which rows it is known; others are not held against it. same: whether two have it.
    """

    what: Callable[[Row, Row], str]
    fix: str
    same: Callable[[Row, Row], bool]
    name: Callable[[Row], str] = lambda row: row.workload
    known: Callable[[Row], bool] = lambda row: True

    def broken(self, rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
        """What differs, in which two rows, and what to do about it, for each name that is not one thing."""
        groups: dict[str, list[Row]] = {}
        for row in rows:
            if self.known(row):
                groups.setdefault(self.name(row), []).append(row)
        for first, *others in groups.values():
            other = next((row for row in others if not self.same(first, row)), None)
            if other is not None:
                yield self.what(first, other), _sources(first, other), self.fix


def _same_setting(name: str) -> Equal:
    option = "--" + name.replace("_", "-")
    return Equal(
        lambda first, other: (
            f"{first.workload} was traced with {option} {_setting_words(first, name)} and "
            f"{_setting_words(other, name)}: scores depend on it"
        ),
        f"trace all with the same {option} (in a study file: {name})",
        lambda first, other: bool(first.settings[name] == other.settings[name]),
        known=lambda row: name in row.settings,
    )


MUST_BE_EQUAL = (
    Equal(
        lambda first, other: (
            f"the workload {first.workload} is not the same text everywhere: fingerprints "
            f"{first.workload_fingerprint[:12]} and {other.workload_fingerprint[:12]}"
        ),
        "trace both on the same version of the text",
        lambda first, other: first.workload_fingerprint == other.workload_fingerprint,
    ),
    Equal(
        lambda first, other: (
            f"{first.card.tokens:,} and {other.card.tokens:,} tokens of {first.workload} were traced: scores "
            "depend on how many"
        ),
        "trace all with the same --tokens, on a workload that has as many for each",
        lambda first, other: first.card.tokens == other.card.tokens,
    ),
    *map(_same_setting, SETTINGS),
    Equal(
        lambda first, other: (
            f"{first.workload} was traced at the exits {_exit_words(first)} and {_exit_words(other)}: areas "
            "over depth depend on them"
        ),
        "trace all with the same --exits (in a study file: exits)",
        lambda first, other: _same_exits(first, other),
    ),
    Equal(
        lambda first, other: (
            f"two models are called {first.model.shown}: fingerprints {first.model_fingerprint[:12]} and "
            f"{other.model_fingerprint[:12]}"
        ),
        "give them different names in their study files",
        lambda first, other: first.model_fingerprint == other.model_fingerprint,
        name=lambda row: row.model.shown,
        known=lambda row: bool(row.model_fingerprint),
    ),
)


def require_equal(rows: Sequence[Row], *, mixed: bool) -> tuple[str, ...]:
    """Refuse rows that differ in what must be equal, or say so where they were asked for nevertheless.

    Returns the sentences that must stand beside such a comparison; none where everything is equal.

    Raises InputError for a workload name with several texts, token counts or ways of tracing, and a model
    name with several models, unless `mixed`.
    """
    broken = [difference for equal in MUST_BE_EQUAL for difference in equal.broken(rows)]
    if broken and not mixed:
        what, where, fix = broken[0]
        fix = f"{fix}, or give --mixed to offramp compare or offramp study report"
        raise InputError(what, where=where, fix=fix)
    return tuple(f"Not of equals: {what} ({where})." for what, where, _ in broken)


def per_byte_notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """A sentence for each workload whose text the models cut into tokens of different lengths.

    Answers that each model wrote itself are no text that they share.
    """
    notes = []
    for workload in dict.fromkeys(row.workload for row in rows):
        lengths = {
            row.model.shown: row.bytes_per_token
            for row in rows
            if row.workload == workload and row.bytes_per_token is not None and not row.own_text
        }
        if not lengths:
            continue
        shortest, longest = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
        if lengths[longest] > (1.0 + APART) * lengths[shortest]:
            notes.append(
                f"On {workload} a token of {shortest} is {lengths[shortest]:.2f} bytes of text, one of "
                f"{longest} {lengths[longest]:.2f}: nats per token and seconds per token mislead between "
                "them, bits per byte and characters per second do not. Equally many tokens are then "
                "not equally much text."
            )
    return tuple(notes)


def without_twins(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Rows of several folders, each model, workload and heads once.

    Equal ones become one, with the scores of the first and the answers of all. Raises InputError for two that
    differ.
    """
    by_cell: dict[tuple[str, ...], Row] = {}
    for row in rows:
        cell = (row.model.shown, row.workload, row.heads)
        by_cell[cell] = _merged(by_cell[cell], row) if cell in by_cell else row
    return tuple(by_cell.values())


def _merged(first: Row, second: Row) -> Row:
    measured = [(row.model_fingerprint, row.workload_fingerprint, row.card.tokens) for row in (first, second)]
    if measured[0] != measured[1] or not _alike(first.card.candidates, second.card.candidates):
        cell = (first.model.shown, first.workload, first.heads)
        raise InputError(
            f"{' · '.join(filter(None, cell))} is there twice, with different results",
            where=_sources(first, second),
            fix="compare only one of the two, or give the model another name in the study file",
        )
    answers: dict[tuple[object, ...], Tuned] = {}
    for answer in (*first.answers, *second.answers):
        said = (answer.machine, answer.floor, answer.policy, answer.net_speedup, answer.answer)
        answers.setdefault(said, answer)
    return replace(
        first,
        answers=tuple(answers.values()),
        exit_speedup={**second.exit_speedup, **first.exit_speedup},
        measured_speedup={**second.measured_speedup, **first.measured_speedup},
    )


def _alike(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> bool:
    """Whether scores differ by no more than the rounding of another number of threads explains."""
    if first.keys() != second.keys():
        return False
    pairs = [(score, second[name]) for name, score in first.items()]
    return all(
        one is other if one is None or other is None else math.isclose(one, other, rel_tol=SAME, abs_tol=SAME)
        for one, other in pairs
    )


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


def _setting_words(row: Row, name: str) -> str:
    """A setting; None is one that was not given."""
    setting = row.settings[name]
    return "by default" if setting is None else str(setting)


def _sources(first: Row, other: Row) -> str:
    return f"{first.model.shown} of {first.source} and {other.model.shown} of {other.source}"
