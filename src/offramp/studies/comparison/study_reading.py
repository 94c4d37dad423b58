"""What a study's folder gives to a comparison: rows, strategies, and why its other cells are not done."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offramp.defaults import BYTES, LOCAL
from offramp.errors import ForeignFileError, InputError
from offramp.files import canonical_json, sha256_of_text
from offramp.policies.figures import PLAIN_DECODING, PolicyFigures, shared_fields
from offramp.policies.replay import ReplayIntervals
from offramp.scoring.estimate import Estimate
from offramp.serving.results import LoadResult
from offramp.studies.comparison.equality import DESCRIPTION, SETTINGS
from offramp.studies.comparison.results import (
    Comparison,
    FloorOn,
    ModelFacts,
    Place,
    Row,
    StrategyResult,
    UnderLoad,
)
from offramp.studies.folder import Condition, StudyFolder
from offramp.studies.study import StudyPlan
from offramp.studies.study_tables import StudySettings
from offramp.studies.task import TRACE, StudyCell, Task
from offramp.studies.work.decode import DecodedChoice, DecodedPolicies, DecodingResult, NothingDecoded
from offramp.studies.work.heads import TRAINING, TRAINING_COST, Training
from offramp.studies.work.league import Ranking
from offramp.studies.work.load import LoadWork
from offramp.studies.work.replay import Replayed
from offramp.studies.work.score import ScoredTrace
from offramp.studies.work.work import works
from offramp.timing.results import COMBINED, TOO_FEW_PROMPTS, BenchResult, CombineResult, Contender
from offramp.tracing.manifest import MANIFEST, read_manifest
from offramp.tuning.floor import Floor
from offramp.tuning.pool import FULL_MODEL
from offramp.tuning.ranking import RankedPolicy
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import Verdict

TUNED = "tuned"
BY_DEFINITION = "by definition"


@dataclass(frozen=True)
class Finished:
    """A cell that is done, with its task and that task's result."""

    cell: StudyCell
    task: Task
    result: Any

    @property
    def machine(self) -> str:
        """The cell's; what is timed is timed on this one."""
        return self.cell.machine or LOCAL

    def on(self, row: Row) -> Place:
        """Where its strategies hold."""
        return row.on(self.machine)


def agreement_floor(value: float) -> Floor:
    """A floor on agreement: what studies ask for."""
    return Floor("agreement", value)


def strategies_of(row: Row, cells: Sequence[Finished], floors: Sequence[float]) -> Iterator[StrategyResult]:
    """Every strategy that was replayed, tuned or decoded on a row. floors: those of the study."""
    for finished in cells:
        if finished.cell.kind in STRATEGIES:
            for strategy in STRATEGIES[finished.cell.kind](row, finished):
                floor, characters = strategy.floor, strategy.characters_per_second
                if strategy.basis == "predicted":
                    characters = characters_per_second(row.characters_per_token, strategy.seconds_per_token)
                yield replace(
                    strategy,
                    floor=floor or floor_of(strategy.agreement, floors),
                    characters_per_second=characters,
                )


def floor_of(agreement: Estimate, floors: Sequence[float]) -> Floor:
    """The floor that a policy is held against which was chosen for none: the strictest that its agreement
    reaches, else the loosest, which it misses."""
    reached = [floor for floor in floors if agreement.value is not None and agreement.value >= floor]
    return agreement_floor(max(reached, default=min(floors)))


def characters_per_second(
    characters_per_token: float | None, seconds_per_token: float | None
) -> float | None:
    """Speed in text instead of tokens; None where one of the two is not known."""
    if characters_per_token is None or not seconds_per_token:
        return None
    return characters_per_token / seconds_per_token


def league_strategies(row: Row, finished: Finished) -> Iterator[StrategyResult]:
    """The best member of every family at every floor, predicted."""
    for ranked in finished.result.entries:
        yield StrategyResult(
            **shared_fields(ranked, PolicyFigures),
            place=finished.on(row),
            family=ranked.family,
            floor=agreement_floor(ranked.floor),
            basis="predicted",
            seconds_per_token=None if finished.machine == BYTES else ranked.seconds_per_token.value,
            chosen=ranked.chosen,
        )


