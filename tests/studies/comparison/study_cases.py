"""The folder of a finished study on synthetic traces: real results of each kind of work, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_traces import easy_documents, synthetic_trace

from combine_cases import combined_result
from offramp.costs.machine import machine_fingerprint
from offramp.costs.machine_registry import find_machine
from offramp.kit.code import code_of
from offramp.kit.typed import to_json
from offramp.policies.figures import FreeRunning
from offramp.policies.grammar import parse_policy
from offramp.policies.rules.fixed import StaticExit
from offramp.scoring.documents import TextSize
from offramp.scoring.estimate import Estimate
from offramp.studies.folder import StudyFolder
from offramp.studies.study import Study, StudyPlan
from offramp.studies.task import Failure, StudyCell, StudyJob, Task
from offramp.studies.work import certify, decode, league, replay, score, tune
from offramp.studies.work.decode import DecodedChoice, DecodedPolicies, NothingDecoded
from offramp.studies.work.league import Ranking
from offramp.studies.work.trace import write_text_sizes
from offramp.studies.work.work import ModelCache, WorkContext, perform, works
from offramp.timing.results import BenchResult, Contender, Counted
from offramp.timing.stopping import answer_of
from offramp.tracing.trace import Trace
from offramp.tuning.ranking import RankedPolicy

DOCUMENTS, LENGTH = 60, 8
FLOORS = [0.9, 0.5]
MACHINE = "h100"
POLICY = "static:exit=4"
WORKLOADS = {"prose": "w1" * 32, "code": "w2" * 32}
MODELS = ({"name": "alpha", "stage": "base"}, {"name": "alpha-it", "base": "alpha", "stage": "tuned"})
FACTS = {"family": "A", "generation": 1.0, "released": "2024-05", "parameters": 1e9, "kind": "dense"}

UNDECODED = NothingDecoded("no policy of the ranking exits")
"""The result of a decode task whose ranking exits nowhere."""


class StudyCase:
    """A study's folder as the runner leaves it, and the traces that its results were made of."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = StudyFolder(path)
        self.cells: list[StudyCell] = []
        self.tasks: dict[str, Task] = {}
        self.traces: dict[Path, Trace] = {}
        for module in (certify, decode, league, replay, score, tune):
            patch.setattr(module, "trace_of", lambda context, key: self.traces[context.folder_of(key)])

    def study(self) -> Study:
        """What the plan says of the study."""
        settings = {"tokens": DOCUMENTS * LENGTH, "dtype": "float32", "threads": 1, "floors": FLOORS}
        named = {"name": "made-up", "title": "", "description": "Two models on two texts."}
        return Study.model_validate(
            {
                "study": {**named, **settings, "seed": 0, "draws": 200},
                "models": [{**FACTS, **model} for model in MODELS],
                "workloads": list(WORKLOADS),
            }
        )

    def add(self, cell: StudyCell | None, task: Task) -> Task:
        """Plan a task, and the cell that shows it."""
        self.tasks[task.key] = task
        if cell is not None:
            self.cells.append(StudyCell(**{**asdict(cell), "task": task.key}))
        return task

    def task(self, kind: str, recipe: Mapping[str, Any], *, needs: Mapping[str, Task] | None = None) -> Task:
        code = code_of(works()[kind].__module__)
        common = {"code": code, "versions": {"numpy": np.__version__}, "threads": 1}
        keys = {role: task.key for role, task in (needs or {}).items()}
        return Task(kind, {**common, **recipe}, needs=keys, sources={"machine": MACHINE})

    def finish(self, task: Task, result: Mapping[str, Any] | None = None) -> None:
        """Run a task, or write a given result."""
        folder = self.folder.start(task)
        needed = {key: self.folder.task_folder(self.tasks[key]) for key in task.needs.values()}
        context = WorkContext(folder, needed, ModelCache(), folder / "executions", task.recipe)
        if result is None:
            perform(task, context)
        else:
            context.write_result(result)
        self.folder.finish(task, 1.0)

    def write(self) -> Path:
        """Write the plan; the folder."""
        self.folder.write_plan(
            StudyPlan(self.study(), tuple(self.cells), (StudyJob("all", tuple(self.tasks.values())),))
        )
        return self.folder.path

    # --- what a study of two models on two workloads holds

    def trace_task(self, model: str, workload: str, reach: float, *, bytes_per_token: int) -> Task:
        """A trace that is done, with the size of its text."""
        named = {"fingerprint": model * 8, "transforms": []}
        task = self.task("trace", {"model": named, "workload": {"fingerprint": WORKLOADS[workload]}})
        self.add(None, task)
        folder = self.folder.start(task)
        generator = np.random.default_rng(int(task.key[:8], 16))
        agrees = easy_documents(generator, reach, documents=DOCUMENTS, length=LENGTH)
        trace = synthetic_trace(agrees, length=LENGTH, workload=WORKLOADS[workload], model=model)
        self.traces[folder] = trace
        size = TextSize(bytes_per_token * LENGTH, 3 * LENGTH, LENGTH)
        write_text_sizes(folder, {document.id: size for document in trace.documents})
        self.folder.finish(task, 1.0)
        return task

    def add_row(self, model: str, workload: str, trace: Task, kinds: Sequence[str]) -> None:
        """Some of score, league, tuner and one policy of a row, done."""
        axes = {"model": model, "workload": workload}
        priced = {"machine": machine_fingerprint(find_machine(MACHINE)), "seed": 0}
        recipes = {
            "score": ("", {"draws": 200, "seed": 0}),
            "league": ("league", {**priced, "floors": FLOORS, "worth": 0.05, "details": False}),
            "tune": ("tuned", {**priced, "floors": FLOORS, "delta": 0.1}),
            "replay": ("at 4", {**priced, "policy": POLICY, "kv": "propagate", "batch": 1}),
        }
        needs = {"trace": trace}
        for kind in kinds:
            policy, recipe = recipes[kind]
            machine = "" if kind == "score" else MACHINE
            cell = StudyCell(kind, "", **axes, policy=policy, machine=machine)
            task = self.add(cell, self.task(kind, {**recipe, "row": list(axes.values())}, needs=needs))
            self.finish(task)
            if kind == "league":
                needs = {**needs, "league": task}


