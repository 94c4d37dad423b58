"""Which recorders a trace needs for what it records."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from offramp.tracing.features import SHORTLIST
from offramp.tracing.fitted import FittedHeads
from offramp.tracing.head import Head
from offramp.tracing.recorders import (
    PREVIOUS_EXIT_SIGNALS,
    Candidates,
    Confidence,
    LogitGap,
    PreviousExit,
    Probability,
    Recorder,
    Restricted,
)
from offramp.tracing.recording import Recording


def make_recorders(
    head: Head, recording: Recording, fitted: FittedHeads | None, rows: int, below: Sequence[Head] = ()
) -> tuple[Recorder, ...]:
    """The recorders of one head, or of one at L and others below. rows: of one float32 output at most."""
    recorders: list[Recorder] = []
    if "logit_gap" in recording.signals:
        recorders.append(LogitGap())
    if "restricted" in recording.signals:
        recorders.append(Restricted((head, *below), _shortlist(head, fitted)))
    if fitted is not None:
        recorders += _of_heads(fitted)
    compared = [name for name in PREVIOUS_EXIT_SIGNALS if name in recording.signals]
    if compared:
        recorders.append(PreviousExit(head.vocabulary_size, rows, compared))
    return tuple(recorders)


def _shortlist(head: Head, fitted: FittedHeads | None) -> Tensor:
    """The restricted vocabulary: the heads' own, else the first ids, which are the frequent ones in BPE."""
    own = None if fitted is None else fitted.shortlist
    return torch.arange(min(SHORTLIST, head.vocabulary_size)) if own is None else own


def _of_heads(fitted: FittedHeads) -> list[Recorder]:
    recorders: list[Recorder] = []
    if "adainfer" in fitted.heads.classifiers:
        recorders.append(Confidence(_probability(fitted, "adainfer")))
    if fitted.candidate_index is not None:
        probability = _probability(fitted, "candidate_score")
        recorders.append(Candidates(fitted.candidate_index, probability))
    return recorders


def _probability(fitted: FittedHeads, name: str) -> Probability:
    return lambda index, features: fitted.probability(name, index, features)