def tuned_strategies(row: Row, finished: Finished) -> Iterator[StrategyResult]:
    """The tuner's answer at every floor, predicted on documents that neither search nor certificate saw."""
    for tuned in finished.result.tuned:
        yield StrategyResult(
            **{**shared_fields(tuned, PolicyFigures), "agreement": tuned.quality},
            place=finished.on(row),
            family=TUNED,
            floor=tuned.floor,
            basis="predicted",
            seconds_per_token=tuned.seconds_per_token.value,
        )


def under_load(row: Row, finished: Finished) -> UnderLoad:
    """What policies come to under one load."""
    result: LoadResult = finished.result
    without = [server for server in result.servers if server not in result.with_exits]
    plain = max((server.capacity for server in without), key=lambda capacity: capacity.value)
    return UnderLoad(
        place=finished.on(row),
        load=finished.cell.load,
        answer=result.answer,
        policy=result.best.policy if result.best else "",
        capacity=result.best.capacity if result.best else plain,
        plain_capacity=plain,
    )


def replayed_strategies(row: Row, finished: Finished) -> Iterator[StrategyResult]:
    """One policy of the study's file, predicted; it is held against the study's floors (`floor_of`)."""
    replayed: Replayed = finished.result
    figures = shared_fields(replayed.replay, PolicyFigures) | {"reference_agreement": None}
    intervals = shared_fields(replayed, ReplayIntervals)
    yield StrategyResult(
        **{**figures, **intervals},
        place=finished.on(row),
        family=finished.cell.policy,
        floor=None,
        basis="predicted",
        seconds_per_token=replayed.replay.seconds_per_token,
    )


def decoded_strategies(row: Row, finished: Finished) -> Iterator[StrategyResult]:
    """Plain decoding and the best policies of the league, for real; the league's fastest is its choice.

    Nothing if no policy of the league exits.
    """
    decoding, place = finished.result, finished.on(row)
    if not isinstance(decoding, DecodedPolicies):
        return
    bench, sure = decoding.bench, Estimate(1.0, no_interval=BY_DEFINITION)
    yield _timed(
        StrategyResult(
            place=place,
            family=FULL_MODEL,
            policy=PLAIN_DECODING,
            kv="",
            floor=agreement_floor(finished.task.recipe["floor"]),
            basis="measured",
            agreement=sure,
            skip_ratio=Estimate(0.0, no_interval=BY_DEFINITION),
            net_speedup=sure,
        ),
        bench,
        bench.contender(bench.plain),
        decoding.characters_per_token,
    )
    for rank, choice in enumerate(decoding.chosen):
        yield _decoded(row, finished, choice, chosen=rank == 0 or "certify" in finished.task.needs)


def _decoded(row: Row, finished: Finished, choice: DecodedChoice, *, chosen: bool) -> StrategyResult:
    """A policy as it was decoded. chosen: for its floor."""
    bench: BenchResult = finished.result.bench
    contender, quality = bench.contender(choice.contender), choice.free_running
    credit, over = credit_of(bench, choice.contender, choice.floor)
    layers = None if contender.counted is None else contender.counted.layers
    strategy = StrategyResult(
        place=finished.on(row),
        family=choice.family,
        policy=choice.policy,
        kv=choice.kv,
        floor=agreement_floor(choice.floor),
        basis="measured",
        agreement=_measured(None if quality is None else quality.agreement, "not judged"),
        skip_ratio=skipped(layers, row.exits[-1]),
        net_speedup=_measured(contender.ratio, contender.left_out or "not timed"),
        chosen=chosen,
        gain=contender.gain,
        credit=credit,
        credit_over=over,
    )
    return _timed(strategy, bench, contender, choice.characters_per_token)


def _timed(
    strategy: StrategyResult, bench: BenchResult, contender: Contender, characters_per_token: float | None
) -> StrategyResult:
    """With what the stopwatch says of its contender."""
    seconds = None if contender.seconds_per_token is None else contender.seconds_per_token.value
    return replace(
        strategy,
        seconds_per_token=seconds,
        characters_per_second=characters_per_second(characters_per_token, seconds),
        answer=answer_text(contender, bench.defects),
        defect=contender.left_out is None and contender.answer == "defect",
    )


