"""What may be compared: one text, token count and way of tracing per workload, one model per name."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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

    what: how two differ, in words, with {name}, and {first} and {other} for what each has. has: that, None
    where it is not known, which is not held against others; shown: in words. same: whether two have the same,
    by default where it is equal. name: in which rows must not differ, by default the workload.
    """

    what: str
    fix: str
    has: Callable[[Row], Any]
    shown: Callable[[Any], str] = str
    same: Callable[[Any, Any], bool] = operator.eq
    name: Callable[[Row], str] = lambda row: row.workload

    def broken(self, rows: Sequence[Row]) -> Iterator[tuple[str, str, str]]:
        """What differs, in which two rows, and what to do about it, for each name that is not one thing."""
        groups: dict[str, list[Row]] = {}
        for row in rows:
            if self.has(row) is not None:
                groups.setdefault(self.name(row), []).append(row)
        for name, (first, *others) in groups.items():
            other = next((row for row in others if not self.same(self.has(first), self.has(row))), None)
            if other is not None:
                shown = {"first": self.shown(self.has(first)), "other": self.shown(self.has(other))}
                yield self.what.format(name=name, **shown), _sources(first, other), self.fix


def _same_setting(setting: str) -> Equal:
    option = "--" + setting.replace("_", "-")
    return Equal(
        f"{{name}} was traced with {option} {{first}} and {{other}}: scores depend on it",
        f"trace all with the same {option} (in a study file: {setting})",
        # One that was not given is known to be the default.
        has=lambda row: (row.settings[setting],) if setting in row.settings else None,
        shown=lambda given: "by default" if given == (None,) else str(given[0]),
    )


MUST_BE_EQUAL = (
    Equal(
        "the workload {name} is not the same text everywhere: fingerprints {first} and {other}",
        "trace both on the same version of the text",
        has=lambda row: row.workload_fingerprint,
        shown=lambda fingerprint: fingerprint[:12],
    ),
    Equal(
        "{first} and {other} tokens of {name} were traced: scores depend on how many",
        "trace all with the same --tokens, on a workload that has as many for each",
        has=lambda row: row.card.tokens,
        shown="{:,}".format,
    ),
    *map(_same_setting, SETTINGS),
    Equal(
        "{name} was traced at the exits {first} and {other}: areas over depth depend on them",
        "trace all with the same --exits (in a study file: exits)",
        has=lambda row: row.exits,
        shown=lambda exits: "all" if _is_every(exits) else ", ".join(map(str, exits)),
        same=lambda first, other: _same_exits(first, other),
    ),
    Equal(
        "two models are called {name}: fingerprints {first} and {other}",
        "give them different names in their study files",
        has=lambda row: row.model_fingerprint or None,
        shown=lambda fingerprint: fingerprint[:12],
        name=lambda row: row.model.shown,
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


def _same_exits(first: Sequence[int], other: Sequence[int]) -> bool:
    """Whether both are every exit, or the same ones but for the last layers, which are always traced.

    So a model and a variant of it with fewer layers, traced alike, have the same.
    """
    if _is_every(first) or _is_every(other):
        return _is_every(first) and _is_every(other)
    return set(first) ^ set(other) <= {first[-1], other[-1]}


def _is_every(exits: Sequence[int]) -> bool:
    return tuple(exits) == tuple(range(1, len(exits) + 1))


def _sources(first: Row, other: Row) -> str:
    return f"{first.model.shown} of {first.source} and {other.model.shown} of {other.source}"
