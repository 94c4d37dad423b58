"""A measurement with its answers judged and its times foretold, for policies that were chosen on a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from offramp.costs.machine import Machine
from offramp.decoding.bench.beside import (
    forecasts_of,
    judged_answers,
    predict_cells,
    with_agreement,
    with_forecasts,
)
from offramp.decoding.bench.contenders import Setting
from offramp.decoding.bench.results import BenchResult, Forecast, FreeRunning
from offramp.decoding.bench.together import Measurement
from offramp.decoding.bench.traced_prompts import Prompts
from offramp.errors import InputError
from offramp.policies.results import ReplayResult
from offramp.tracing.trace import Trace
from offramp.tuning.splits import split_documents

NO_STATIC_CACHE = (
    "plain decoding is the fastest of never exit and generate(); a static cache was not tried here"
)


@dataclass(frozen=True)
class Judged:
    """What was measured, with forecasts. forecasts, free_running: by the cell's name, of what was timed."""

    bench: BenchResult
    forecasts: Mapping[str, Forecast]
    free_running: Mapping[str, FreeRunning]


def predict_unseen(
    setting: Setting, trace: Trace, machine: Machine, workload: str, *, seed: int = 0
) -> Mapping[str, ReplayResult]:
    """Every policy replayed on documents that none was chosen on, by the cell's name; before any timing.

    A policy that cannot be replayed (an exit that was not traced, a probe without a price) is left out. seed:
    that the policies were chosen with.
    """
    judging = split_documents(trace, seed)[1]
    unseen = trace.subset(judging) if len(judging) else trace
    found: dict[str, ReplayResult] = {}
    for cell in setting.cells:
        try:
            found |= predict_cells(replace(setting, cells=(cell,)), unseen, machine, workload)
        except InputError:
            continue
    return found


def judge_measurement(
    measured: Measurement,
    machine: Machine | None,
    *,
    predicted: Mapping[str, ReplayResult],
    workload: str,
    parts_of: int | None = None,
    notes: tuple[str, ...] = (),
    seed: int = 0,
) -> Judged:
    """Answers judged by the full model, then times foretold and their parts timed (see `forecasts_of`).

    machine: None for no forecasts. notes: further ones for the result. seed: of the answers' intervals.

    Raises InputError if the machine cannot price what ran.
    """
    quality = judged_answers(measured, seed=seed)
    agreement = {name: one.agreement.value for name, one in quality.items()}
    forecasts = {} if machine is None else forecasts_of(
        measured, machine, predicted=predicted, workload=workload, agreement=agreement, parts_of=parts_of
    )  # fmt: skip
    bench = with_agreement(measured.result, measured.setting, quality)
    bench = with_forecasts(replace(bench, notes=(*bench.notes, *notes)), forecasts)
    return Judged(bench, forecasts, quality)


def prompt_notes(prompts: Prompts, wanted: int) -> list[str]:
    """What to bear in mind of prompts of which so many were wanted."""
    notes = [] if len(prompts.ids) >= wanted else [f"{len(prompts.ids)} of {wanted} prompts were at hand"]
    if not prompts.unseen:
        notes.append("the prompts are of documents that policies were chosen on: there are no others")
    return notes
