"""`offramp run`, carried out: the study that it is, its tasks in turn in this process, a page after each."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from offramp.costs.machine_registry import find_machine, processor_name
from offramp.defaults import BYTES, DELTA, FLOORS, LOCAL, ROUNDS
from offramp.errors import DamagedFileError, InputError, ModelError, OfframpError, printable
from offramp.heads.at_work import require_exits
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import EXITS_FILE, read_heads
from offramp.kit.code import code_of
from offramp.kit.given_file import Source
from offramp.kit.typed import to_json
from offramp.models.devices import CPU, device_name
from offramp.models.model import Model
from offramp.models.process import with_threads
from offramp.report import REPORT_FILE
from offramp.report.formats import whole_percent
from offramp.report.page import write_report
from offramp.report.run_findings import Findings
from offramp.report.run_reading import RunReader
from offramp.report.run_result import RunProgress, RunResult
from offramp.runs.folder import RUN_FOLDER, SUMMARY_FILE, default_folder
from offramp.runs.outputs import show_trace, write_outputs
from offramp.runs.request import DECODE_MINUTES, Run
from offramp.studies.folder import StudyFolder
from offramp.studies.journal import STARTED, RunStart
from offramp.studies.plan import make_plan
from offramp.studies.runner import run_task
from offramp.studies.study import INLINE, Study, StudyPlan
from offramp.studies.study_checks import check_study
from offramp.studies.study_tables import AUTO, NONE, OWN
from offramp.studies.task import Task
from offramp.studies.task_costs import STARTING_SECONDS
from offramp.studies.work.trace import TraceWork
from offramp.studies.work.work import ModelCache, WorkContext
from offramp.tracing.loading import ModelRequest, stays_on_disk
from offramp.tracing.plan import plan_trace, usable_context
from offramp.tracing.progress import say, stage
from offramp.tracing.request import library_versions, parse_exits
from offramp.tracing.streamed_layers import require_given_text
from offramp.training.record import record_of
from offramp.tuning.bounds import documents_for
from offramp.tuning.verdict import from_main
from offramp.workloads.packing import PlannedAnswer
from offramp.workloads.workload import Workload


def describe_software() -> dict[str, Any]:
    """Versions of Python and of the libraries that compute."""
    own = {name: importlib.metadata.version(name) for name in ("offramp", "pyarrow")}
    return {"python": platform.python_version(), **library_versions(), **own}


def describe_machine(device: str = CPU) -> dict[str, Any]:
    """Processor, cores, threads, memory and load, and the device that computes, with its name."""
    name = {} if device == CPU else {"device_name": device_name(device)}
    return {
        "device": device,
        **name,
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "not set"),
    }


SIGNALS = ("logit_gap", "restricted")
"""Recorded by every run: they cost next to nothing, and cheap probes are where a policy can win."""

FITTING_TOKENS = 200
CLASSIFIERS = ("correctness",)
"""What a run fits by itself on each text: a classifier of the hidden state, whose probe is the cheapest."""

DECODE_THREADS = "decode_threads"
"""Of what a run's journal says of the machine: the threads that it decodes with."""

CERTIFYING = 0.42
"""Share of these that reruns and documents for certificates may take; the rest is for the stopwatch."""


