"""A run as its page takes it, read from the folder of its study: everything that is done so far."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from offramp.costs.machine import Machine, machine_fingerprint, machine_prices
from offramp.costs.machine_registry import find_machine
from offramp.costs.timings import TimingsProfile
from offramp.defaults import BYTES, LOCAL
from offramp.errors import DamagedFileError, shortened
from offramp.files import safe_name
from offramp.heads.file import read_heads
from offramp.kit.typed import from_json
from offramp.policies.figures import shared_fields
from offramp.policies.frontier import Frontier, frontier
from offramp.policies.prices import mean_position
from offramp.report import COMBINED_FILE, TRACES
from offramp.report.run_result import (
    Decoded,
    PriceList,
    RunProgress,
    RunResult,
    WorkloadResult,
    summarised_heads,
)
from offramp.studies.folder import FILE as PLAN_FILE
from offramp.studies.folder import PLAN, StudyFolder
from offramp.studies.journal import Event, RunStart, date_of
from offramp.studies.study import StudyPlan
from offramp.studies.study_tables import NONE, OWN
from offramp.studies.task import TRACE, StudyCell, Task, read_manifest
from offramp.studies.work.certify import CertifyWork
from offramp.studies.work.decode import DecodedPolicies, DecodeWork, NothingDecoded
from offramp.studies.work.heads import TRAINING, TRAINING_COST, Training
from offramp.studies.work.inputs import HEADS, profile_in
from offramp.studies.work.league import LeagueWork
from offramp.studies.work.score import ScoreWork
from offramp.studies.work.trace import FILE as PASSAGE_FILE
from offramp.studies.work.trace import PASSAGE, TracedModel, TraceWork
from offramp.studies.work.tune import TunedAnswers, TuneWork
from offramp.studies.work.work import Work
from offramp.timing.results import COMBINED, CombineResult, Timing
from offramp.tracing.manifest import read_manifest as read_trace_manifest
from offramp.tracing.progress import say
from offramp.tracing.trace import Trace
from offramp.tuning.verdict import Verdict

NOT_ASKED = "--no-decode was given"


class RunReader:
    """A run's folder with its plan; read again after each task, it holds more.

    Traces and what is drawn of them are kept from one reading to the next.
    """

    def __init__(self, path: Path) -> None:
        self.folder = StudyFolder(path)
        self.plan: StudyPlan = self.folder.read_plan()
        self.study = self.plan.study
        for (kind, workload), cells in Counter((one.kind, one.workload) for one in self.plan.cells).items():
            if cells > 1:
                what = f"it has {cells} cells of the kind {kind} for {shortened(workload)}, and a run has one"
                raise PLAN_FILE.damaged(path / PLAN, what)
        for problem in self.folder.journal.read().problems:
            say(problem)
        self._traces: dict[str, tuple[Trace, tuple[Frontier, ...]]] = {}

    def result(self, progress: RunProgress | None = None) -> RunResult:
        """What is done. Raises DamagedFileError for files whose bytes changed."""
        events = self.folder.journal.read().events
        finished = {event.task: event for event in events if event.event == "finished"}
        started = RunStart.last(events)
        call = started.call_in(self.folder.path)
        decoded = {
            name: one for name, task in self.tasks("decode") if (one := self._decoded(name, task, finished))
        }
        rows = [self._row(cell, finished) for cell in self._rows()]
        machine, model = self.machine(), self._model()
        plain, not_decoded = _measured(decoded.values(), machine), self._not_decoded(decoded)
        name = self.study.models[0].name if model is None else model.name
        return RunResult(
            model_name=name,
            layers=0 if model is None else model.layers,
            workloads=tuple(rows),
            provenance={
                **self._provenance(model, machine, rows, started),
                **({} if plain is not None else {"plain_decoding_not_timed": self._not_timed(not_decoded)}),
            },
            plain_seconds_per_token=plain,
            command=started.command_in(self.folder.path),
            hardware=_hardware(machine, rows),
            heads=summarised_heads(
                [
                    read_heads(self.heads_path(task))
                    for _, task in self.tasks("heads")
                    if self.folder.is_done(task)
                ]
            ),
            decoding=tuple(decoded.values()),
            not_decoded=not_decoded,
            progress=progress,
            combined=self._combined(model),
            training=self._training(),
            call=call,
            folder=str(self.folder.path),
            minutes=self._minutes(),
            other_texts=self.other_texts(),
        )

    def _minutes(self) -> float | None:
        """Of decoding for real that the run was given, None without any."""
        study = self.study
        stages = [stage for stage in (study.certify, study.decode) if stage is not None]
        seconds = sum(stage.seconds for stage in stages)
        return seconds * len(study.workloads) / 60.0 or None

    # --- tasks

    def tasks(self, kind: str) -> Iterator[tuple[str, Task]]:
        """The tasks of a kind with the name of their workload; heads and traces by those that need them."""
        for cell in self.plan.cells:
            task = self.plan.tasks[cell.task]
            if cell.kind == kind:
                yield cell.workload, task
            elif cell.kind == "score" and kind == "trace":
                yield cell.workload, self.plan.tasks[task.needs["trace"]]
            elif cell.kind == "score" and kind == "heads":
                trace = self.plan.tasks[task.needs["trace"]]
                if "heads" in trace.needs:
                    yield cell.workload, self.plan.tasks[trace.needs["heads"]]

    def _training(self) -> Training | None:
        """What training the exits took; the heads of all texts are the same where they were trained."""
        paths = (self.folder.task_folder(task) / TRAINING for _, task in self.tasks("heads"))
        return next((TRAINING_COST.read(path) for path in paths if path.is_file()), None)

    def heads_path(self, task: Task) -> Path:
        """Where the exit heads of a task lie."""
        return self.folder.task_folder(task) / HEADS

    def answers(self, workload: str) -> TunedAnswers:
        """The tuner's answers on a workload, none as long as there are none."""
        for kind in (CertifyWork, TuneWork):
            for name, task in self.tasks(kind.kind):
                if name == workload and self.folder.is_done(task):
                    return self.folder.result(kind, task)
        return TunedAnswers(())

    def verdicts(self, workload: str) -> tuple[Verdict, ...]:
        """A workload's, decided with the last evidence that is there: of decoding, the tuner, or replay."""
        kinds: tuple[type[Work[Any]], ...] = (DecodeWork, CertifyWork, TuneWork, LeagueWork)
        for kind in kinds:
            for name, task in self.tasks(kind.kind):
                if name == workload and self.folder.is_done(task):
                    decided: tuple[Verdict, ...] = self.folder.result(kind, task).verdicts
                    return decided
        return ()

    def _rows(self) -> Iterator[StudyCell]:
        """The cells of scores whose ranking is done too."""
        ranked = {name for name, task in self.tasks("league") if self.folder.is_done(task)}
        for cell in self.plan.cells:
            if (
                cell.kind == "score"
                and cell.workload in ranked
                and self.folder.is_done(self.plan.tasks[cell.task])
            ):
                yield cell

    # --- parts

    def _row(self, cell: StudyCell, finished: Mapping[str, Event]) -> WorkloadResult:
        score = self.plan.tasks[cell.task]
        task = self.plan.tasks[score.needs["trace"]]
        (ranked,) = (one for name, one in self.tasks("league") if name == cell.workload)
        trace, frontiers = self._trace(task)
        ranking = self.folder.result(LeagueWork, ranked)
        tuned = self.answers(cell.workload).tuned
        passages = PASSAGE_FILE.read(self.folder.task_folder(task) / PASSAGE)
        spent = [finished[one.key].seconds or 0.0 for one in (task, score) if one.key in finished]
        return WorkloadResult(
            name=cell.workload,
            mode=trace.request["workload"]["mode"],
            trace=trace,
            card=self.folder.result(ScoreWork, score).card,
            frontiers=frontiers,
            verdicts=self.verdicts(cell.workload),
            passage=passages.passage,
            notes=tuple(trace.provenance["notes"]),
            trace_folder=self.trace_place(cell.workload).as_posix(),
            seconds=sum(spent),
            league=ranking.entries,
            tuned=tuned,
            machines=ranking.machines,
            break_even=ranking.break_even,
        )

    def other_texts(self) -> tuple[str, ...]:
        """Texts that an earlier run into this folder has answers on, and this one is not of, by name."""
        names = set()
        for kind, key in self.folder.finished():
            folder = self.folder.folder_of_done(key) if kind == LeagueWork.kind else None
            if folder is None or (manifest := read_manifest(folder)) is None:
                continue
            trace = self.folder.folder_of_done(manifest.needs["trace"])
            with contextlib.suppress(DamagedFileError):  # which is no answer
                if trace is not None:
                    names.add(read_trace_manifest(trace / TRACE).request["workload"]["name"])
        return tuple(sorted(names - {workload.name for workload in self.study.workloads}))

    def trace_place(self, workload: str) -> Path:
        """Where the trace of a workload is found in the run's folder."""
        entry, transform = self.study.models[0].name, self.study.transforms[0].name
        model = entry if transform == NONE else f"{entry} + {transform}"
        return Path(TRACES) / safe_name(model) / safe_name(workload)

    def _trace(self, task: Task) -> tuple[Trace, tuple[Frontier, ...]]:
        if task.key not in self._traces:
            trace = Trace.load(self.folder.task_folder(task) / TRACE)
            self._traces[task.key] = trace, frontiers_of(trace)
        return self._traces[task.key]

    def _model(self) -> TracedModel | None:
        """The model as its first trace has it, None before there is one."""
        for _, task in self.tasks("trace"):
            if self.folder.is_done(task):
                return self.folder.result(TraceWork, task)
        return None

    def machine(self) -> Machine | None:
        """The machine that speed is predicted for; None while it is not timed and where bytes are counted."""
        source = self.study.machines[0].source
        if source == BYTES:
            return None
        return self.timings() if source == LOCAL else find_machine(source)

    def timings(self) -> TimingsProfile | None:
        """Of this machine; None while there are none that are fit to decide."""
        profiles = (task for task in self.plan.tasks.values() if task.kind == "profile")
        done = next((task for task in profiles if self.folder.is_done(task)), None)
        profile = None if done is None else profile_in(self.folder.task_folder(done))
        return None if profile is None or profile.unfit is not None else profile

    def _provenance(
        self,
        model: TracedModel | None,
        machine: Machine | None,
        rows: Sequence[WorkloadResult],
        started: RunStart,
    ) -> dict[str, Any]:
        unavailable = self.plan.unavailable
        missing = {"machine_not_timed": unavailable.get(LOCAL), "heads_not_fitted": unavailable.get(OWN)}
        return {
            **started.software,
            **({} if model is None else model.facts),
            **started.machine,
            "date": date_of(started.wall),
            "traced": {row.name: _traced(row.trace) for row in rows},
            **({} if machine is None else {"hardware_fingerprint": machine_fingerprint(machine)}),
            **{name: why for name, why in missing.items() if why is not None},
        }

    def _not_timed(self, not_decoded: Mapping[str, str]) -> str:
        """Why plain decoding was not timed."""
        return self.plan.unavailable.get(LOCAL) or next(iter(not_decoded.values()), "nothing was decoded yet")

    def _decoded(self, workload: str, task: Task, finished: Mapping[str, Event]) -> Decoded | None:
        if not self.folder.is_done(task):
            return None
        decoding = self.folder.result(DecodeWork, task)
        if isinstance(decoding, NothingDecoded):
            return None
        date = date_of(finished[task.key].wall if task.key in finished else 0.0)
        bench = replace(decoding.bench, circumstances={**decoding.bench.circumstances, "date": date})
        fields = shared_fields(decoding, DecodedPolicies) | {"bench": bench}
        return Decoded(**fields, workload=workload)

    def _not_decoded(self, decoded: Mapping[str, Decoded]) -> dict[str, str]:
        """By workload, why nothing was; nothing of what is yet to come."""
        reasons = {}
        asked = dict(self.tasks("decode"))
        for name in (workload.name for workload in self.study.workloads):
            if name in decoded:
                continue
            if name not in asked:
                reasons[name] = self.plan.unavailable.get(LOCAL, NOT_ASKED) if self.study.large else NOT_ASKED
            elif (failure := self.folder.failure(asked[name])) is not None:
                reasons[name] = failure.what
            elif self.folder.is_done(asked[name]):
                left = self.folder.result(DecodeWork, asked[name])
                assert isinstance(left, NothingDecoded)  # or it is among what was decoded
                reasons[name] = left.why_nothing
        return {
            **reasons,
            **{name: why for name, why in self.plan.unavailable.items() if name not in (LOCAL, OWN)},
        }

    def _combined(self, model: TracedModel | None) -> CombineResult | None:
        """What `offramp bench --combine` left in the folder; None without it, or if it is of another model.

        Raises DamagedFileError if it was edited.
        """
        path = self.folder.path / COMBINED_FILE
        if not path.is_file() or model is None:
            return None
        combined = COMBINED.read(path)
        same = combined.circumstances["model_fingerprint"] == model.facts["model_fingerprint"]
        return combined if same else None