BROKEN = ("the same decoder twice comes out unequal",)


def bench_result(*defects: str) -> BenchResult:
    """A measurement of plain decoding, two policies, and one that was left out."""

    def timed(name: str, seconds: float, layers: float, role: str = "policy") -> Contender:
        ratio = Estimate(0.05 / seconds, 0.049 / seconds, 0.051 / seconds)
        return Contender(
            name,
            role,
            answer="defect" if defects else answer_of(ratio, 0.05),
            ratio=ratio,
            resolution=0.02,
            seconds_per_token=Estimate(seconds),
            counted=Counted(layers, 1.0, 0.0, 1e6, 2e6),
        )

    return BenchResult(
        model="alpha",
        policy=POLICY,
        kv="propagate",
        batch=1,
        batching="alone",
        new_tokens=16,
        prompts=4,
        rounds=3,
        worth=0.05,
        plain="generate()",
        contenders=(
            timed("generate()", 0.05, 6.0, "plain"),
            timed("fast", 0.04, 4.5),
            timed("slow", 0.0625, 5.0),
            Contender("none", "policy", left_out="there was no time"),
        ),
        defects=defects,
        a_a=Estimate(1.0, 0.99, 1.01),
        stopped="answered",
        seconds_spent=20.0,
        circumstances={"threads": 1, "load_average": [0.1, 0.2]},
    )


def decoding(*defects: str) -> DecodedPolicies:
    """What a decode task leaves."""
    kept = Estimate(0.97)
    judged = FreeRunning(kept, kept, kept, kept, kept, prompts=4, new_tokens=64)
    chosen = tuple(
        DecodedChoice(
            family=f"family of {name}",
            policy=StaticExit(exit),
            kv="propagate",
            why="the fastest",
            floor=0.9,
            predicted=1.2,
            contender=name,
            forecast=None,
            free_running=None if name == "none" else judged,
            characters_per_token=4.0,
        )
        for name, exit in (("fast", 4), ("slow", 5), ("none", 3))
    )
    return DecodedPolicies(bench_result(*defects), chosen, characters_per_token=3.0)


