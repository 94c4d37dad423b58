"""Studies: what they cost over their cells by hand, how soon they resume, and Ray beside local processes.

    python benchmarks/studies.py                         100 cells on smollm2, three rounds
    python benchmarks/studies.py --cells 20 --tokens 480 --rounds 1 --without ray

Overhead: one study of a model and a workload (a trace, a score, and replays of as many policies as there are
cells), run by `offramp study run` with the local engine, against the same tasks by hand. By hand, in one
process: a script that loads the libraries and calls each task's work after the other, into plain folders;
its time is taken with the start of its process and its imports, as the study's is, and without. By hand, as
commands: `offramp trace`, `offramp score`, and one `offramp replay` for each policy, of which a few are
timed. Study and script take turns, and each figure is the median over rounds. Planning and the report, which
have no counterpart, are left out of the overhead and told apart; the time of processors is that of the whole
command, with both.

Resume: `offramp study run` of that study once it is finished: the whole command, the engine in it, and beside
them the commands that write the report, as `run` does at its end, and that only look.

Ray: a study of one trace for each workload, one thread each, with two local workers, and on a cluster of two
nodes of one core each on this machine that is already up. They take turns. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from offramp.studies.engines.engine import EngineOptions, StudyEngine
from offramp.studies.engines.local import LocalEngine
from offramp.studies.engines.ray import RayEngine
from offramp.studies.folder import StudyFolder
from offramp.studies.plan import make_plan
from offramp.studies.study import StudyPlan
from offramp.studies.study_checks import read_study

OFFRAMP = [sys.executable, "-c", "from offramp.cli.main import main; main()"]
LOWEST, HIGHEST = 0.02, 0.98
WORKLOADS = ("prose", "code", "chat", "math")


def study_text(
    options: argparse.Namespace, policies: Sequence[str], workloads: Sequence[str], **more: Any
) -> str:
    """A study file on one model."""
    settings = {"name": "benchmark", "tokens": options.tokens, "threads": options.threads, **more}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    models = json.dumps([options.model])
    axes = [
        f"models = {models}",
        f"workloads = {json.dumps(workloads)}",
        f"policies = {json.dumps(policies)}",
    ]
    return "\n".join([*axes, 'machines = ["h100"]', "[study]", *lines]) + "\n"


def policies_of(count: int) -> list[str]:
    """So many different policies, all of which any model has exits for."""
    step = (HIGHEST - LOWEST) / max(1, count - 1)
    return [
        f"threshold:signal=max_prob,value={LOWEST + step * number:.4f},exits=1+2" for number in range(count)
    ]


def planned(study_file: Path, folder: Path) -> StudyPlan:
    """A study's plan, written into its folder."""
    plan = make_plan(read_study(study_file), folder)
    folder.mkdir(parents=True, exist_ok=True)
    StudyFolder(folder).write_plan(plan)
    return plan


def by_hand(folder: Path) -> float:
    """Call the work of every task of a plan, one after the other, in this process; seconds after imports."""
    import torch  # noqa: F401 - loaded before the clock starts
    import transformers  # noqa: F401

    from offramp.studies.work.work import ModelCache, WorkContext, perform

    models, places = ModelCache(), {}
    tasks = [task for job in StudyFolder(folder).read_plan().jobs for task in job.tasks]
    started = time.perf_counter()
    for task in tasks:
        places[task.key] = folder / "by-hand" / task.key
        places[task.key].mkdir(parents=True)
        inputs = {key: places[key] for key in task.needs.values()}
        context = WorkContext(places[task.key], inputs, models, folder / "executions", task.recipe)
        perform(task, context)
    return time.perf_counter() - started


@dataclass(frozen=True)
class Timed:
    """A command that has ended: seconds, seconds of processors, and the JSON object of its last line."""

    seconds: float
    processor: float
    answer: Any


def timed(command: Sequence[object]) -> Timed:
    """Run a command to its end."""
    started, before = time.perf_counter(), processor_seconds()
    words = [str(word) for word in command]
    result = subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    seconds = time.perf_counter() - started
    return Timed(seconds, processor_seconds() - before, json.loads(result.stdout.splitlines()[-1]))


