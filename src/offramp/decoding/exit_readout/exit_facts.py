"""What a decoder reads at an exit: logits of an output head, and every fact, computed once, if asked for."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.decoding.engine.products import MOST_ROWS, SMALLEST, head_logits, transposed_product
from offramp.defaults import CANDIDATES
from offramp.heads.at_work import (
    HIDDEN_STATE_FACTS,
    TOP_K,
    HeadsAtWork,
    candidate_features,
    confidence_features,
)
from offramp.heads.statistics import (
    BLOCK,
    LOWEST,
    PADDING_LIMIT,
    HeadTransform,
    ShortSoftmax,
    best_columns,
    cosine,
    jensen_shannon,
    kl_divergence,
    logit_gap,
    shared_share,
    short_softmax,
)
from offramp.models.calls import first_tensor
from offramp.models.stack import ExitStack

Block = tuple[Tensor, Tensor | None]
"""Weight and bias of an output head's columns."""


def rows_of(hidden: Tensor, position_axis: int) -> Tensor:
    """Rows [batch, features] of a layer's output for one position.

    position_axis: counted from the end; the axis before it counts sequences. Any other axes are flattened in
    their order, as the tracer does.
    """
    if hidden.dim() == 3 and position_axis == -2:
        return hidden[:, -1]
    return hidden.movedim((position_axis - 1, position_axis), (0, 1))[:, -1].flatten(1)


def hidden_of(rows: Tensor, like: Tensor, position_axis: int) -> Tensor:
    """The layer's output again, of rows [batch, features]; `like` is one of the same shape."""
    if like.dim() == 3 and position_axis == -2:
        return rows.unsqueeze(1)
    moved = like.movedim((position_axis - 1, position_axis), (0, 1))
    return rows.view(moved.shape).movedim((0, 1), (position_axis - 1, position_axis))


CORRECTED = 32
"""Best columns of a rounded product whose logits are computed again in float32."""

PADDING = -1e30
"""Finite and far below any logit, as the tracer pads its vocabulary."""


@dataclass(frozen=True)
class OutputHead:
    """Reads logits out of hidden states.

    linear: whether logits of a few tokens can be computed alone, because the head is one linear layer.
    normed: states behind the tail [rows, 1, features of the head]; with the axis of positions, as in the
    model's own forward, since a product of another shape rounds differently.
    """

    stack: ExitStack
    transposed: bool = False
    """As of the engine."""

    @property
    def linear(self) -> bool:
        """Whether the head is one linear layer behind the tail, and so gives some columns alone."""
        return self.stack.readout_kind == "fast" and self.stack.head_weight is not None

    @property
    def rounds(self) -> bool:
        """Whether its product is rounded, and the best logits can be had in float32."""
        weight = self.stack.head_weight
        return self.linear and weight is not None and weight.dtype != torch.float32

    def vocabulary_size(self) -> int:
        """Tokens that it gives logits of."""
        if self.stack.head_weight is not None:
            return len(self.stack.head_weight)
        return int(self.stack.readout(first_tensor(self.stack.layer_outputs[-1])).shape[-1])

    def output_of_normed(self, normed: Tensor) -> Tensor:
        """The model's own logits in its own dtype, of states behind the tail of a linear head."""
        return head_logits(self.stack, normed, self.transposed)[:, -1]

    def output(self, hidden: Tensor) -> Tensor:
        """The same of one position's hidden states, through the model's own readout: [rows, vocabulary]."""
        logits = self.stack.readout(hidden)
        return logits.reshape(-1, logits.shape[-1])

    def columns(self, tokens: Tensor) -> Block:
        """Weight and bias of some tokens, float32, in one block of memory of their own."""
        weight, bias = self.stack.head_weight, self.stack.head_bias
        assert weight is not None, "only a linear head has columns"
        return weight[tokens].float().contiguous(), None if bias is None else bias[tokens].float()

    def from_block(self, normed: Tensor, block: Block) -> Tensor:
        """Logits, float32 [rows, tokens], of the tokens whose `columns` these are."""
        states, (weight, bias) = normed[:, -1].float(), block
        if self.transposed and len(states) <= MOST_ROWS and weight.numel() >= SMALLEST // 2:
            return self._transformed(transposed_product(weight, bias, states))
        return self._transformed(F.linear(states, weight, bias))

    def at(self, normed: Tensor, tokens: Tensor) -> Tensor:
        """Logits, float32, of each row's own tokens, int64 [rows, tokens]."""
        weight, bias = self.stack.head_weight, self.stack.head_bias
        assert weight is not None, "only a linear head has columns"
        some = F.embedding(tokens, weight).float()  # far quicker than indexing
        logits = torch.bmm(some, normed[:, -1].float().unsqueeze(-1)).squeeze(-1)
        return self._transformed(logits if bias is None else logits + bias[tokens].float())

    def corrected(self, output: Tensor, normed: Tensor) -> Tensor:
        """Logits in float32, the best ones of a rounded product taken again: a step of 0.125 breaks ties."""
        logits = output.float()
        best = logits.topk(min(CORRECTED, logits.shape[-1]), dim=-1).indices
        return logits.scatter(1, best, self.at(normed, best))

    def _transformed(self, logits: Tensor) -> Tensor:
        transform = self.stack.logit_scaling
        assert transform is not None, "a fast readout knows its transform"
        return transform.apply(logits)


def best_of(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Tokens of the largest logits, best first, of equals the lower id, and these logits: [rows, count]."""
    vocabulary = logits.shape[-1]
    padded = F.pad(logits, (0, -vocabulary % BLOCK), value=PADDING)
    return best_columns(padded, HeadTransform(), min(count, vocabulary))


@dataclass(frozen=True)
class Shortlist:
    """The restricted vocabulary."""

    tokens: Tensor
    """int64, ascending."""
    block: Block
    """Their columns (`OutputHead.columns`)."""
    own: Mapping[int, Block] = field(default_factory=dict)
    """By exit, the columns of those whose output head is their own."""


@dataclass(frozen=True)
class Tools:
    """What exits are read with."""

    head: OutputHead
    """The model's."""
    heads: HeadsAtWork | None = None
    """What fitted heads do there, None without any."""
    shortlist: Shortlist | None = None
    own_heads: Mapping[int, OutputHead] = field(default_factory=dict)
    """Those of exits that have one of their own, by exit."""


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
        largest = self.logits.max(-1)
        return largest.values, largest.indices

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
        shortlist = self.tools.shortlist
        assert shortlist is not None, "made ready for a policy that reads it"
        return shortlist

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
    """What one check keeps for later ones of the same token, as far as they will ask; rows along axis 0."""

    p: Tensor | None = None
    """Softmax [rows, vocabulary] with its entropy in nats [rows]."""
    entropy: Tensor | None = None
    best: Tensor | None = None
    """The ten best tokens [rows, 10]."""

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
        return torch.zeros(len(now.states), dtype=torch.float32, device=now.states.device)
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
