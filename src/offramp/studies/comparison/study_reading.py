"""What a study's folder gives to a comparison: every cell that is done, and why the others are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from offramp.errors import ForeignFileError, InputError
from offramp.files import canonical_json, sha256_of_text
from offramp.studies.comparison.equality import SETTINGS
from offramp.studies.comparison.results import Comparison, FloorOn, ModelFacts, Row, Strategy
from offramp.studies.comparison.strategies import (
    Finished,
    agreement_floor,
    league_speedups,
    measured_speedups,
    strategies_of,
)
from offramp.studies.entries import Settings
from offramp.studies.folder import Condition, StudyFolder
from offramp.studies.manifest import TRACE
from offramp.studies.study import Plan
from offramp.studies.task import Cell, Task
from offramp.studies.work.decode import Decoding
from offramp.studies.work.heads import TRAINING, TRAINING_COST, Training
from offramp.studies.work.league import Ranking
from offramp.studies.work.registry import works
from offramp.studies.work.score import Scored
from offramp.timing.results import CombineResult, read_combined
from offramp.tracing.manifest import MANIFEST, read_manifest
from offramp.tuning.ranking import RankedPolicy
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import Verdict

COMBINED = "combined.json"
"""What `offramp bench --combine` adds to a run's folder."""
FACTS = {"base", "family", "generation", "released", "parameters", "kind", "stage"}
APART = "combine"
"""The kind of cells that are no row and no strategy of one."""
NOT_RUN = "not run yet"
CONTEXT_UNKNOWN = (
    "The trace is gone or damaged: with which context it was made is not known, and not held against others."
)


def read_study_folder(path: Path) -> Comparison:
    """What the finished cells of a study hold.

    Raises InputError for a plan that a newer offramp wrote or a result that an older one did,
    DamagedFileError for one whose bytes changed.
    """
    return StudyReader(StudyFolder(path)).content()


def machine_words(machine: Mapping[str, Any] | str) -> str:
    """A machine in words, as a task's recipe holds it: the facts of one that is timed, with processor and
    torch's threads; or, of one that is priced by a profile, SHA-256 of the profile's figures."""
    if isinstance(machine, str):
        return f"profile {machine[:12]}"
    threads = machine["threads"]
    return f"{machine['processor']}, {threads} thread{'' if threads == 1 else 's'}"


