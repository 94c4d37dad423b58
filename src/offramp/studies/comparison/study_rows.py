"""Rows and strategies of a study's folder: every cell that is done, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from offramp.decoding.measurement.combined import read_combined
from offramp.errors import InputError
from offramp.files import canonical_json, sha256_of_text
from offramp.kit.typed import finite_json, from_json
from offramp.scoring.readings import Readings
from offramp.studies.comparison.content import (
    Content,
    card_fields,
    league_speedups,
    machine_words,
    saving_of,
)
from offramp.studies.comparison.equality import SETTINGS
from offramp.studies.comparison.results import ModelFacts, Row, Saving, Strategy
from offramp.studies.comparison.study_strategies import (
    STRATEGIES,
    Finished,
    floor_of,
    machine_of,
    measured_speedups,
)
from offramp.studies.folder import PLAN, Condition, StudyFolder
from offramp.studies.manifest import TRACE
from offramp.studies.task import Cell, Plan, Task
from offramp.studies.work.training_cost import TRAINING, TRAINING_COST, Training
from offramp.tracing.manifest import MANIFEST, read_manifest

COMBINED = "combined.json"
"""What `offramp bench --combine` adds to a run's folder."""
FACTS = ("base", "family", "generation", "released", "parameters", "kind", "stage")
APART = "combine"
"""The kind of cells that are no row and no strategy of one."""
FORMER = "pair"
"""A kind of cells that older studies have, and nothing reads any more."""

Axes = tuple[str, str, str, str]
"""Model, transform, workload, heads or training."""


def is_study_folder(path: Path) -> bool:
    """Whether a study was planned or run into this folder."""
    return (path / PLAN).is_file()


def read_study_folder(path: Path) -> Content:
    """What the finished cells of a study hold.

    Raises InputError for a plan that a newer offramp wrote, DamagedFileError for one whose bytes changed.
    """
    return StudyReader(StudyFolder(path)).content()


CONTEXT_UNKNOWN = (
    "The trace is gone or damaged: with which context it was made is not known, and not held against others."
)