def league_entry(
    floor: float, policy: str, *, chosen: bool = True, speedup: float = 1.2, family: str = "static"
) -> RankedPolicy:
    """An entry of a league of which nothing but its choice and its speed is looked at."""
    nothing = Estimate(None, undefined="not looked at")
    return RankedPolicy(
        family=family,
        policy=parse_policy(policy),
        kv="propagate",
        floor=floor,
        quality=nothing,
        agreement=nothing,
        skip_ratio=nothing,
        net_speedup=Estimate(speedup),
        seconds_per_token=Estimate(0.01 / speedup),
        plain_seconds_per_token=0.01,
        probe_share=0.0,
        probe_seconds=0.0,
        chosen=chosen,
    )


def league_result(*entries: RankedPolicy) -> dict[str, Any]:
    """A league task's result."""
    result: dict[str, Any] = to_json(Ranking("h100", "made up", (0.95,), entries, (), None))
    return result


def league_task(case: StudyCase, floor: float, policy: str) -> Task:
    """A league on this machine that is done and chose a policy at a floor. No cell shows it."""
    task = case.add(None, case.task("league", {"floors": [floor], "chose": policy}))
    case.finish(task, league_result(league_entry(floor, policy)))
    return task


def whole_study(path: Path, patch: pytest.MonkeyPatch) -> StudyCase:
    """Two models on two workloads, one row with everything, and four cells that have no result."""
    case = StudyCase(path, patch)
    traces = {}
    for model, reach in (("alpha", 0.45), ("alpha-it", 0.3)):
        for workload in WORKLOADS:
            trace = case.trace_task(model, workload, reach, bytes_per_token=4 if model == "alpha" else 5)
            traces[model, workload] = trace
            searched = model == "alpha" and workload == "prose"  # searching takes a while
            kinds = ("score", "league", "tune", "replay") if searched else ("score",)
            case.add_row(model, workload, trace, kinds)
    needs = {"trace": traces["alpha", "prose"], "league": league_task(case, 0.9, POLICY)}
    decode = case.task("decode", {"floor": 0.9}, needs=needs)
    case.finish(
        case.add(StudyCell("decode", "", "alpha", workload="prose", machine="local"), decode),
        to_json(decoding()),
    )
    needs = {"trace": traces["alpha", "code"], "league": league_task(case, 0.95, "never")}
    nothing = case.task("decode", {"floor": 0.95}, needs=needs)
    case.finish(
        case.add(StudyCell("decode", "", "alpha", workload="code", machine="local"), nothing),
        to_json(UNDECODED),
    )
    combined = to_json(combined_result({"plain": 60.0, "int8": 40.0}))
    combine = case.task("combine", {"accelerations": ["int8"]})
    case.finish(case.add(StudyCell("combine", "", "alpha", workload="code"), combine), {"combined": combined})
    _add_undone(case)
    case.write()
    return case


def _add_undone(case: StudyCase) -> None:
    """A cell that failed, one that needs a failed task, one that cannot be run, one that was not yet run."""
    bad = case.add(None, case.task("trace", {"model": "broken"}))
    case.folder.fail(bad, Failure("the weights are gone"))
    case.add(StudyCell("score", "", "alpha", "broken", "prose"), case.task("score", {}, needs={"trace": bad}))
    failed = case.add(StudyCell("score", "", "alpha", "failed", "prose"), case.task("score", {"draws": 1}))
    case.folder.fail(failed, Failure("too few draws"))
    blocked = Task("score", {"draws": 2}, blocked="it is not on this machine")
    case.add(StudyCell("score", "", "alpha", "absent", "prose"), blocked)
    case.add(StudyCell("score", "", "alpha", "later", "prose"), case.task("score", {"draws": 3}))
