"""What may be compared, and under which names: one text, token count and way of tracing, one model a name."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from offramp.errors import InputError
from offramp.studies.comparison.results import Comparison, FloorOn, ModelFacts, Row
from offramp.tuning.tuned import Tuned

SAME = 1e-3
"""By which scores of one cell may differ: two tokens of 1,920 may tip over with the order of a sum."""

APART = 0.005
"""Mean token lengths of one text that differ by less than this share are called equal."""

SETTINGS = ("dtype", "context", "document_tokens")
"""Of a trace, besides its exits: scores depend on each. Named as options are, with _ for -."""


@dataclass(frozen=True)
class Equal:
    """Something that rows of one name must have in common."""

    what: str
    """How two differ, in words, with {name}, and {first} and {other} for what each has."""
    fix: str
    has: Callable[[Row], Any]
    """That, None where it is not known, which is not held against others."""
    shown: Callable[[Any], str] = str
    """In words."""
    same: Callable[[Any, Any], bool] = operator.eq
    """Whether two have the same, by default where it is equal."""
    name: Callable[[Row], str] = lambda row: row.workload
    """In which rows must not differ, by default the workload."""

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
        verdicts={**second.verdicts, **first.verdicts},
        exit_speedup={**second.exit_speedup, **first.exit_speedup},
        measured_speedup={**second.measured_speedup, **first.measured_speedup},
    )


def _alike(first: Mapping[str, float | None], second: Mapping[str, float | None]) -> bool:
    """Whether scores differ by no more than the rounding of another number of threads explains."""
    if first.keys() != second.keys():
        return False
    pairs = [(score, second[name]) for name, score in first.items()]
    return all(
        score is twin
        if score is None or twin is None
        else math.isclose(score, twin, rel_tol=SAME, abs_tol=SAME)
        for score, twin in pairs
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


T = TypeVar("T")

DESCRIPTION = ("family", "generation", "released", "parameters", "kind", "stage")
"""What only a study's file says of a model."""


def with_shared_names(contents: Sequence[Comparison]) -> list[Comparison]:
    """The contents of folders, in which one thing has one name and one name is one thing.

    A text (by fingerprint) gets the name that the first folder gives it, a model (by fingerprint) the facts
    of the first study that describes it, and with them its base: the same weights are one training, whatever
    they are called. A machine's name that is not the same machine everywhere ("local" of two computers, a
    profile of one's own called as a built-in one) says which it is. What was renamed is said in the notes.
    """
    if len(contents) < 2:
        return list(contents)
    rows = [row for content in contents for row in content.rows]
    # The first of several counts, of models a described one before others.
    texts = {row.workload_fingerprint: row.workload for row in reversed(rows)}
    described_first = sorted(rows, key=lambda row: not _is_described(row.model))
    models = {row.model_fingerprint: row.model for row in reversed(described_first) if row.model_fingerprint}
    bases = {row.model.name: row.model.base for row in rows if _is_described(row.model)}
    machines: dict[str, set[str]] = {}
    for content in contents:
        for name, words in content.machines.items():
            machines.setdefault(name, set()).add(words)
    return [
        _Renaming(
            texts=_unique({row.workload: texts[row.workload_fingerprint] for row in content.rows}),
            models=_model_names(content, models, bases),
            machines={
                name: f"{name} ({words})"
                for name, words in content.machines.items()
                if len(machines[name]) > 1
            },
        ).applied(content)
        for content in contents
    ]


@dataclass(frozen=True)
class _Renaming:
    """New names for one folder."""

    texts: Mapping[str, str]
    models: Mapping[str, ModelFacts]
    """By shown name."""
    machines: Mapping[str, str]
    """Only those that get another name."""

    def applied(self, content: Comparison) -> Comparison:
        """The content under the new names, with what was renamed among its notes."""
        places = {
            place: replace(
                place,
                model=self._model(place.model),
                workload=self._text(place.workload),
                machine=self._machine(place.machine),
            )
            for place in {strategy.place for strategy in content.strategies}
        }
        return replace(
            content,
            rows=tuple(self._row(row) for row in content.rows),
            strategies=tuple(
                replace(strategy, place=places[strategy.place]) for strategy in content.strategies
            ),
            combined=tuple(
                replace(combined, model=self._model(combined.model), workload=self._text(combined.workload))
                for combined in content.combined
            ),
            notes=(*content.notes, *self._notes(content)),
        )

    def _row(self, row: Row) -> Row:
        return replace(
            row,
            model=self.models[row.model.shown],
            workload=self._text(row.workload),
            answers=tuple(replace(answer, machine=self._machine(answer.machine)) for answer in row.answers),
            verdicts=self._by_machine(row.verdicts),
            exit_speedup=self._by_machine(row.exit_speedup),
            measured_speedup=self._by_machine(row.measured_speedup),
        )

    def _text(self, name: str) -> str:
        return self.texts.get(name, name)

    def _model(self, shown: str) -> str:
        return self.models[shown].shown if shown in self.models else shown

    def _machine(self, machine: str) -> str:
        return self.machines.get(machine, machine)

    def _by_machine(self, values: Mapping[FloorOn, T]) -> dict[FloorOn, T]:
        return {(floor, self._machine(machine)): value for (floor, machine), value in values.items()}

    def _notes(self, content: Comparison) -> Iterator[str]:
        changed = [(f"text {old}", new) for old, new in self.texts.items() if old != new]
        changed += [(f"model {old}", new.shown) for old, new in self.models.items() if old != new.shown]
        for old, new in changed:
            yield f"The {old} of {content.title} is the same as {new} of another folder, and is shown so."
        for old, new in self.machines.items():
            yield (
                f"The machine {old} of {content.title} is not the {old} of another folder, and is shown as "
                f"{new}."
            )


def _unique(wanted: Mapping[str, str]) -> dict[str, str]:
    """The wanted name of each of a folder's own, unless another of its own has that."""
    taken, names = set(wanted), {}
    for old, new in wanted.items():
        names[old] = old if new in taken else new
        taken.add(names[old])
    return names


def _model_names(
    content: Comparison, models: Mapping[str, ModelFacts], bases: Mapping[str, str]
) -> dict[str, ModelFacts]:
    """What all folders know of a folder's models, by shown name."""
    here = {row.model.shown: row.model for row in content.rows}
    known = {row.model.shown: models.get(row.model_fingerprint, row.model) for row in content.rows}
    names = _unique({shown: facts.shown for shown, facts in known.items()})
    named = {
        shown: known[shown] if known[shown].shown == name else here[shown] for shown, name in names.items()
    }
    return {
        shown: facts if _is_described(facts) else replace(facts, base=bases.get(facts.name, facts.base))
        for shown, facts in named.items()
    }


def _is_described(facts: ModelFacts) -> bool:
    """Whether a study's file says more of a model than its name."""
    return any(getattr(facts, name) is not None for name in DESCRIPTION)
