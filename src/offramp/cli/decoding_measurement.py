"""Workloads decoded for real in one measurement: predicted first, then timed in turns, then judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from offramp.cli.decoding_choice import MOST_ROUNDS, Choice
from offramp.cli.preparation import Prepared
from offramp.costs.hardware import LOCAL
from offramp.decoding.measurement.answers import Limits
from offramp.decoding.measurement.judged import Chosen, Judged, decode_chosen
from offramp.decoding.openings import PROMPTS, Prompts
from offramp.errors import OfframpError
from offramp.models.model import Model
from offramp.report.run_result import Decoded, DecodedPolicy, WorkloadResult
from offramp.workloads.workload import Workload


@dataclass(frozen=True)
class Task:
    """What to measure on one workload, its main policy first. left_out: what is not, in sentences."""

    workload: Workload
    result: WorkloadResult
    choices: tuple[Choice, ...]
    prompts: Prompts
    left_out: tuple[str, ...]


def decode_together(
    model: Model, tasks: Sequence[Task], prepared: Prepared, new_tokens: int, seconds: float
) -> list[Decoded | OfframpError]:
    """Every task's measurement, or what made it fail; all contenders of all texts take turns.

    seconds: that they are timed for, unless every question is answered before.

    Raises InputError or PolicyError for a policy that does not fit the model.
    """
    machine = prepared.machine if prepared.machine and prepared.machine.name == LOCAL else None
    chosen = [
        Chosen(
            task.result.name,
            task.result.trace,
            tuple((choice.policy, choice.kv) for choice in task.choices),
            task.prompts,
            PROMPTS,
            task.left_out,
        )
        for task in tasks
    ]
    found = decode_chosen(
        model,
        chosen,
        machine,
        heads=prepared.heads,
        new_tokens=new_tokens,
        limits=Limits(seconds, MOST_ROUNDS),
    )
    return [
        judged if isinstance(judged, OfframpError) else _decoded(task, one, judged)
        for task, one, judged in zip(tasks, chosen, found, strict=True)
    ]


def _decoded(task: Task, chosen: Chosen, judged: Judged) -> Decoded:
    names = [options.name for options in chosen.options]
    policies = tuple(_policy(choice, name, judged) for choice, name in zip(task.choices, names, strict=True))
    return Decoded(task.result.name, judged.bench, policies, str(judged.bench.circumstances["date"]))


def _policy(choice: Choice, name: str, judged: Judged) -> DecodedPolicy:
    """One choice; a contender that was left out has neither forecast nor answers."""
    return DecodedPolicy(
        contender=name,
        forecast=judged.forecasts.get(name),
        free_running=judged.free_running.get(name),
        **dataclasses.asdict(choice),
    )
