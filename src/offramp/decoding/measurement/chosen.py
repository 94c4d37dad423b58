"""Policies that were chosen on traces, decoded for real: predicted, then timed in turns, then judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from offramp.costs.machine import Machine
from offramp.decoding.measurement.answers import Limits
from offramp.decoding.measurement.bench import settle
from offramp.decoding.measurement.contenders import SHORT, Setting
from offramp.decoding.measurement.judged import Judged, judge_measurement, predict_cells
from offramp.decoding.measurement.measurement import run_together
from offramp.decoding.measurement.prompts import Prompts
from offramp.decoding.options import DecodingOptions
from offramp.errors import InputError, OfframpError
from offramp.models.model import Model
from offramp.policies.replay import ReplayResult
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.trace import Trace
from offramp.tuning.splits import split_documents

DRAFT_LENGTH = 1
"""Drafts before a verification: ordinary models reject most drafts, so that longer ones cost time."""
PARTS_OF = 1
"""Prompts of each text on which the parts of a policy's tokens are timed."""
NO_STATIC_CACHE = (
    "plain decoding is the fastest of never exit and generate(); a static cache was not tried here"
)


@dataclass(frozen=True)
class Chosen:
    """Policies chosen on the trace of one workload.

    policies: each with its strategy for K and V, the main one first. wanted: how many prompts were. notes:
    what else must be said of the measurement.
    """

    workload: str
    trace: Trace
    policies: tuple[tuple[str, str], ...]
    prompts: Prompts
    wanted: int
    notes: tuple[str, ...] = ()

    @property
    def options(self) -> list[DecodingOptions]:
        """How each policy decodes; its name is that of its contender."""
        read = [DecodingOptions.read(policy, kv=kv) for policy, kv in self.policies]
        return [replace(one, draft_length=DRAFT_LENGTH).for_task(self.workload) for one in read]


def decode_chosen(
    model: Model,
    chosen: Sequence[Chosen],
    machine: Machine | None,
    *,
    heads: ExitHeads | None,
    new_tokens: int,
    limits: Limits,
    seed: int = 0,
) -> list[Judged | OfframpError]:
    """Every workload's measurement, or what made it fail; all contenders of all of them take turns.

    machine: None for no forecasts. new_tokens: after each prompt, as far as the context has room. seed: that
    the policies were chosen with, and of the order of turns.

    Raises InputError or PolicyError for a policy that does not fit the model.
    """
    settings = [_setting(model, one, heads, new_tokens) for one in chosen]
    predicted = [
        {} if machine is None else _predict_unseen(setting, one, machine, seed)
        for one, setting in zip(chosen, settings, strict=True)
    ]
    measured = run_together(settings, extent=SHORT, limits=limits, seed=seed)
    found: list[Judged | OfframpError] = []
    for one, measurement, predictions in zip(chosen, measured, predicted, strict=True):
        try:
            if isinstance(measurement, OfframpError):
                raise measurement
            judged = judge_measurement(
                measurement,
                machine,
                predicted=predictions,
                workload=one.workload,
                parts_of=PARTS_OF,
                notes=(NO_STATIC_CACHE, *one.notes, *_prompt_notes(one)),
                seed=seed,
            )
            found.append(judged)
        except OfframpError as error:  # the other texts still count
            found.append(error)
    return found


def _setting(model: Model, chosen: Chosen, heads: ExitHeads | None, new_tokens: int) -> Setting:
    if model.context_length is not None:
        new_tokens = min(new_tokens, model.context_length - max(map(len, chosen.prompts.ids)))
    cells = [replace(one, heads=heads, new_tokens=new_tokens) for one in chosen.options]
    return settle(model, cells, prompts=chosen.prompts.ids, task=chosen.workload)


def _predict_unseen(
    setting: Setting, chosen: Chosen, machine: Machine, seed: int
) -> Mapping[str, ReplayResult]:
    """Every policy replayed on documents that none was chosen on, by the cell's name; before any timing.

    A policy that cannot be replayed (an exit that was not traced, a probe without a price) is left out.
    """
    trace = chosen.trace
    judging = split_documents(trace, seed)[1]
    unseen = trace.subset(judging) if len(judging) else trace
    found: dict[str, ReplayResult] = {}
    for cell in setting.cells:
        try:
            found |= predict_cells(replace(setting, cells=(cell,)), unseen, machine, chosen.workload)
        except InputError:
            continue
    return found


def _prompt_notes(chosen: Chosen) -> list[str]:
    """What to bear in mind of the prompts."""
    count = len(chosen.prompts.ids)
    notes = [] if count >= chosen.wanted else [f"{count} of {chosen.wanted} prompts were at hand"]
    if not chosen.prompts.unseen:
        notes.append("the prompts are of documents that policies were chosen on: there are no others")
    return notes