@dataclass(frozen=True)
class ProfileCheck:
    """A profile's plain step beside transformers' own `generate()`; None where that was not timed."""

    plain_step_over_generate: float | None = None
    generate_seconds_per_token: float | None = None


@dataclass(frozen=True)
class ProfileMachine:
    """Where it was measured."""

    threads: int | None = None


@dataclass(frozen=True)
class ProfileCircumstances:
    """What a page says of a profile's details. note: how it was come by."""

    check: ProfileCheck = ProfileCheck()
    machine: ProfileMachine = ProfileMachine()
    load_average: tuple[float, ...] = ()
    note: str | None = None

    @classmethod
    def of(cls, machine: Machine | None) -> ProfileCircumstances:
        """Of a machine; nothing is known of one that is no measured profile."""
        return from_json(cls, machine.details) if isinstance(machine, TimingsProfile) else cls()

    @property
    def load(self) -> float | None:
        """The machine's load average at the start."""
        return self.load_average[0] if self.load_average else None


def _hardware(machine: Machine | None, rows: Sequence[WorkloadResult]) -> PriceList | None:
    """What the page shows of the machine: its prices of one token."""
    if machine is None or not rows:
        return None
    trace, around = rows[0].trace, ProfileCircumstances.of(machine)
    return PriceList(
        machine.name,
        machine.source,
        machine_prices(machine, trace.shape, mean_position(trace)),
        self_check_ratio=around.check.plain_step_over_generate,
        threads=around.machine.threads,
        load=around.load,
        note=around.note,
    )


