"""An exit as it is read now, and every fact a decoder can read there; each is computed once, if asked for."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from offramp.decoding.exit_readout.head import (
    OutputHead,
    best_of,
    hidden_of,
    rows_of,
)
from offramp.heads.at_work import (
    HIDDEN_STATE_FACTS,
    TOP_K,
    HeadsAtWork,
    candidate_features,
    confidence_features,
)
from offramp.heads.statistics import LOWEST, PADDING_LIMIT
from offramp.kit.defaults import CANDIDATES
from offramp.tracing.final_comparison import cosine

Block = tuple[Tensor, Tensor | None]
"""Weight and bias of an output head's columns."""


@dataclass(frozen=True)
class Shortlist:
    """The restricted vocabulary. tokens: int64, ascending. block: their columns (`OutputHead.columns`).

    own: by exit, the columns of those whose output head is their own.
    """

    tokens: Tensor
    block: Block
    own: Mapping[int, Block] = field(default_factory=dict)


@dataclass(frozen=True)
class Tools:
    """What exits are read with.

    head: the model's. own_heads: by exit. heads: what fitted heads do there, None without any.
    """

    head: OutputHead
    heads: HeadsAtWork | None = None
    shortlist: Shortlist | None = None
    own_heads: Mapping[int, OutputHead] = field(default_factory=dict)


