"""Workloads decoded for real in one measurement: predicted first, then timed in turns, then judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offramp.cli.decoding_choice import DRAFT_LENGTH, MOST_ROUNDS, Choice
from offramp.cli.preparation import Prepared
from offramp.costs.local_store import LOCAL
from offramp.costs.machine import Machine
from offramp.decoding.bench.bench import settle
from offramp.decoding.bench.budget import Limits
from offramp.decoding.bench.contenders import SHORT, Cell, Setting
from offramp.decoding.bench.judged import (
    NO_STATIC_CACHE,
    Judged,
    judge_measurement,
    predict_unseen,
    prompt_notes,
)
from offramp.decoding.bench.together import Measurement, run_together
from offramp.decoding.bench.traced_prompts import PROMPTS, Prompts
from offramp.errors import OfframpError
from offramp.models.model import Model
from offramp.policies.grammar import parse_policy
from offramp.policies.results import ReplayResult
from offramp.report.run_result import Decoded, DecodedPolicy, WorkloadResult
from offramp.workloads.workload import Workload

TIMED_APART = 1
"""Prompts of each text on which the parts of a policy's tokens are timed."""


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
    settings = [_setting(model, task, prepared, new_tokens) for task in tasks]
    predicted = [
        {} if machine is None else predict_unseen(setting, task.result.trace, machine, task.result.name)
        for task, setting in zip(tasks, settings, strict=True)
    ]
    measured = run_together(settings, extent=SHORT, limits=Limits(seconds, MOST_ROUNDS))
    found: list[Decoded | OfframpError] = []
    for task, one, predictions in zip(tasks, measured, predicted, strict=True):
        try:
            if isinstance(one, OfframpError):
                raise one
            found.append(_decoded(task, one, machine, predictions))
        except OfframpError as error:  # the other texts still count
            found.append(error)
    return found


def _setting(model: Model, task: Task, prepared: Prepared, new_tokens: int) -> Setting:
    first, *others = [(choice.policy, choice.kv) for choice in task.choices]
    return settle(
        model,
        first[0],
        kv=first[1],
        cells=others,
        prompts=task.prompts.ids,
        heads=prepared.heads,
        new_tokens=_room(model, task, new_tokens),
        draft_length=DRAFT_LENGTH,
        task=task.workload.name,
    )


def _name(task: Task, choice: Choice) -> str:
    """Of a choice, in the measurement."""
    return Cell(parse_policy(choice.policy).for_task(task.workload.name), choice.kv).name


def _room(model: Model, task: Task, new_tokens: int) -> int:
    """New tokens that the model's context has room for."""
    if model.context_length is None:
        return new_tokens
    return min(new_tokens, model.context_length - max(map(len, task.prompts.ids)))


def _decoded(
    task: Task, measured: Measurement, machine: Machine | None, predicted: Mapping[str, ReplayResult]
) -> Decoded:
    """A measurement with its answers judged and its time predicted."""
    notes = (NO_STATIC_CACHE, *task.left_out, *prompt_notes(task.prompts, PROMPTS))
    judged = judge_measurement(
        measured, machine, predicted=predicted, workload=task.result.name, parts_of=TIMED_APART, notes=notes
    )
    policies = tuple(_policy(task, choice, judged) for choice in task.choices)
    return Decoded(task.result.name, judged.bench, policies, str(judged.bench.circumstances["date"]))


def _policy(task: Task, choice: Choice, judged: Judged) -> DecodedPolicy:
    """One choice; a contender that was left out has neither forecast nor answers."""
    name = _name(task, choice)
    return DecodedPolicy(
        contender=name,
        forecast=judged.forecasts.get(name),
        free_running=judged.free_running.get(name),
        **dataclasses.asdict(choice),
    )
