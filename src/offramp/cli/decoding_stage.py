"""The last stage of `offramp run`: decode the policies that were chosen, and time them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from offramp.cli.console import stage
from offramp.cli.decoding_choice import (
    BUDGET_SECONDS,
    LIMIT_SECONDS,
    chosen_policies,
    new_tokens_for,
    seconds_after,
    seconds_for,
)
from offramp.cli.decoding_file import Kept, read_kept, write_kept
from offramp.cli.decoding_measurement import Task, decode_together
from offramp.cli.preparation import Prepared
from offramp.costs.hardware import LOCAL, machine_facts
from offramp.costs.machine import Machine, machine_fingerprint
from offramp.decoding.engine.build import engine_of
from offramp.decoding.measurement.plain_timing import time_plain_decoding
from offramp.decoding.openings import FEWEST_NEW_TOKENS, pick_prompts
from offramp.errors import OfframpError
from offramp.files import canonical_json, sha256_of_text, source_fingerprint
from offramp.models.model import Model
from offramp.report.run_result import Decoded, WorkloadResult
from offramp.tracing.request import library_versions
from offramp.workloads.workload import Workload

TOO_LONG = (
    "timing it too would make the run too long (--decode-budget SECONDS allows more); "
    "`offramp bench MODEL --policy FILE` times a policy of the run's folder on its own"
)


@dataclass(frozen=True)
class DecodingResult:
    """What was decoded, one per workload, and by workload why it was not."""

    decoded: tuple[Decoded, ...] = ()
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)


def decode_workloads(
    model: Model,
    workloads: Sequence[Workload],
    results: Sequence[WorkloadResult],
    prepared: Prepared,
    folder: Path,
    *,
    again: bool,
    budget: float | None = None,
) -> DecodingResult:
    """Decode with the policies of all workloads in one measurement.

    budget: seconds that it may take, None for those of any run.
    What an earlier run measured under the same conditions is taken from the folder, unless `again`. A
    workload, or a family of models, that cannot be decoded is named with its reason.
    """
    tasks, missing = _tasks(model, workloads, results)
    if not tasks:
        return DecodingResult((), missing)
    key = _key(model, tasks, prepared, budget)
    kept = None if again else read_kept(folder)
    if kept is None or kept.key != key:
        measured = _measured(model, tasks, prepared, budget)
        if isinstance(measured, str):
            return DecodingResult((), {**missing, **{task.result.name: measured for task in tasks}})
        machine = None if prepared.machine is None else machine_fingerprint(prepared.machine)
        kept = Kept(key, measured.decoded, measured.missing, machine)
        write_kept(folder, kept)
    return DecodingResult(kept.decoded, {**missing, **kept.missing})


def _measured(
    model: Model, tasks: Sequence[Task], prepared: Prepared, budget: float | None
) -> DecodingResult | str:
    """What fits into the budget, timed; why nothing can be said of its time here."""
    plain = _plain_seconds(model, prepared.machine, tasks)
    if isinstance(plain, str):
        return plain
    fitting, new_tokens, missing = within_budget(tasks, plain, budget)
    if not fitting:
        return DecodingResult((), missing)
    names = ", ".join(task.result.name for task in fitting)
    cells = [len(task.choices) for task in fitting]
    whole = max(budget or BUDGET_SECONDS, seconds_for(cells, plain, new_tokens))
    seconds = whole - seconds_after(cells, plain, new_tokens)
    policies = f"{sum(cells)} {'policy' if sum(cells) == 1 else 'policies'}"
    what = f"decoding {policies} beside plain decoding on {names}"
    with stage(what, whole):
        found = decode_together(model, fitting, prepared, new_tokens, seconds)
    decoded = tuple(one for one in found if isinstance(one, Decoded))
    failed = {
        task.result.name: one.what
        for task, one in zip(fitting, found, strict=True)
        if isinstance(one, OfframpError)
    }
    return DecodingResult(decoded, {**missing, **failed})


def _tasks(
    model: Model, workloads: Sequence[Workload], results: Sequence[WorkloadResult]
) -> tuple[list[Task], dict[str, str]]:
    """What to measure, and what cannot be, with its reason."""
    try:
        able = engine_of(model).abilities
        refused = able.reason("never_exit")
    except OfframpError as error:
        refused = error.what
    if refused is not None:
        return [], {result.name: refused for result in results}
    tasks: list[Task] = []
    missing: dict[str, str] = {}
    for workload, result in zip(workloads, results, strict=True):
        wanted = chosen_policies(result)
        reasons = {kv: able.reason(kv) for kv in dict.fromkeys(choice.kv for choice in wanted)}
        choices = tuple(choice for choice in wanted if reasons[choice.kv] is None)
        if not choices:
            missing[result.name] = next(
                (why for why in reasons.values() if why is not None), "no policy of the league exits"
            )
            continue
        try:
            prompts = pick_prompts(model, workload, result.trace)
        except OfframpError as error:
            missing[result.name] = error.what
            continue
        left_out = tuple(f"{kv} is left out: {why}" for kv, why in reasons.items() if why is not None)
        tasks.append(Task(workload, result, choices, prompts, left_out))
    return tasks, missing


def within_budget(
    tasks: Sequence[Task], plain_seconds: float, budget: float | None = None
) -> tuple[list[Task], int, dict[str, str]]:
    """The measurements that fit into the budget, their new tokens, and what is left out for it.

    All of them; else one policy of each text; else that of the first alone, however long it takes up to a
    limit, which is the budget where one was asked for.
    """
    chosen = [_main_alone(task) for task in tasks]
    for plan in (list(tasks), chosen, chosen[:1]):
        counts = [len(task.choices) for task in plan]
        new_tokens = new_tokens_for(counts, plain_seconds, budget or BUDGET_SECONDS) if plan else 0
        if new_tokens >= FEWEST_NEW_TOKENS:
            return plan, new_tokens, _too_long(tasks, plan)
    alone = chosen[:1]
    if alone and seconds_for([1], plain_seconds, FEWEST_NEW_TOKENS) <= (budget or LIMIT_SECONDS):
        return alone, FEWEST_NEW_TOKENS, _too_long(tasks, alone)
    return [], 0, _too_long(tasks, [])


def _main_alone(task: Task) -> Task:
    if len(task.choices) == 1:
        return task
    others = ", ".join(choice.policy for choice in task.choices[1:])
    left_out = (*task.left_out, f"policies of other floors are left out, it would take too long: {others}")
    return dataclasses.replace(task, choices=task.choices[:1], left_out=left_out)


def _too_long(tasks: Sequence[Task], plan: Sequence[Task]) -> dict[str, str]:
    timed = {task.result.name for task in plan}
    return {task.result.name: TOO_LONG for task in tasks if task.result.name not in timed}


def _plain_seconds(model: Model, machine: Machine | None, tasks: Sequence[Task]) -> float | str:
    """About how long a token of plain decoding takes here; why it cannot be told."""
    if machine is not None and machine.name == LOCAL:
        return float(machine.token_costs(model.shape, float(len(tasks[0].prompts.ids[0]))).plain)
    try:
        return time_plain_decoding(model, tasks[0].prompts.ids[0], new_tokens=4, repeats=1).value
    except OfframpError as error:
        return error.what


def _key(model: Model, tasks: Sequence[Task], prepared: Prepared, budget: float | None) -> str:
    """SHA-256 of everything that a measurement depends on, sizes that follow from the profile included."""
    machine = prepared.machine
    return sha256_of_text(
        canonical_json(
            {
                "model": model.identity.fingerprint,
                "dtype": model.dtype,
                "budget": budget,
                "tasks": [
                    {
                        "workload": task.result.name,
                        "choices": [dataclasses.asdict(choice) for choice in task.choices],
                        "prompts": task.prompts.ids,
                        "trace": task.result.trace.provenance.get("request_fingerprint"),
                    }
                    for task in tasks
                ],
                "heads": None if prepared.heads is None else prepared.heads.fingerprint,
                "machine": machine_facts(torch.get_num_threads()),
                "profile": None if machine is None else canonical_json(machine.to_json()),
                "versions": library_versions(model.identity.transforms),
                "code": source_fingerprint("models", "tracing", "costs", "policies", "decoding", "cli"),
            }
        )
    )