def _measured(interval: Estimate[float] | None, undefined: str) -> Estimate:
    """An estimate of a measurement. undefined: why there is none."""
    if interval is None:
        return Estimate(None, undefined=undefined)
    no_interval = TOO_FEW_PROMPTS if interval.low is None else None
    return Estimate(interval.value, interval.low, interval.high, no_interval=no_interval)


def skipped(layers_per_token: float | None, layers: int) -> Estimate:
    """Share of layers not executed, of those that hooks counted per new token."""
    if layers_per_token is None:
        return Estimate(None, undefined="layers were not counted")
    return Estimate(1.0 - layers_per_token / layers, no_interval="counted, not resampled")


def answer_text(contender: Contender, defects: Sequence[str]) -> str:
    """What a timing answers, in words: "faster", "unresolved at ± 3.4 %", "defect: ...", "left out: ..."."""
    if contender.left_out is not None:
        return f"left out: {contender.left_out}"
    if contender.answer == "defect":
        return f"defect: {'; '.join(defects)}" if defects else "defect"
    if contender.answer == "unresolved" and contender.shortage is not None:
        return contender.shortage
    if contender.answer == "unresolved" and contender.resolution is not None:
        return f"unresolved at ± {100 * contender.resolution:.1f} %"
    return contender.answer


def credit_of(bench: BenchResult, name: str, floor: float) -> tuple[Estimate, str]:
    """A contender's credit at a floor, and the name of what it is over.

    Undefined, with the reason, unless all that needs no exits took turns with it.
    """
    missing, credit = bench.untimed_rivals, bench.credit(name, floor)
    if missing:
        which = " and ".join(missing)
        return Estimate(None, undefined=f"not timed beside it: {which}"), ""
    if credit is None:
        return Estimate(None, undefined="its times on the prompts say nothing"), ""
    return credit.estimate, credit.over


def league_speedups(finished: Finished) -> dict[FloorOn, float]:
    """Net speedup of what the league chose at each floor."""
    return {
        (agreement_floor(ranked.floor), finished.machine): ranked.net_speedup.value
        for ranked in finished.result.entries
        if ranked.chosen and ranked.net_speedup.value is not None
    }


def measured_speedups(finished: Finished, entries: Sequence[RankedPolicy]) -> dict[FloorOn, float]:
    """Net speedup that the stopwatch gives what the league chose.

    Where it chose never to exit, 1: plain decoding saves nothing of its own time, and no stopwatch need say
    so. Else of the league's fastest policy that exits, or of each floor's where they were to be certified;
    nothing if the timing has a defect, or left it out.
    finished: a decode cell. entries: of the league whose policies it decoded.
    """
    certified, decoding = "certify" in finished.task.needs, finished.result
    if not certified:
        floor = finished.task.recipe["floor"]
        if _chooses_never(entries, floor):
            return {(agreement_floor(floor), finished.machine): 1.0}
    if not isinstance(decoding, DecodedPolicies) or decoding.bench.defects:
        return {}
    ratios = {contender.name: contender.ratio for contender in decoding.bench.contenders}
    return {
        (agreement_floor(choice.floor), finished.machine): ratio.value
        for choice in (decoding.chosen if certified else decoding.chosen[:1])
        if (ratio := ratios[choice.contender]) is not None
    }


def _chooses_never(entries: Sequence[RankedPolicy], floor: float) -> bool:
    """Whether the choice of a league at a floor is plain decoding; an empty league chose nothing."""
    return any(ranked.chosen and ranked.plain and math.isclose(ranked.floor, floor) for ranked in entries)


STRATEGIES: Mapping[str, Callable[[Row, Finished], Iterator[StrategyResult]]] = {
    "league": league_strategies,
    "tune": tuned_strategies,
    "certify": tuned_strategies,
    "replay": replayed_strategies,
    "decode": decoded_strategies,
}
"""By the kind of task."""