class StudyReader:
    """A study's folder with its plan, and which cells are done."""

    def __init__(self, folder: StudyFolder) -> None:
        self.folder = folder
        self.plan: Plan = folder.read_plan()
        self._results: dict[str, Mapping[str, Any]] = {}
        self.models = {model["name"]: model for model in self.plan.study["models"]}
        self.conditions: dict[str, Condition] = {}
        for key, task in self.plan.tasks.items():
            # What rests on a damaged file is not shown before that is made again.
            rests = any(self.conditions[need] == "damaged" for need in task.needs.values())
            self.conditions[key] = "damaged" if rests else folder.condition(task)
        self.cells = [cell for cell in self.plan.cells if cell.kind != FORMER]
        self.done = [cell for cell in self.cells if self.conditions[cell.task] == "done"]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The study file's table [study]."""
        settings: Mapping[str, Any] = self.plan.study["study"]
        return settings

    def content(self) -> Content:
        """Everything at once."""
        by_axes: dict[Axes, list[Finished]] = {}
        for cell in self.done:
            if cell.kind != APART:
                by_axes.setdefault(axes(cell), []).append(self.finished(cell))
        rows: list[Row] = []
        strategies: list[Strategy] = []
        for cells in by_axes.values():
            for score in cells:
                if score.cell.kind == "score":
                    row = self.row(score, cells)
                    rows.append(row)
                    strategies += strategies_of(row, cells, self.settings["floors"])
        name = self.settings["name"]
        title = self.settings["title"] or name
        return Content(
            title=f"{title} ({self.folder.path.name})" if self.plan.is_run else title,
            description=self.settings["description"],
            rows=tuple(rows),
            strategies=tuple(strategies),
            combined=(
                *(self.combined(cell) for cell in self.done if cell.kind == "combine"),
                *self.added(),
            ),
            failures=self.failures(),
            notes=(*self.undecoded(), *self.untold()),
            provenance=self.provenance(),
            machines=self.machines(),
        )

    def untold(self) -> Iterator[str]:
        """What a run does not say of its model."""
        if self.plan.is_run:
            yield (
                f"{self.settings['title']} comes from a run, which does not say what it was trained from: "
                "unless a study beside it does, its name counts as an independent training."
            )

    def added(self) -> Iterator[Mapping[str, Any]]:
        """Accelerations together, where they were measured into a run's folder."""
        path = self.folder.path / COMBINED
        if self.plan.is_run and path.is_file():
            yield finite_json(read_combined(path))

    def machines(self) -> dict[str, str]:
        """What the machines of finished cells are, by the names that the study gives them."""
        found: dict[str, str] = {}
        for cell in self.done:
            if cell.machine and cell.kind != APART:
                task = self.plan.tasks[cell.task]
                timed = self.plan.tasks[task.needs["profile"]] if "profile" in task.needs else task
                if "machine" in timed.recipe:
                    found[cell.machine] = machine_words(timed.recipe["machine"])
        return found

    def finished(self, cell: Cell) -> Finished:
        """A cell with its task's result. Raises DamagedFileError if its bytes changed."""
        task = self.plan.tasks[cell.task]
        return Finished(cell, task.recipe, task.needs, self.result(cell.task))

    def result(self, key: str) -> Mapping[str, Any]:
        """A task's result, read and verified once.

        Raises DamagedFileError if its bytes changed, InputError for timings of an older offramp.
        """
        if key not in self._results:
            found = self.folder.result(self.plan.tasks[key])
            self._require_answers(found)
            self._results[key] = found
        return self._results[key]

    def _require_answers(self, result: Mapping[str, Any]) -> None:
        """Refuse timings of an older offramp, which gave no answers. Raises InputError."""
        for measured in (result.get("bench"), result.get("combined")):
            if isinstance(measured, Mapping) and "defects" not in measured:
                raise InputError(
                    "the study's timings are those of an older offramp, which gave no answers",
                    where=str(self.folder.path),
                    fix="run the study again with this offramp: offramp study run; all but timings is kept",
                )

    def row(self, score: Finished, cells: Sequence[Finished]) -> Row:
        """The row of one score. cells: with the same axes; the tuner, the league, decoding."""
        cell, result = score.cell, score.result
        trace = self.plan.tasks[self.plan.tasks[cell.task].needs["trace"]]
        text, readings = result["text"], result["card"].get("readings")
        settings = self.traced_settings(trace)
        unknown = [CONTEXT_UNKNOWN] if "context" in trace.recipe and "context" not in settings else []
        predicted: dict[str, float] = {}
        measured: dict[str, float] = {}
        for other in cells:
            if other.cell.kind == "league":
                predicted |= league_speedups(other.result["entries"], machine_of(other))
            if other.cell.kind == "decode":
                measured |= measured_speedups(other, self.league_of(other.cell))
        return Row(
            model=self.traced_facts(cell, result["card"]["curves"]["exits"][-1]),
            workload=cell.workload,
            heads=cell.reader,
            workload_fingerprint=result["workload_fingerprint"],
            **card_fields(result["card"]),
            bits_per_byte=result["bits_per_byte"],
            bytes_per_token=text["bytes"] / text["tokens"] if text["bytes"] else None,
            characters_per_token=text["characters"] / text["tokens"] if text["characters"] else None,
            savings=tuple(saving for other in cells for saving in savings(other)),
            exit_speedup=predicted,
            measured_speedup=measured,
            model_fingerprint=model_fingerprint(trace),
            trace_folder=str(self.folder.task_folder(trace) / TRACE),
            source=f"run {self.folder.path.name}" if self.plan.is_run else f"study {self.settings['name']}",
            notes=(*result["notes"], *result["card"]["notes"], *unknown),
            own_text=result["own_text"],
            settings=settings,
            training=self.training_of(trace),
            readings=from_json(Readings, readings) if readings else None,
        )

    def training_of(self, trace: Task) -> Training | None:
        """What it took to train the exits of a trace, None where they were not trained."""
        heads = trace.needs.get("heads")
        path = None if heads is None else self.folder.task_folder(self.plan.tasks[heads]) / TRAINING
        return TRAINING_COST.read(path) if path is not None and path.is_file() else None

    def league_of(self, cell: Cell) -> Sequence[Mapping[str, Any]]:
        """Entries of the league whose policies a cell decoded; none if its files are damaged or gone."""
        key = self.plan.tasks[cell.task].needs["league"]
        if self.conditions[key] != "done":
            return ()
        entries: Sequence[Mapping[str, Any]] = self.result(key)["entries"]
        return entries

    def traced_settings(self, trace: Task) -> dict[str, Any]:
        """How a task traced, as its recipe says; a default context is the trace's own, and is not known
        where that is gone or damaged."""
        found = {name: trace.recipe[name] for name in SETTINGS if name in trace.recipe}
        if "context" in found and found["context"] is None:
            folder = self.folder.task_folder(trace) / TRACE
            kept = self.conditions[trace.key] == "done" and (folder / MANIFEST).is_file()
            del found["context"]
            if kept:
                found["context"] = read_manifest(folder).request["context"]
        return found

    def facts(self, name: str, transform: str = "") -> ModelFacts:
        """A model as the study's file describes it."""
        model = self.models[name]
        return ModelFacts(name, transform=transform, **{fact: model[fact] for fact in FACTS})

    def traced_facts(self, cell: Cell, layers: int) -> ModelFacts:
        """The model of a cell; one with fewer layers than its file has not the parameters of its file."""
        facts, whole = self.facts(cell.model, cell.transform), self.models[cell.model].get("layers")
        return facts if whole in (None, layers) else replace(facts, parameters=None)

    def undecoded(self) -> Iterator[str]:
        """Where nothing was decoded, since no policy of the league exits."""
        found = [self.finished(cell) for cell in self.done if cell.kind == "decode"]
        for one in found:
            if one.result["bench"] is None:
                yield f"{one.cell.name}: nothing was decoded, {one.result['why_nothing']}."

    def combined(self, cell: Cell) -> Mapping[str, Any]:
        """Accelerations together, under the names that the study gives."""
        model = self.facts(cell.model, cell.transform).shown
        return {**self.finished(cell).result["combined"], "model": model, "workload": cell.workload}

    def failures(self) -> dict[str, str]:
        """Why each cell is not done that is not, by name."""
        undone = [cell for cell in self.cells if self.conditions[cell.task] != "done"]
        return {cell.name: self.why_not(self.plan.tasks[cell.task]) for cell in undone}

    def why_not(self, task: Task) -> str:
        """Why a task has no result, in words."""
        failure = self.folder.failure(task)
        if failure is not None:
            return failure.what
        if task.blocked is not None:
            return task.blocked
        for key in task.needs.values():
            needed = self.plan.tasks[key]
            if self.conditions[key] != "done":
                why = self.why_not(needed)
                return why if why == NOT_RUN else f"the {needed.kind} that it needs: {why}"
        if self.conditions[task.key] == "damaged":
            return "a file of it changed since it was done; the next run does it again"
        return NOT_RUN

    def provenance(self) -> dict[str, Any]:
        """What the figures rest on: the study and its sizes, versions, fingerprint of the code."""
        tasks = [self.plan.tasks[cell.task] for cell in self.done]
        versions = {
            f"{name} {version}" for task in tasks for name, version in task.recipe["versions"].items()
        }
        sizes = ("tokens", "dtype", "threads", "floors", "seed", "draws")
        said = {key: value for key, value in self.plan.study.items() if key != "file"}
        return {
            "study_fingerprint": sha256_of_text(canonical_json(said)),
            **{name: self.settings[name] for name in sizes},
            "versions": ", ".join(sorted(versions)),
            "cells": f"{len(self.done)} of {len(self.cells)} done",
        }


NOT_RUN = "not run yet"


def axes(cell: Cell) -> Axes:
    """What cells of one row have in common."""
    return cell.model, cell.transform, cell.workload, cell.reader


def model_fingerprint(trace: Task) -> str:
    """SHA-256 of what a traced model computes, as `offramp.models.identity.ModelIdentity.fingerprint`."""
    base, transforms = trace.recipe["model"]["fingerprint"], list(trace.recipe["model"]["transforms"])
    return sha256_of_text(canonical_json([base, transforms])) if transforms else str(base)


def savings(found: Finished) -> Iterator[Saving]:
    """What the tuner says at each floor; nothing of a task of another kind."""
    if found.cell.kind not in ("tune", "certify"):
        return
    for tuned in found.result["tuned"]:
        yield saving_of(tuned, machine_of(found))


def strategies_of(row: Row, cells: Sequence[Finished], floors: Sequence[float]) -> Iterator[Strategy]:
    """Every strategy that was replayed, tuned or decoded on a row. floors: those of the study."""
    for found in cells:
        if found.cell.kind in STRATEGIES:
            for one in STRATEGIES[found.cell.kind](row, found):
                yield one if one.floor else replace(one, floor=floor_of(one.agreement, floors))
