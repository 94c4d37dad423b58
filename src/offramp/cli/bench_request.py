"""What `offramp bench` was asked for, refused before a model is loaded where it cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.cli.local_profile import kept_profile, profile_now
from offramp.cli.options import idle_draft_length, refuse_idle, require_json_file
from offramp.costs.hardware import find_machine
from offramp.costs.machine import Machine
from offramp.costs.timings import TimingsProfile
from offramp.decoding.measurement.answers import Limits
from offramp.decoding.measurement.bench import check_limits, require_sizes, settle
from offramp.decoding.measurement.contenders import Extent, Setting
from offramp.decoding.measurement.judged import expected_position, predict_cells
from offramp.decoding.measurement.local_profile import LocalProfile
from offramp.decoding.options import DecodingOptions
from offramp.decoding.rerun.sequences import require_model
from offramp.errors import InputError
from offramp.kit.defaults import LOCAL
from offramp.models.model import Model
from offramp.policies.replay import ReplayResult
from offramp.runs.contents import contents_at, contents_of, trace_for
from offramp.tracing.trace import Trace
from offramp.workloads.registry import load_workload
from offramp.workloads.workload import Workload

PROMPTS = 16


@dataclass(frozen=True)
class BenchRequest:
    """The options of the command, read and checked as far as possible without the model.

    timings: of the run that the policy or the trace is of, None without one. hardware: None for the local
    profile if there is one. machine: the profile, if it needs no model. plain: the plain decoder to hold
    against, None for a pilot to choose. fewest_prompts: that the workload must have.
    """

    options: DecodingOptions
    workload: Workload
    prompts: int
    fewest_prompts: int
    prompt_tokens: int
    limits: Limits
    processes: int
    plain: str | None
    batches: tuple[int, ...]
    peers: bool
    trace: Trace | None
    timings: TimingsProfile | None
    hardware: str | None
    machine: Machine | None
    quality: bool
    forecasts: bool
    seed: int

    def setting(self, model: Model, prompts: list[list[int]], batch: int) -> Setting:
        """What is timed at one batch size: so many batches of prompts as were asked for, if there are enough.

        Raises InputError for what does not fit the model.
        """
        own = prompts[: self.prompts * batch]
        return settle(model, [self.options], prompts=own, batch=batch, task=self.workload.name)

    @property
    def extent(self) -> Extent:
        """Who takes part."""
        return Extent(peers=self.peers, plain=self.plain)

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
                timed = self._timed(model)
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

    def _timed(self, model: Model) -> LocalProfile:
        """This machine's timings of the model: its run's own, or the kept ones. Raises InputError."""
        own = self.timings
        made = None if own is None else (own.details["model"]["fingerprint"], own.dtype)
        if made == (model.identity.fingerprint, model.dtype):
            return profile_now(model, own)
        return kept_profile(model)

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
        require_model(setting.model, self.trace)
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
    trace: Path | None,
    hardware: str | None,
    output: Path | None,
    dtype: str,
    floor: float | None,
    new_tokens: int,
    **plain: Any,
) -> BenchRequest:
    """Read and check the options. plain: those that are kept as they are.

    Raises InputError, its subclasses, or DamagedFileError for anything that cannot be measured.
    """
    sizes = {name: plain[name] for name in ("prompt_tokens", "processes")}
    wanted = PROMPTS if prompts is None else prompts
    require_sizes(**sizes, new_tokens=new_tokens, prompts=wanted)
    for batch in batches:
        require_sizes(batch=batch)
    check_limits(plain["limits"])
    if policy is None:
        raise InputError(
            "no --policy is given: there is nothing to time",
            where="--policy",
            fix="give --policy static:exit=20, or accelerations with --combine",
        )
    options = DecodingOptions.read(
        policy, kv=kv, heads=heads, draft_length=draft_length, batching=batching, new_tokens=new_tokens
    )
    refuse_idle(
        {
            "--floor": (floor is not None, "without --combine", "--combine"),
            "--batching": (batching is not None and max(batches) == 1, "at batch 1", "--batch 2 or more"),
            "--draft-length": idle_draft_length(options.kv, draft_length),
        }
    )
    if output is not None:
        require_json_file(
            output, "a bench result", lambda value: {"schema_version", "results"} <= value.keys()
        )
    place = None if trace is None else trace_for(trace, policy)
    contents = contents_of(policy) if place is None else contents_at(place)
    loaded_workload = load_workload(workload)
    options = options.for_task(loaded_workload.name)
    options.check_files(dtype)
    return BenchRequest(
        options=options,
        workload=loaded_workload,
        prompts=wanted,
        fewest_prompts=max(prompts or 1, *batches),
        batches=batches,
        trace=None if place is None else Trace.load(place),
        timings=None if contents is None else contents.timings,
        hardware=hardware,
        machine=None if hardware in (None, LOCAL) else find_machine(str(hardware)),
        **plain,
    )