class ExitNow:
    """The hidden states of one exit, and what follows from them. Not more than once, and not before asked.

    hidden, before: output and input of the exit's layer [rows, 1, hidden]. output: the model's own logits
    there, where they are known already.
    """

    def __init__(
        self, tools: Tools, exit: int, hidden: Tensor, before: Tensor | None, output: Tensor | None = None
    ) -> None:
        self.tools = tools
        self.exit = exit
        self.hidden = hidden
        self.before = before
        self.head = tools.own_heads.get(exit, tools.head)
        if output is not None:
            self.__dict__["output"] = output  # where the cached property would put it

    @property
    def _axis(self) -> int:
        return self.tools.head.stack.position_axis

    @functools.cached_property
    def states(self) -> Tensor:
        """Hidden states as the layer gave them: [rows, features]."""
        return rows_of(self.hidden, self._axis)

    @functools.cached_property
    def seen(self) -> Tensor:
        """What the final norm is given, as the layer gave it or through the lens: [rows, 1, hidden]."""
        read = None if self.tools.heads is None else self.tools.heads.readings.get(self.exit)
        return self.hidden if read is None else hidden_of(read(self.states), self.hidden, self._axis)

    @functools.cached_property
    def normed(self) -> Tensor:
        """The same behind the final norm, for a linear head: [rows, 1, features of the head]."""
        return self.head.stack.tail_forward(self.seen)

    @functools.cached_property
    def output(self) -> Tensor:
        """Logits as the exit's head gives them, in the model's dtype: [rows, vocabulary]."""
        head = self.head
        return head.output_of_normed(self.normed) if head.linear else head.output(self.seen)

    @functools.cached_property
    def logits(self) -> Tensor:
        """Logits that facts are made of, float32: as exact at the top as the tracer's."""
        head = self.head
        return head.corrected(self.output, self.normed) if head.rounds else self.output.float()

    @functools.cached_property
    def best(self) -> tuple[Tensor, Tensor]:
        """The largest logit and its token, the lowest of equals: [rows] each."""
        found = self.logits.max(-1)
        return found.values, found.indices

    @functools.cached_property
    def second(self) -> Tensor:
        """The second largest logit: [rows]."""
        return self.logits.scatter(1, self.best[1].unsqueeze(-1), -torch.inf).amax(-1)

    @functools.cached_property
    def shifted(self) -> Tensor:
        """Logits less their maximum, which keeps digits: [rows, vocabulary]."""
        return (self.logits - self.best[0].unsqueeze(-1)).clamp_(min=LOWEST)

    @functools.cached_property
    def shares(self) -> Tensor:
        """The softmax before it is divided by its sum: [rows, vocabulary]."""
        return self.shifted.exp()

    @functools.cached_property
    def partition(self) -> Tensor:
        """That sum: [rows]."""
        return self.shares.sum(-1)

    @functools.cached_property
    def entropy(self) -> Tensor:
        """In nats: [rows]."""
        weighted = torch.linalg.vecdot(self.shares, self.shifted)
        entropy: Tensor = self.partition.log() - weighted / self.partition
        return entropy.clamp(min=0)

    @functools.cached_property
    def max_prob(self) -> Tensor:
        """Largest probability: [rows]."""
        return 1.0 / self.partition

    @functools.cached_property
    def margin(self) -> Tensor:
        """Difference of the two largest probabilities: [rows]."""
        return (1.0 - (self.second - self.best[0]).exp()) / self.partition

    @property
    def shortlist(self) -> Shortlist:
        """The restricted vocabulary."""
        found = self.tools.shortlist
        assert found is not None, "made ready for a policy that reads it"
        return found

    @functools.cached_property
    def short_logits(self) -> Tensor:
        """Logits of the short list, float32 [rows, tokens]."""
        block = self.shortlist.own.get(self.exit, self.shortlist.block)
        return self.head.from_block(self.normed, block)

    @functools.cached_property
    def short(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of a softmax over the short list: place of the best token, its probability, the margin: [rows]."""
        maximum, place = self.short_logits.max(-1, keepdim=True)
        shares = (self.short_logits - maximum).clamp_(min=LOWEST).exp_()
        total = shares.sum(-1)
        second = shares.scatter_(1, place, 0.0).amax(-1)
        return place[:, 0], 1.0 / total, (1.0 - second) / total

    def probability(self, fact: str, features: Tensor) -> Tensor:
        """What the classifier that gives a fact says at this exit of features [rows, features]."""
        assert self.tools.heads is not None, "asked for where the heads give the fact"
        return self.tools.heads.classifiers[fact, self.exit](features)


DIVERGENCES = frozenset({"kl_to_previous", "js_to_previous"})


@dataclass(frozen=True)
class EarlierCheck:
    """What one check keeps for later ones of the same token, as far as they will ask; rows along axis 0.

    p: softmax [rows, vocabulary] with its entropy in nats [rows]. best: the ten best tokens [rows, 10].
    """

    p: Tensor | None = None
    entropy: Tensor | None = None
    best: Tensor | None = None

    @classmethod
    def of(cls, reading: ExitNow, facts: frozenset[str]) -> EarlierCheck:
        """What the given facts of the next check with a full head will ask of this one."""
        kept = cls()
        if facts & DIVERGENCES:
            probability = reading.shares / reading.partition.unsqueeze(-1)
            kept = replace(kept, p=probability, entropy=reading.entropy)
        if "top_k_overlap" in facts:
            kept = replace(kept, best=best_of(reading.logits, TOP_K)[0])
        return kept

    def rows(self, rows: Tensor) -> EarlierCheck:
        """Some rows of it."""
        parts = (self.p, self.entropy, self.best)
        return EarlierCheck(*(None if part is None else part[rows] for part in parts))


@dataclass(frozen=True)
class ChosenTokens:
    """Candidate tokens, int64 [rows, candidates], and their logits at the check that chose them."""

    tokens: Tensor
    then: Tensor

    @classmethod
    def of(cls, reading: ExitNow) -> ChosenTokens:
        """The best tokens of an exit."""
        return cls(*best_of(reading.logits, CANDIDATES))

    def rows(self, rows: Tensor) -> ChosenTokens:
        """Some rows of them."""
        return ChosenTokens(self.tokens[rows], self.then[rows])

    def score(self, reading: ExitNow) -> Tensor:
        """`candidate_score` at a later exit: [rows]."""
        now = reading.head.at(reading.normed, self.tokens)
        return reading.probability("candidate_score", candidate_features(now, self.then))


def kl_to_previous(reading: ExitNow, before: EarlierCheck | None) -> Tensor:
    """KL(q || p) with q of the check before: -H(q) - sum q log p; infinite without one."""
    if before is None or before.p is None or before.entropy is None:
        return torch.full_like(reading.partition, torch.inf)
    # The maximum goes first: subtracting the whole log partition at once would lose digits.
    log_p = reading.logits - reading.best[0].unsqueeze(-1)
    log_p.sub_(reading.partition.log().unsqueeze(-1)).clamp_(min=PADDING_LIMIT)  # 0 log 0 is 0, not NaN
    divergence: Tensor = -before.entropy - torch.linalg.vecdot(before.p, log_p)
    return divergence.clamp(min=0)


def js_to_previous(reading: ExitNow, before: EarlierCheck | None) -> Tensor:
    """Jensen-Shannon divergence H((p + q) / 2) - (H(p) + H(q)) / 2 (Lin 1991, section IV); ln 2 at most."""
    if before is None or before.p is None or before.entropy is None:
        return torch.full_like(reading.partition, math.log(2))
    both = torch.addcdiv(before.p, reading.shares, reading.partition.unsqueeze(-1))
    negative = torch.linalg.vecdot(both, both.clamp(min=torch.finfo(both.dtype).tiny).log())
    divergence: Tensor = math.log(2) - 0.5 * (negative + reading.entropy + before.entropy)
    return divergence.clamp(0, math.log(2))


def top_k_overlap(reading: ExitNow, before: EarlierCheck | None) -> Tensor:
    """Share of the ten best tokens that are so at the check before; 0 without one."""
    if before is None or before.best is None:
        return torch.zeros_like(reading.best[0])
    best, _ = best_of(reading.logits, TOP_K)
    return (best[:, :, None] == before.best[:, None, :]).any(-1).float().mean(-1)


@dataclass(frozen=True)
class Look:
    """One exit, and what earlier checks of the same token kept, None where there were none."""

    reading: ExitNow
    previous: EarlierCheck | None
    chosen: ChosenTokens | None


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
