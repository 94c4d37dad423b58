"""The curves of a trace, exit by exit, with intervals where they are means over tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from offramp.scoring.bootstrap import DocumentBootstrap
from offramp.scoring.card import Curve, LayerCurves
from offramp.scoring.diagnostics import ConfidenceDiagnostics
from offramp.scoring.documents import fact_of
from offramp.tracing.trace import Trace

MEAN_FACTS: tuple[str, ...] = (
    "max_prob",
    "margin",
    "entropy",
    "kl_to_final",
    "nll",
    "final_logprob",
    "logit_cosine",
    "centred_logit_cosine",
    "shuffled_logit_cosine",
    "hidden_cosine_to_final",
    "hidden_cosine_to_previous",
    "update_norm",
)

Values = NDArray[np.float64]


def layer_curves(
    trace: Trace,
    depth_fraction: Curve,
    means: Mapping[str, Values],
    diagnostics: ConfidenceDiagnostics,
    bootstrap: DocumentBootstrap,
) -> LayerCurves:
    """All curves of a trace.

    means: curve name -> float64 [1 + draws, exits], the trace and then its bootstrap draws; these get an
    interval. The diagnostics (ECE, AUROC, AURC) and the median rank get none.
    """
    values: dict[str, Curve] = {name: draws[0] for name, draws in means.items()}
    values["final_rank_median"] = np.median(fact_of(trace, "final_rank"), axis=0)
    values["ece_agreement"] = diagnostics.ece_agreement
    values["ece_token"] = diagnostics.ece_token
    values["auroc"] = diagnostics.auroc
    values["aurc"] = diagnostics.aurc
    limits = {name: bootstrap.interval(draws) for name, draws in means.items()}
    return LayerCurves(
        exits=trace.exits,
        depth_fraction=depth_fraction,
        values=values,
        intervals={name: limit for name, limit in limits.items() if limit is not None},
    )


def exit_ranges(exits: NDArray[np.int64]) -> str:
    """A short text for a rising list of exits: [1, 2, 3, 30] -> "exits 1-3, 30", [4] -> "exit 4"."""
    runs = np.split(exits, np.flatnonzero(np.diff(exits) != 1) + 1)
    ranges = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"exit {ranges}" if len(exits) == 1 else f"exits {ranges}"


def curve_notes(trace: Trace, diagnostics: ConfidenceDiagnostics) -> tuple[str, ...]:
    """Sentences that say at which exits AUROC and AURC are undefined, and why."""
    notes = []
    if diagnostics.few.any():
        exits = exit_ranges(trace.exits[diagnostics.few])
        notes.append(f"AUROC is undefined at {exits}: fewer than 20 tokens agree or fewer than 20 do not")
    if diagnostics.constant.any():
        exits = exit_ranges(trace.exits[diagnostics.constant])
        notes.append(f"AUROC and AURC are undefined at {exits}: the confidence is constant")
    return tuple(notes)
