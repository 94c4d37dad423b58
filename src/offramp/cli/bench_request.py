"""What `offramp bench` was asked for, refused before a model is loaded where it cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.cli.local_profile import kept_profile
from offramp.cli.options import require_json_file, require_options
from offramp.costs.hardware import find_machine
from offramp.costs.local_store import LOCAL
from offramp.costs.machine import Machine
from offramp.decoding.bench.bench import check_limits, require_sizes, settle
from offramp.decoding.bench.beside import expected_position, predict_cells
from offramp.decoding.bench.budget import Limits
from offramp.decoding.bench.contenders import Extent, Setting
from offramp.decoding.generation import binding
from offramp.decoding.generation.binding import (
    check_reachable,
    check_tuned_early,
    read_heads_source,
    read_policy_source,
    strategy_of,
)
from offramp.decoding.quality.tasks.registry import load_task
from offramp.decoding.quality.tasks.task import Task
from offramp.decoding.strategies.draft_length import check_draft_length
from offramp.decoding.strategies.mapped import Mapped, check_maps
from offramp.decoding.strategies.registry import STRATEGIES
from offramp.errors import InputError, PolicyError
from offramp.models.identity import command_name
from offramp.models.model import Model
from offramp.policies.batching import BATCHINGS
from offramp.policies.results import ReplayResult
from offramp.policies.signals import suggest
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.model_request import ModelRequest
from offramp.tracing.trace import Trace
from offramp.workloads.registry import load_workload
from offramp.workloads.workload import Workload

DRAFT_LENGTH = 4
PROMPTS = 16
QUESTIONS = 32


@dataclass(frozen=True)
class BenchRequest:
    """The options of the command, read and checked as far as possible without the model.

    hardware: None for the local profile if there is one. machine: the profile, if it needs no model. plain:
    the plain decoder to hold against, None for a pilot to choose. fewest_prompts: that the workload must
    have.
    """

    policy: str
    kv: str
    heads: ExitHeads | None
    workload: Workload
    prompts: int
    fewest_prompts: int
    prompt_tokens: int
    new_tokens: int
    limits: Limits
    processes: int
    plain: str | None
    batches: tuple[int, ...]
    batching: str
    draft_length: int | str
    peers: bool
    tasks: tuple[Task, ...]
    questions: int
    trace: Trace | None
    hardware: str | None
    machine: Machine | None
    quality: bool
    forecasts: bool
    seed: int

    def setting(self, model: Model, prompts: list[list[int]], batch: int) -> Setting:
        """What is timed at one batch size: so many batches of prompts as were asked for, if there are enough.

        Raises InputError for what does not fit the model.
        """
        return settle(
            model,
            self.policy,
            prompts=prompts[: self.prompts * batch],
            kv=self.kv,
            heads=self.heads,
            new_tokens=self.new_tokens,
            batch=batch,
            batching=self.batching,
            draft_length=self.draft_length,
            task=self.workload.name,
        )

    def extent(self, machine: Machine | None) -> Extent:
        """Who takes part; forecasts need the full model in our loop beside the policy."""
        return Extent(peers=self.peers, never=machine is not None, plain=self.plain)

    def machines_for(self, settings: Sequence[Setting]) -> list[tuple[Machine | None, tuple[str, ...]]]:
        """The profile that each setting's time is predicted with, or None; and what must be said of it.

        settings: of one model. Kept timings are held against a few plain tokens first, once for all.

        Raises InputError if there is none though it, or a prediction from a trace, was asked for.
        """
        model = settings[0].model
        notes: tuple[str, ...] = ()
        if not self.forecasts:
            return [(None, ())] * len(settings)
        try:
            machine = self.machine
            if machine is None:
                timed = kept_profile(model)
                machine, notes = timed.profile, (f"the machine: {timed.note}",)
        except InputError as error:
            return [(None, self._nothing_predicted(error))] * len(settings)
        found: list[tuple[Machine | None, tuple[str, ...]]] = []
        for setting in settings:
            try:
                batch = len(setting.prompts[0].ids)
                machine.token_costs(model.shape, expected_position(setting), batch=batch)
                found.append((machine, notes))
            except InputError as error:
                found.append((None, self._nothing_predicted(error)))
        return found

    def _nothing_predicted(self, error: InputError) -> tuple[str, ...]:
        """Why, as a note; raises the error if a prediction was asked for."""
        if self.hardware is not None or self.trace is not None:
            raise error
        return (f"nothing is predicted: {error.what} ({error.fix})",)

    def predictions(self, setting: Setting, machine: Machine | None) -> Mapping[str, ReplayResult]:
        """What the trace predicts, by the cell's name; nothing without a trace.

        Raises InputError for a trace of another model, or one that the policy cannot be replayed on.
        """
        if self.trace is None or machine is None:
            return {}
        model, traced = setting.model, self.trace.request.get("model", {})
        if traced.get("fingerprint") != model.identity.fingerprint:
            raise InputError(
                f"the trace is of another model, {traced.get('name', 'without a name')}",
                where=str(self.trace.folder or "the trace"),
                fix=f"trace this one: offramp trace {command_name(model.name, model.identity.transforms)}",
            )
        return predict_cells(setting, self.trace, machine, self.workload.name)


def read_request(
    *,
    policy: str | None,
    kv: str | None,
    heads: Path | None,
    workload: str,
    prompts: int | None,
    batches: tuple[int, ...],
    batching: str | None,
    draft_length: str | None,
    tasks: tuple[str, ...],
    questions: int | None,
    allow_code: bool,
    trace: Path | None,
    hardware: str | None,
    output: Path | None,
    dtype: str,
    floor: float | None,
    **plain: Any,
) -> BenchRequest:
    """Read and check the options. plain: those that are kept as they are.

    Raises InputError, its subclasses, or DamagedFileError for anything that cannot be measured.
    """
    require_options(tokens=1, context=None, document_tokens=None, exits="all", dtype=dtype, output=None)
    sizes = ("prompt_tokens", "new_tokens", "processes")
    asked = QUESTIONS if questions is None else questions
    wanted = PROMPTS if prompts is None else prompts
    require_sizes(**{name: plain[name] for name in sizes}, questions=asked, prompts=wanted)
    for batch in batches:
        require_sizes(batch=batch)
    check_limits(plain["limits"])
    if policy is None:
        raise InputError(
            "no --policy is given: there is nothing to time",
            where="--policy",
            fix="give --policy static:exit=20, or accelerations with --combine",
        )
    if floor is not None:
        raise InputError("--floor means nothing without --combine", where="--floor", fix="leave --floor out")
    decides, tuned = read_policy_source(policy)
    check_reachable(decides)
    kv = strategy_of(kv, tuned)
    _require_words(kv, batching, batches, draft_length)
    if questions is not None and not tasks:
        raise InputError(
            "--questions means nothing without a task",
            where="--questions",
            fix="add --task, or leave --questions out",
        )
    if output is not None:
        require_json_file(output, "a bench result", {"schema_version": object, "results": object})
    loaded_tasks = tuple(load_task(task, allow_code=allow_code) for task in tasks)
    for task in loaded_tasks:
        task.questions(asked, plain["seed"])
    fitted = read_heads_source(heads, tuned)
    loaded_workload = load_workload(workload)
    own = decides.for_task(loaded_workload.name)
    check_tuned_early(tuned, own, fitted, kv)
    if kv == Mapped.name:
        check_maps(own, fitted, dtype=dtype)
    return BenchRequest(
        policy=policy,
        kv=kv,
        heads=fitted,
        workload=loaded_workload,
        prompts=wanted,
        fewest_prompts=max(prompts or 1, *batches),
        batches=batches,
        batching=batching or "lockstep",
        draft_length=read_draft_length(draft_length),
        tasks=loaded_tasks,
        questions=asked,
        trace=None if trace is None else _read_trace(trace),
        hardware=hardware,
        machine=None if hardware in (None, LOCAL) else find_machine(str(hardware)),
        **plain,
    )


def _require_words(kv: str, batching: str | None, batches: tuple[int, ...], draft_length: str | None) -> None:
    """Refuse unknown words, and options that would change nothing."""
    if kv not in STRATEGIES:
        raise PolicyError(f"unknown strategy {kv!r} for K and V", where="--kv", fix=suggest(kv, STRATEGIES))
    if batching is not None and batching not in BATCHINGS:
        raise PolicyError(
            f"unknown batching {batching!r}", where="--batching", fix=suggest(batching, BATCHINGS)
        )
    if batching is not None and max(batches) == 1:
        raise InputError(
            f"--batching {batching} means nothing at batch 1",
            where="--batching",
            fix="add --batch 2 or more, or leave --batching out",
        )
    if draft_length is not None and kv != "speculate":
        raise InputError(
            f"a draft length means nothing with --kv {kv}: only speculation drafts",
            where="--draft-length",
            fix="add --kv speculate, or leave --draft-length out",
        )


def check_early(request: BenchRequest, asked: ModelRequest, heads: Path | None) -> None:
    """Refuse what does not fit the model that was asked for, before it is loaded. heads: of the command.

    Raises InputError and PolicyError.
    """
    decides, tuned = read_policy_source(request.policy)
    where = str(heads or (tuned and tuned.heads_file))
    own = decides.for_task(request.workload.name)
    binding.check_early(asked, own, tuned, request.heads, where, request.kv)


def read_draft_length(text: str | None) -> int | str:
    """A number, or a word that the strategy knows. Raises InputError for any other."""
    value: int | str = DRAFT_LENGTH if text is None else int(text) if text.isdecimal() else text
    check_draft_length(value)
    return value


def _read_trace(folder: Path) -> Trace:
    from offramp.cli.run_folder import find_trace

    return Trace.load(find_trace(folder))