def run_study(
    asked: Run,
    model: ModelRequest,
    workloads: Sequence[Workload],
    given: ExitHeads | None,
    threads: int,
    decode_threads: int | None,
    *,
    streamed: bool,
    unavailable: Mapping[str, str],
) -> Study:
    """The study of a run.

    given: the exit heads of --heads. decode_threads: None for `threads`. unavailable: why this machine or own
    heads cannot be had, by name.

    Raises InputError for what does not fit together.
    """
    from offramp.decoding.openings import PROMPTS

    transform = " + ".join(model.texts)
    timed = asked.hardware == LOCAL and LOCAL not in unavailable and not streamed
    machine: Any = LOCAL if timed else BYTES
    if asked.hardware != LOCAL:
        machine = {"name": find_machine(asked.hardware).name, "source": asked.hardware}
    settings = {
        "name": "run",
        "title": model.name,
        "tokens": asked.tokens,
        "device": model.device,
        "dtype": model.dtype,
        "threads": threads,
        "decode_threads": decode_threads,
        "exits": asked.layers,
        "context": asked.context,
        "document_tokens": asked.document_tokens,
        "signals": SIGNALS,
        "floors": asked.levels,
        "worth": float(asked.worth),
        "details": True,
    }
    values: dict[str, Any] = {
        "study": settings,
        "models": [
            {
                "name": printable(model.source.name),
                "source": asked.name,
                "trust_remote_code": asked.trust_remote_code,
            }
        ],
        "workloads": [workload.name for workload in workloads],
        "transforms": [{"name": transform, "steps": model.texts} if transform else NONE],
        "heads": [_heads(asked, given, fitted=OWN not in unavailable and not streamed)],
        "machines": [machine],
    }
    if streamed:
        values["large"] = {"stream": True, "memory": asked.memory}
    elif asked.decode:
        seconds = 60.0 * (asked.minutes or DECODE_MINUTES) / len(workloads)
        values["certify"] = {"seconds": CERTIFYING * seconds}
        values["decode"] = {
            "floor": min(asked.levels, key=from_main),
            "new_tokens": AUTO,
            "seconds": (1.0 - CERTIFYING) * seconds,
            "prompts": PROMPTS,
            "rounds": ROUNDS,
            "beside": (AUTO, *asked.ways_beside),
        }
    study = Study.of(values, Source(INLINE, "run"))
    check_study(study)
    return study


def _heads(asked: Run, given: ExitHeads | None, *, fitted: bool) -> Any:
    if given is not None:
        parts = [] if given.lens is None else ["linear lens" if given.mlp is None else "network"]
        parts += ["own output heads"] if given.output is not None else []
        parts += ["K,V maps"] if given.holds_maps_alone else []
        return {"name": ", ".join([*parts, *given.classifiers]), "file": str(asked.heads)}
    if not fitted:
        return NONE
    return {
        "name": ", ".join(CLASSIFIERS),
        "fit": [OWN],
        "tokens": FITTING_TOKENS,
        "lens": False,
        "classifiers": CLASSIFIERS,
    }


def require_documents(workloads: Sequence[Workload], floors: Sequence[float] = FLOORS) -> None:
    """Refuse texts on which no floor of a run could be certified, before anything is loaded.

    Raises InputError with how many documents there are, and how many are needed.
    """
    # Shared by texts and floors each needs more; with these few not even one could be certified alone.
    needed = {floor: documents_for(floor, DELTA) for floor in floors}
    loosest = min(floors)
    for workload in workloads:
        found = len(workload.documents)
        if found < needed[loosest]:
            listed = ", ".join(
                f"{count} for {whole_percent(floor)}" for floor, count in sorted(needed.items())
            )
            raise InputError(
                f"not enough documents: {workload.name} has {found}, and a floor on agreement needs more: "
                f"{listed}, even if nothing is lost on any of them",
                where=f"--workload {workload.name}",
                fix="give more texts (a text file is split into documents at its blank lines), or measure "
                "the layers alone: offramp trace, then offramp score",
            )


def short_of_documents(study: Study, workloads: Sequence[Workload]) -> Iterator[str]:
    """Which floors cannot be certified on a text, however little is lost: a sentence for each text."""
    for workload in () if study.certify is None else workloads:
        found = len(workload.documents)
        needed = {floor: documents_for(floor, study.shared_delta) for floor in study.settings.floors}
        listed = [
            f"{count} for {whole_percent(floor)}" for floor, count in sorted(needed.items()) if found < count
        ]
        if listed:
            yield (
                f"{workload.name} has {found} documents, and a certificate needs more: {', '.join(listed)}; "
                "there only a gain that is too small can settle the answer"
            )


OPTIONAL = {"profile": LOCAL, "heads": OWN}
"""Kinds of tasks that a run goes on without, by what it lacks then."""

WITHOUT = {
    "profile": "speeds are in bytes moved from here on, since this machine cannot be timed",
    "heads": "there is no classifier of the hidden state from here on",
}
"""What a run without such a task is, in words."""

ON_DISK = "decoding needs all of the model's weights in memory, and its layers stay on disk"
UNANSWERED = (
    "it was not traced either: its prompts need answers, and a model whose layers stay on disk would "
    "read all of them for every new token"
)

