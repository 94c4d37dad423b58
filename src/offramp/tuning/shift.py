"""How texts look to a policy at its checks, kept with a tuned policy to hold other texts against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offramp.errors import InputError
from offramp.policies.policy import ExitPolicy, columns_of
from offramp.policies.rules.short_list import seen_by
from offramp.policies.walk import task_of
from offramp.scoring.documents import fact_of
from offramp.tracing.trace import Trace
from offramp.tuning.tuned import Shift

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class ShiftRow:
    """One check of the policy: the documents it was tuned on beside the other workload's."""

    exit: int
    fact: str | None
    tuned_quantiles: tuple[float, ...]
    other_quantiles: tuple[float, ...]
    tuned_agreement: float
    other_agreement: float
    tuned_calibration: float | None
    other_calibration: float | None


def shift_of(trace: Trace, policy: ExitPolicy) -> tuple[Shift, ...]:
    """What the policy reads at every checked exit, over all tokens of the trace, by exit.

    quantiles: of the first measured fact that it reads there, at `QUANTILES` (inverse of the distribution
    function: each is a recorded value); none where it reads token numbers only. agreement: share of tokens
    whose top-1 there is the full model's. calibration: mean of max_prob less that share, None if max_prob was
    not recorded.

    Raises PolicyError for exits that were not traced, InputError for a trace without tokens or without a
    fact, or for one that is not a number.
    """
    if not trace.token_count:
        raise InputError("the trace holds no tokens", fix="trace more text")
    trace = seen_by(policy.for_task(task_of(trace)), trace)
    needs = {
        exit: facts for exit, facts in policy.for_task(task_of(trace)).needs(trace.layers).items() if facts
    }
    columns = columns_of(trace, tuple(needs))
    confidence = trace.fact("max_prob") if "max_prob" in trace.fact_names else None
    shifts = []
    for (exit, facts), column in zip(needs.items(), columns, strict=True):
        # Facts that are token numbers are whole: their order means nothing.
        fact = next((name for name in facts if fact_of(trace, name).dtype.kind == "f"), None)
        agreement = float(np.mean(trace.agreement[:, column]))
        shifts.append(
            Shift(
                exit=exit,
                fact=fact,
                quantiles=() if fact is None else _quantiles(trace, fact, int(column), exit),
                agreement=agreement,
                calibration=None
                if confidence is None
                else float(np.mean(confidence[:, column], dtype=np.float64)) - agreement,
            )
        )
    return tuple(shifts)


def shift_rows(tuned: tuple[Shift, ...], other: Trace, policy: ExitPolicy) -> tuple[ShiftRow, ...]:
    """The tuning documents beside another trace, at every exit that the policy checks on both.

    A policy that holds one per task may check other exits on other texts; those have no counterpart and no
    row. Raises as `shift_of` does.
    """
    before = {shift.exit: shift for shift in tuned}
    return tuple(
        ShiftRow(
            exit=after.exit,
            fact=after.fact,
            tuned_quantiles=before[after.exit].quantiles,
            other_quantiles=after.quantiles,
            tuned_agreement=before[after.exit].agreement,
            other_agreement=after.agreement,
            tuned_calibration=before[after.exit].calibration,
            other_calibration=after.calibration,
        )
        for after in shift_of(other, policy)
        if after.exit in before and before[after.exit].fact == after.fact
    )


def _quantiles(trace: Trace, fact: str, column: int, exit: int) -> tuple[float, ...]:
    values = fact_of(trace, fact)[:, column]
    if np.isnan(values).any():
        raise InputError(
            f"{fact} is not a number for {int(np.isnan(values).sum())} tokens at exit {exit}",
            where=str(trace.folder or "the trace"),
            fix="trace the model again; a document with a broken logit should have been left out",
        )
    return tuple(float(value) for value in np.quantile(values, QUANTILES, method="inverted_cdf"))
