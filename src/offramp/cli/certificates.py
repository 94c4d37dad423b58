"""What `offramp run` certifies: per text and floor, by decoding documents that nothing was chosen on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from offramp.cli.answers import DELTA, FLOORS, MAIN_FLOOR, searchable
from offramp.cli.console import stage
from offramp.cli.run_folder import EXECUTIONS
from offramp.costs.hardware import LOCAL
from offramp.costs.machine import Machine
from offramp.decoding.execution.tune import executed_tuner
from offramp.errors import OfframpError
from offramp.models.model import Model
from offramp.report.formats import whole_percent
from offramp.report.run_result import Decoded
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.trace import Trace
from offramp.tuning.executed import Limits
from offramp.tuning.tune import tune as tune_trace
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import Speed, Verdict, open_candidate, settle
from offramp.workloads.workload import Workload

SEED = 0
NEW_TOKENS = 16
DOCUMENTS = 120
"""That one candidate is decoded on at most: a run takes minutes; `offramp tune` takes all that it needs."""

MAIN_SECONDS, OTHER_SECONDS = 25.0, 4.0
"""For reruns and decoding at the main floor, and at each other one."""

CANDIDATES = 2
"""That are tested: in so short a time a longer sequence would end at its cautious beginning."""


@dataclass(frozen=True)
class Certifying:
    """What all texts of a run share. model: None to decode nothing. texts: that the headline is about."""

    model: Model | None
    machine: Machine | None
    heads: ExitHeads | None
    folder: Path
    texts: int


def certify(run: Certifying, workload: Workload, trace: Trace) -> tuple[Tuned, ...]:
    """The tuner's answer at every floor: executed where the model can decode, else a replay bound."""
    if not searchable(trace):
        return ()
    if run.model is not None:
        try:
            return _executed(run, run.model, workload, trace)
        except OfframpError as error:  # a family that is only traced, or prompts that are too few
            said = f"offramp: {workload.name}: nothing was decoded for a certificate: {error.what}"
            print(said, file=sys.stderr)
    delta = DELTA / run.texts
    return tuple(tune_trace(trace, {"agreement": floor}, run.machine, delta=delta) for floor in FLOORS)


def _executed(run: Certifying, model: Model, workload: Workload, trace: Trace) -> tuple[Tuned, ...]:
    """The main floor first: its reruns and executions serve the others too."""
    found: dict[float, Tuned] = {}
    with executed_tuner(
        model,
        trace,
        run.machine,
        heads=run.heads,
        workload=workload,
        new_tokens=NEW_TOKENS,
        folder=run.folder / EXECUTIONS,
        seed=SEED,
        delta=DELTA / run.texts,
    ) as tune_for:
        for floor in sorted(FLOORS, key=lambda one: one != MAIN_FLOOR):
            seconds = MAIN_SECONDS if floor == MAIN_FLOOR else OTHER_SECONDS
            what = f"{workload.name}: tuning for {whole_percent(floor)} agreement, by what decodes"
            with stage(what, seconds):
                found[floor] = tune_for({"agreement": floor}, Limits(DOCUMENTS, seconds, CANDIDATES))
    return tuple(found[floor] for floor in FLOORS)


def settled(
    verdicts: Sequence[Verdict], tuned: Sequence[Tuned], decoded: Decoded | None = None
) -> tuple[Verdict, ...]:
    """The verdicts with what was executed at their floors, and with what was timed of the same policies."""
    by_floor = {one.floor.value: one for one in tuned}
    return tuple(
        settle(verdict, by_floor[verdict.floor], measured_speed(decoded, by_floor[verdict.floor]))
        if verdict.floor in by_floor
        else verdict
        for verdict in verdicts
    )


def measured_speed(decoded: Decoded | None, tuned: Tuned) -> Speed | None:
    """What the stopwatch said of a tuned policy with its strategy for K and V, or of the candidate whose
    certificate is open; None if it was not timed."""
    if decoded is None or not decoded.sound:
        return None
    tried = open_candidate(tuned)
    asked = (tuned.policy_text, tuned.kv) if tried is None else (tried.policy, tried.kv)
    for policy in decoded.policies:
        ratio = decoded.timed(policy).ratio
        if (policy.policy, policy.kv) == asked and ratio is not None:
            seconds = decoded.bench.seconds_spent
            return Speed(ratio.value, ratio.low, ratio.high, "measured", LOCAL, True, seconds)
    return None