def _measured(decoded: Iterable[Decoded], machine: Machine | None) -> Timing | None:
    """Seconds per token of plain decoding: of the decoding's own measurement, else of the profile's."""
    timings = (measured.bench.timing(measured.bench.plain) for measured in decoded)
    found = next((timing for timing in timings if timing is not None), None)
    around = ProfileCircumstances.of(machine)
    seconds, threads, load = around.check.generate_seconds_per_token, around.machine.threads, around.load
    if found is not None or seconds is None or threads is None or load is None:
        return found
    return Timing(seconds, None, None, threads, load)


def _traced(trace: Trace) -> dict[str, Any]:
    """What was asked for, and the text a trace was measured on: licence, source and fingerprints."""
    request = trace.request
    return {
        **{key: request["workload"][key] for key in ("licence", "source", "fingerprint")},
        **{key: request[key] for key in ("tokens", "context", "document_tokens", "exits", "reductions")},
        "request_fingerprint": trace.provenance["request_fingerprint"],
    }


def frontiers_of(trace: Trace) -> tuple[Frontier, ...]:
    """The rules the page draws: max_prob on every exit, a few exits and one, and all signals on a few."""
    below = [int(exit) for exit in trace.exits[:-1]]
    if not below:
        return ()
    few = tuple(sorted({below[len(below) // 2], below[len(below) * 3 // 4], below[-1]}))
    rules = [("max_prob", tuple(below)), ("max_prob", few), ("margin", few), ("entropy", few)]
    rules.append(("max_prob", (below[-1],)))
    return tuple(frontier(trace, signal, exits) for signal, exits in dict.fromkeys(rules))
