"""The facts that a decoder can read at an exit, and what earlier checks of a token left to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from offramp.decoding.exit_readout.head import best_of, rows_of
from offramp.decoding.exit_readout.reading import Reading
from offramp.tracing.final_comparison import cosine
from offramp.tracing.fitted_heads import (
    CANDIDATES,
    HIDDEN_STATE_FACTS,
    TOP_K,
    candidate_features,
    confidence_features,
)
from offramp.tracing.statistics import PADDING_LIMIT

DIVERGENCES = frozenset({"kl_to_previous", "js_to_previous"})


@dataclass(frozen=True)
class Kept:
    """What one check keeps for later ones of the same token, as far as they will ask; rows along axis 0.

    p: softmax [rows, vocabulary] with its entropy in nats [rows]. best: the ten best tokens [rows, 10].
    """

    p: Tensor | None = None
    entropy: Tensor | None = None
    best: Tensor | None = None

    @classmethod
    def of(cls, reading: Reading, facts: frozenset[str]) -> Kept:
        """What the given facts of the next check with a full head will ask of this one."""
        kept = cls()
        if facts & DIVERGENCES:
            probability = reading.shares / reading.partition.unsqueeze(-1)
            kept = replace(kept, p=probability, entropy=reading.entropy)
        if "top_k_overlap" in facts:
            kept = replace(kept, best=best_of(reading.logits, TOP_K)[0])
        return kept

    def rows(self, rows: Tensor) -> Kept:
        """Some rows of it."""
        parts = (self.p, self.entropy, self.best)
        return Kept(*(None if part is None else part[rows] for part in parts))


@dataclass(frozen=True)
class Chosen:
    """Candidate tokens, int64 [rows, candidates], and their logits at the check that chose them."""

    tokens: Tensor
    then: Tensor

    @classmethod
    def of(cls, reading: Reading) -> Chosen:
        """The best tokens of an exit."""
        return cls(*best_of(reading.logits, CANDIDATES))

    def rows(self, rows: Tensor) -> Chosen:
        """Some rows of them."""
        return Chosen(self.tokens[rows], self.then[rows])

    def score(self, reading: Reading) -> Tensor:
        """`candidate_score` at a later exit: [rows]."""
        now = reading.head.at(reading.normed, self.tokens)
        return reading.probability("candidate_score", candidate_features(now, self.then))


def kl_to_previous(reading: Reading, before: Kept | None) -> Tensor:
    """KL(q || p) with q of the check before: -H(q) - sum q log p; infinite without one."""
    if before is None or before.p is None or before.entropy is None:
        return torch.full_like(reading.partition, torch.inf)
    # The maximum goes first: subtracting the whole log partition at once would lose digits.
    log_p = reading.logits - reading.best[0].unsqueeze(-1)
    log_p.sub_(reading.partition.log().unsqueeze(-1)).clamp_(min=PADDING_LIMIT)  # 0 log 0 is 0, not NaN
    divergence: Tensor = -before.entropy - torch.linalg.vecdot(before.p, log_p)
    return divergence.clamp(min=0)


def js_to_previous(reading: Reading, before: Kept | None) -> Tensor:
    """Jensen-Shannon divergence H((p + q) / 2) - (H(p) + H(q)) / 2 (Lin 1991, section IV); ln 2 at most."""
    if before is None or before.p is None or before.entropy is None:
        return torch.full_like(reading.partition, math.log(2))
    both = torch.addcdiv(before.p, reading.shares, reading.partition.unsqueeze(-1))
    negative = torch.linalg.vecdot(both, both.clamp(min=torch.finfo(both.dtype).tiny).log())
    divergence: Tensor = math.log(2) - 0.5 * (negative + reading.entropy + before.entropy)
    return divergence.clamp(0, math.log(2))


def top_k_overlap(reading: Reading, before: Kept | None) -> Tensor:
    """Share of the ten best tokens that are so at the check before; 0 without one."""
    if before is None or before.best is None:
        return torch.zeros_like(reading.best[0])
    best, _ = best_of(reading.logits, TOP_K)
    return (best[:, :, None] == before.best[:, None, :]).any(-1).float().mean(-1)


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