WORDS = {
    "profile": "timing layers, head and probes on this machine",
    "heads": "fitting a classifier on documents of its own: {}",
    "trace": "tracing {}",
    "score": "scoring {}",
    "league": "searching policies on {}",
    "tune": "tuning on {}",
    "baselines": "timing baselines on {}: what needs no exits",
    "certify": "tuning on {}, by what decodes",
    "decode": "decoding {} for real, beside plain decoding",
}
"""What a task of a kind does to a workload."""
LONG = ("trace", "baselines", "certify", "decode")
"""Kinds of tasks before which the page is written anew."""


def carry_out(
    asked: Run,
    workloads: Sequence[Workload],
    before_decoding: Callable[[RunResult], None] = lambda result: None,
) -> Findings:
    """Do what is not done yet of a run; a second run of the same request goes on where the first stopped.

    before_decoding: told what is known before policies are decoded and timed, unless nothing is to be.

    Raises InputError if the folder holds another run, and whatever the tasks raise. No folder is made for
    input that is refused.
    """
    require_documents(workloads, asked.levels)
    given = None if asked.heads_file is None else _read_with_record(asked.heads_file)
    with stage("looking at the model's files"):
        model = asked.find(asked.name)
        model.require_fitting(workloads)
    if given is not None:
        model.require_heads(given, str(asked.heads))
    if asked.hardware != LOCAL:
        find_machine(asked.hardware)  # an unknown one is refused before the model is loaded
    streamed = stays_on_disk(model, stream=asked.stream, memory=asked.memory_bytes)
    traced = _traceable(model, workloads, streamed=streamed, given=asked.workloads is not None)
    request = {
        **asked.identity(),
        "device": model.device,
        "dtype": model.dtype,
        "model": model.source.identity.source,
        "model_fingerprint": model.source.identity.fingerprint,
        **({} if model.given is None else model.given.asked_attention),
        "heads": None if given is None else given.fingerprint,
        "streamed": streamed,
    }
    folder = asked.folder or default_folder(model.name, request)
    RUN_FOLDER.require(folder, request, overwrite=asked.overwrite)
    run = _StartedRun(asked, request, model, traced, given, folder, streamed)
    run.left_out = {workload.name: UNANSWERED for workload in workloads if workload not in traced}
    evaluating = contextlib.nullcontext() if model.given is None else model.given.evaluating()
    with evaluating, with_threads(run.threads):  # tasks set their own
        run.check()
        with RUN_FOLDER.claimed(folder, request, overwrite=asked.overwrite) as place:
            run.move_to(place)
            findings = run.run(before_decoding)
    # A run that took another's place is shown under the paths that it has now.
    return findings if place == folder else write_outputs(RunReader(folder))


def _read_with_record(path: Path) -> ExitHeads:
    """The exit heads, whose training's record a task will need, long after much else was done.

    Raises InputError for a record that cannot be read, and what `read_heads` does.
    """
    heads = read_heads(path)
    try:
        record_of(path, heads.fingerprint)
    except DamagedFileError as error:
        raise InputError(
            f"what training these exits took cannot be read: {error.what}",
            where=error.where,
            fix=f"train them again (offramp exits train --overwrite), or copy {EXITS_FILE} elsewhere and "
            "give that: the page then says nothing of what they took",
        ) from error
    return heads


def _traceable(
    model: ModelRequest, workloads: Sequence[Workload], *, streamed: bool, given: bool
) -> list[Workload]:
    """The workloads that the model can be traced on: of prompts only if it is in memory to answer them.

    Raises ModelError for one that was asked for by name and cannot be.
    """
    if not streamed:
        return list(workloads)
    if given:
        from offramp.models.streaming import needed_memory

        need = needed_memory(model.source, model.dtype, trust_remote_code=model.trust_remote_code)
        for workload in workloads:
            require_given_text(model.name, workload, need.whole_bytes - need.resident_bytes)
    return [workload for workload in workloads if workload.mode == "text"]


