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
from offramp.heads.statistics import (
    LOWEST,
    PADDING_LIMIT,
    ShortSoftmax,
    cosine,
    jensen_shannon,
    kl_divergence,
    logit_gap,
    shared_share,
    short_softmax,
)
from offramp.kit.defaults import CANDIDATES

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

    hidden, before: output and input of the exit's layer [rows, 1, hidden]. previous, chosen: what earlier
    checks of the same token kept, None where there were none. output: the model's own logits there, where
    they are known already.
    """

    def __init__(
        self,
        tools: Tools,
        exit: int,
        hidden: Tensor,
        before: Tensor | None,
        previous: EarlierCheck | None = None,
        chosen: ChosenTokens | None = None,
        output: Tensor | None = None,
    ) -> None:
        self.tools = tools
        self.previous = previous
        self.chosen = chosen
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
    def short(self) -> ShortSoftmax:
        """A softmax over the short list."""
        return short_softmax(self.short_logits)

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


def _hidden_cosine(now: ExitNow) -> Tensor:
    if now.before is None:
        raise LookupError(f"the state before layer {now.exit} is needed, and was not given")
    after = now.states.float()
    before = rows_of(now.before, now.tools.head.stack.position_axis).float()
    dot = torch.linalg.vecdot(before, after)
    return cosine(dot, torch.linalg.vecdot(before, before), torch.linalg.vecdot(after, after))


def _kl_to_previous(now: ExitNow) -> Tensor:
    q = now.previous
    if q is None or q.p is None or q.entropy is None:
        return torch.full_like(now.partition, torch.inf)
    # The maximum goes first: subtracting the whole log partition at once would lose digits.
    log_p = now.logits - now.best[0].unsqueeze(-1)
    log_p.sub_(now.partition.log().unsqueeze(-1)).clamp_(min=PADDING_LIMIT)  # 0 log 0 is 0, not NaN
    return kl_divergence(q.entropy, torch.linalg.vecdot(q.p, log_p))


def _js_to_previous(now: ExitNow) -> Tensor:
    q = now.previous
    if q is None or q.p is None or q.entropy is None:
        return torch.full_like(now.partition, math.log(2))
    both = torch.addcdiv(q.p, now.shares, now.partition.unsqueeze(-1))
    negative = torch.linalg.vecdot(both, both.clamp(min=torch.finfo(both.dtype).tiny).log())
    return jensen_shannon(negative, now.entropy, q.entropy)


def _top_k_overlap(now: ExitNow) -> Tensor:
    if now.previous is None or now.previous.best is None:
        return torch.zeros_like(now.best[0])
    return shared_share(best_of(now.logits, TOP_K)[0], now.previous.best)


def _candidate_score(now: ExitNow) -> Tensor:
    if now.chosen is None:
        return torch.zeros(len(now.states), device=now.states.device)
    logits = now.head.at(now.normed, now.chosen.tokens)
    return now.probability("candidate_score", candidate_features(logits, now.chosen.then))


def _of_state(fact: str) -> Callable[[ExitNow], Tensor]:
    return lambda now: now.probability(fact, now.states)


READERS: Mapping[str, Callable[[ExitNow], Tensor]] = {
    "top1": lambda now: now.best[1],
    "max_prob": lambda now: now.max_prob,
    "margin": lambda now: now.margin,
    "logit_gap": lambda now: logit_gap(now.best[0], now.second),
    "entropy": lambda now: now.entropy,
    "kl_to_previous": _kl_to_previous,
    "js_to_previous": _js_to_previous,
    "top_k_overlap": _top_k_overlap,
    "restricted_top1": lambda now: now.shortlist.tokens[now.short.place],
    "restricted_max_prob": lambda now: now.short.max_prob,
    "restricted_margin": lambda now: now.short.margin,
    "hidden_cosine_to_previous": _hidden_cosine,
    "adainfer": lambda now: now.probability("adainfer", confidence_features(now.max_prob, now.margin)),
    "candidate_score": _candidate_score,
    **{fact: _of_state(fact) for fact in HIDDEN_STATE_FACTS},
}
"""Values [rows] of a fact: float32, token ids int64."""
