"""One name for one thing, before folders are put together: texts, models and machines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from offramp.studies.comparison.results import Comparison, FloorOn, ModelFacts, Row

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
    """New names for one folder. models: by shown name. machines: only those that get another name."""

    texts: Mapping[str, str]
    models: Mapping[str, ModelFacts]
    machines: Mapping[str, str]

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

    def _by_machine(self, found: Mapping[FloorOn, T]) -> dict[FloorOn, T]:
        return {(floor, self._machine(machine)): one for (floor, machine), one in found.items()}

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
    for own, new in wanted.items():
        names[own] = own if new in taken else new
        taken.add(names[own])
    return names


def _model_names(
    content: Comparison, models: Mapping[str, ModelFacts], bases: Mapping[str, str]
) -> dict[str, ModelFacts]:
    """What all folders know of a folder's models, by shown name."""
    own = {row.model.shown: row.model for row in content.rows}
    known = {row.model.shown: models.get(row.model_fingerprint, row.model) for row in content.rows}
    names = _unique({shown: facts.shown for shown, facts in known.items()})
    found = {
        shown: known[shown] if known[shown].shown == name else own[shown] for shown, name in names.items()
    }
    return {
        shown: facts if _is_described(facts) else replace(facts, base=bases.get(facts.name, facts.base))
        for shown, facts in found.items()
    }


def _is_described(facts: ModelFacts) -> bool:
    """Whether a study's file says more of a model than its name."""
    return any(getattr(facts, name) is not None for name in DESCRIPTION)
