"""The facts that a decoder can read at an exit, by name: each from a reading and what was kept before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.decoding.reading.earlier import (
    Chosen,
    Kept,
    js_to_previous,
    kl_to_previous,
    top_k_overlap,
)
from offramp.decoding.reading.reading import Reading
from offramp.decoding.reading.shapes import rows_of
from offramp.tracing.cross import cosine
from offramp.tracing.features import confidence_features
from offramp.tracing.fitted import HIDDEN_STATE_FACTS
from offramp.tracing.reductions import PADDING_LIMIT


@dataclass(frozen=True)
class Look:
    """One exit, and what earlier checks of the same token kept, None where there were none."""

    reading: Reading
    previous: Kept | None
    chosen: Chosen | None


def _logit_gap(look: Look) -> Tensor:
    best, second = look.reading.best[0], look.reading.second
    return torch.where(second < PADDING_LIMIT, torch.inf, best - second)


def _restricted_top1(look: Look) -> Tensor:
    return look.reading.shortlist.tokens[look.reading.short[0]]


def _hidden_cosine(look: Look) -> Tensor:
    reading = look.reading
    if reading.before is None:
        raise LookupError(f"the state before layer {reading.exit} is needed, and was not given")
    after = reading.states.float()
    before = rows_of(reading.before, reading.tools.head.stack.position_axis).float()
    dot = torch.linalg.vecdot(before, after)
    return cosine(dot, torch.linalg.vecdot(before, before), torch.linalg.vecdot(after, after))


def _adainfer(look: Look) -> Tensor:
    reading = look.reading
    return reading.probability("adainfer", confidence_features(reading.max_prob, reading.margin))


def _candidate_score(look: Look) -> Tensor:
    if look.chosen is None:
        return torch.zeros(len(look.reading.states), device=look.reading.states.device)
    return look.chosen.score(look.reading)


def _of_state(fact: str) -> Callable[[Look], Tensor]:
    return lambda look: look.reading.probability(fact, look.reading.states)


READERS: Mapping[str, Callable[[Look], Tensor]] = {
    "top1": lambda look: look.reading.best[1],
    "max_prob": lambda look: look.reading.max_prob,
    "margin": lambda look: look.reading.margin,
    "logit_gap": _logit_gap,
    "entropy": lambda look: look.reading.entropy,
    "kl_to_previous": lambda look: kl_to_previous(look.reading, look.previous),
    "js_to_previous": lambda look: js_to_previous(look.reading, look.previous),
    "top_k_overlap": lambda look: top_k_overlap(look.reading, look.previous),
    "restricted_top1": _restricted_top1,
    "restricted_max_prob": lambda look: look.reading.short[1],
    "restricted_margin": lambda look: look.reading.short[2],
    "hidden_cosine_to_previous": _hidden_cosine,
    "adainfer": _adainfer,
    "candidate_score": _candidate_score,
    **{fact: _of_state(fact) for fact in HIDDEN_STATE_FACTS},
}
"""Values [rows] of a fact: float32, token ids int64."""
