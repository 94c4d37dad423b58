"""Workloads decoded for real in one measurement: predicted first, then timed in turns, then judged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offramp.cli.decoding_choice import DRAFT_LENGTH, PROMPTS, Choice, Prompts
from offramp.cli.preparation import Prepared
from offramp.costs.local_store import LOCAL
from offramp.costs.machine import Machine
from offramp.decoding.bench.bench import settle
from offramp.decoding.bench.beside import forecasts_of, free_running_of, predict_cells
from offramp.decoding.bench.contenders import SHORT, Cell, Setting
from offramp.decoding.bench.results import FreeRunning
from offramp.decoding.bench.together import Measurement, run_together
from offramp.decoding.quality.free_running import Judgements
from offramp.errors import InputError, OfframpError
from offramp.models.model import Model
from offramp.policies.grammar import parse_policy
from offramp.policies.results import ReplayResult
from offramp.report.decoded import Decoded, DecodedPolicy
from offramp.report.run_result import WorkloadResult
from offramp.tracing.trace import Trace
from offramp.tuning.splits import split_documents
from offramp.workloads.workload import Workload

TIMED_APART = 1
"""Prompts of each text on which the parts of a policy's tokens are timed."""
NO_STATIC_CACHE = (
    "plain decoding is the faster of never exit and generate(); a static cache was not tried here"
)


@dataclass(frozen=True)
class Task:
    """What to measure on one workload. left_out: strategies that the model's family refuses."""

    workload: Workload
    result: WorkloadResult
    choices: tuple[Choice, ...]
    prompts: Prompts
    left_out: tuple[str, ...]


def decode_together(
    model: Model, tasks: Sequence[Task], prepared: Prepared, new_tokens: int
) -> list[Decoded | OfframpError]:
    """Every task's measurement, or what made it fail; all contenders of all texts take turns.

    Raises InputError or PolicyError for a policy that does not fit the model.
    """
    machine = prepared.machine if prepared.machine and prepared.machine.name == LOCAL else None
    settings = [_setting(model, task, prepared, new_tokens) for task in tasks]
    predicted = [
        {} if machine is None else _predictions(task, setting, machine)
        for task, setting in zip(tasks, settings, strict=True)
    ]
    measured = run_together(
        settings, rounds=[math.ceil(PROMPTS / len(task.prompts.ids)) for task in tasks], extent=SHORT
    )
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


def _room(model: Model, task: Task, new_tokens: int) -> int:
    """New tokens that the model's context has room for."""
    if model.context_length is None:
        return new_tokens
    return min(new_tokens, model.context_length - max(map(len, task.prompts.ids)))


def _predictions(task: Task, setting: Setting, machine: Machine) -> Mapping[str, ReplayResult]:
    """Replayed on documents that no policy was chosen on, by the cell's name; before any timing."""
    unseen = _unseen(task.result.trace)
    found: dict[str, ReplayResult] = {}
    for cell in setting.cells:
        alone = dataclasses.replace(setting, cells=(cell,))
        try:
            found |= predict_cells(alone, unseen, machine, task.result.name)
        except InputError:  # an exit of the grid that was not traced, or a probe without a price
            continue
    return found


def _unseen(trace: Trace) -> Trace:
    judging = split_documents(trace, 0)[1]
    return trace.subset(judging) if len(judging) else trace


def _decoded(
    task: Task, measured: Measurement, machine: Machine | None, predicted: Mapping[str, ReplayResult]
) -> Decoded:
    """A measurement with its answers judged and its time predicted."""
    known: Judgements = {}
    cells = [cell for cell in measured.setting.cells if cell.name in measured.decoded]
    quality = {cell.name: free_running_of(measured, cell, known=known) for cell in cells}
    forecasts = () if machine is None else forecasts_of(
        measured,
        machine,
        predicted=predicted,
        workload=task.result.name,
        agreement={name: one.agreement.value for name, one in quality.items()},
        parts_of=TIMED_APART,
    )  # fmt: skip
    held = dict(zip([cell.name for cell in cells], forecasts, strict=False))
    bench = dataclasses.replace(
        measured.result,
        notes=(*measured.result.notes, NO_STATIC_CACHE, *task.left_out, *_prompt_notes(task.prompts)),
        forecasts=forecasts,
    )
    policies = tuple(_policy(task, choice, held, quality) for choice in task.choices)
    return Decoded(task.result.name, bench, policies, str(bench.circumstances["date"]))


def _policy(
    task: Task, choice: Choice, forecasts: Mapping[str, Any], quality: Mapping[str, FreeRunning]
) -> DecodedPolicy:
    """One choice; a contender that was left out has neither forecast nor answers."""
    name = Cell(parse_policy(choice.policy).for_task(task.workload.name), choice.kv).name
    return DecodedPolicy(
        contender=name,
        forecast=forecasts.get(name),
        free_running=quality.get(name),
        **dataclasses.asdict(choice),
    )


def _prompt_notes(prompts: Prompts) -> list[str]:
    notes = [] if len(prompts.ids) >= PROMPTS else [f"{len(prompts.ids)} of {PROMPTS} prompts were at hand"]
    if not prompts.unseen:
        notes.append("the prompts are of documents that policies were chosen on: there are no others")
    return notes