class _StartedRun:
    """One run. request: what makes it another one. left_out: workloads that were asked for and are not
    traced, with the reason."""

    def __init__(
        self,
        asked: Run,
        request: Mapping[str, Any],
        model: ModelRequest,
        workloads: Sequence[Workload],
        given: ExitHeads | None,
        path: Path,
        streamed: bool,
    ) -> None:
        self.asked, self.request, self.model_request, self.workloads = asked, request, model, workloads
        self.given, self.path, self.named, self.streamed = given, path, path, streamed
        self.folder = StudyFolder(path)
        self.models = ModelCache()
        self.left_out: dict[str, str] = {}
        self.unavailable: dict[str, str] = {LOCAL: ON_DISK, OWN: ON_DISK} if streamed else {}
        self.threads = torch.get_num_threads()
        """Before a task sets its own."""
        self.decode_threads = None if asked.overwrite else self._threads_chosen()

    def move_to(self, path: Path) -> None:
        """Do the run in another folder."""
        self.path, self.folder = path, StudyFolder(path)
        self.decode_threads = self._threads_chosen() or self.decode_threads

    def _threads_chosen(self) -> int | None:
        """Threads that the run begun in this folder decodes with; None where none is, or it was elsewhere."""
        machine = RunStart.last(self.folder.journal.read().events).machine
        here = {"threads": self.threads, "processor": processor_name()}
        chosen = machine.get(DECODE_THREADS) if here.items() <= machine.items() else None
        return chosen if isinstance(chosen, int) and 0 < chosen <= self.threads else None

    def choose_threads(self, plan: StudyPlan, model: Model) -> None:
        """Settle how many threads decode, if something is timed here and that is not chosen yet."""
        from offramp.timing.threads import fewest_threads

        timed = {"profile", "decode"} & {task.kind for task in plan.tasks.values()}
        if self.decode_threads is not None or self.threads == 1 or not timed:
            return
        with stage("choosing how many threads decode"):
            self.decode_threads = fewest_threads(model)
        if self.decode_threads < self.threads:
            say(f"decoding with {self.decode_threads} of {self.threads} threads, which takes no longer")

    def study(self) -> Study:
        """What is to be done, as far as it can be had."""
        return run_study(
            self.asked,
            self.model_request,
            self.workloads,
            self.given,
            self.threads,
            self.decode_threads,
            streamed=self.streamed,
            unavailable=self.unavailable,
        )

    def planned(self, *, kept: bool) -> StudyPlan:
        """The tasks. kept: whether the folder is there, to keep fingerprints and the plan in."""
        plan = make_plan(self.study(), self.path if kept else None, download=True)
        unavailable = {**plan.unavailable, **self.unavailable, **self.left_out}
        plan = replace(plan, unavailable=unavailable)
        if kept:
            self.folder.write_plan(plan)
        return plan

    def check(self) -> None:
        """Refuse what does not fit the model before a folder is made; load it if there is work for it."""
        plan = self.planned(kept=False)
        tracing = [task for task in plan.tasks.values() if task.kind == "trace"]
        blocked = next((task.blocked for task in tracing if task.blocked), None)
        if blocked is not None:
            raise ModelError(blocked, where=self.asked.name, fix="see offramp doctor")
        if self.asked.overwrite or not all(self.folder.is_done(task) for task in plan.tasks.values()):
            for line in short_of_documents(self.study(), self.workloads):
                say(line)
            with stage(f"loading {self.model_request.name} and checking its exits"):
                model = self.model(tracing[0])
                self.require_fitting(model)
            self.choose_threads(plan, model)

    def model(self, task: Task) -> Model:
        """The model of a trace task, which tasks will find loaded."""
        context = WorkContext(self.path, {}, self.models, self.folder.executions)
        return TraceWork.of(task).traced_model(context)

    def require_fitting(self, model: Model) -> None:
        """Refuse exits, heads, a context and texts that do not fit the model, before the first is traced."""
        exits = parse_exits(self.asked.layers, model.layers)
        if self.given is not None:
            require_exits(self.given, exits)
        for workload in self.workloads:
            plan_trace(
                model,
                workload,
                lambda: _stand_in_answers,
                tokens=self.asked.tokens,
                context=usable_context(model, self.asked.context, workload.reads),
                document_tokens=self.asked.document_tokens,
            )

    def run(self, before_decoding: Callable[[RunResult], None]) -> Findings:
        """Every task in turn, with a page after each that shows something new."""
        # 1. The plan, and how this run was started.
        plan = self.planned(kept=True)
        call = self.asked.call(named=self.model_request.given is None)
        self.folder.journal.append(
            STARTED,
            **to_json(
                RunStart(
                    command=call.again(),
                    folder=str(self.named),
                    call=call,
                    request=self.request,
                    software={
                        "code_fingerprint": code_of(__name__),
                        **describe_software(),
                    },
                    machine={
                        **describe_machine(self.model_request.device),
                        DECODE_THREADS: self.decode_threads or self.threads,
                    },
                )
            ),
        )
        # 2. What failed is tried again, what is damaged made again; what cannot be had here is left out.
        for task in plan.tasks.values():
            self.folder.forget_failure(task)
            for problem in self.folder.verify(task):
                say(f"made again, since a file of the {task.kind} task was damaged: {problem}")
        plan = self.prepared(plan)
        # 3. The tasks in turn.
        reader = RunReader(self.path)
        decoding = [task for task in plan.tasks.values() if task.kind == "decode"]
        for task, name in _in_order(plan):
            if decoding and task is decoding[0]:
                before_decoding(reader.result())
            if task.kind in LONG:
                self.write_so_far(reader, plan, task)
            # What cannot be decoded is said on the page; all else that fails ends the run.
            with contextlib.suppress(OfframpError) if task.kind == "decode" else contextlib.nullcontext():
                self.do(task, name)
            if (name, task) in reader.tasks("trace"):
                show_trace(reader, name, task)
        # 4. The page, the summary and the policies of all that is done.
        return write_outputs(reader)

    def prepared(self, plan: StudyPlan) -> StudyPlan:
        """The plan without what turns out not to be had here: timings of this machine, heads of its own."""
        before = dict(self.unavailable)
        for task, name in _in_order(plan):
            if task.kind in OPTIONAL and OPTIONAL[task.kind] not in self.unavailable:
                try:
                    self.do(task, name)
                except (ModelError, InputError) as error:
                    if self.given is not None and task.kind == "heads":
                        raise
                    self.unavailable[OPTIONAL[task.kind]] = error.what
                    say(f"{WITHOUT[task.kind]}: {error.what}")
        return plan if self.unavailable == before else self.planned(kept=True)

    def do(self, task: Task, workload: str) -> None:
        """One task, unless it is done. Raises what makes it fail."""
        if self.folder.is_done(task):
            return
        said = stage(self.words(task, workload), _seconds_left(task))
        with contextlib.nullcontext() if task.kind == "trace" else said:
            fate = run_task(task, self.folder, self.models, watched=True)
        if fate != "done":
            raise OfframpError(
                f"{self.words(task, workload)}: another process does it at this moment",
                where=str(self.path),
                fix="wait for it to end, and run the same command again",
            )

    def words(self, task: Task, workload: str) -> str:
        """What a task does to a workload, in words."""
        raw = task.kind == "trace" and "heads" not in task.needs and self.given is not None
        return WORDS[task.kind].format(workload) + (", read by the model's own head" if raw else "")

    def write_so_far(self, reader: RunReader, plan: StudyPlan, running: Task) -> None:
        """Write the page of an unfinished run, unless a finished one is there."""
        if (self.path / SUMMARY_FILE).exists():
            return
        shown = [
            (task, self.words(task, name))
            for task, name in _in_order(plan)
            if task.kind in ("profile", *LONG)
        ]
        done = [words for task, words in shown if self.folder.is_done(task)]
        to_come = [words for task, words in shown if words not in done and task is not running]
        now = next(words for task, words in shown if task is running)
        result = reader.result(RunProgress(tuple(done), now, tuple(to_come)))
        with RUN_FOLDER.files(self.path).writing(REPORT_FILE):
            write_report(result, self.path)


def _in_order(plan: StudyPlan) -> Iterator[tuple[Task, str]]:
    """The tasks of every job in turn, each with the name of its workload ("" of none)."""
    names: dict[str, str] = {}
    for cell in plan.cells:
        names[cell.task] = cell.workload
        for key in plan.tasks[cell.task].needs.values():
            names.setdefault(key, cell.workload)
            for further in plan.tasks[key].needs.values():
                names.setdefault(further, cell.workload)
    for job in plan.jobs:
        for task in job.tasks:
            yield task, names[task.key]


def _stand_in_answers(planned: Sequence[PlannedAnswer]) -> list[list[int]]:
    """Answers of full length, to see whether the prompts fit without asking the model."""
    return [[0] * prompt.max_new_tokens for prompt in planned]


def _seconds_left(task: Task) -> float | None:
    """About how long a task takes in a process that has loaded the model."""
    seconds = task.estimate.seconds
    loaded = STARTING_SECONDS if "model" in task.recipe else 0.0
    return None if seconds is None else max(0.0, seconds - loaded)
