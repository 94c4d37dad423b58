"""One name for one thing, before folders are put together: texts, models and machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from offramp.studies.comparison.content import Content
from offramp.studies.comparison.results import (
    ModelFacts,
    Row,
    Strategy,
    floor_and_machine,
    place_text,
)

DESCRIPTION = ("family", "generation", "released", "parameters", "kind", "stage")
"""What only a study's file says of a model."""


def with_shared_names(contents: Sequence[Content]) -> list[Content]:
    """The contents of folders, in which one thing has one name and one name is one thing.

    A text (by fingerprint) gets the name that the first folder gives it, a model (by fingerprint) the facts
    of the first study that describes it, and with them its base: the same weights are one training, whatever
    they are called. A machine's name that is not the same machine everywhere ("local" of two computers, a
    profile of one's own called as a built-in one) says which it is. What was renamed is said in the notes.
    """
    if len(contents) < 2:
        return list(contents)
    rows = [row for content in contents for row in content.rows]
    texts, models = _first_names(rows), _best_facts(rows)
    bases = {row.model.name: row.model.base for row in rows if _is_described(row.model)}
    shared = _shared_machine_names(contents)
    return [
        _Renaming(
            texts=_text_names(content, texts),
            models=_model_names(content, models, bases),
            machines={
                name: f"{name} ({words})" for name, words in content.machines.items() if name in shared
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

    def applied(self, content: Content) -> Content:
        """The content under the new names, with what was renamed among its notes."""
        return replace(
            content,
            rows=tuple(self._row(row) for row in content.rows),
            strategies=tuple(self._strategy(one) for one in content.strategies),
            combined=tuple(
                {**one, **self._names(one.get, ("model", "workload"))} for one in content.combined
            ),
            notes=(*content.notes, *self._notes(content)),
        )

    def _row(self, row: Row) -> Row:
        return replace(
            row,
            model=self.models[row.model.shown],
            workload=self.texts.get(row.workload, row.workload),
            savings=tuple(replace(one, machine=self._machine(one.machine)) for one in row.savings),
            exit_speedup=self._places(row.exit_speedup),
            measured_speedup=self._places(row.measured_speedup),
        )

    def _strategy(self, strategy: Strategy) -> Strategy:
        return replace(strategy, **self._names(lambda name: getattr(strategy, name), tuple(self._kinds)))

    @property
    def _kinds(self) -> Mapping[str, Callable[[str], str]]:
        """How each field that holds a name is renamed."""
        return {
            "model": self._model,
            "workload": lambda name: self.texts.get(name, name),
            "machine": self._machine,
        }

    def _names(self, value: Callable[[str], Any], names: Sequence[str]) -> dict[str, Any]:
        return {name: self._kinds[name](value(name)) for name in names}

    def _model(self, shown: str) -> str:
        return self.models[shown].shown if shown in self.models else shown

    def _machine(self, machine: str) -> str:
        return self.machines.get(machine, machine)

    def _places(self, speedups: Mapping[str, float]) -> dict[str, float]:
        places = {place: floor_and_machine(place) for place in speedups}
        return {
            place_text(floor, self._machine(machine)): speedups[place]
            for place, (floor, machine) in places.items()
        }

    def _notes(self, content: Content) -> Iterator[str]:
        changed = [(f"text {old}", new) for old, new in self.texts.items() if old != new]
        changed += [(f"model {old}", new.shown) for old, new in self.models.items() if old != new.shown]
        for old, new in changed:
            yield f"The {old} of {content.title} is the same as {new} of another folder, and is shown so."
        for old, new in self.machines.items():
            yield (
                f"The machine {old} of {content.title} is not the {old} of another folder, and is shown as "
                f"{new}."
            )


def _shared_machine_names(contents: Sequence[Content]) -> set[str]:
    """Names of machines that stand for different ones in different folders."""
    found: dict[str, set[str]] = {}
    for content in contents:
        for name, words in content.machines.items():
            found.setdefault(name, set()).add(words)
    return {name for name, words in found.items() if len(words) > 1}


def _first_names(rows: Sequence[Row]) -> dict[str, str]:
    """Name of each text by fingerprint."""
    found: dict[str, str] = {}
    for row in rows:
        found.setdefault(row.workload_fingerprint, row.workload)
    return found


def _text_names(content: Content, texts: Mapping[str, str]) -> dict[str, str]:
    """New names of a folder's texts; no two of its own get one name."""
    own = {row.workload: row.workload_fingerprint for row in content.rows}
    taken, found = set(own), {}
    for name, fingerprint in own.items():
        new = texts[fingerprint]
        found[name] = name if new in taken else new
        taken.add(found[name])
    return found


def _best_facts(rows: Sequence[Row]) -> dict[str, ModelFacts]:
    """Facts of each model by fingerprint: the first ones, but described ones before others."""
    found: dict[str, ModelFacts] = {}
    for row in sorted(rows, key=lambda row: not _is_described(row.model)):
        if row.model_fingerprint:
            found.setdefault(row.model_fingerprint, row.model)
    return found


def _model_names(
    content: Content, models: Mapping[str, ModelFacts], bases: Mapping[str, str]
) -> dict[str, ModelFacts]:
    """What all folders know of a folder's models, by shown name; no two of its own get one name."""
    own = {row.model.shown: row for row in content.rows}
    taken, found = set(own), {}
    for shown, row in own.items():
        known = models.get(row.model_fingerprint, row.model)
        facts = row.model if known.shown != shown and known.shown in taken else known
        if not _is_described(facts):
            facts = replace(facts, base=bases.get(facts.name, facts.base))
        found[shown] = facts
        taken.add(facts.shown)
    return found


def _is_described(facts: ModelFacts) -> bool:
    """Whether a study's file says more of a model than its name."""
    return any(getattr(facts, name) is not None for name in DESCRIPTION)