def processor_seconds() -> float:
    """Seconds of processors that the commands have taken so far, with all that they started."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def in_turn(names: Iterable[str], number: int) -> list[str]:
    """The names, in the other order every second time."""
    return list(names) if number % 2 == 0 else list(reversed([*names]))


def overhead(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """A study against its tasks by hand, by turns, and what it takes to resume it."""
    policies = policies_of(options.cells - 1)
    study_file = root / "STUDY.toml"
    study_file.write_text(study_text(options, policies, ["prose"]))
    rounds = []
    for number in range(options.rounds):
        study, hand = root / f"study-{number}", root / f"hand-{number}"
        planned(study_file, hand)
        turns = {
            "study": [*OFFRAMP, "study", "run", study_file, "-o", study, "--json"],
            "hand": [sys.executable, __file__, "--by-hand", hand],
        }
        taken = {name: timed(turns[name]) for name in in_turn(turns, number)}
        rounds.append(
            {
                "study": taken["study"].answer["seconds"],
                "command": taken["study"].seconds,
                "command_processor": taken["study"].processor,
                "by_hand": taken["hand"].seconds,
                "by_hand_after_imports": taken["hand"].answer["seconds"],
                "by_hand_processor": taken["hand"].processor,
            }
        )
        print(rounds[-1], flush=True)
    medians = {name: statistics.median(taken[name] for taken in rounds) for name in rounds[0]}
    ratios = {
        name: statistics.median(taken["study"] / taken[name] - 1 for taken in rounds)
        for name in ("by_hand", "by_hand_after_imports")
    }
    return {
        "cells": options.cells,
        "seconds": medians,
        "over_by_hand": ratios["by_hand"],
        "over_by_hand_after_imports": ratios["by_hand_after_imports"],
        "over_by_hand_in_processor_seconds": medians["command_processor"] / medians["by_hand_processor"] - 1,
        "by_commands_seconds": by_commands(options, root, policies),
        "resume": resume(study_file, root / "study-0", options.rounds),
        "rounds": rounds,
    }


def by_commands(options: argparse.Namespace, root: Path, policies: Sequence[str]) -> dict[str, float]:
    """Seconds of the commands that do the same, and of all of them."""
    trace = root / "commands" / "trace"
    what = [options.model, "-w", "prose", "--tokens", options.tokens]
    traced = timed([*OFFRAMP, "trace", *what, "-o", trace, "--json"]).seconds
    scored = timed([*OFFRAMP, "score", trace, "--json"]).seconds
    replayed = [*OFFRAMP, "replay", trace, "--hardware", "h100", "--json", "--policy"]
    replay = statistics.median(timed([*replayed, policy]).seconds for policy in policies[: options.commands])
    return {
        "trace": traced,
        "score": scored,
        "replay": replay,
        "all": traced + scored + replay * len(policies),
    }


def resume(study_file: Path, folder: Path, repeats: int) -> dict[str, float]:
    """Seconds of the commands on a finished study; medians."""
    taken: dict[str, list[float]] = {
        name: [] for name in ("run", "run_processor", "engine", "report", "status")
    }
    for _ in range(max(3, repeats)):
        run = timed([*OFFRAMP, "study", "run", study_file, "-o", folder, "--json"])
        taken["run"].append(run.seconds)
        taken["run_processor"].append(run.processor)
        taken["engine"].append(run.answer["seconds"])
        for name in ("report", "status"):
            taken[name].append(timed([*OFFRAMP, "study", name, study_file, "-o", folder, "--json"]).seconds)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def ray_beside_local(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """The same study with two local workers and on two nodes of one core, by turns."""
    study_file = root / "RAY.toml"
    study_file.write_text(study_text(options, [], WORKLOADS, threads=1, tokens=options.ray_tokens))
    taken: dict[str, list[float]] = {"local": [], "ray": []}
    left: dict[str, dict[str, bytes]] = {}
    with two_nodes() as start_seconds:
        engines: dict[str, tuple[StudyEngine, EngineOptions]] = {
            "local": (LocalEngine(), EngineOptions(workers=2)),
            "ray": (RayEngine(), EngineOptions()),
        }
        for number in range(options.rounds):
            for name in in_turn(engines, number):
                folder = root / f"{name}-{number}"
                plan = planned(study_file, folder)
                engine, engine_options = engines[name]
                started = time.perf_counter()
                engine.run(plan.jobs, StudyFolder(folder), engine_options, lambda: None)
                taken[name].append(time.perf_counter() - started)
                left[name] = files_of(folder / "tasks")
                require_done(StudyFolder(folder), plan)
                print(name, round(taken[name][-1], 2), flush=True)
                shutil.rmtree(folder)
    ratios = [ray / local for ray, local in zip(taken["ray"], taken["local"], strict=True)]
    return {
        "jobs": len(WORKLOADS),
        "local_seconds": statistics.median(taken["local"]),
        "ray_seconds": statistics.median(taken["ray"]),
        "ray_over_local": statistics.median(ratios),
        "same_bytes": left["local"] == left["ray"],
        "cluster_start_seconds": start_seconds,
        "rounds": taken,
    }


def require_done(folder: StudyFolder, plan: StudyPlan) -> None:
    """End the benchmark if a task is not done, with why."""
    for task in plan.tasks.values():
        if not folder.is_done(task):
            raise SystemExit(f"the {task.kind} task {task.key} is not done: {folder.failure(task)}")


def files_of(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder by path; locks, which hold nothing, left out."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@contextmanager
def two_nodes() -> Iterator[float]:
    """A Ray cluster of two nodes here, with this process connected; the seconds that it took to start."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
    import ray
    from ray.cluster_utils import Cluster

    started = time.perf_counter()
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster: Any = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.WARNING)
    cluster.wait_for_nodes()
    try:
        yield time.perf_counter() - started
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=1920)
    parser.add_argument("--ray-tokens", type=int, default=480)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commands", type=int, default=5, help="replays that are timed as commands")
    parser.add_argument("--without", choices=("overhead", "ray"), help="leave a part out")
    parser.add_argument("--by-hand", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.by_hand:
        print(json.dumps({"seconds": by_hand(options.by_hand)}))
        return
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    load = os.getloadavg()[0]
    parts = {"overhead": overhead, "ray": ray_beside_local}
    with tempfile.TemporaryDirectory() as name:
        measured = {
            part: measure(options, Path(name)) for part, measure in parts.items() if part != options.without
        }
    machine = {"cores": os.cpu_count(), "load_average_at_start": load}
    print(json.dumps({"benchmark": "studies", "model": options.model, **measured, "machine": machine}))


if __name__ == "__main__":
    main()