COMBINED_FILE = "combined.json"
"""What `offramp bench --combine` adds to a run's folder."""
APART = "combine"
"""The kind of cells that are no row and no strategy of one."""
NOT_RUN = "not run yet"
DAMAGED = "damaged: a file of it changed since it was done; the next run does it again"
UNTOLD = (
    "{} comes from a run, which does not say what it was trained from: unless a study beside it does, its "
    "name counts as an independent training."
)
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
        self.plan: StudyPlan = folder.read_plan()
        self._results: dict[str, Any] = {}
        self.models = {model.name: model for model in self.plan.study.models}
        self.conditions: dict[str, Condition] = {}
        for key, task in self.plan.tasks.items():
            # What rests on a damaged file is not shown before that is made again.
            rests = any(self.conditions[need] == "damaged" for need in task.needs.values())
            self.conditions[key] = "damaged" if rests else folder.condition(task)
        self.done = [cell for cell in self.plan.cells if self.conditions[cell.task] == "done"]

    @property
    def settings(self) -> StudySettings:
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
        strategies: list[StrategyResult] = []
        loads: list[UnderLoad] = []
        for cells in by_axes.values():
            for score in cells:
                if score.cell.kind == "score":
                    row = self.row(score, cells)
                    rows.append(row)
                    strategies += strategies_of(row, cells, self.settings.floors)
                    loads += [under_load(row, cell) for cell in cells if cell.cell.kind == LoadWork.kind]
        title = self.settings.title or self.settings.name
        return Comparison(
            title=f"{title} ({self.folder.path.name})" if self.plan.is_run else title,
            description=self.settings.description,
            rows=tuple(rows),
            strategies=tuple(strategies),
            combined=(*(self.combined(cell) for cell in self.done if cell.kind == APART), *self.added()),
            loads=tuple(loads),
            failures=self.failures(),
            notes=(*self.undecoded(), *([UNTOLD.format(title)] if self.plan.is_run else ())),
            provenance=self.provenance(),
            machines=self.machines(),
        )

    def added(self) -> Iterator[CombineResult]:
        """Accelerations together, where they were measured into a run's folder."""
        path = self.folder.path / COMBINED_FILE
        if self.plan.is_run and path.is_file():
            yield COMBINED.read(path)

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

    def finished(self, cell: StudyCell) -> Finished:
        """A cell with its task's result. Raises what `result` raises."""
        return Finished(cell, self.plan.tasks[cell.task], self.result(cell.task))

    def result(self, key: str) -> Any:
        """A task's result, read and verified once.

        Raises DamagedFileError if its bytes changed, InputError for one of an older offramp, or
        that says what cannot be.
        """
        if key not in self._results:
            task = self.plan.tasks[key]
            try:
                self._results[key] = self.folder.result(works()[task.kind], task)
            except ForeignFileError as error:
                what = "run" if self.plan.is_run else "study"
                raise InputError(
                    f"the {what}'s {task.kind} results are not what this offramp writes ({error.__cause__})",
                    where=str(self.folder.path),
                    fix="do it again with this offramp, which keeps what it can read: "
                    + self.folder.command(),
                ) from error
        return self._results[key]

    def row(self, score: Finished, cells: Sequence[Finished]) -> Row:
        """The row of one score. cells: with the same axes; the tuner, the league, decoding."""
        cell = score.cell
        scored: ScoredTrace = score.result
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

    def league_of(self, cell: StudyCell) -> Sequence[RankedPolicy]:
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

    def facts(self, cell: StudyCell) -> ModelFacts:
        """The model of a cell as the study's file describes it."""
        model = self.models[cell.model]
        return ModelFacts(
            cell.model, transform=cell.transform, **model.model_dump(include={"base", *DESCRIPTION})
        )

    def traced_facts(self, cell: StudyCell, layers: int) -> ModelFacts:
        """The same of a traced one, which has not the parameters of its file if it has fewer layers."""
        facts, whole = self.facts(cell), self.models[cell.model].layers
        return facts if whole in (None, layers) else replace(facts, parameters=None)

    def undecoded(self) -> Iterator[str]:
        """Where nothing was decoded, since no policy of the league exits."""
        for cell in self.done:
            if cell.kind == "decode":
                decoding: DecodingResult = self.result(cell.task)
                if isinstance(decoding, NothingDecoded):
                    yield f"{cell.name}: nothing was decoded, {decoding.why_nothing}."

    def combined(self, cell: StudyCell) -> CombineResult:
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
            return DAMAGED
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
    decoded = [cell for cell in cells if cell.cell.kind == "decode"]
    timed = [cell for cell in decoded if {"tune", "certify"} & {*cell.task.needs}]
    return {
        (agreement_floor(verdict.floor), cell.machine): verdict
        for cell in (*tuned, *timed)
        for verdict in cell.result.verdicts
    }