class StudyReader:
    """A study's folder with its plan, and which cells are done."""

    def __init__(self, folder: StudyFolder) -> None:
        self.folder = folder
        self.plan: Plan = folder.read_plan()
        self._results: dict[str, Any] = {}
        self.models = {model.name: model for model in self.plan.study.models}
        self.conditions: dict[str, Condition] = {}
        for key, task in self.plan.tasks.items():
            # What rests on a damaged file is not shown before that is made again.
            rests = any(self.conditions[need] == "damaged" for need in task.needs.values())
            self.conditions[key] = "damaged" if rests else folder.condition(task)
        self.done = [cell for cell in self.plan.cells if self.conditions[cell.task] == "done"]

    @property
    def settings(self) -> Settings:
        """The study file's table [study]."""
        return self.plan.study.settings

    def content(self) -> Comparison:
        """Everything at once."""
        by_axes: dict[tuple[str, ...], list[Finished]] = {}
        for cell in self.done:
            if cell.kind != APART:
                axes = (cell.model, cell.transform, cell.workload, cell.reader)
                by_axes.setdefault(axes, []).append(self.finished(cell))
        rows: list[Row] = []
        strategies: list[Strategy] = []
        for cells in by_axes.values():
            for score in cells:
                if score.cell.kind == "score":
                    row = self.row(score, cells)
                    rows.append(row)
                    strategies += strategies_of(row, cells, self.settings.floors)
        title = self.settings.title or self.settings.name
        return Comparison(
            title=f"{title} ({self.folder.path.name})" if self.plan.is_run else title,
            description=self.settings.description,
            rows=tuple(rows),
            strategies=tuple(strategies),
            combined=(*(self.combined(cell) for cell in self.done if cell.kind == APART), *self.added()),
            failures=self.failures(),
            notes=(*self.undecoded(), *self.untold()),
            provenance=self.provenance(),
            machines=self.machines(),
        )

    def untold(self) -> Iterator[str]:
        """What a run does not say of its model."""
        if self.plan.is_run:
            yield (
                f"{self.settings.title} comes from a run, which does not say what it was trained from: "
                "unless a study beside it does, its name counts as an independent training."
            )

    def added(self) -> Iterator[CombineResult]:
        """Accelerations together, where they were measured into a run's folder."""
        path = self.folder.path / COMBINED
        if self.plan.is_run and path.is_file():
            yield read_combined(path)

    def machines(self) -> dict[str, str]:
        """What the machines of finished cells are, by the names that the study gives them."""
        machines: dict[str, str] = {}
        for cell in self.done:
            if cell.machine and cell.kind != APART:
                task = self.plan.tasks[cell.task]
                timed = self.plan.tasks[task.needs["profile"]] if "profile" in task.needs else task
                if "machine" in timed.recipe:
                    machines[cell.machine] = machine_words(timed.recipe["machine"])
        return machines

    def finished(self, cell: Cell) -> Finished:
        """A cell with its task's result. Raises what `result` raises."""
        return Finished(cell, self.plan.tasks[cell.task], self.result(cell.task))

    def result(self, key: str) -> Any:
        """A task's result, read and verified once.

        Raises DamagedFileError if its bytes changed, InputError for one of an older offramp.
        """
        if key not in self._results:
            task = self.plan.tasks[key]
            try:
                self._results[key] = self.folder.result(works()[task.kind], task)
            except ForeignFileError as error:
                what = "run" if self.plan.is_run else "study"
                raise InputError(
                    f"the {what}'s {task.kind} results are those of an older offramp ({error.__cause__})",
                    where=str(self.folder.path),
                    fix="do it again with this offramp, which keeps what it can read: "
                    + self.folder.command(),
                ) from error
        return self._results[key]

    def row(self, score: Finished, cells: Sequence[Finished]) -> Row:
        """The row of one score. cells: with the same axes; the tuner, the league, decoding."""
        cell = score.cell
        scored: Scored = score.result
        trace = self.plan.tasks[score.task.needs["trace"]]
        settings = self.traced_settings(trace)
        unknown = [CONTEXT_UNKNOWN] if "context" in trace.recipe and "context" not in settings else []
        predicted: dict[FloorOn, float] = {}
        measured: dict[FloorOn, float] = {}
        for finished in cells:
            if finished.cell.kind == "league":
                predicted |= league_speedups(finished)
            if finished.cell.kind == "decode":
                measured |= measured_speedups(finished, self.league_of(finished.cell))
        kept = {**vars(scored), "notes": (*scored.notes, *scored.card.notes, *unknown)}
        return Row(
            **kept,
            model=self.traced_facts(cell, scored.layers),
            workload=cell.workload,
            heads=cell.reader,
            answers=tuple(answer for finished in cells for answer in answers_of(finished)),
            verdicts=verdicts_of(cells),
            exit_speedup=predicted,
            measured_speedup=measured,
            model_fingerprint=model_fingerprint(trace),
            settings=settings,
            training=self.training_of(trace),
            trace_folder=str(self.folder.task_folder(trace) / TRACE),
            source=f"run {self.folder.path.name}" if self.plan.is_run else f"study {self.settings.name}",
        )

    def training_of(self, trace: Task) -> Training | None:
        """What it took to train the exits of a trace, None where they were not trained."""
        heads = trace.needs.get("heads")
        path = None if heads is None else self.folder.task_folder(self.plan.tasks[heads]) / TRAINING
        return TRAINING_COST.read(path) if path is not None and path.is_file() else None

    def league_of(self, cell: Cell) -> Sequence[RankedPolicy]:
        """Entries of the league whose policies a cell decoded; none if its files are damaged or gone."""
        key = self.plan.tasks[cell.task].needs["league"]
        if self.conditions[key] != "done":
            return ()
        ranking: Ranking = self.result(key)
        return ranking.entries

    def traced_settings(self, trace: Task) -> dict[str, Any]:
        """How a task traced, as its recipe says; a default context is the trace's own, and is not known
        where that is gone or damaged."""
        settings = {name: trace.recipe[name] for name in SETTINGS if name in trace.recipe}
        if "context" in settings and settings["context"] is None:
            folder = self.folder.task_folder(trace) / TRACE
            kept = self.conditions[trace.key] == "done" and (folder / MANIFEST).is_file()
            del settings["context"]
            if kept:
                settings["context"] = read_manifest(folder).request["context"]
        return settings

    def facts(self, cell: Cell) -> ModelFacts:
        """The model of a cell as the study's file describes it."""
        model = self.models[cell.model]
        return ModelFacts(cell.model, transform=cell.transform, **model.model_dump(include=FACTS))

    def traced_facts(self, cell: Cell, layers: int) -> ModelFacts:
        """The same of a traced one, which has not the parameters of its file if it has fewer layers."""
        facts, whole = self.facts(cell), self.models[cell.model].layers
        return facts if whole in (None, layers) else replace(facts, parameters=None)

    def undecoded(self) -> Iterator[str]:
        """Where nothing was decoded, since no policy of the league exits."""
        for cell in self.done:
            if cell.kind == "decode":
                decoding: Decoding = self.result(cell.task)
                if decoding.bench is None:
                    yield f"{cell.name}: nothing was decoded, {decoding.why_nothing}."

    def combined(self, cell: Cell) -> CombineResult:
        """Accelerations together, under the names that the study gives."""
        combined: CombineResult = self.result(cell.task).combined
        return replace(combined, model=self.facts(cell).shown, workload=cell.workload)

    def failures(self) -> dict[str, str]:
        """Why each cell is not done that is not, by name."""
        undone = [cell for cell in self.plan.cells if self.conditions[cell.task] != "done"]
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
            return "damaged: a file of it changed since it was done; the next run does it again"
        return NOT_RUN

    def provenance(self) -> dict[str, Any]:
        """What the figures rest on: the study and its sizes, versions, fingerprint of the code."""
        tasks = [self.plan.tasks[cell.task] for cell in self.done]
        versions = {
            f"{name} {version}" for task in tasks for name, version in task.recipe["versions"].items()
        }
        sizes = {"tokens", "dtype", "threads", "floors", "seed", "draws"}
        return {
            "study_fingerprint": self.plan.study.fingerprint,
            **self.settings.model_dump(mode="json", include=sizes),
            "versions": ", ".join(sorted(versions)),
            "cells": f"{len(self.done)} of {len(self.plan.cells)} done",
        }


def model_fingerprint(trace: Task) -> str:
    """SHA-256 of what a traced model computes, as `offramp.models.identity.ModelIdentity.fingerprint`."""
    base, transforms = trace.recipe["model"]["fingerprint"], list(trace.recipe["model"]["transforms"])
    return sha256_of_text(canonical_json([base, transforms])) if transforms else str(base)


def answers_of(finished: Finished) -> Iterator[Tuned]:
    """What the tuner says at each floor, on the machine by its name in the study; nothing of other tasks."""
    if finished.cell.kind in ("tune", "certify"):
        for tuned in finished.result.tuned:
            yield replace(tuned, machine=finished.machine)


def verdicts_of(cells: Sequence[Finished]) -> dict[FloorOn, Verdict]:
    """What the cells of a row decide where something was tuned; decoding has the last evidence."""
    tuned = [cell for cell in cells if cell.cell.kind in ("tune", "certify")]
    timed = [cell for cell in cells if {"tune", "certify"} & {*cell.task.needs}]
    return {
        (agreement_floor(verdict.floor), cell.machine): verdict
        for cell in (*tuned, *timed)
        for verdict in cell.result.verdicts
    }
